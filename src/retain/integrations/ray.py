"""The cells of a comparison as tasks of a Ray cluster, one cell a task."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from retain.compare import Commands
from retain.types import InputError


def on_ray(commands: Commands, logs: Path, jobs: int) -> Iterator[tuple[str, int]]:
    """Run commands on the cluster that `ray.init` finds, or here; yields label and exit code as they end.

    Each takes a GPU where the cluster has any, else `jobs` cores; Ray decides how many run at a time. All machines need
    the same Python environment and the comparison's folders at the same paths. Raises InputError without Ray.
    """
    try:
        import ray
    except ImportError:
        raise InputError("--engine: ray is not installed; run `pip install 'retain[ray]'`, or use local") from None
    logs.mkdir(parents=True, exist_ok=True)
    ray.init(ignore_reinit_error=True)
    on_gpu = ray.cluster_resources().get("GPU", 0) > 0

    def call(label: str, command: list[str]) -> int:
        with open(logs.absolute() / f"{label}.log", "ab") as file:
            return subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode

    task = ray.remote(num_cpus=1 if on_gpu else jobs, num_gpus=int(on_gpu), max_retries=0)(call)
    waiting = {task.remote(label, command): label for label, command in commands}
    while waiting:
        ready, _ = ray.wait(list(waiting), num_returns=1)
        for one in ready:
            yield waiting.pop(one), ray.get(one)
