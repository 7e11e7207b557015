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
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))


def start(
    values: dict,
    folder: Path,
    out: Path,
    size: int = 1,
    sharded: bool = False,
    prepare: Callable[[int], None] = lambda rank: None,
) -> list[int]:
    """Run a configuration on forked processes; returns their ids, the rank of each being its place.

    prepare: what a child of this rank does before.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        where = {"MASTER_ADDR": "localhost", "MASTER_PORT": free.getsockname()[1], "WORLD_SIZE": size}
    sharding = {"ACCELERATE_USE_FSDP": sharded}
    launched = [where | sharding | {"RANK": rank, "LOCAL_RANK": rank} if size > 1 else {} for rank in range(size)]
    return [_start(values, folder, out, launched[rank], lambda rank=rank: prepare(rank)) for rank in range(size)]


def end(children: Sequence[int]) -> int:
    """Wait for the processes, and kill the others as soon as one fails, as a launcher does; returns the exit code of
    that one, or minus the signal that ended it."""
    left, first = set(children), 0
    while left:
        child, status = os.waitpid(-1, 0)
        left.discard(child)
        if not first and (first := os.waitstatus_to_exitcode(status)):
            for other in left:
                os.kill(other, signal.SIGKILL)
    return first


def _start(values: dict, folder: Path, out: Path, launched: dict, prepare: Callable[[], None]) -> int:
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
        os.environ |= {name: str(value) for name, value in launched.items()}
        prepare()
        retain.run.run(make_config(values, "ranks"), folder, out)
        code = 0
    except BaseException:
        traceback.print_exc(file=sys.stdout)
    finally:
        sys.stdout.flush()
        os._exit(code)
    return 0


def run_jobs(jobs: Sequence[dict], folder: Path) -> None:
    """Run jobs (the arguments of `start`) one after another in a process of their own; one that is to `stop` does."""
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs, default=str))
    command = [sys.executable, "-m", "tests.ranks", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    codes = [int(line.removeprefix("exit ")) for line in done.stdout.splitlines() if line.startswith("exit ")]
    assert [code != 0 for code in codes] == ["stop" in job for job in jobs], done.stdout


def main() -> None:
    """The jobs of a file."""
    import retain.run  # noqa: F401 - imported here, so that children need not

    for job in json.loads(Path(sys.argv[1]).read_text()):
        where = (Path(job["folder"]), Path(job["out"]))
        children = start(
            job["values"], *where, job["size"], job["sharded"], partial(_stop, *job.get("stop", (None, 0)))
        )
        print("exit", end(children), flush=True)


def _stop(asked: int | None, after: int, rank: int) -> None:
    """Have the process `asked` be asked to stop while it takes this step of the second stage."""
    from retain.trainer import Optimization

    real = Optimization.step

    def step(self, *arguments):
        if (rank, self.seed[1], self.done) == (asked, 2, after - 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    Optimization.step = step


if __name__ == "__main__":
    main()
