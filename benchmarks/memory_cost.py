"""What the memory model costs.

python benchmarks/memory_cost.py                 # the two requirements, exit 3 when one is missed
python benchmarks/memory_cost.py --whole-step    # with the schedule: all that a training step pays
python benchmarks/memory_cost.py --tracked 100000 --priority risk
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import numpy as np

from retain.config import Config
from retain.memory.state import MemoryState
from retain.replayer import Replayer
from retain.scheduler import plan_run
from retain.sections import MemoryConfig

LARGE_LIMIT = 0.5  # seconds for a refresh and a draw of 256 from a million
STEP_LIMIT = 1e-3  # seconds for query, draw, review and observe at 1024 samples
WHOLE_LIMIT = 2e-3  # seconds for memory, schedule and sampling of a training step at 1024


def filled(count: int, priority: str) -> MemoryState:
    """`count` tracked samples, half of them reviewed at different steps."""
    rng = np.random.default_rng(0)
    ids = [f"task{row % 7}/{row}" for row in range(count)]
    state = MemoryState(MemoryConfig(priority=priority), time_unit=15.9)
    state.add(ids, 0, rng.gamma(2.0, 1.0, count))
    state.refresh(10)
    for step in range(1, 9):
        chosen = rng.choice(count, count // 16, replace=False)
        state.review([ids[row] for row in chosen], rng.gamma(2.0, 1.0, len(chosen)), 10 + 5 * step)
    return state


def refresh_and_draw(count: int, priority: str, stale_after: float | None) -> list[float]:
    """Seconds of a refresh plus a draw of 256."""
    state, seconds = filled(count, priority), []
    for repeat in range(5):
        start = time.perf_counter()
        state.refresh(100 + repeat)
        state.draw(256, 100 + repeat, stage=1, event=repeat, stale_after=stale_after)
        seconds.append(time.perf_counter() - start)
    return seconds


def memory_steps(count: int, priority: str) -> list[float]:
    """Seconds a step of query, draw of 8, review and observe, with a refresh every 50 steps."""
    state, seconds = filled(count, priority), []
    losses = [1.0] * 8
    for step in range(100, 1100):
        start = time.perf_counter()
        state.log_strengths(step)
        ids = state.draw(8, step, stage=1, event=step, stale_after=1000)
        state.observe(ids, losses)
        state.review(ids, losses, step)
        if step % 50 == 0:
            state.refresh(step)
        seconds.append(time.perf_counter() - start)
    return seconds


def whole_steps(count: int, priority: str) -> list[float]:
    """Seconds a training step pays for schedule, sampling and memory, an event at every step."""
    config = Config(
        tasks=[{"name": "first", "train": "-"}, {"name": "second", "train": "-"}],
        schedule={"kind": "every", "ratio_form": "constant"},
        memory={"priority": priority},
        buffer={"capacity": count},
    )
    plan = plan_run(config, [("first", count), ("second", 8000)])[1]
    memory = filled(count, priority)
    replayer, seconds = Replayer(plan, config, 2, 100, memory), []
    for step in range(1, plan.steps + 1):
        start = time.perf_counter()
        ids = replayer.draw(step)
        memory.review(ids, [1.0] * len(ids), 100 + step)
        if step % 25 == 0:
            memory.refresh(100 + step)
        seconds.append(time.perf_counter() - start)
    return seconds


def report(name: str, seconds: list[float], limit: float) -> bool:
    """Print the mean and the worst, and whether the mean is within the limit."""
    mean, held = statistics.fmean(seconds), statistics.fmean(seconds) <= limit
    figures = f"mean {mean * 1e3:.3f} ms, worst {max(seconds) * 1e3:.3f} ms, limit {limit * 1e3:g} ms"
    print(f"{name}: {figures}: {'ok' if held else 'TOO SLOW'}")
    return held


def main() -> int:
    """Exit code 0 when every limit held, 3 when one did not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracked", type=int, default=1_000_000, help="samples in the large memory")
    parser.add_argument("--buffer", type=int, default=1024, help="samples in the ordinary memory")
    parser.add_argument("--priority", default="retention", help="retention, risk, gain or uniform")
    parser.add_argument("--whole-step", action="store_true", help="with the schedule, as training pays it")
    options = parser.parse_args()
    if options.whole_step:
        name = f"memory, schedule and sampling a step at {options.buffer}"
        return 0 if report(name, whole_steps(options.buffer, options.priority), WHOLE_LIMIT) else 3
    name = f"refresh and draw of 256 at {options.tracked:,}"
    results = [
        report(name, refresh_and_draw(options.tracked, options.priority, None), LARGE_LIMIT),
        report(f"{name}, all stale", refresh_and_draw(options.tracked, options.priority, 1), LARGE_LIMIT),
        report(
            f"query, draw, review and observe a step at {options.buffer}",
            memory_steps(options.buffer, options.priority),
            STEP_LIMIT,
        ),
    ]
    return 0 if all(results) else 3


if __name__ == "__main__":
    sys.exit(main())
