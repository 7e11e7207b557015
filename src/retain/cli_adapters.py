"""`retain evaluate`, `merge` and `push`: what can be done with the adapter of a finished stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retain.cli_guard import guarded, run_folder, show
from retain.cli_options import AdapterStage, RunFolder
from retain.types import InputError


def register(app: typer.Typer) -> None:
    """Add the commands to the application, in the order in which `retain --help` lists them."""
    for command in (evaluate, merge, push):
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


@guarded
def merge(
    folder: RunFolder,
    out: Annotated[str, typer.Option(help="The folder to write, new or empty.")],
    stage: AdapterStage = None,
    stages: Annotated[str | None, typer.Option(help="Several stages instead, such as 1,2,3.")] = None,
    method: Annotated[
        str, typer.Option(help="How several are mixed: cat (their mean), linear, ties, dare_linear, ...")
    ] = "cat",
    weights: Annotated[str | None, typer.Option(help="A weight for each of them; equal ones by default.")] = None,
    density: Annotated[float, typer.Option(help="The share of values that ties, dare and pruning keep.")] = 0.5,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; that of the run by default.")] = None,
    gguf: Annotated[str | None, typer.Option(help="Also write a GGUF file, by llama.cpp's converter.")] = None,
    converter: Annotated[
        str | None, typer.Option(help="Its convert_hf_to_gguf.py; the one on PATH by default.")
    ] = None,
) -> None:
    """Merge a stage's adapter into the base model and write a plain transformers model with its card.

    \b
    Examples:
      retain merge runs/my-run --out my-model
      retain merge runs/my-run --stage 2 --out my-model --dtype bfloat16 --gguf my-model.gguf
      retain merge runs/my-run --stages 1,2,3 --method ties --weights 0.2,0.3,0.5 --out mixed
    """
    path = run_folder(folder)
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise InputError(f"--dtype: {dtype!r}; choose float32, bfloat16 or float16")
    if stage is not None and stages is not None:
        raise InputError("--stage and --stages: give one of them")
    if gguf is not None and Path(gguf).exists():
        raise InputError(f"--gguf: {gguf} is there already; name a new file")
    from retain import publishing

    program = publishing.find_converter(converter) if gguf is not None else None
    mixture = None
    if stages is not None:
        given = _numbers("weights", weights, float) if weights else []
        mixture = publishing.Mixture(_numbers("stages", stages, int), method, given, density)
    publishing.merge(path, Path(out), stage, mixture, dtype)
    typer.echo(f"model: {out}")
    if gguf is not None and program is not None:
        publishing.write_gguf(Path(out), Path(gguf), program)
        typer.echo(f"gguf: {gguf}")


def _numbers(option: str, text: str, kind: type[int] | type[float]) -> list:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--{option}: {text!r}; give numbers with commas between them, such as 1,2,3") from None


@guarded
def push(
    folder: RunFolder,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="A repository of the Hub, owner/name.")],
    stage: AdapterStage = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository one that all can read.")] = False,
) -> None:
    """Upload a stage's adapter with its model card to the Hub. A new repository is private.

    \b
    Example:
      retain push runs/my-run me/my-adapter
    """
    path = run_folder(folder)
    from retain.publishing import push as upload

    typer.echo(upload(path, repo, stage, private=not public))
