"""Data sets by Hub name: `owner/name`, `owner/name/config`, each with an optional `:split`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from retain.tasks.files import READERS, Row, show
from retain.types import InputError

NAME = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*){0,2}(?::[\w-][\w.-]*)?", re.ASCII)


def is_hub_name(source: str) -> bool:
    """Whether a source looks like the name of a data set on the Hub, and not like a file that is read here."""
    return len(source) <= 200 and NAME.fullmatch(source) is not None and Path(source).suffix.lower() not in READERS


def read_hub(source: str, split: str) -> list[Row]:
    """The rows of a data set; without ":split" the split that the task's field is named after."""
    import datasets

    name, _, chosen = source.partition(":")
    parts = name.split("/")
    try:
        table = datasets.load_dataset("/".join(parts[:2]), *parts[2:], split=chosen or split)
    except Exception as error:  # the library raises a dozen kinds, from HTTP to pickle; all mean "no data"
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
        reason = (
            "HF_HUB_OFFLINE is set" if offline else show((str(error).splitlines() or [repr(error)])[0]).strip("'\"")
        )
        raise InputError(
            f"{show(source)} is neither an existing file nor reachable on the Hub ({reason}); "
            "check the spelling, or download it and name the file"
        ) from None
    return [Row(number, f"row {number + 1}", row) for number, row in enumerate(table)]
