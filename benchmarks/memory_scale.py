"""How the memory of large buffers scales: bytes a sample, and seconds of this process for each operation.

python benchmarks/memory_scale.py                      # 10 000 to 1 000 000 samples
python benchmarks/memory_scale.py --samples 10000000 --buffer 0    # 10 million need about 3 GB
python benchmarks/memory_scale.py --arrays 20000000    # the arrays alone, as a shard without ids would hold them
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from retain.buffer import Buffer
from retain.memory import dynamics, random
from retain.memory.draw import gumbel_top_k
from retain.memory.state import STATE, MemoryState
from retain.sections import BufferConfig, MemoryConfig
from retain.types import Sample

DRAWN = 256


def timed(operation: Callable[[], object]) -> float:
    """Seconds of the faster of two calls."""
    seconds = []
    for _ in range(2):
        start = time.process_time()
        operation()
        seconds.append(time.process_time() - start)
    return min(seconds)


def resident() -> float:
    """Bytes this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def measure_memory(count: int) -> dict[str, float]:
    """The memory of `count` samples with ids."""
    before = resident()
    rng = np.random.default_rng(0)
    ids = [f"task{row % 7}/{row}" for row in range(count)]
    state = MemoryState(MemoryConfig(), time_unit=15.9)
    start = time.process_time()
    state.add(ids, 0, rng.gamma(2.0, 1.0, count))
    found = {"add": time.process_time() - start, "bytes a sample": (resident() - before) / count}
    steps = iter(range(10, 1000))
    found["refresh"] = timed(lambda: state.refresh(next(steps)))
    found["draw"] = timed(lambda: state.draw(DRAWN, 500, stage=1, event=1))
    found["draw, all stale"] = timed(lambda: state.draw(DRAWN, 500, stage=1, event=1, stale_after=1.0))
    found["observe"] = timed(lambda: state.observe(ids[:DRAWN], [1.0] * DRAWN))
    found["review"] = timed(lambda: state.review(ids[:DRAWN], [1.0] * DRAWN, 600))
    last = iter(ids[::-1])
    found["remove one"] = timed(lambda: state.remove([next(last)]))
    return found


def measure_buffer(count: int) -> dict[str, float]:
    """Saving and loading a buffer whose samples have about 400 characters."""
    text = "a" * 390
    buffer = Buffer(BufferConfig(capacity=count), MemoryConfig())
    before = resident()
    samples = [Sample(f"task/{row}", "task", f"{row:08d}{text}", "yes") for row in range(count)]
    found = {"text bytes a sample": (resident() - before) / count}
    start = time.process_time()
    buffer.admit(samples, 0, {}, 1)
    found["admit"] = time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        buffer.save(Path(folder))
        found["save"] = time.process_time() - start
        found["file bytes a sample"] = sum(path.stat().st_size for path in Path(folder).iterdir()) / count
        start = time.process_time()
        Buffer.load(Path(folder), BufferConfig(capacity=count), MemoryConfig())
        found["load"] = time.process_time() - start
    return found


def measure_arrays(count: int) -> dict[str, float]:
    """What a shard without ids would cost: the columns, the quantiles and a draw."""
    rng = np.random.default_rng(0)
    columns = {name: np.zeros(count, dtype) for name, dtype in STATE.items()}
    columns["ema_loss"] = rng.random(count)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    size = sum(column.nbytes for column in columns.values()) + hashes.nbytes
    return {
        "bytes a sample": size / count,
        "quantiles": timed(lambda: dynamics.loss_quantiles(columns["ema_loss"], 0.05, 0.95)),
        "draw": timed(lambda: gumbel_top_k(columns["log_strength"], random.bits(42, 1, 1, 1, hashes=hashes), DRAWN)),
    }


def main() -> None:
    """Print a column a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--buffer", type=int, default=100_000, help="samples with texts, saved and loaded; 0: none")
    parser.add_argument("--arrays", type=int, help="only the arrays, of so many samples")
    options = parser.parse_args()
    if options.arrays:
        show(f"{options.arrays:,} rows", measure_arrays(options.arrays))
        return
    for count in options.samples:
        show(f"{count:,} samples", measure_memory(count))
    if options.buffer:
        show(f"a buffer of {options.buffer:,}", measure_buffer(options.buffer))
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def show(title: str, found: dict[str, float]) -> None:
    """One line for each figure."""
    print(title)
    for name, value in found.items():
        print(f"  {name:22s} {value:12,.1f}" if "bytes" in name else f"  {name:22s} {value:12.4f} s")


if __name__ == "__main__":
    main()
