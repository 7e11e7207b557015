"""The memory trace (a row a refresh and sample, as MSSR's Algorithm 1 records) and the log of reviews."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retain.buffer import Buffer

SCHEMA = pa.schema(
    [
        ("stage", pa.int32()),
        ("step", pa.int64()),
        ("id", pa.string()),
        ("task", pa.string()),
        ("strength", pa.float64()),
        ("stability", pa.float64()),
        ("ema_loss", pa.float64()),
        ("hazard", pa.float64()),
    ]
)


REVIEWS = pa.schema(
    [("stage", pa.int32()), ("step", pa.int64()), ("id", pa.string()), ("task", pa.string()), ("loss", pa.float64())]
)
TRACE, REVIEW_LOG = "memory_trace.parquet", "memory_reviews.parquet"
FILES = {TRACE: SCHEMA, REVIEW_LOG: REVIEWS}


class MemoryTrace:
    """Writes one stage's part of both files into its folder while the stage runs.

    The trace begins with the samples as the stage finds them; a review's loss is the one before its update.
    """

    def __init__(self, folder: Path, stage: int, buffer: Buffer) -> None:
        self.folder, self.stage, self.buffer, self.last = folder, stage, buffer, -1
        self.reviews: list[tuple[int, int, str, str, float]] = []
        self.writer = pq.ParquetWriter(folder / TRACE, SCHEMA, compression="zstd")

    def review(self, step: int, losses: Mapping[str, float]) -> None:
        """Record the loss of each sample that was replayed at global `step`."""
        samples = self.buffer.samples
        self.reviews += [(self.stage, step, one, samples[one].task, loss) for one, loss in losses.items()]

    def write(self, step: int) -> None:
        """Record every tracked sample as it stands at global `step`, once a step."""
        if step == self.last or not len(self.buffer.memory):
            return
        self.last = step
        state = self.buffer.memory.snapshot(step)
        columns = {
            "stage": np.full(len(state["id"]), self.stage, dtype=np.int32),
            "step": np.full(len(state["id"]), step, dtype=np.int64),
            "id": state["id"],
            "task": [self.buffer.samples[i].task for i in state["id"]],
            "strength": np.exp(state["log_strength"]),
            "stability": state["stability"],
            "ema_loss": pa.array(state["ema_loss"], from_pandas=True),
            "hazard": state["hazard"],
        }
        self.writer.write_table(pa.table(columns, schema=SCHEMA))

    def close(self) -> None:
        self.writer.close()
        rows = [dict(zip(REVIEWS.names, row, strict=True)) for row in self.reviews]
        pq.write_table(pa.Table.from_pylist(rows, schema=REVIEWS), self.folder / REVIEW_LOG, compression="zstd")


def merge_traces(rows: Sequence[Path], folder: Path) -> None:
    """Each file of the whole run from the parts of its stages, in order."""
    for name, schema in FILES.items():
        scratch = folder / f"{name}.tmp"
        with pq.ParquetWriter(scratch, schema, compression="zstd") as writer:
            for part in [row / name for row in rows if (row / name).is_file()]:
                for batch in pq.ParquetFile(part).iter_batches():
                    writer.write_batch(batch)
        scratch.replace(folder / name)
