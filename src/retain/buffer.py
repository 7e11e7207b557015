"""The bounded store of samples that may be replayed, each with its memory (MATH 2, "Buffer"; Table 12)."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from retain.files import write_bytes
from retain.memory.random import bits, hash_ids
from retain.memory.state import MemoryState
from retain.reading import foreign, read_bytes, read_table
from retain.sections import BufferConfig, MemoryModel
from retain.types import InputError, Sample

log = logging.getLogger("retain")

SAMPLES_FILE, MEMORY_FILE = "samples.parquet", "memory.safetensors"
MISSING = "the buffer needs it. Restore it or start the run anew"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("task", pa.string()),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("choices", pa.list_(pa.string())),
        ("references", pa.list_(pa.string())),
        ("messages", pa.list_(pa.list_(pa.string()))),
        ("confidence", pa.float64()),
    ]
)


def balanced_shares(sizes: Sequence[int], capacity: int) -> list[int]:
    """How many of each task's samples stay: an equal share, what a small task leaves unused to the others.

    `sizes` come oldest task first, and so do the remainders. The shares fill the capacity or keep everything.
    """
    shares = list(sizes)
    open_tasks, room = list(range(len(sizes))), capacity
    while small := [task for task in open_tasks if sizes[task] * len(open_tasks) <= room]:
        room -= sum(sizes[task] for task in small)
        open_tasks = [task for task in open_tasks if task not in small]
    for rank, task in enumerate(open_tasks):
        shares[task] = room // len(open_tasks) + (rank < room % len(open_tasks))
    return shares


class Buffer:
    """At most `capacity` samples over all past tasks; those that are admitted are tracked by `memory`."""

    def __init__(self, config: BufferConfig, memory_config: MemoryModel, seed: int = 42) -> None:
        self.config = config
        self.seed = seed
        self.memory = MemoryState(memory_config, seed)
        self.samples: dict[str, Sample] = {}
        self.seen = 0  # samples that ever asked for entry

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def tasks(self) -> dict[str, int]:
        """Samples of each task, in storage order."""
        return dict(Counter(sample.task for sample in self.samples.values()))

    @property
    def confidences(self) -> dict[str, float]:
        """The weight of each sample in draws, 1 for real ones, by id."""
        return {one: 1.0 if sample.confidence is None else sample.confidence for one, sample in self.samples.items()}

    def seed_with(self, samples: Sequence[Sample]) -> None:
        """Samples to rehearse from the first stage on: a past task that enters at step 0 without losses."""
        self.admit(samples, 0, {}, 0)
        if len(self) < len(samples):
            log.warning("buffer.seed: %d samples and buffer.capacity is %d; %d are left out", len(samples),
                        self.config.capacity, len(samples) - len(self))  # fmt: skip

    def admit(self, samples: list[Sample], step: int, losses: Mapping[str, float], stage: int) -> None:
        """A stage's samples ask for entry at global `step`, each with the loss its training gave it, if any.

        The policy decides who stays; the memory of those that leave is dropped. An id that is in the buffer
        or comes twice, and a loss that is not finite, are InputErrors that change nothing.
        """
        candidates = dict(self.samples)
        for sample in samples:
            if sample.id in candidates:
                raise InputError(f"sample {sample.id!r} is in the buffer already; every sample needs its own id")
            candidates[sample.id] = sample
        state = self.memory.snapshot(step)
        known = dict(zip(state["id"].tolist(), state["ema_loss"].tolist(), strict=True)) | dict(losses)
        kept = self._kept(list(candidates.values()), len(samples), stage, known)
        remaining = {one: candidates[one] for one in kept}
        entering = [one for one in kept if one not in self.samples]
        self.memory.add(entering, step, [losses.get(one) for one in entering])
        self.memory.remove(one for one in self.samples if one not in remaining)
        self.samples = remaining
        self.seen += len(samples)

    def drop(self, ids: Iterable[str]) -> None:
        """Take samples out, and their memory with them. An id that is not there is an InputError."""
        gone = set(ids)
        if unknown := sorted(gone - self.samples.keys()):
            raise InputError(f"sample {unknown[0]!r} is not in the buffer")
        self.memory.remove(gone)
        self.samples = {one: sample for one, sample in self.samples.items() if one not in gone}

    def _kept(self, candidates: list[Sample], new: int, stage: int, losses: Mapping[str, float]) -> list[str]:
        """The ids that stay, in storage order; the last `new` candidates are the ones that ask for entry."""
        ids = [sample.id for sample in candidates]
        match self.config.admission:
            case "balanced":
                return balanced_choice(candidates, self.config.capacity, self.seed)
            case "surprise":
                return balanced_choice(candidates, self.config.capacity, self.seed, losses)
            case "reservoir":
                return self._reservoir(ids[: len(ids) - new], ids[len(ids) - new :], stage)
            case "fifo":
                return ids[-self.config.capacity :]

    def _reservoir(self, slots: list[str], entering: list[str], stage: int) -> list[str]:
        """Algorithm R: the i-th sample ever seen takes slot j, uniform in [0, i), where j < capacity."""
        capacity = self.config.capacity
        generator = np.random.default_rng([self.seed, stage])
        places = generator.integers(0, np.arange(self.seen, self.seen + len(entering)) + 1).tolist()
        for one, place in zip(entering, places, strict=True):
            if len(slots) < capacity:
                slots.append(one)
            elif place < capacity:
                slots[place] = one
        return slots

    def save(self, folder: Path) -> None:
        """Write samples and memory into `folder`, each file whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        samples = list(self.samples.values())
        columns = {name: [getattr(sample, name) for sample in samples] for name in SCHEMA.names}
        parquet = pa.BufferOutputStream()
        pq.write_table(pa.table(columns, SCHEMA), parquet)
        places = {one: row for row, one in enumerate(self.samples)}
        tensors = self.memory.to_tensors() | {
            "buffer_rows": np.array([places[one] for one in self.memory.ids], dtype=np.int64),
            "buffer_seen": np.array([self.seen], dtype=np.int64),
            "buffer_digest": _digest(self.samples),
        }
        write_bytes(folder / SAMPLES_FILE, parquet.getvalue())
        write_bytes(folder / MEMORY_FILE, save_tensors(tensors))

    @classmethod
    def load(cls, folder: Path, config: BufferConfig, memory_config: MemoryModel, seed: int = 42) -> Buffer:
        """The buffer that `save` wrote, bit for bit. A missing, broken or foreign file is an InputError."""
        buffer = cls(config, memory_config, seed)
        buffer.samples = {sample.id: sample for sample in read_samples(folder / SAMPLES_FILE)}
        path = folder / MEMORY_FILE
        tensors = _read_tensors(path)
        if not np.array_equal(tensors["buffer_digest"], _digest(buffer.samples)):
            raise InputError(f"{path}: belongs to other samples than {SAMPLES_FILE}; restore both from one copy")
        ids = list(buffer.samples)
        try:
            with foreign(path):
                tracked = [ids[row] for row in tensors["buffer_rows"]]
                buffer.memory = MemoryState.from_tensors(memory_config, tracked, tensors, seed)
                buffer.seen = int(tensors["buffer_seen"][0])
        except InputError as error:
            raise _broken(path, str(error).removeprefix(f"{path}: ")) from None
        return buffer


def balanced_choice(
    candidates: list[Sample], capacity: int, seed: int, losses: Mapping[str, float] | None = None
) -> list[str]:
    """Each task keeps the samples with the smallest keys, which (seed, id) alone fix; given losses, those with the
    largest, which a sample without one does not have."""
    groups: dict[str, list[str]] = {}
    for sample in candidates:
        groups.setdefault(sample.task, []).append(sample.id)
    shares = balanced_shares([len(ids) for ids in groups.values()], capacity)
    kept: list[str] = []
    for ids, share in zip(groups.values(), shares, strict=True):
        surprise = np.nan_to_num([losses.get(one, np.nan) if losses else 0.0 for one in ids], nan=-np.inf)
        chosen = np.sort(np.lexsort((bits(seed, hashes=hash_ids(ids)), -surprise))[:share])
        kept += [ids[row] for row in chosen]
    return kept


def _digest(ids: Iterable[str]) -> np.ndarray:
    """SHA-256 of the ids in order, shape (32,), uint8."""
    return np.frombuffer(hashlib.sha256("\n".join(ids).encode()).digest(), dtype=np.uint8)


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except FileNotFoundError:
        raise InputError(f"{path}: is missing; {MISSING}") from None
    except InputError as error:
        raise _broken(path, str(error).removeprefix(f"{path}: ")) from None


def read_samples(path: Path) -> list[Sample]:
    """The samples of a saved buffer, from its Parquet file. A missing or broken file is an InputError."""
    try:
        rows = read_table(path, SCHEMA).to_pylist()
    except FileNotFoundError:
        raise InputError(f"{path}: is missing; {MISSING}") from None
    except InputError as error:
        raise _broken(path, str(error).removeprefix(f"{path}: ").removesuffix("; restore it")) from None
    with foreign(path):
        for row in rows:
            row["choices"], row["references"] = tuple(row["choices"]), tuple(row["references"])
            row["messages"] = tuple((role, text) for role, text in row["messages"])
            texts = [row["id"], row["task"], row["prompt"], row["answer"], *row["choices"], *row["references"]]
            if not all(
                isinstance(text, str) for text in [*texts, *(part for turn in row["messages"] for part in turn)]
            ):
                raise ValueError("a text is missing")
        if len({row["id"] for row in rows}) < len(rows):
            raise ValueError("an id stands twice")
        return [Sample(**row) for row in rows]


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    try:
        tensors = load_tensors(_read(path))
    except SafetensorError as error:
        raise _broken(path, error) from None
    for name in ("buffer_digest", "buffer_rows", "buffer_seen"):
        if name not in tensors:
            raise _broken(path, f"{name} is missing")
    return tensors


def _broken(path: Path, reason: object) -> InputError:
    return InputError(f"{path}: is not a saved buffer or is broken ({reason}). Restore it or start the run anew")
