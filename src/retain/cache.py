"""Where `retain` keeps what it converts or downloads once."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """RETAIN_CACHE, else ~/.cache/retain."""
    return Path(os.environ.get("RETAIN_CACHE") or Path.home() / ".cache" / "retain")
