"""`retain compare`: the cells of a comparison, their plan, their runs and their table."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from retain.cli_guard import FAILED, guarded
from retain.cli_options import Overrides
from retain.types import InputError

ENGINES = ("local", "ray")


@guarded
def compare(
    file: Annotated[str, typer.Argument(metavar="COMPARE", help="The YAML file.")],
    overrides: Overrides = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show the runs and what they would replay, and stop.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs at a time; they share the cores.")] = 1,
    cell: Annotated[str | None, typer.Option(help="Run this cell alone, in this process.")] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Only make the table, of what is there.")] = False,
    keep_runs: Annotated[bool, typer.Option("--keep-runs", help="Keep the directories of finished runs.")] = False,
    rerun: Annotated[bool, typer.Option("--rerun", help="Run cells again whose settings have changed.")] = False,
    engine: Annotated[str, typer.Option(help="What starts the runs: local, or ray.")] = "local",
    out: Annotated[str | None, typer.Option(help="Folder, instead of `out`.")] = None,
) -> None:
    """Compare strategies over seeds, task orders and a grid of settings. Run it again to resume.

    \b
    Examples:
      retain compare methods.yaml --plan
      retain compare methods.yaml --jobs 2
      retain compare methods.yaml --cell mssr.seed1
      retain compare methods.yaml --report-only
    """
    from retain.comparison import load_comparison

    if out is not None and not out.strip():
        raise InputError("--out: empty; name a directory")
    if engine not in ENGINES:
        raise InputError(f"--engine: {engine!r} is not one of {', '.join(ENGINES)}")
    comparison = load_comparison(file, overrides, None if out is None else Path(out))
    if plan:
        from retain.cli_views import comparison_plan

        return _print(comparison_plan(comparison))
    failed: list[str] = []
    if cell is not None:
        from retain.compare import run_cell

        typer.echo(run_cell(comparison, comparison.cell(cell), keep_runs))
        return None
    if not report_only:
        from retain.compare import run_all

        if engine == "ray":
            from retain.integrations.ray import on_ray as start
        else:
            start = None
        options = [*(overrides or []), *([] if out is None else ["--out", str(comparison.out.absolute())])]
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the cells end, too
        failed = run_all(comparison, jobs, keep_runs, rerun, options, start)
    _report(comparison)
    if failed:
        typer.echo(f"{len(failed)} cells failed: {', '.join(failed)}; the same command tries them again", err=True)
        raise typer.Exit(FAILED)


def _report(comparison: Any) -> None:
    from retain.cells import finished_cells
    from retain.report.methods import cost_table, difference_table, score_table
    from retain.report.methods_files import write_files
    from retain.report.svg import clean

    found = finished_cells(comparison)
    if not found:
        raise InputError(f"{comparison.cells_folder}: no finished cell; run `retain compare {comparison.path}` first")
    missing = [cell.label for cell in comparison.cells if cell.label not in found]
    summary = write_files(
        list(found.values()),
        comparison.out,
        reference=comparison.reference,
        level=comparison.file.level,
        spread=comparison.file.spread,
        missing=len(missing),
    )
    sentences = [entry["sentence"] for entry in summary["differences"] if entry["measure"] == "ACC"]
    _print(score_table(summary["rows"]), cost_table(summary["rows"]), difference_table(summary))
    for sentence in [*sentences, *filter(None, [summary["caveat"]])]:
        typer.echo(clean(sentence))
    if missing:
        typer.echo(f"\n{len(missing)} of {len(comparison.cells)} cells are missing: {', '.join(missing)}")
    typer.echo(f"\nThe comparison: {comparison.out / 'comparison.html'}, and beside it .json, .csv and .md")


def _print(*renderables: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=170)
    for renderable in renderables:
        console.print(renderable)
        console.print()
