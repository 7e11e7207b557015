"""The memory of the tracked samples: arrays in log space, one row a sample (MATH 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np

from retain.memory import dynamics, random
from retain.memory.checks import (
    check_count,
    check_ids,
    check_losses,
    check_step,
    check_unit,
    hint,
    is_number,
    parameter_problems,
    shown,
)
from retain.memory.clock import TickClock
from retain.memory.draw import gumbel_top_k, stalest
from retain.memory.table import Table
from retain.sections import MemoryModel
from retain.types import InputError

STATE = {
    "log_strength": np.float64,
    "stability": np.float64,
    "ema_loss": np.float64,
    "hazard": np.float64,
    "last_review": np.int64,
    "anchor": np.int64,
    "reviews": np.int64,
}
PRIORITIES = ("retention", "risk", "gain", "confidence", "uniform")
DRAW_NOISE, REVIEW_NOISE = 1, 2


class MemoryState:
    """Strength, stability and hazard of every tracked sample.

    A change is checked whole before it is made: an error leaves everything as it was. Errors are
    `InputError`, a ValueError. Queries (`log_strengths`, `log_priorities`, `draw`, `snapshot`) never write.
    """

    def __init__(self, config: MemoryModel, seed: int = 42, time_unit: float = 1.0) -> None:
        if problems := parameter_problems(config):
            raise InputError(" ".join(f"memory.{problem}" for problem in problems))
        self.config = config
        self.seed = seed
        self._clock = TickClock(check_unit(time_unit))
        self._table = Table({**STATE, "id_hash": np.uint64})
        self._ids: list[str] = []
        self._rows: dict[str, int] = {}
        self._quantiles: tuple[float, float] | None = None
        self._latest = 0

    @property
    def ids(self) -> list[str]:
        """The tracked ids in storage order."""
        return list(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, sample_id: object) -> bool:
        return sample_id in self._rows

    # Changes

    def set_unit(self, time_unit: float, step: int) -> None:
        """From `step` on a tick is `time_unit` steps long."""
        time_unit, step = check_unit(time_unit), check_step(step, self._latest)
        self._clock.set_unit(time_unit, step)
        self._latest = step

    def add(self, ids: Iterable[str], step: int, losses: Sequence[float | None] | None = None) -> None:
        """Samples enter at full strength; `losses` is the EMA each brings along (None or NaN: none)."""
        ids, step = check_ids(ids), check_step(step, self._latest)
        for position, one in enumerate(ids):
            if one in self._rows:
                raise InputError(f"ids[{position}] = {shown(one)}: is tracked already. Remove it first.")
        ema_loss = np.full(len(ids), np.nan) if losses is None else check_losses(losses, len(ids), missing=True)
        stability = np.full(len(ids), self.config.s_min)
        self._table.append(
            len(ids),
            log_strength=0.0,
            stability=stability,
            ema_loss=ema_loss,
            hazard=self._hazard(ema_loss, stability),
            last_review=step,
            anchor=step,
            reviews=0,
            id_hash=random.hash_ids(ids),
        )
        self._rows.update(zip(ids, range(len(self._ids), len(self._ids) + len(ids)), strict=True))
        self._ids += ids
        self._latest = step

    def observe(self, ids: Iterable[str], losses: Sequence[float]) -> None:
        """Losses enter the EMA (Eq. 13) and change nothing else."""
        rows, losses = self._observed(ids, losses)
        self._table["ema_loss"][rows] = self._ema(rows, losses)

    def refresh(self, step: int) -> None:
        """New quantiles and hazards; the time since the anchor is charged at the new hazard (Eq. 7)."""
        step, table = check_step(step, self._latest), self._table
        found = dynamics.loss_quantiles(table["ema_loss"], self.config.quantile_low, self.config.quantile_high)
        self._quantiles = found or self._quantiles
        table["hazard"][:] = self._hazard(table["ema_loss"], table["stability"])
        table["log_strength"][:] = self._decayed(step)
        table["anchor"][:] = step
        self._latest = step

    def review(self, ids: Iterable[str], losses: Sequence[float], step: int) -> None:
        """Samples were trained on as replay: full strength again and more stability (Eq. 5)."""
        step = check_step(step, self._latest)
        rows, losses = self._observed(ids, losses)
        table, config = self._table, self.config
        noise: np.ndarray | float = 0.0
        if config.sigma_s > 0:
            hashes = table["id_hash"][rows]
            noise = config.sigma_s * random.normal(self.seed, REVIEW_NOISE, step, hashes=hashes)
        stability = dynamics.consolidated(
            table["stability"][rows], self._decayed(step, rows), self._waited(step, rows), noise, config
        )
        ema_loss = self._ema(rows, losses)
        table["stability"][rows] = stability
        table["log_strength"][rows] = 0.0
        table["anchor"][rows] = step
        table["last_review"][rows] = step
        table["reviews"][rows] += 1
        table["ema_loss"][rows] = ema_loss
        table["hazard"][rows] = self._hazard(ema_loss, stability)
        self._latest = step

    def remove(self, ids: Iterable[str]) -> None:
        """Drop the state of samples that left the buffer."""
        keep = np.ones(len(self), dtype=bool)
        keep[self._known(ids)] = False
        self._table.keep(keep)
        self._ids = list(compress(self._ids, keep.tolist()))
        self._rows = {one: row for row, one in enumerate(self._ids)}

    # Queries

    def log_strengths(self, step: int) -> np.ndarray:
        """log m at `step` (Eq. 17), shape (N,) in storage order."""
        return self._decayed(check_step(step, self._latest))

    def log_priorities(
        self, step: int, confidences: Mapping[str, float] | None = None, priority: str | None = None
    ) -> np.ndarray:
        """Log-weights of a draw at `step` (Eq. 10, 30, Sec. 3.3), shape (N,); -∞ is drawn last."""
        config, log_strength = self.config, self.log_strengths(step)
        match priority or config.priority:
            case "retention":
                return dynamics.retention_priority(log_strength, config.zeta)
            case "risk":
                return dynamics.risk_priority(log_strength, self._waited(step), config.beta_m, config.rho_m)
            case "gain":
                return dynamics.gain_priority(log_strength, self._table["hazard"], config.gamma_s)
            case "confidence":
                return dynamics.confidence_priority(self._confidences(confidences))
            case "uniform":
                return np.zeros(len(self))
            case unknown:
                raise InputError(f"priority = {shown(unknown)}: is unknown; {hint(unknown, PRIORITIES)}.")

    def draw(
        self,
        n: int,
        step: int,
        *,
        stage: int,
        event: int,
        stale_after: float | None = None,
        confidences: Mapping[str, float] | None = None,
        priority: str | None = None,
    ) -> list[str]:
        """`n` ids by priority without replacement: whole passes while n ≥ N, then a draw of the rest.

        A function of (seed, stage, event) and the state, not of the storage order. stale_after: samples
        not reviewed for so many steps come first, at most half of a draw (Table 12); not for `uniform`.
        No ids when nothing is tracked.
        """
        n = check_count("n", n)
        log_weights = self.log_priorities(step, confidences, priority)
        if (priority or self.config.priority) == "uniform":
            stale_after = None
        if not n or not len(self):
            return []
        noise = random.bits(self.seed, DRAW_NOISE, stage, event, hashes=self._table["id_hash"])
        passes, rest = divmod(n, len(self))
        oldest = None if stale_after is None else step - stale_after
        rows = self._drawn(rest, log_weights, noise, oldest)
        if passes:
            rows = self._drawn(len(self), log_weights, noise, oldest) * passes + rows
        return [self._ids[row] for row in rows]

    def snapshot(self, step: int, confidences: Mapping[str, float] | None = None) -> dict[str, np.ndarray]:
        """Every sample at `step`, in storage order (ema_loss NaN: none).

        `log_priority` is left out where the priority is `confidence` and no confidences are given.
        """
        columns = {"id": np.array(self._ids, dtype=object), "log_strength": self.log_strengths(step)}
        for name in ("stability", "ema_loss", "hazard", "last_review", "reviews"):
            columns[name] = self._table[name].copy()
        if confidences is not None or self.config.priority != "confidence":
            columns["log_priority"] = self.log_priorities(step, confidences)
        return columns

    # Storage

    def to_tensors(self) -> dict[str, np.ndarray]:
        """All but the ids, for an exact restart: copies that later changes do not touch."""
        tensors = {name: self._table[name].copy() for name in STATE}
        tensors["quantiles"] = np.array(self._quantiles or (), dtype=np.float64)
        tensors["clock_steps"] = self._clock.steps.copy()
        tensors["clock_ticks"] = self._clock.ticks.copy()
        tensors["clock_units"] = self._clock.units.copy()
        tensors["latest_step"] = np.array([self._latest], dtype=np.int64)
        return tensors

    @classmethod
    def from_tensors(
        cls, config: MemoryModel, ids: Iterable[str], tensors: Mapping[str, np.ndarray], seed: int = 42
    ) -> MemoryState:
        """The state that `to_tensors` described, bit for bit."""
        state = cls(config, seed)
        ids = check_ids(ids)
        _check_tensors(tensors, len(ids))
        columns = {name: tensors[name] for name in STATE}
        state._table.append(len(ids), **columns, id_hash=random.hash_ids(ids))
        state._ids = ids
        state._rows = {one: row for row, one in enumerate(ids)}
        state._quantiles = tuple(tensors["quantiles"].tolist()) or None
        state._clock.steps = np.array(tensors["clock_steps"])
        state._clock.ticks = np.array(tensors["clock_ticks"])
        state._clock.units = np.array(tensors["clock_units"])
        state._latest = int(tensors["latest_step"][0])
        return state

    # Parts

    def _known(self, ids: Iterable[str]) -> np.ndarray:
        ids = check_ids(ids)
        for position, one in enumerate(ids):
            if one not in self._rows:
                raise InputError(f"ids[{position}] = {shown(one)}: is not tracked. Add it first.")
        return np.array([self._rows[one] for one in ids], dtype=np.int64)

    def _observed(self, ids: Iterable[str], losses: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        rows = self._known(ids)
        return rows, check_losses(losses, len(rows))

    def _ema(self, rows: np.ndarray, losses: np.ndarray) -> np.ndarray:
        return dynamics.ema(self._table["ema_loss"][rows], losses, self.config.ema_beta)

    def _hazard(self, ema_loss: np.ndarray, stability: np.ndarray) -> np.ndarray:
        difficulty = dynamics.phi(dynamics.normalized(ema_loss, self._quantiles), self.config)
        return dynamics.hazard(difficulty, stability, self.config.alpha, self.config.gamma_d)

    def _decayed(self, step: int, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        table = self._table
        elapsed = self._clock(step) - self._clock(table["anchor"][rows])
        return dynamics.decayed(table["log_strength"][rows], table["hazard"][rows], elapsed)

    def _waited(self, step: int, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        return self._clock(step) - self._clock(self._table["last_review"][rows])

    def _confidences(self, confidences: Mapping[str, float] | None) -> np.ndarray:
        found = confidences or {}
        for one in self._ids:
            value: Any = found.get(one)
            if not is_number(value) or not 0.0 <= value < np.inf:
                raise InputError(f"confidences[{one!r}] = {shown(value)}: must be a number of at least 0.")
        return np.array([found[one] for one in self._ids], dtype=np.float64)

    def _drawn(self, count: int, log_weights: np.ndarray, noise: np.ndarray, oldest: float | None) -> list[int]:
        if oldest is None:
            return gumbel_top_k(log_weights, noise, count).tolist()
        front = stalest(self._table["last_review"], self._ids, oldest, count // 2)
        others = np.delete(np.arange(len(self)), front)
        drawn = gumbel_top_k(log_weights[others], noise[others], count - len(front))
        return front.tolist() + others[drawn].tolist()


def _check_tensors(tensors: Mapping[str, np.ndarray], count: int) -> None:
    pieces = len(tensors.get("clock_steps", ()))
    sizes = {**dict.fromkeys(STATE, (count,)), "quantiles": (0, 2), "latest_step": (1,)}
    sizes |= dict.fromkeys(("clock_steps", "clock_ticks", "clock_units"), (max(pieces, 1),))
    for name, allowed in sizes.items():
        if name not in tensors:
            raise InputError(f"tensors[{name!r}]: is missing; the saved memory is not whole.")
        tensor = np.asarray(tensors[name])
        whole = STATE.get(name) is np.int64 or name in ("clock_steps", "latest_step")
        if tensor.dtype != (np.int64 if whole else np.float64) or tensor.shape not in {(n,) for n in allowed}:
            raise InputError(
                f"tensors[{name!r}]: is {tensor.dtype} of shape {tensor.shape}; it must be "
                f"{'int64' if whole else 'float64'} of length {' or '.join(map(str, allowed))}."
            )
        if name != "ema_loss" and not np.isfinite(tensor).all():
            raise InputError(f"tensors[{name!r}]: holds a number that is not finite.")
    steps, latest = tensors["clock_steps"], tensors["latest_step"][0]
    impossible = {
        "clock_steps": steps[0] != 0 or (np.diff(steps) <= 0).any(),
        "clock_units": (tensors["clock_units"] <= 0).any(),
        "log_strength": (tensors["log_strength"] > 0).any(),
        "stability": (tensors["stability"] <= 0).any(),
        "hazard": (tensors["hazard"] < 0).any(),
        **{name: (tensors[name] < 0).any() for name in ("reviews", "latest_step")},
        **{name: ((tensors[name] < 0) | (tensors[name] > latest)).any() for name in ("anchor", "last_review")},
    }
    if wrong := [name for name, is_so in impossible.items() if is_so]:
        raise InputError(f"tensors[{wrong[0]!r}]: holds a value that no memory has.")
