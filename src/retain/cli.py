"""The `retain` command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retain import cli_adapters, cli_care
from retain.cli_add import add, export
from retain.cli_compare import compare
from retain.cli_guard import guarded, print_json, run_folder, show
from retain.cli_options import AcceptChangedData, AdapterStage, AsJson, ConfigFile, Overrides, RunFolder, load
from retain.cli_plan import plan
from retain.types import InputError

if TYPE_CHECKING:
    pass

app = typer.Typer(
    help="Fine-tune a language model on one task after another and keep what it learned before.",
    epilog="Start with `retain quickstart`, or `retain tasks` to see what there is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The console script."""
    app(prog_name="retain")


@app.callback(invoke_without_command=True)
def _version(
    show: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if show:
        from retain import __version__

        typer.echo(f"retain {__version__}")
        raise typer.Exit


@app.command()
@guarded
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[str | None, typer.Option(help="Run directory, instead of `output`.")] = None,
    accept_changed_data: AcceptChangedData = False,
) -> None:
    """Train on the tasks of a YAML file, one after another. Run it again to resume.

    \b
    Examples:
      retain run my-run.yaml
      retain run my-run.yaml --out runs/high-rate training.learning_rate=1e-3
      retain run my-run.yaml strategy=none tasks.sst2.max_train=100
    """
    checked, base = load(config, overrides)
    from retain.run import run as run_config

    if out is not None and not out.strip():
        raise InputError("--out: empty; name a directory")
    place = None if out is None else Path(out)
    folder = run_config(checked, base, place, accept_changed_data=accept_changed_data)
    _show_results(_read_results(folder))
    _next_steps(folder)


@app.command()
@guarded
def quickstart(
    out: Annotated[str | None, typer.Option(help="Where the two runs go.")] = None,
) -> None:
    """Watch a small model learn tasks one after another, once without replay and once with MSSR.

    \b
    Examples:
      retain quickstart
      retain quickstart --out runs/first
    """
    from retain.quickstart import quickstart as run_quickstart

    folder = run_quickstart(Path(out) if out else None)
    finished = sorted(folder.glob("*/results.json"), key=lambda path: path.stat().st_mtime)
    from retain.report.tables import compare_table

    show(compare_table([(path.parent.name, _read_results(path.parent)) for path in finished]))
    for path in finished:
        _next_steps(path.parent)
    typer.echo(f"\nSide by side: {folder / 'comparison.html'}")
    typer.echo("Next: your own tasks in a YAML file (see README.md), then `retain run my-run.yaml`")


app.command()(add)
app.command()(export)
app.command()(compare)
cli_adapters.register(app)
cli_care.register(app)
app.command()(plan)


@app.command()
@guarded
def simulate(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="A JSON file, or - for standard input.")],
    as_json: AsJson = False,
) -> None:
    """Run the memory model alone over a trace of events.

    \b
    Examples:
      retain simulate trace.json
      cat trace.json | retain simulate - --json
    """
    events = _read_trace(trace)
    from retain.memory.simulate import simulate as simulate_trace

    try:
        answer = simulate_trace(events)
    except InputError as error:
        raise InputError(f"{trace}: {error}") from None
    if as_json:
        print_json(answer)
    else:
        from retain.cli_views import memory_tables

        show(memory_tables(answer))


@app.command()
@guarded
def synthesize(
    folder: RunFolder,
    task: Annotated[str, typer.Option(help="The task to write samples of.")],
    out: Annotated[str, typer.Option(help="The file: .jsonl, .jsonl.gz or .jsonl.zst.")],
    overrides: Overrides = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many samples to keep.")] = 500,
    stage: AdapterStage = None,
    demonstrations: Annotated[
        str | None, typer.Option(help="JSON lines with input and answer to show in the prompt.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Overwrite the file.")] = False,
) -> None:
    """Let the model of a finished run write samples of a task it has learned.

    \b
    Examples:
      retain synthesize runs/my-run --task tickets -n 500 --out tickets.jsonl.gz
      retain synthesize runs/my-run --task tickets --out t.jsonl synthesis.temperature=1.2 filters.perplexity=null
    """
    path = run_folder(folder)
    from retain.cli_views import funnel_table
    from retain.synthesize import synthesize as write_samples

    shown = Path(demonstrations) if demonstrations else None
    written = write_samples(
        path, task, count, Path(out), stage=stage, overrides=overrides or [], demonstrations=shown, force=force
    )
    show(funnel_table(written.facts()))
    typer.echo(f"{len(written.kept)} samples: {out}")


@app.command()
@guarded
def review(
    folder: RunFolder,
    task: Annotated[str | None, typer.Option(help="Only samples of this task.")] = None,
    rater: Annotated[str | None, typer.Option(help="Your name; that of your account by default.")] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Samples of each task, instead of `filters.human_samples`.")
    ] = None,
    scale: Annotated[bool, typer.Option("--scale", help="Rate from 1 to 5 on four criteria.")] = False,
) -> None:
    """Look at the synthetic samples of a run one by one and say which are good. Run it again to go on.

    \b
    Examples:
      retain review runs/my-run --rater ada
      retain review runs/my-run --task tickets --count 20 --scale
    """
    path = run_folder(folder)
    from retain.cli_review import review as review_samples

    review_samples(path, task, rater, count, scale, show)


@app.command()
@guarded
def report(
    folder: RunFolder,
    out: Annotated[str | None, typer.Option(help="Also write the page to this file.")] = None,
) -> None:
    """Write a run's report, one HTML file that needs nothing else.

    \b
    Examples:
      retain report runs/my-run
      retain report runs/my-run --out my-run.html
    """
    path = run_folder(folder)
    from retain.report import write_report

    page = write_report(path)
    if out:
        target = Path(out) / page.name if Path(out).is_dir() else Path(out)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if not (target.exists() and target.samefile(page)):
                page = Path(shutil.copyfile(page, target))
        except OSError as error:
            raise InputError(f"--out: {target} cannot be written: {error.strerror or error}") from None
    if (path / "results.json").exists():
        _show_results(_read_results(path))
    typer.echo(f"report: {page}")


@app.command()
@guarded
def calibrate(folder: RunFolder, as_json: AsJson = False) -> None:
    """Measure whether the memory knew which stored samples would be forgotten.

    \b
    Examples:
      retain calibrate runs/my-run
      retain calibrate runs/my-run --json | jq .groups.unreviewed.measures.retention
    """
    path = run_folder(folder)
    from retain.calibrate import calibrate as calibrate_run

    found = calibrate_run(path)
    if as_json:
        print_json(found)
    else:
        from retain.report.calibration import calibration_tables

        show(calibration_tables(found))
        typer.echo(f"\npage: {path / 'calibration.html'}")


@app.command()
@guarded
def fit(
    folders: Annotated[list[str], typer.Argument(metavar="DIR...", help="The directories of one or several runs.")],
    as_json: AsJson = False,
) -> None:
    """Choose the memory's parameters by maximum likelihood from what runs recorded.

    \b
    Examples:
      retain fit runs/my-run
      retain fit runs/seed-1 runs/seed-2 runs/seed-3 --json | jq .parameters
    """
    paths = [run_folder(folder) for folder in folders]
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError(f"DIR: a directory stands twice among {', '.join(folders)}; name each run once")
    from retain.calibrate import fit as fit_runs

    found = fit_runs(paths)
    if as_json:
        print_json(found)
    else:
        from retain.report.calibration import fit_table

        show(fit_table(found))


@app.command()
@guarded
def tasks(
    config: Annotated[
        str | None, typer.Argument(metavar="CONFIG", help="Check and list the tasks of this YAML file.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """List the built-in tasks, or check and list those of a configuration.

    \b
    Examples:
      retain tasks
      retain tasks my-run.yaml
    """
    from retain import cli_views

    if config is None:
        show(cli_views.builtin_tasks())
    else:
        checked, base = load(config, overrides)
        show(cli_views.configured_tasks(checked, base))


@app.command()
@guarded
def models() -> None:
    """List the models known by a short name, and what lies in the cache.

    \b
    Example:
      retain models
    """
    from retain.cli_views import known_models

    show(known_models())


def _read_trace(trace: str) -> Any:
    from retain.config_yaml import read_text
    from retain.reading import MAX_BYTES, parse_json

    source = "standard input" if trace == "-" else trace
    text = sys.stdin.read(MAX_BYTES) if trace == "-" else read_text(trace, (".json",), MAX_BYTES)
    try:
        return parse_json(text)
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None


def _read_results(folder: Path) -> dict[str, Any]:
    from retain.reading import read_json

    return read_json(folder / "results.json")


def _show_results(results: dict[str, Any]) -> None:
    from retain.reading import foreign
    from retain.report.tables import run_table

    with foreign("results.json"):
        show(run_table(results))


def _next_steps(folder: Path) -> None:
    typer.echo(f"\nThe run lies in {folder}")
    if (folder / "report.html").exists():
        typer.echo(f"  open   {folder / 'report.html'}")
    typer.echo(f"  again  retain evaluate {folder}")
