"""`retain rollback`: the commands that keep a run in order."""

from __future__ import annotations

from typing import Annotated

import typer

from retain.cli_guard import guarded, run_folder

RunFolder = Annotated[str, typer.Argument(metavar="DIR", help="The directory of a run.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application, in the order in which `retain --help` lists them."""
    for command in (rollback,):
        app.command()(command)


@guarded
def rollback(
    folder: RunFolder,
    to: Annotated[str, typer.Option(help="The stage to go back to: its number, 0 for none, or its task.")],
    delete: Annotated[bool, typer.Option("--delete", help="Delete the later stages instead of moving them.")] = False,
) -> None:
    """Bring a run back to how it stood after an earlier stage. `retain run` then goes on from there.

    \b
    Examples:
      retain rollback runs/my-run --to 2
      retain rollback runs/my-run --to tickets --delete
    """
    path = run_folder(folder)
    from retain.rollback import rollback as roll_back

    done = roll_back(path, to, delete)
    if not done.gone and not done.unfinished:
        typer.echo(f"stage {done.stage} is the newest one; nothing to roll back")
        return
    names = [*done.gone, *(["an unfinished stage"] if done.unfinished else [])]
    where = "deleted" if done.kept_in is None else f"moved to {done.kept_in}"
    typer.echo(f"{path} stands as after stage {done.stage}; {', '.join(names)}: {where}")
    typer.echo("`retain run` with the same configuration and --out goes on from there")
