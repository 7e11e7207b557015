"""The memory trace (a row a refresh and sample, as MSSR's Algorithm 1 records) and the log of reviews."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retain.buffer import Buffer
from retain.rundir import TRACE_PARTS

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


MOST_ROWS = 1 << 17  # held in memory; more are moved to a file


class MemoryTrace:
    """Writes one stage's part of both files into its folder while the stage runs.

    The trace begins with the samples as the stage finds them; a review's loss is the one before its update. Until
    `close` what was recorded lies in memory and, part by part, in the folder `trace`.
    """

    def __init__(self, folder: Path, stage: int, buffer: Buffer) -> None:
        self.folder, self.parts = folder, folder / TRACE_PARTS
        self.stage, self.buffer, self.last, self.flushed = stage, buffer, -1, 0
        self.tables: list[pa.Table] = []
        self.reviews: list[tuple[int, int, str, str, float]] = []

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
        self.tables.append(pa.table(columns, schema=SCHEMA))
        if sum(map(len, self.tables)) > MOST_ROWS:
            self._flush()

    def save(self, folder: Path) -> None:
        """What was recorded so far as files in `folder`, which share their content with those of other folders."""
        self._flush()
        _link(self.parts, folder)

    def resume(self, folder: Path) -> None:
        """Go on from what `save` left in `folder`."""
        shutil.rmtree(self.parts, ignore_errors=True)
        _link(folder, self.parts)
        parts = list(self.parts.glob(f"*-{TRACE}"))
        latest = [pc.max(pq.read_table(part, columns=["step"])["step"]).as_py() for part in parts]
        self.flushed, self.last = len(parts), max((step for step in latest if step is not None), default=-1)

    def close(self) -> None:
        """Both files of the stage."""
        self._flush()
        for name, schema in FILES.items():
            _merge(sorted(self.parts.glob(f"*-{name}")), self.folder / name, schema)
        shutil.rmtree(self.parts)

    def _flush(self) -> None:
        """Move what is in memory to the next part."""
        rows = [dict(zip(REVIEWS.names, row, strict=True)) for row in self.reviews]
        recorded = {TRACE: pa.concat_tables(self.tables or [SCHEMA.empty_table()]),
                    REVIEW_LOG: pa.Table.from_pylist(rows, schema=REVIEWS)}  # fmt: skip
        self.parts.mkdir(exist_ok=True)
        for name, table in recorded.items():
            pq.write_table(table, self.parts / f"{self.flushed:06d}-{name}", compression="zstd")
        self.flushed += 1
        self.tables, self.reviews = [], []


def _link(source: Path, target: Path) -> None:
    """The files of a folder in another one too, without a copy where the file system allows it."""
    target.mkdir()
    for path in source.iterdir():
        try:
            os.link(path, target / path.name)
        except OSError:
            shutil.copyfile(path, target / path.name)


def merge_traces(rows: Sequence[Path], folder: Path) -> None:
    """Each file of the whole run from the parts of its stages, in order."""
    for name, schema in FILES.items():
        scratch = folder / f"{name}.tmp"
        _merge([row / name for row in rows if (row / name).is_file()], scratch, schema)
        scratch.replace(folder / name)


def _merge(parts: Iterable[Path], path: Path, schema: pa.Schema) -> None:
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for part in parts:
            for batch in pq.ParquetFile(part).iter_batches():
                writer.write_batch(batch)
