"""`retain gate`, `rollback`, `erase` and `doctor`: the commands that keep a run in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retain.cache import cache_folder
from retain.cli_guard import FAILED, guarded, print_json, run_folder, show
from retain.cli_options import AsJson, RunFolder
from retain.types import GateError, InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from retain.gate import Finding


def register(app: typer.Typer) -> None:
    """Add the commands to the application, in the order in which `retain --help` lists them."""
    for command in (gate, rollback, erase, doctor):
        app.command()(command)


@guarded
def gate(
    folder: RunFolder,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Limits that win over the run's own.", show_default=False),
    ] = None,
    stage: Annotated[int | None, typer.Option(min=1, help="Check after this stage; the last by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a run against limits on forgetting, scores and loss. Exit code 3 where one is not met.

    \b
    Examples:
      retain gate runs/my-run forgetting=0.05 general=0.03
      retain gate runs/my-run score.tickets=0.8 noise=pass
      retain gate runs/my-run --stage 2 --json
    """
    path = run_folder(folder)
    from retain.config import load_config
    from retain.gate import LIMITS, check_gate, check_names, failures
    from retain.rundir import RunDir

    keys = [one if one.startswith("gate.") else f"gate.{one}" for one in overrides or []]
    config = load_config(path / "config.yaml", keys, need_tasks=False)
    if all(getattr(config.gate, limit) is None for limit in LIMITS):
        raise InputError(f"{path}: no limit is set; give one of {', '.join(LIMITS)}, such as forgetting=0.05")
    check_names(config)
    findings = check_gate(RunDir(path), config, stage)
    failed = failures(findings, config)
    if as_json:
        facts = [one.to_dict() | {"failed": one in failed} for one in findings]
        print_json({"passed": not failed, "level": config.gate.level, "findings": facts})
    else:
        show(_gate_table(findings, failed, config.gate.level))
    if failed:
        raise GateError(f"{len(failed)} of {len(findings)} limits")


def _gate_table(findings: Sequence[Finding], failed: Sequence[Finding], level: float) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from retain.report.tables import plain_table
    from retain.report.words import number

    table = plain_table("limit", "task", "found", "allowed", "past it by", f"{level * 100:g} % interval", "items", "")
    for one in findings:
        interval = "" if one.low is None else f"{number(one.low, 3)} to {number(one.high, 3)}"
        past = number(one.past, 3) if one.exceeded else ""
        verdict = "met" if not one.exceeded else "failed" if one in failed else "passed"
        verdict += "" if one.exceeded == one.certain else ", within noise"
        cells = (
            one.task or "all",
            number(one.value, 3),
            f"{one.allowed:g}",
            past,
            interval,
            str(one.items or ""),
            verdict,
        )
        table.add_row(one.limit.replace("_", " "), *map(Text, cells))
    if not findings:
        return Text("no limit applies yet: nothing it is about has been learned before this stage")
    notes = []
    if any(one.exceeded and not one.certain for one in findings):
        notes = [Text("within noise: other test items of the same number could have met the limit; more items tell")]
    return Group(table, *notes)


@guarded
def rollback(
    folder: RunFolder,
    to: Annotated[str, typer.Option(help="The stage to go back to: its number, 0 for none, or its task.")],
    delete: Annotated[bool, typer.Option("--delete", help="Delete the later stages instead of moving them.")] = False,
) -> None:
    """Bring a run back to how it stood after an earlier stage, to go on from there with the same tasks or others.

    \b
    Examples:
      retain rollback runs/my-run --to 2
      retain rollback runs/my-run --to tickets --delete
    """
    path = run_folder(folder)
    from retain.rollback import rollback as roll_back

    done = roll_back(path, to, delete)
    free = f"; {', '.join(done.tasks)} need not be learned next" if done.tasks else ""
    if not done.gone and not done.unfinished:
        typer.echo(f"stage {done.stage} is the newest one; nothing to roll back{free}")
        return
    names = [*done.gone, *(["an unfinished stage"] if done.unfinished else [])]
    where = "deleted" if done.kept_in is None else f"moved to {done.kept_in}"
    typer.echo(f"{path} stands as after stage {done.stage}; {', '.join(names)}: {where}")
    typer.echo(f"`retain run` with the same configuration and --out goes on from there{free}")


@guarded
def erase(
    folder: RunFolder,
    record: Annotated[str | None, typer.Option(help="The id of a sample, such as tickets/17.")] = None,
    match: Annotated[str | None, typer.Option(help="Every sample that holds this text, letter by letter.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Take a sample out of all that a run keeps beside its weights, and search for it again.

    \b
    Examples:
      retain erase runs/my-run --record tickets/17 --dry-run
      retain erase runs/my-run --match "jane@example.com" --yes
    """
    path = run_folder(folder)
    from retain.erasure import erase as take_out
    from retain.erasure import find, unreached

    found = find(path, record, match)
    for kind, count in found.counts.items():
        typer.echo(f"{count:6d}  {kind}")
    what = f"{len(found.samples)} samples and {len(found.derived)} that were written after or like them"
    typer.echo(f"{what}{'' if found.counts else '; nothing of them lies in this directory'}")
    if not dry_run:
        if found.counts and not yes:
            typer.confirm("Erase them? It cannot be undone.", abort=True)
        take_out(found)
        typer.echo(f"searched {found.searched} files afterwards: {len(found.left)} hold the text")
    for line in unreached(found):
        typer.echo(line)
    _say_weights(path, found.stages)
    if found.left:
        typer.echo(f"left, for these are settings or files of yours: {', '.join(map(str, found.left))}", err=True)
        raise typer.Exit(FAILED)


def _say_weights(path: Path, stages: tuple[int, int] | None) -> None:
    if stages is None:
        typer.echo("No finished stage was trained with it.")
        return
    first, last = stages
    which = f"stage {first}" if first == last else f"stages {first} to {last}"
    typer.echo(f"The weights of {which} were trained with it and are not unlearned. To train again without it:")
    typer.echo(
        f"  retain rollback {path} --to {first - 1} --delete && retain run {path}/config.yaml --out {path} "
        "--accept-changed-data"
    )


@guarded
def doctor(
    target: Annotated[
        str | None, typer.Argument(metavar="[CONFIG|DIR]", help="A YAML file, or the directory of a run.")
    ] = None,
    bundle: Annotated[str | None, typer.Option(help="Write a zip for a bug report on the run to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show versions, device, precision and room, and what a configuration would download.

    \b
    Examples:
      retain doctor
      retain doctor my-run.yaml
      retain doctor runs/my-run --bundle report.zip
    """
    from retain.config import load_config, make_config

    path = None if target is None else run_folder(target) if Path(target).is_dir() else Path(target)
    if bundle is not None and (path is None or not path.is_dir()):
        raise InputError("--bundle: needs the directory of a run, such as `retain doctor runs/my-run --bundle r.zip`")
    file = path / "config.yaml" if path and path.is_dir() else path
    config = load_config(file, need_tasks=False) if file else make_config({}, "doctor", need_tasks=False)
    from retain.doctor import examine, needs

    base = file.parent if file else Path()
    machine = examine(config, path if path and path.is_dir() else base / config.output)
    if bundle is not None:
        from retain.bundle import write_bundle

        names = write_bundle(path, Path(bundle), machine)
        typer.echo(f"{bundle}: {', '.join(names)}; look at it before you send it")
        return
    wanted = needs(config, base) if file else []
    if as_json:
        print_json({**machine, "cache": str(cache_folder()), "needs": dict(wanted)})
    else:
        show(_doctor_table(machine, wanted))


def _doctor_table(machine: dict[str, Any], wanted: Sequence[tuple[str, str]]) -> RenderableType:
    from rich.text import Text

    from retain.report.tables import plain_table

    table = plain_table("")
    table.add_column("", overflow="fold")
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    sizes = {name: "-" if value is None else f"{value / 1e9:,.1f} GB" for name, value in machine.items()
             if name.endswith("_bytes")}  # fmt: skip
    rows = [
        ("versions", versions),
        ("system", machine["system"]),
        ("device", f"{machine['device']}, {machine['processors']} processors, {machine['threads']} threads"),
        ("memory", f"{sizes['memory_bytes']}; of the device {sizes['device_memory_bytes']}"),
        ("precision", f"{machine['precision']} (training.precision)"),
        ("disk", f"{sizes['free_bytes']} free for the run, {sizes['cache_free_bytes']} for the cache"),
        ("cache", f"{cache_folder()}: {sizes['cache_bytes']}"),
        *wanted,
    ]
    for name, text in rows:
        table.add_row(Text(name), Text(text))
    return table
