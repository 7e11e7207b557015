"""Throw files at one reader until time is up, and tell apart what it failed at."""

from __future__ import annotations

import shutil
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis
from hypothesis import HealthCheck, Phase

from retain.types import InputError
from tests.fuzz.readers import Reader

PATIENCE = 20  # seconds for one file
LONGEST = 20_000  # characters of a message
BATCH = 200  # inputs a round; each round has a seed of its own


@dataclass
class Outcome:
    """What an attack came to: inputs, how many of them were refused, and one example of each failure."""

    inputs: int = 0
    refused: int = 0
    failures: dict[str, str] = field(default_factory=dict)


def attack(reader: Reader, seconds: float, seed: int, folder: Path, most: int | None = None) -> Outcome:
    """Attack until `seconds` have passed, or with `most` inputs. `folder` is scratch; its neighbors are watched."""
    outcome, end, number = Outcome(), time.monotonic() + seconds, 0
    while time.monotonic() < end and (most is None or outcome.inputs < most):
        _round(reader, f"{seed}-{number}", min(BATCH, most or BATCH), end, folder, outcome)
        number += 1
    return outcome


def _round(reader: Reader, seed: str, count: int, end: float, folder: Path, outcome: Outcome) -> None:
    settings = hypothesis.settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip

    @hypothesis.seed(seed)
    @settings
    @hypothesis.given(reader.files)
    def throw(files: dict[str, bytes]) -> None:
        if time.monotonic() < end:
            outcome.inputs += 1
            _one(reader, files, folder, outcome)

    throw()


def _one(reader: Reader, files: dict[str, bytes], folder: Path, outcome: Outcome) -> None:
    with TemporaryDirectory(dir=folder) as scratch:
        target = Path(scratch) / "target"
        target.mkdir()
        for name, content in files.items():
            (target / name).write_bytes(content)
        try:
            with _limited(PATIENCE):
                reader.read(target)
        except InputError as error:
            outcome.refused += 1
            _check_message(str(error), files, outcome)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            place = traceback.extract_tb(error.__traceback__)[-1]
            inside = [frame for frame in traceback.extract_tb(error.__traceback__) if "retain/" in frame.filename]
            at = (
                f"{Path(inside[-1].filename).name}:{inside[-1].lineno}"
                if inside
                else f"{place.filename}:{place.lineno}"
            )
            _note(
                f"{type(error).__name__} at {at}: {str(error)[:150]!r}", f"{type(error).__name__} {at}", files, outcome
            )
        beside = [path.name for path in Path(scratch).iterdir() if path.name != "target"]
        if beside:
            _note(f"wrote beside its folder: {beside}", "escape", files, outcome)
            shutil.rmtree(Path(scratch) / beside[0], ignore_errors=True)


def _check_message(text: str, files: dict[str, bytes], outcome: Outcome) -> None:
    if not text.strip() or len(text) > LONGEST:
        _note(f"a message of {len(text)} characters: {text[:300]!r}", "message " + text[-40:], files, outcome)


def _note(what: str, key: str, files: dict[str, bytes], outcome: Outcome) -> None:
    shown = "; ".join(f"{name}: {content[:400]!r}" for name, content in files.items())
    outcome.failures.setdefault(key, f"{what}\n    {shown[:1500]}")


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
