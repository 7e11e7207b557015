"""`retain add`: come back to a run with its next task."""

from __future__ import annotations

from typing import Annotated

import typer

from retain.cli_guard import guarded, run_folder, show


@guarded
def add(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="The directory of a run.")],
    task: Annotated[
        str | None, typer.Argument(metavar="TASK", help="A YAML file with the task.", show_default=False)
    ] = None,
) -> None:
    """Learn one more task in the directory of a finished run, with its settings and its memory.

    The data of earlier tasks are not needed. TASK holds what stands under `tasks` in a configuration, with paths
    relative to it. Without TASK what is not scored yet is scored, as after stages of another trainer.

    \b
    Examples:
      retain add runs/my-run march.yaml
      retain add runs/my-run
    """
    from retain.adding import add as add_task
    from retain.report.tables import run_table

    show(run_table(add_task(run_folder(folder), task)))
