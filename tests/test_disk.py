"""A disk that is full or can only be read: one message, nothing lost that was finished, and the run goes on later."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from test_run import adapter, journal, results, same_tensors
from tiny import tiny_values
from typer.testing import CliRunner

from retain.cli import app
from retain.files import append_line, write_json

DISK = 2_000_000  # bytes


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A configuration and the run that it leads to on a disk with room."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "run.yaml").write_text(yaml.safe_dump(tiny_values(folder)))
    assert command(folder, folder / "run").exit_code == 0
    return folder


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = _mount("-t", "tmpfs", "-o", f"size={DISK}", "none", place)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def _mount(*arguments):
    if shutil.which("mount") is None:
        return subprocess.CompletedProcess(arguments, 1, "", "there is no mount")
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)


def command(folder: Path, out: Path):
    """`retain run` in this process: its exit code and what it said."""
    logging.getLogger("retain").handlers.clear()  # else one keeps the last command's stream
    return CliRunner().invoke(app, ["run", str(folder / "run.yaml"), "--out", str(out)])


def fill(disk: Path, free: int) -> Path:
    """Leave about `free` bytes on the disk."""
    ballast, state = disk / "ballast", os.statvfs(disk)
    ballast.write_bytes(b"x" * (state.f_bavail * state.f_frsize - free))
    return ballast


def one_message(done, code: int, text: str):
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.exit_code == code and "Traceback" not in done.stderr, done.stderr
    assert len(said) == 1 and text in said[0], done.stderr


@pytest.mark.parametrize("free", [0, 60_000, 160_000])
def test_a_full_disk(free, reference, disk):
    """The less is free the earlier it is full: at the claim, in the first row, in the first stage, in a later one."""
    out = disk / "run"
    ballast = fill(disk, free)
    done = command(reference, out)
    one_message(done, 1, "no space left on the disk")
    finished = {path: path.read_bytes() for path in out.glob("stages/[0-9]*/**/*") if path.is_file()}
    ballast.unlink()
    again = command(reference, out)
    assert again.exit_code == 0, again.stderr
    assert results(out)["matrices"] == results(reference / "run")["matrices"]
    assert same_tensors(adapter(out), adapter(reference / "run"))
    kept = {path for path in finished if "/buffer/" not in str(path)}  # a buffer moves on
    assert all(path.read_bytes() == finished[path] for path in kept), "what was finished was not done again"
    assert len(journal(out, "stage_start")) <= 4


def test_a_disk_that_can_only_be_read(reference, disk):
    out = disk / "run"
    assert _mount("-o", "remount,ro", disk).returncode == 0
    one_message(command(reference, out), 2, "cannot be written: Read-only file system")
    _mount("-o", "remount,rw", disk)
    assert command(reference, out).exit_code == 0
    whole = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    _mount("-o", "remount,ro", disk)
    one_message(command(reference, out), 2, "cannot be written")
    assert whole == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_line_that_does_not_fit_leaves_the_journal_as_it_was(disk):
    path = disk / "journal.jsonl"
    append_line(path, {"kind": "one"})
    fill(disk, 4096)
    with pytest.raises(OSError, match="No space left on device"):
        append_line(path, {"kind": "x" * 100_000})
    assert path.read_text() == '{"kind": "one"}\n'


def test_a_file_that_does_not_fit_leaves_the_old_one(disk):
    path = disk / "results.json"
    write_json(path, {"old": 1})
    fill(disk, 4096)
    with pytest.raises(OSError, match="No space left on device"):
        write_json(path, {"new": "x" * 100_000})
    assert "old" in path.read_text() and sorted(p.name for p in disk.iterdir()) == ["ballast", "results.json"]
