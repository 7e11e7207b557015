"""What the commands have in common: where messages go, and which exit code an error has."""

from __future__ import annotations

import errno
import functools
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer

from retain.types import GateError, InputError

FAILED, WRONG_INPUT, GATE, INTERRUPTED = 1, 2, 3, 130


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what a command raises into one line on standard error and an exit code."""

    @functools.wraps(command)
    def guard(*args: Any, **options: Any) -> None:
        try:
            _show_log()
            command(*args, **options)
            sys.stdout.flush()
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            _stop("stopped; run the same command again to resume", INTERRUPTED)
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
