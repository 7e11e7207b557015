"""`retain evaluate`, `merge` and `push`: what can be done with the adapter of a finished stage."""

from __future__ import annotations

from typing import Annotated

import typer

from retain.cli_guard import guarded, run_folder, show

RunFolder = Annotated[str, typer.Argument(metavar="DIR", help="The directory of a run.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application, in the order in which `retain --help` lists them."""
    for command in (evaluate,):
        app.command()(command)


@guarded
def evaluate(
    folder: RunFolder,
    stage: Annotated[
        int | None, typer.Option(min=0, help="The adapter after this stage; 0 is the untouched model.")
    ] = None,
    lm_eval: Annotated[
        list[str] | None,
        typer.Option("--lm-eval", metavar="TASK", help="Score this task of lm-eval, by name or YAML file, instead."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Samples of each task at most.")] = None,
) -> None:
    """Score a trained run on all its tasks again, or on tasks of lm-eval.

    \b
    Examples:
      retain evaluate runs/my-run
      retain evaluate runs/my-run --stage 2
      retain evaluate runs/my-run --lm-eval arc_easy --lm-eval my-task.yaml --limit 100
    """
    path = run_folder(folder)
    from retain.cli_views import score_table
    from retain.run import evaluate as evaluate_run

    show(score_table(evaluate_run(path, stage, lm_eval or (), limit)))
