"""What the site needs beside the pages: links to files of the repository outside docs/ become plain text."""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]*)\]\((?:\.\./)+(?:src|tests|examples|recipes|benchmarks|README|CHANGELOG)[^)]*\)")


def on_page_markdown(markdown: str, **context: Any) -> str:
    """Called by MkDocs for each page."""
    return OUTSIDE.sub(r"`\1`", markdown)
