"""`python -m tests.crash --kills 100`: kills runs until that many were killed, and says how they ended."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import secrets
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from crash.harness import SCENARIOS, torture


def main() -> int:
    """The exit code: 0 where every run ended as the one that nobody killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; another one each time by default")
    given = parser.parse_args()
    seed, began = secrets.randbits(32) if given.seed is None else given.seed, time.monotonic()
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        runs = {name: torture(_folder(scratch, k), name, seed, lambda line: print(line, flush=True))
                for k, name in enumerate(SCENARIOS)}  # fmt: skip
        counts = {name: next(run) for name, run in runs.items()}
        while sum(count.kills for count in counts.values()) < given.kills:
            fewest = min(counts, key=lambda name: counts[name].kills)
            counts[fewest] = next(runs[fewest])
    print(f"\n{'':20}{'kills':>8}{'resumes':>10}{'runs':>8}{'differences':>14}")
    for name, count in counts.items():
        print(f"{name:20}{count.kills:8}{count.resumes:10}{count.runs:8}{count.differences:14}")
    total = [
        sum(getattr(count, key) for count in counts.values()) for key in ("kills", "resumes", "runs", "differences")
    ]
    print(f"{'all':20}{total[0]:8}{total[1]:10}{total[2]:8}{total[3]:14}   in {time.monotonic() - began:.0f} s")
    return int(total[3] > 0)


def _folder(scratch: str, number: int) -> Path:
    folder = Path(scratch) / str(number)
    folder.mkdir()
    return folder


if __name__ == "__main__":
    sys.exit(main())
