"""`python -m tests.fuzz [--minutes 10] [--seed 1] [reader ...]`: exit code 1 where a reader failed."""

from __future__ import annotations

import argparse
import logging
import platform
import resource
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from tests.fuzz.attack import attack
from tests.fuzz.readers import make_readers

MEMORY = 8 << 30  # bytes of address space: a file that fills the memory is a failure, and not the machine's end


def main() -> int:
    """Attack the readers named, or the four that read what users exchange most, and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("readers", nargs="*", help="config, data, journal, trace by default; `all` for every one")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each reader")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.getLogger("retain").setLevel(logging.ERROR)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    packages = ", ".join(f"{name} {version(name)}" for name in ("hypothesis", "pyarrow", "pydantic", "pyyaml"))
    print(f"Python {platform.python_version()}, {packages}; seed {options.seed}", flush=True)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        readers = make_readers(Path(folder) / "seed")
        names = (
            list(readers) if options.readers == ["all"] else options.readers or ["config", "data", "journal", "trace"]
        )
        for name in names:
            found = attack(readers[name], options.minutes * 60, options.seed, Path(folder))
            failed += len(found.failures)
            print(f"{name}: {found.inputs} inputs in {options.minutes:g} min, {found.refused} refused, "
                  f"{len(found.failures)} failures", flush=True)  # fmt: skip
            for text in found.failures.values():
                print(f"  {text}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
