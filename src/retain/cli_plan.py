"""`retain plan`: the replay calendar, and what a run costs on a named device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from retain.cli_guard import guarded, print_json, show
from retain.cli_options import AsJson, ConfigFile, Overrides, load
from retain.types import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from retain.costs import Hardware

MOST_PROCESSES = 100_000
TERA, GIGA = 1e12, 1e9


@guarded
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    device: Annotated[
        str | None,
        typer.Option(help="Also estimate tokens, memory and hours on this, such as h100 or cpu."),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="Processes with a device each (cpu: cores), 1 by default.")
    ] = None,
    mfu: Annotated[
        float | None, typer.Option(help="Share of the device's peak that is reached, 0.35 by default.")
    ] = None,
) -> None:
    """Show when and how much a configuration would replay, and what that costs, before any model is loaded.

    \b
    Examples:
      retain plan my-run.yaml
      retain plan my-run.yaml schedule.kind=geometric
      retain plan my-run.yaml --device h100 --processes 8
      retain plan my-run.yaml --json | jq .totals
    """
    on = _hardware(device, processes, mfu)
    checked, base = load(config, overrides)
    from retain.cli_views import calendar, make_plan

    found = make_plan(checked, base, on)
    if as_json:
        print_json(found)
        return
    show(calendar(found))
    if "estimate" in found:
        show(_estimate_table(found["estimate"]))


def _hardware(device: str | None, processes: int | None, mfu: float | None) -> Hardware | None:
    """The options as one, checked; None where no device is named."""
    from retain.costs import DEVICES, USUAL_MFU, Hardware

    if device is None:
        if processes is not None or mfu is not None:
            raise InputError(f"--device: missing; --processes and --mfu need one of {', '.join(DEVICES)}")
        return None
    if device not in DEVICES:
        raise InputError(f"--device: {device!r} is not known; one of {', '.join(DEVICES)}")
    if processes is not None and not 1 <= processes <= MOST_PROCESSES:
        raise InputError(f"--processes: {processes}; allowed: a whole number, 1 to {MOST_PROCESSES}")
    if mfu is not None and not 0 < mfu <= 1:
        raise InputError(f"--mfu: {mfu}; allowed: above 0 and at most 1")
    return Hardware(device, processes or 1, mfu or USUAL_MFU)


def _estimate_table(found: dict[str, Any]) -> RenderableType:
    """The estimate for a person, with what it rests on."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    tokens, flops, memory, hours = (found[name] for name in ("tokens", "flops", "memory_bytes", "hours"))
    table = Table(f"on {found['processes']} x {found['device']}", "tokens", "TFLOP", "hours", box=box.SIMPLE_HEAD)
    rows = {
        "training": (tokens["training"], flops["training"], hours["training"]),
        "evaluation": (tokens["evaluation"], flops["evaluation"], hours["evaluation"]),
        "writing answers, at most": (tokens["written_at_most"], None, hours["writing_at_most"]),
        "total": (None, None, hours["total"]),
    }
    for name, (count, operations, duration) in rows.items():
        table.add_row(
            name,
            "" if count is None else f"{count:,}",
            "" if operations is None else f"{operations / TERA:,.3g}",
            f"{duration:.3g}",
        )
    room = memory["device"]
    verdict = "" if room is None else f" of {room / GIGA:.0f}{'' if memory['total'] <= room else ': DOES NOT FIT'}"
    parts = ("weights", "adapter_and_optimizer", "activations", "logits")
    named = ", ".join(f"{name.replace('_', ' ')} {memory[name] / GIGA:.2g}" for name in parts)
    shared = 1 - tokens["training_computed"] / max(tokens["training"], 1)
    return Group(
        table,
        Text(f"memory a device: {memory['total'] / GIGA:.3g} GB{verdict} ({named})"),
        Text(f"{found['weights']:,} weights, {found['trained_weights']:,} trained; at {found['mfu']:.0%} of the peak"),
        Text(f"tokens counted by the {_counted(found)}; {shared:.0%} of those trained on are shared and computed once"),
    )


def _counted(found: dict[str, Any]) -> str:
    by_model = found["counted_by"] == "tokenizer"
    return "model's tokenizer" if by_model else "characters, 4 a token: the tokenizer is not on this machine"
