"""The tick clock τ(t): cumulative ticks, piecewise linear in the step."""

from __future__ import annotations

import numpy as np


class TickClock:
    """Piece k starts at `steps[k]` with `ticks[k]` on the clock; a tick of it is `units[k]` steps long."""

    def __init__(self, time_unit: float) -> None:
        self.steps = np.zeros(1, dtype=np.int64)
        self.ticks = np.zeros(1)
        self.units = np.full(1, float(time_unit))

    def set_unit(self, time_unit: float, step: int) -> None:
        """From `step` on a tick is `time_unit` steps long; a piece that starts there is replaced."""
        kept = self.steps < step
        ticks = self(step)
        self.steps = np.append(self.steps[kept], np.int64(step))
        self.ticks = np.append(self.ticks[kept], ticks)
        self.units = np.append(self.units[kept], float(time_unit))

    def __call__(self, steps: np.ndarray | int) -> np.ndarray:
        """τ(t) = τ_k + (t - t_k) / u_k for the last piece with t_k ≤ t; the shape of `steps`."""
        piece = np.searchsorted(self.steps, steps, side="right") - 1
        return self.ticks[piece] + (steps - self.steps[piece]) / self.units[piece]
