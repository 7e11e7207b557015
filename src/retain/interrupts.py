"""Signals that ask a process to stop: it raises `Stopped`, in a stage after the step is finished and saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal asked the process to stop. `code`: what a shell reports of a process that the signal ended."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


def stop(number: int, frame: FrameType | None = None) -> None:
    """A handler that raises `Stopped`."""
    raise Stopped(number)


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside this block SIGTERM raises `Stopped`, as SIGINT raises KeyboardInterrupt anyway."""
    before = None
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


class Pending:
    """The signal that waits to be heard, if there is one; the same one again stops at once."""

    caught: int | None = None

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """The handler while signals wait."""
        if number == self.caught:
            stop(number)
        self.caught = self.caught or number

    def heed(self) -> None:
        """Stop now if a signal waits."""
        if self.caught:
            stop(self.caught)


@contextmanager
def deferred() -> Iterator[Pending]:
    """Inside this block SIGINT and SIGTERM wait until they are heeded, at its end at the latest.

    A signal that the process ignores stays ignored, and in a thread nothing changes: only the main one has handlers.
    """
    pending, before = Pending(), {}
    if threading.current_thread() is threading.main_thread():
        heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, pending.note) for number in heard}
    try:
        yield pending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
    pending.heed()
