"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from retain.config import Config

ConfigFile = Annotated[str, typer.Argument(metavar="CONFIG", help="The YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings that win over the file.", show_default=False),
]
RunFolder = Annotated[str, typer.Argument(metavar="DIR", help="The directory of a run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]
AcceptChangedData = Annotated[
    bool, typer.Option("--accept-changed-data", help="Go on with data that changed since the run began.")
]
AdapterStage = Annotated[int | None, typer.Option(min=1, help="The adapter after this stage; the last by default.")]


def load(config: str, overrides: list[str] | None) -> tuple[Config, Path]:
    """The checked configuration of a file, and the folder that its paths are relative to."""
    from retain.config import load_config

    return load_config(config, overrides or []), Path(config).parent
