"""The directory of a process that only follows: a scratch copy of the run's, which number 0 alone keeps."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

from retain.config import dump_config, load_config
from retain.holder import HOLDER, LOCK
from retain.relocation import relocate
from retain.rundir import RunDir
from retain.types import InputError


def follow(out: Path) -> RunDir:
    """A copy of the run in `out` under the system's folder for temporary files; it goes with the object returned.

    Every process runs the same program and so writes the same files; what differs between them (logs, times, memory)
    counts as number 0 saw it. Checkpoints are resumed from, so all processes must see `out`.
    """
    if not (out / "config.yaml").is_file():
        raise InputError(f"output: {out} is not to be seen by every process; put it on a file system that all share")
    scratch = Path(tempfile.mkdtemp(prefix="retain-"))
    copy = RunDir(scratch / "run")
    weakref.finalize(copy, shutil.rmtree, scratch, ignore_errors=True)
    shutil.copytree(out, copy.path, ignore=shutil.ignore_patterns(LOCK, HOLDER, "report.html"))
    config = load_config(copy.config_file, need_tasks=False)
    copy.config_file.write_text(dump_config(relocate(config, out, copy.path)), encoding="utf-8")
    return copy
