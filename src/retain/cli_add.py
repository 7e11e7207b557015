"""`retain add` and `retain export`: a finished run's next task, here or in other software."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retain.cli_guard import guarded, run_folder, show
from retain.cli_options import AcceptChangedData, RunFolder


@guarded
def add(
    folder: RunFolder,
    task: Annotated[
        str | None, typer.Argument(metavar="TASK", help="A YAML file with the task.", show_default=False)
    ] = None,
    accept_changed_data: AcceptChangedData = False,
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

    show(run_table(add_task(run_folder(folder), task, accept_changed_data)))


@guarded
def export(
    form: Annotated[str, typer.Argument(metavar="FORM", help="jsonl, parquet, llamafactory or adapter.")],
    folder: RunFolder,
    out: Annotated[str, typer.Option(help="The folder to write, new or empty.")],
    task: Annotated[str | None, typer.Option(help="For llamafactory: a YAML file with the new task.")] = None,
    stage: Annotated[int | None, typer.Option(min=1, help="For adapter: the stage; the last by default.")] = None,
) -> None:
    """Write the samples that a run rehearses, or its adapter, for other software.

    jsonl and parquet: a file of each past task, laid out as a data set of the Hub. llamafactory: the next stage, of the
    new task with its replay mixed in, with dataset_info.json; train it with `disable_shuffling: true`.
    adapter: that of a stage in PEFT's format, with its model card.

    \b
    Examples:
      retain export parquet runs/my-run --out rehearsal
      retain export adapter runs/my-run --stage 2 --out my-adapter
      retain export llamafactory runs/my-run --task march.yaml --out march
    """
    from retain.exporting import export as write

    for path in write(run_folder(folder), form, Path(out), None if task is None else Path(task), stage):
        typer.echo(str(path))
