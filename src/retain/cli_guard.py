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

from retain.interrupts import stoppable
from retain.types import GateError, InputError

FAILED, WRONG_INPUT, GATE, INTERRUPTED = 1, 2, 3, 130


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what a command raises into one line on standard error and an exit code."""

    @functools.wraps(command)
    def guard(*args: Any, **options: Any) -> None:
        try:
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

    path = Path(folder)
    if not path.is_dir():
        what = "not a directory" if path.exists() else "no such directory"
        raise InputError(f"{path}: {what}{'' if path.exists() else existing(path)}")
    if not (path / "journal.jsonl").is_file():
        inside = sorted(str(found.parent) for found in path.glob("*/journal.jsonl"))
        hint = f"; did you mean {' or '.join(inside[:5])}?" if inside else ""
        raise InputError(f"{path}: not the directory of a run (no journal.jsonl in it){hint}")
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


def _show_log() -> None:
    """What the package logs goes to standard error, bare."""
    log = logging.getLogger("retain")
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)


def _stop(message: str, code: int) -> None:
    typer.echo(message, err=True)
    raise typer.Exit(code) from None


def _explain(error: Exception) -> str:
    """One line for an error that is not the user's fault."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" at {error.filename}" if error.filename else ""
        return f"no space left on the disk{where}; free some and run the same command again"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission for {error.filename or 'a file'} ({error.strerror})"
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text} (set RETAIN_DEBUG=1 for the traceback)"
