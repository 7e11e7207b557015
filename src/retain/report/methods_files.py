"""The files of a comparison: JSON for programs, CSV and Markdown tables, a page for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retain.report.methods import csv_table, markdown_table, method_rows
from retain.report.page import save


def write_files(cells: Sequence[Mapping[str, Any]], out: Path, *, reference: str, level: float) -> dict[str, Any]:
    """Write comparison.json, .csv and .md into `out`; returns what the JSON holds."""
    rows = method_rows(cells)
    summary = {"reference": reference, "level": level, "rows": rows}
    save(out / "comparison.json", json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    save(out / "comparison.csv", csv_table(rows))
    save(out / "comparison.md", markdown_table(rows))
    return summary
