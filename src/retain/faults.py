"""What to say where a machine is too small for a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

TRAINING_ADVICE = (
    "set training.micro_batch_size to fewer samples a pass (they are accumulated to the same batch), or lower "
    "training.max_length or training.batch_size"
)
EVALUATION_ADVICE = "lower evaluation.batch_size, evaluation.max_new_tokens or training.max_length"
SYNTHESIS_ADVICE = "lower synthesis.batch_size or the section's limits of tokens"
FULL = ("out of memory", "can't allocate memory", "not enough memory")  # PyTorch on a CPU raises a RuntimeError


@contextmanager
def memory_advice(doing: str, advice: str) -> Iterator[None]:
    """Raise a MemoryError that says what to lower where the work inside needs more memory than there is."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, RuntimeError) and not any(sign in text for sign in FULL):
            raise
        reason = f" ({text[:200]})" if text else ""
        raise MemoryError(f"{doing} ran out of memory{reason}; {advice}") from error
