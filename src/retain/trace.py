"""The memory trace: a row a refresh and sample, as MSSR's Algorithm 1 records."""

from __future__ import annotations

from collections.abc import Sequence
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


class MemoryTrace:
    """Writes one stage's part of the trace while the stage runs."""

    def __init__(self, path: Path, stage: int, buffer: Buffer) -> None:
        self.stage, self.buffer, self.last = stage, buffer, -1
        self.writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")

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


def merge_traces(rows: Sequence[Path], target: Path) -> None:
    """One file from the parts of all stages, in order."""
    scratch = target.with_name(target.name + ".tmp")
    with pq.ParquetWriter(scratch, SCHEMA, compression="zstd") as writer:
        for part in [row / "memory_trace.parquet" for row in rows if (row / "memory_trace.parquet").is_file()]:
            for batch in pq.ParquetFile(part).iter_batches():
                writer.write_batch(batch)
    scratch.replace(target)
