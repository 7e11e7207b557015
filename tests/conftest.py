"""What several tests need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real tasks, `<task>/{train,test}.jsonl`."""
    default = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("RETAIN_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real tasks at {folder}; set RETAIN_DATA to their folder")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of its own for a test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RETAIN_CACHE", str(folder))
    return folder
