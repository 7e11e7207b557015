"""Runs on several processes, forked as a launcher would start them: `python -m tests.ranks JOBS.json`.

Children are forked from a process that has imported everything and computed nothing, so a start takes no time.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import json
import logging
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))


def start(values: dict, folder: Path, out: Path, size: int, sharded: bool = False) -> list[int]:
    """Run a configuration on forked processes; returns their ids, the rank of each being its place."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [_start(values, folder, out, rank, size, port, sharded) for rank in range(size)]


def end(children: Sequence[int]) -> list[int]:
    """Wait for the processes, and kill the others as soon as one fails, as a launcher does; their exit codes."""
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        child, status = os.waitpid(-1, 0)
        codes[child] = os.waitstatus_to_exitcode(status)
        if codes[child]:
            for other in set(children) - codes.keys():
                os.kill(other, signal.SIGKILL)
    return [codes[child] for child in children]


def _start(values: dict, folder: Path, out: Path, rank: int, size: int, port: int, sharded: bool) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        import torch

        import retain.run
        from retain.config import make_config

        torch.set_num_threads(1)
        logging.getLogger("retain").setLevel(logging.ERROR)
        if size > 1:
            where = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": size, "RANK": rank}
            os.environ |= {name: str(value) for name, value in (where | {"LOCAL_RANK": rank}).items()}
            os.environ["ACCELERATE_USE_FSDP"] = str(sharded).lower()
        retain.run.run(make_config(values, "ranks"), folder, out)
        code = 0
    except BaseException:
        traceback.print_exc(file=sys.stdout)
    finally:
        sys.stdout.flush()
        os._exit(code)
    return 0


def run_jobs(jobs: Sequence[dict], folder: Path) -> list[list[int]]:
    """Run jobs (`values`, `folder`, `out`, `size`, `sharded`) one after another in a process of their own; exit codes."""
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs, default=str))
    command = [sys.executable, "-m", "tests.ranks", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def main() -> None:
    """The jobs of a file."""
    import retain.run  # noqa: F401 - imported here, so that children need not

    for job in json.loads(Path(sys.argv[1]).read_text()):
        where = (Path(job["folder"]), Path(job["out"]))
        print(json.dumps(end(start(job["values"], *where, job["size"], job.get("sharded", False)))), flush=True)


if __name__ == "__main__":
    main()
