"""Take a sample out of everything a run keeps beside its weights, and show that it is gone."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import pyarrow as pa

from retain.buffer import MEMORY_FILE, SAMPLES_FILE, Buffer, read_samples
from retain.config import Config, load_config
from retain.memory.random import hash_ids
from retain.presets import preset_of
from retain.quality.memorization import TELLING, TrainingTexts
from retain.quality.ngrams import words
from retain.report import write_report
from retain.rundir import LOCK, PREDICTIONS, RunDir
from retain.searching import Sought, fold, lines_of, value_of
from retain.sections import BUILTIN
from retain.store import COMPRESSIONS, DEMONSTRATIONS, NAME
from retain.strategies.composition import STATE_FILE
from retain.synthesis.prompts import SHOWING
from retain.tasks import load_task
from retain.types import Frame, InputError, Sample, Task

JOURNAL, REPORT = "journal.jsonl", "report.html"
PHRASE = 5  # words from which a text is told inside another one
NEAR = 0.8  # share of words in common from which a synthetic sample counts as a copy, where `filters` sets none


@dataclass
class Erasure:
    """What is to be erased from a run's directory, or was.

    samples: the records, by id, as far as their text is known; derived: ids of synthetic samples that show or copy one
    of them; counts: what goes, by kind; stages: finished stages trained with a record or what was derived from it, the
    first and the last, None for none; places: where records stand in the user's own data; unread: tasks whose data are
    not at hand. searched and left: files looked at afterwards, and those that still hold the text.
    """

    run_dir: RunDir
    config: Config
    sought: Sought
    digest: str
    samples: dict[str, Sample]
    derived: set[str]
    counts: Counter[str] = field(default_factory=Counter)
    stages: tuple[int, int] | None = None
    places: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    searched: int = 0
    left: list[Path] = field(default_factory=list)

    @property
    def ids(self) -> set[str]:
        return self.samples.keys() | self.derived


def find(path: Path, record: str | None = None, text: str | None = None) -> Erasure:
    """What has to go: the sample with the id `record`, or every sample that holds `text` (literal, case ignored).

    Nothing is changed. Raises InputError where neither or both are given, for a blank text, and an unknown id.
    """
    if (record is None) == (text is None):
        raise InputError("give either --record with the id of a sample, or --match with a text")
    if not fold(text if record is None else record):
        raise InputError(f"{'--match' if record is None else '--record'}: empty; it would be everything")
    run_dir = RunDir(path)
    run_dir.lock()
    config = load_config(run_dir.config_file, need_tasks=False)
    tasks, unread = _tasks_at_hand(config, path)
    splits = [(task, split, one) for task in tasks for split in ("train", "validation", "test")
              for one in getattr(task, split)]  # fmt: skip
    written, buffered = list(_written(path)), list(_buffered(path))
    everything = [*written, *buffered, *(one for _, _, one in splits)]
    frames = {task.name: task.frame for task in tasks}
    if text is None:
        known = {one.id: one for one in reversed(everything)}  # what the run has, before what the data say now
        sample = _named(record, known, path)
        sought, digest = _sought_of(sample, frames, everything), _digest(json.dumps(_texts(sample)))
    else:
        sought, digest = Sought.of([text]), _digest(text)
    samples = {one.id: one for one in everything if sought.is_in_value(_texts(one))}
    samples |= {} if text is not None else {record: sample}
    erasure = Erasure(run_dir, config, sought, digest, samples, set(), unread=unread)
    erasure.derived = _derived(erasure, [*written, *buffered], frames)
    hit = [place for place in splits if sought.is_in_value(_texts(place[2]))]
    erasure.places = _places(config, hit)
    erasure.stages = _stages(erasure, {one.id for _, split, one in hit if split == "train"} | {b.id for b in buffered})
    _walk(erasure, apply=False)
    return erasure


def _named(record: str, known: dict[str, Sample], path: Path) -> Sample:
    if record not in known:
        near = get_close_matches(record, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"--record: {record!r} is no sample of {path} or of its tasks' data{hint}")
    return known[record]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def erase(erasure: Erasure) -> None:
    """Take out what `find` found, search the directory for it again, and journal the act without the text."""
    _walk(erasure, apply=True)
    report = erasure.run_dir.path / REPORT
    if erasure.counts["pages"] and not report.exists() and (erasure.run_dir.path / "results.json").exists():
        write_report(erasure.run_dir.path)
    for path in _files(erasure.run_dir.path):
        erasure.searched += 1
        if erasure.sought.is_in_file(path):
            erasure.left.append(path)
    erasure.run_dir.log("erase", sha256=erasure.digest, ids=sorted(erasure.ids), removed=dict(erasure.counts),
                        stages=erasure.stages, searched=erasure.searched, left=len(erasure.left))  # fmt: skip


# ---- what there is ----------------------------------------------------------------------------------------


def _tasks_at_hand(config: Config, path: Path) -> tuple[list[Task], list[str]]:
    tasks, unread = [], []
    seed = config.buffer.seed
    for spec in [*config.tasks, *([seed] if seed and not seed.synthesize else [])]:
        try:
            tasks.append(load_task(spec, config, path, config.needs_validation, needs_test=False))
        except InputError:
            unread.append(spec.name)
    return tasks, unread


def _files(path: Path) -> list[Path]:
    """Every file of the directory, also in folders that begin with a dot; the lock is none."""
    return sorted(one for one in path.rglob("*") if one.is_file() and not one.is_symlink() and one.name != LOCK)


def _buffered(path: Path) -> Iterator[Sample]:
    for file in _files(path):
        if file.name == SAMPLES_FILE:
            yield from read_samples(file)


def _written(path: Path) -> Iterator[Sample]:
    for file in _files(path):
        if file.name.startswith(NAME):
            for line in lines_of(file, file.suffix):
                row = value_of(line)
                if isinstance(row, dict) and {"id", "task", "input", "answer"} <= row.keys():
                    yield Sample(row["id"], row["task"], row["input"], row["answer"])


def _texts(sample: Sample) -> list[str]:
    """What a sample says; its label set is the task's."""
    turns = [text for role, text in sample.messages if role != "system"]
    return list(filter(None, [sample.prompt, *turns, sample.answer, *sample.references]))


def _sought_of(sample: Sample, frames: dict[str, Frame], known: Iterable[Sample]) -> Sought:
    """The texts that give a record away: its prompt and input, and an answer that no other sample has.

    Of at least 5 words they count inside other texts too, shorter ones where they are the whole of one.
    """
    frame = frames.get(sample.task)
    own = [*([frame.input_of(sample)] if frame else []), *_texts(sample)]
    shared = Counter(fold(one.answer) for one in known if one.id != sample.id)
    answers = {fold(one) for one in (sample.answer, *sample.references)}
    telling = [text for text in own if fold(text) not in answers
               or (len(text) >= TELLING and fold(text) not in shared)]  # fmt: skip
    return Sought.of(phrases=[text for text in telling if len(words(text)) >= PHRASE], whole=telling)


# ---- what follows from it ---------------------------------------------------------------------------------


def _derived(erasure: Erasure, samples: Sequence[Sample], frames: dict[str, Frame]) -> set[str]:
    """Synthetic samples whose prompt may have shown a record, and those that are nearly one."""
    names = {one.id for one in samples if "/synthetic/" in one.id or one.confidence is not None}
    synthetic = [one for one in samples if one.id in names - erasure.samples.keys()]
    if not erasure.samples or not synthetic:
        return set()

    def input_of(sample: Sample) -> str:
        return frames.get(sample.task, Frame()).input_of(sample)

    texts = TrainingTexts(list(filter(None, map(input_of, erasure.samples.values()))))
    shares = texts.overlap([input_of(one) for one in synthetic])
    limit, shown = erasure.config.filters.memorization or NEAR, _shown_tasks(erasure)
    return {one.id for one, share in zip(synthetic, shares, strict=True) if share >= limit or one.task in shown}


def _shown_tasks(erasure: Erasure) -> set[str]:
    """Tasks of which any synthetic sample may have been written after a prompt with a record in it.

    The files do not say which demonstrations a sample was written after, so all of the task's count.
    """
    synthesis, shown = erasure.config.synthesis, set()
    for file in _files(erasure.run_dir.path):
        if file.name == DEMONSTRATIONS:
            rows = [value_of(line) for line in lines_of(file, file.suffix)]
            shown |= {row["task"] for row in rows if isinstance(row, dict) and erasure.sought.is_in_value(row)}
    source = preset_of(erasure.config.strategy).source
    if source and synthesis.method in SHOWING and synthesis.demonstrations_from == "training":
        shown |= {one.task for one in erasure.samples.values()}
    return shown


def _places(config: Config, hit: Iterable[tuple[Task, str, Sample]]) -> list[str]:
    """Where the records stand in the user's own files."""
    specs = {spec.name: spec for spec in config.tasks}
    if config.buffer.seed:
        specs[config.buffer.seed.name] = config.buffer.seed
    found: dict[tuple[str, str], list[int]] = {}
    for task, split, sample in hit:
        source = getattr(specs[task.name], split) or specs[task.name].train  # a validation split is of train
        if not source.startswith(BUILTIN):
            found.setdefault((task.name, source), []).append(int(sample.id.rpartition("/")[2]) + 1)
    return [f"{source} ({task}): row {', '.join(map(str, sorted(rows)))}" for (task, source), rows in found.items()]


def _stages(erasure: Erasure, trained: Collection[str]) -> tuple[int, int] | None:
    """The first and the last finished stage whose weights saw a record, or what was written after or like it."""
    rows = erasure.run_dir.rows()
    numbers = {erasure.run_dir.scores(row)["task"]: number for number, row in enumerate(rows) if number}
    seed = erasure.config.buffer.seed
    numbers |= {seed.name: 1} if seed else {}
    if preset_of(erasure.config.strategy).joint:
        numbers = {spec.name: 1 for spec in erasure.config.tasks}
    first = [numbers[one.task] for name, one in erasure.samples.items() if name in trained and one.task in numbers]
    for one in [name for name in erasure.ids if "/synthetic/" in name]:
        stage = one.rpartition("/synthetic/")[2].partition("/")[0]
        first.append(int(stage) if stage.isdecimal() else 1)
    last = len(rows) - 1
    return (min(first), last) if first and min(first) <= last else None


# ---- taking it out ----------------------------------------------------------------------------------------


def _walk(erasure: Erasure, apply: bool) -> None:
    """Count, and with `apply` take out, what goes: a kind of file at a time."""
    erasure.counts, path = Counter(), erasure.run_dir.path
    if erasure.ids:
        for part in [*path.rglob("stages/.*")]:
            _remove(erasure, "unfinished stages", part, apply)
    for file in _files(path):
        if file.suffix in (".tmp", ".part") and (erasure.ids or erasure.sought.is_in_file(file)):
            _remove(erasure, "leftovers of a crash", file, apply)
    for file in _files(path):
        if file.name in (SAMPLES_FILE, JOURNAL):
            continue
        if file.name == MEMORY_FILE and (file.parent / SAMPLES_FILE).exists():
            _drop_buffered(erasure, file.parent, apply)
        elif file.name == STATE_FILE:
            _drop_logits(erasure, file, apply)
        elif file.name.removesuffix(".gz").removesuffix(".zst").endswith(".jsonl"):
            _drop_lines(erasure, file, apply)
        elif file.suffix == ".html" and erasure.sought.is_in_file(file):
            _remove(erasure, "pages", file, apply)


def _remove(erasure: Erasure, kind: str, path: Path, apply: bool) -> None:
    erasure.counts[kind] += 1
    if apply:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _goes(erasure: Erasure, sample: Sample) -> bool:
    return sample.id in erasure.ids or erasure.sought.is_in_value(_texts(sample))


def _drop_buffered(erasure: Erasure, folder: Path, apply: bool) -> None:
    gone = [one.id for one in read_samples(folder / SAMPLES_FILE) if _goes(erasure, one)]
    if not gone:
        return
    erasure.counts["buffered samples"] += len(gone)
    if apply:
        config = erasure.config
        buffer = Buffer.load(folder, config.buffer, config.memory, config.seed)
        buffer.drop(gone)
        buffer.save(folder)


def _drop_lines(erasure: Erasure, path: Path, apply: bool) -> None:
    """Rows of a file of JSON lines that are of an erased sample, or hold its text."""
    lines = lines_of(path, path.suffix)
    rows = [value_of(line) for line in lines]
    gone = [(isinstance(row, dict) and row.get("id") in erasure.ids) or erasure.sought.is_in_value(row) for row in rows]
    if not any(gone):
        return
    erasure.counts[_kind(path)] += sum(gone)
    if apply:
        text = "\n".join(line for line, goes in zip(lines, gone, strict=True) if not goes)
        part = path.with_name(f".{path.name}.part")
        with pa.output_stream(str(part), compression=COMPRESSIONS.get(path.suffix)) as stream:
            stream.write(text.encode("utf-8", errors="surrogatepass"))
        os.replace(part, path)


def _kind(path: Path) -> str:
    kinds = {NAME: "synthetic samples", DEMONSTRATIONS: "demonstrations", PREDICTIONS: "predictions"}
    return next((kind for name, kind in kinds.items() if path.name.startswith(name)), f"lines of {path.name}")


def _drop_logits(erasure: Erasure, path: Path, apply: bool) -> None:
    """The logits that `der++` stored of erased samples, which all but spell them out."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    names = [name for name in tensors if name.endswith("/hashes")]
    gone = set(hash_ids(erasure.ids).astype("int64").tolist())
    for name in names:
        prefix = name.removesuffix("hashes")
        stays = [key not in gone for key in tensors[name].tolist()]
        if all(stays):
            continue
        erasure.counts["stored logits"] += len(stays) - sum(stays)
        keep = tensors[name].new_tensor(stays).bool()
        tokens = keep.repeat_interleave(tensors[f"{prefix}counts"])
        for part, mask in (("hashes", keep), ("counts", keep), ("values", tokens), ("tokens", tokens)):
            tensors[prefix + part] = tensors[prefix + part][mask].contiguous()
        if not any(stays):
            tensors = {other: value for other, value in tensors.items() if not other.startswith(prefix)}
        if apply:
            part = path.with_name(f".{path.name}.part")
            save_file(tensors, part)
            os.replace(part, path)


def unreached(erasure: Erasure) -> Iterable[str]:
    """In words, what this cannot do."""
    yield from (f"still in your data, take it out there: {place}" for place in erasure.places)
    yield from (
        f"task {name}: its data are not at hand, so look yourself whether they hold it" for name in erasure.unread
    )
