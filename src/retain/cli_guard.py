"""What the commands have in common: their directory, where output and messages go, and the exit code of an error."""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from retain import launcher
from retain.interrupts import stoppable
from retain.types import GateError, InputError

LONGEST = 10_000  # characters of a message
FULL = ("No space left on device", "StorageFull", "Disk quota exceeded")  # also as libraries write it
ON_SEVERAL_PROCESSES = ("run", "add", "evaluate")
FAILED, WRONG_INPUT, GATE, INTERRUPTED = 1, 2, 3, 130


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what a command raises into one line on standard error and an exit code."""

    @functools.wraps(command)
    def guard(*args: Any, **options: Any) -> None:
        try:
            _take_part(command.__name__)
            _show_log()
            with stoppable():
                command(*args, **options)
            sys.stdout.flush()
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt as error:
            _stop("stopped; run the same command again to resume", getattr(error, "code", INTERRUPTED))
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None
        except InputError as error:
            _stop(f"error: {error}", WRONG_INPUT)
        except GateError as error:
            _stop(f"not met: {error}", GATE)
        except Exception as error:
            if os.environ.get("RETAIN_DEBUG"):
                traceback.print_exc()
            _stop(f"error: {_explain(error)}", FAILED)

    return guard


def run_folder(folder: str) -> Path:
    """The directory of a run. Raises InputError."""
    from retain.config_yaml import existing
    from retain.reading import check_links

    path = Path(folder)
    if not path.is_dir():
        what = "not a directory" if path.exists() else "no such directory"
        raise InputError(f"{path}: {what}{'' if path.exists() else existing(path)}")
    if not (path / "journal.jsonl").is_file():
        inside = sorted(str(found.parent) for found in path.glob("*/journal.jsonl"))
        hint = f"; did you mean {' or '.join(inside[:5])}?" if inside else ""
        raise InputError(f"{path}: not the directory of a run (no journal.jsonl in it){hint}")
    check_links(path)
    return path


def show(renderable: Any) -> None:
    """Print for a person, in colors only on a terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    console.print(renderable)


def print_json(value: Any) -> None:
    """Print for a program."""
    typer.echo(json.dumps(value, allow_nan=False, indent=1))


def _take_part(command: str) -> None:
    """Of several processes number 0 speaks for all. Raises InputError where the command is for one."""
    if launcher.processes() > 1 and command not in ON_SEVERAL_PROCESSES:
        raise InputError(
            f"retain {command} runs on one process; start it without a launcher (several can take part in "
            f"{', '.join(ON_SEVERAL_PROCESSES)})"
        )
    if launcher.rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _show_log() -> None:
    """What the package logs goes to standard error, bare."""
    log = logging.getLogger("retain")
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.CRITICAL if launcher.rank() else logging.INFO)


def _stop(message: str, code: int) -> None:
    if launcher.rank() and code in (WRONG_INPUT, GATE):
        raise typer.Exit(code) from None  # as number 0 says
    shown = "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in message)
    typer.echo(shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}…", err=True)
    raise typer.Exit(code) from None


def _explain(error: Exception) -> str:
    """One line for an error that is not the user's fault."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(sign in str(error) for sign in FULL):
        where = f" at {error.filename}" if getattr(error, "filename", None) else ""
        more = "a file may not grow (a limit of this process or file system)"
        what = more if number == errno.EFBIG else "no space left on the disk"
        return f"{what}{where}; free some and run the same command again (what was finished is kept)"
    if number == errno.EROFS or "Read-only file system" in str(error):
        return f"{getattr(error, 'filename', None) or 'the disk'} can only be read; write elsewhere with --out"
    if isinstance(error, FloatingPointError | MemoryError) and str(error):
        return str(error)
    if number in (errno.EACCES, errno.EPERM):
        return f"no permission for {error.filename or 'a file'} ({error.strerror})"
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text} (set RETAIN_DEBUG=1 for the traceback)"
