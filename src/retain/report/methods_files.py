"""The files of a comparison: JSON for programs, CSV and Markdown tables, a page for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retain.report.differences import caveat, differences
from retain.report.methods import csv_table, markdown_table, method_rows
from retain.report.methods_page import comparison_page
from retain.report.page import save


def write_files(
    cells: Sequence[Mapping[str, Any]],
    out: Path,
    *,
    reference: str,
    level: float,
    spread: str = "pooled",
    missing: int = 0,
) -> dict[str, Any]:
    """Write comparison.json, .csv, .md and .html into `out`; returns what the JSON holds.

    level and spread: see `differences`. missing: how many cells of the comparison are not among `cells`.
    """
    compared = differences(cells, reference, level, spread)
    summary = {
        "reference": reference,
        "level": level,
        "spread": spread,
        "cells": [cell["label"] for cell in cells],
        "missing": missing,
        "rows": method_rows(cells),
        "differences": compared,
        "caveat": caveat(compared),
    }
    save(out / "comparison.json", json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    save(out / "comparison.csv", csv_table(summary["rows"]))
    save(out / "comparison.md", markdown_table(summary))
    save(out / "comparison.html", comparison_page(summary, cells))
    return summary
