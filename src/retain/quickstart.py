"""The embedded default: a real small model on built-in tasks, without replay and with MSSR, side by side."""

from __future__ import annotations

import logging
from pathlib import Path

from retain.config import load_config
from retain.report import write_comparison
from retain.run import run

log = logging.getLogger("retain")
CONFIG = Path(__file__).with_name("quickstart.yaml")
STRATEGIES = ("none", "mssr")


def quickstart(out: Path | None = None) -> Path:
    """Run both strategies in `out` (runs/quickstart), set them side by side in comparison.html; resumes."""
    out = out or Path("runs/quickstart")
    for strategy in STRATEGIES:
        log.info("— %s —", strategy)
        config = load_config(CONFIG, [f"strategy={strategy}"])
        run(config, CONFIG.parent, out / strategy, start=[out / STRATEGIES[0] / "stages" / "00-base"])
    write_comparison([out / strategy for strategy in STRATEGIES], out / "comparison.html")
    return out
