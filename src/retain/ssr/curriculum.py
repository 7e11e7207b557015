"""The share of synthetic examples in a batch, and the batch (SSR 5, 6)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from retain.config import validate
from retain.curriculum import cosine_ratio, exponential_ratio, linear_ratio
from retain.ssr.examples import SyntheticExample
from retain.ssr.options import Options
from retain.types import InputError

RATE = 5.0  # of `schedule_type: exponential` in the document's code


class CurriculumScheduler:
    """The synthetic share of a batch, which goes from the initial to the final ratio in `warmup_steps` (SSR 5, 6).

    schedule_type: linear, cosine or exponential, as in the document's code: whichever it is, the share is the final
    one from `warmup_steps` on. initial_ratio, final_ratio: section 5's names of the first two.
    """

    def __init__(
        self,
        initial_synthetic_ratio: float = 0.2,
        final_synthetic_ratio: float = 0.8,
        warmup_steps: int = 1000,
        schedule_type: str = "linear",
        *,
        initial_ratio: float | None = None,
        final_ratio: float | None = None,
        seed: int = 42,
    ) -> None:
        values = {
            "initial_synthetic_ratio": initial_synthetic_ratio if initial_ratio is None else initial_ratio,
            "final_synthetic_ratio": final_synthetic_ratio if final_ratio is None else final_ratio,
            "warmup_steps": warmup_steps,
            "schedule_type": schedule_type,
            "seed": seed,
        }
        options = validate(Options, values, "CurriculumScheduler")
        self.initial_ratio, self.final_ratio = options.initial_synthetic_ratio, options.final_synthetic_ratio
        self.warmup_steps, self.schedule_type = warmup_steps, schedule_type
        self.current_step = 0
        self._random = np.random.default_rng(seed)

    def step(self) -> None:
        """One training step is done."""
        self.current_step += 1

    def get_ratio(self) -> float:
        """α after `current_step` steps, in [0, 1]."""
        if self.current_step >= self.warmup_steps:
            return self.final_ratio
        ends = (self.current_step / self.warmup_steps, self.initial_ratio, self.final_ratio)
        match self.schedule_type:
            case "linear":
                return linear_ratio(*ends)
            case "cosine":
                return cosine_ratio(*ends)
            case "exponential":
                return exponential_ratio(*ends, RATE)

    def create_mixed_batch(
        self,
        real_data: Sequence[Any],
        synthetic_pool: Sequence[Any],
        third: Any = None,
        *,
        batch_size: int | None = None,
        task_id: Hashable = None,
    ) -> list[Any]:
        """⌊B·α⌋ of the pool, or all where it has fewer, and B minus as many real ones, drawn uniformly and shuffled.

        third: of a pool of `SyntheticExample`s (section 6) `task_id`, the task that is learned, whose own examples are
        left out; of any other pool (section 5) `batch_size`, B, which is that of the real data where it is missing.
        """
        if third is not None and synthetic_pool and isinstance(synthetic_pool[0], SyntheticExample):
            task_id = third
        elif third is not None:
            batch_size = third
        real, synthetic = self.draw(real_data, synthetic_pool, batch_size, task_id)
        mixed = real + synthetic
        return [mixed[place] for place in self._random.permutation(len(mixed))]

    def draw(
        self, real_data: Sequence[Any], pool: Sequence[Any], batch_size: int | None = None, task_id: Hashable = None
    ) -> tuple[list[Any], list[Any]]:
        """The two parts of a mixed batch: real ones and synthetic ones."""
        size = len(real_data) if batch_size is None else batch_size
        if not isinstance(size, int) or not size >= 1:
            raise InputError(f"create_mixed_batch: batch_size: {size!r} is not a whole number of at least 1")
        if task_id is not None:
            pool = [one for one in pool if getattr(one, "task_id", None) != task_id]
        synthetic = min(int(size * self.get_ratio() + 1e-9), len(pool))
        if size - synthetic > len(real_data):
            raise InputError(
                f"create_mixed_batch: real_data: {len(real_data)} samples, and {size - synthetic} real ones are due"
            )
        return self._some(real_data, size - synthetic), self._some(pool, synthetic)

    def _some(self, values: Sequence[Any], count: int) -> list[Any]:
        return [values[place] for place in self._random.permutation(len(values))[:count]]
