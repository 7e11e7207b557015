"""A run's directory: its journal, its stages on disk, and the results read back from them."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from retain.buffer import Buffer
from retain.config import Config, diff_config, dump_config, load_config
from retain.files import append_line, cut_lines, drop_torn_line, remove, sync_folder, write_json, write_text
from retain.holder import HOLDER, LOCK, explain_end, hold
from retain.matrix import summarize
from retain.plans import Event, StagePlan
from retain.presets import preset_of
from retain.privacy import privacy_facts
from retain.reading import check_links, foreign, read_json
from retain.types import InputError, Sample

PREDICTIONS, DATA_FILE = "predictions.jsonl", "data.json"
TAKEN_BACK = "taken_back"  # stands in DATA_FILE beside the hashes of a task that a rollback took back
TRACKED = "tracking.jsonl"  # what trackers were told already
# What a row's scratch folder holds until it is finished, beside the row itself.
CHECKPOINTS, WRITTEN, TRACE_PARTS, UNSCORED = "checkpoints", "written", "trace", "unscored.jsonl"
UNFINISHED = (CHECKPOINTS, WRITTEN, TRACE_PARTS, UNSCORED)
FREE = ("training.micro_batch_size:", "evaluation.batch_size:")  # they bound memory, not what comes out
log = logging.getLogger("retain")
SCORES = ("generated", "likelihood", "likelihood_summed", "nll")
COSTS = (
    "train_tokens",
    "replayed_samples",
    "replayed_tokens",
    "probe_tokens",
    "eval_tokens",
    "generated_tokens",
    "train_seconds",
    "eval_seconds",
    "seconds",
)


class Drawn(Protocol):
    """What a stage replayed: its events, and the ids that each of them drew."""

    events: list[Event]
    drawn: list[list[str]]


class RunDir:
    """The files of one run. Row 0 is the untouched model, row k the model after stage k."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stages = path / "stages"
        self.keeps_buffers = True
        self.listener: Callable[[dict[str, Any]], None] = lambda line: None  # told of every line of the journal

    def claim(self, config: Config, adopt_tasks: bool = False) -> Config:
        """Make the directory this run's, or check that it already is; returns the configuration that holds.

        Tasks may be added to a run that exists, and those that a rollback took back may be left out or differ;
        everything else must be the same, once something is trained. `adopt_tasks`: take over the tasks that stand
        there, but for those that were taken back. No other process can claim it meanwhile.
        """
        left = self.lock()
        self.keeps_buffers = config.buffer.history
        if self.journal.exists() and self.config_file.exists():
            old = load_config(self.config_file, need_tasks=False)
            if adopt_tasks:
                free = self.taken_back()
                config = config.model_copy(update={"tasks": [task for task in old.tasks if task.name not in free]})
            if self.rows():
                self._check_same(old, config)
            elif diff_config(old, config) or not list(self.stages.glob(f".00-*/{UNSCORED}")):
                left = os.truncate(self.journal, 0)
                (self.path / DATA_FILE).unlink(missing_ok=True)
        elif not self.journal.exists() and any(path.name not in (LOCK, HOLDER) for path in self.path.iterdir()):
            raise InputError(f"output: {self.path} is not empty and not a run; choose an empty or new directory")
        self.journal.touch()  # comes first, for it tells a run's directory from any other
        self.stages.mkdir(exist_ok=True)
        begun = f".{len(self.rows()):02d}-" if self.begun else None
        for leftover in [*self.stages.glob(".*"), *self.path.glob("*.tmp")]:
            if not begun or not leftover.name.startswith(begun):
                remove(leftover)
        write_text(self.config_file, dump_config(config))
        drop_torn_line(self.journal)
        if left and (found := explain_end(left, self.journal)):
            log.warning("%s: %s", self.path, found[0])
            self.log("stopped", holder=left, at=found[1])
        return config

    def lock(self) -> dict[str, Any] | None:
        """Keep other processes out of the directory for as long as this object lives. Raises InputError.

        Returns the record that a process left which ended without a word, if one did (`holder.hold`).
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"output: {self.path} is a file, not a directory; choose another place")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            check_links(self.path)
            self._held, left = hold(self.path)
            return left
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InputError(f"output: {self.path} cannot be written: {error.strerror or error}") from None

    def _check_same(self, old: Config, new: Config) -> None:
        free = self.taken_back()
        bound = {task.name: task for task in old.tasks if task.name not in free}
        asked = {task.name: task for task in new.tasks if task.name not in free}
        if missing := [name for name in bound if name not in asked]:
            raise InputError(f"output: {self.path} was run with task {', '.join(missing)} too; add it, or use --out")
        changes = diff_config(
            old.model_copy(update={"tasks": list(bound.values())}),
            new.model_copy(update={"tasks": [asked[name] for name in bound]}),
        )
        changes = [change for change in changes if not change.startswith(FREE)]
        before, after = ([name for name, task in tasks.items() if task.train] for tasks in (bound, asked))
        if before != after[: len(before)]:
            changes.append(f"tasks: {', '.join(before)} -> {', '.join(after)}")
        if changes:
            more = f" and {len(changes) - 5} more" if len(changes) > 5 else ""
            raise InputError(
                f"output: {self.path} holds another run; what differs: {'; '.join(changes[:5])}{more}. "
                "Choose another directory with --out, or restore these values to resume"
            )

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def journal(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def begun(self) -> bool:
        """Whether the journal has a line yet."""
        return self.journal.stat().st_size > 0

    @property
    def buffer(self) -> Path:
        return self.path / "buffer"

    def rows(self) -> list[Path]:
        """Folders of the finished rows, in order: 00-base, 01-first-task, ..."""
        found = [p for p in self.stages.glob("[0-9]*-*") if (p / "scores.json").is_file()]
        numbered = sorted((int(p.name.split("-")[0]), p) for p in found)
        return [p for k, (number, p) in enumerate(numbered) if number == k]

    @contextmanager
    def finish_row(self, row: int, name: str) -> Iterator[Path]:
        """A scratch folder that becomes the row's folder, and its buffer the run's, at the end or never.

        It holds what a run that was stopped in this row left there.
        """
        scratch = self.stages / f".{row:02d}-{name}"
        for other in self.stages.glob(".*"):
            if other != scratch:
                shutil.rmtree(other)
        scratch.mkdir(parents=True, exist_ok=True)
        yield scratch
        os.replace(scratch, self.stages / f"{row:02d}-{name}")
        sync_folder(self.stages)
        self.settle()

    def adopt(self, rows: Iterable[Path]) -> None:
        """Take over finished rows of another run, in their order, and the buffer that lies in the last one."""
        for row in rows:
            scratch = self.stages / f".adopted-{row.name}"
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.copytree(row, scratch)
            os.replace(scratch, self.stages / row.name)
            self.log("adopted", folder=row.name)
        self.settle()

    def settle(self) -> None:
        """Move the newest row's buffer to its place, and the one before into its own row, from where `rollback` takes
        it; drop what only an unfinished row needs. A crash between the moves is mended here."""
        rows = self.rows()
        fresh = rows[-1] / "buffer" if rows else None
        if fresh and fresh.is_dir():
            if self.keeps_buffers and len(rows) > 1 and self.buffer.is_dir() and not (rows[-2] / "buffer").exists():
                os.replace(self.buffer, rows[-2] / "buffer")
            shutil.rmtree(self.buffer, ignore_errors=True)
            os.replace(fresh, self.buffer)
        for leftover in [path for name in (*UNFINISHED, "*.tmp") for path in (rows[-1].glob(name) if rows else ())]:
            remove(leftover)

    def log(self, kind: str, **fields: Any) -> None:
        """Append one line to the journal."""
        line = {"kind": kind, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
        append_line(self.journal, line)
        self.listener(line)

    def log_start(self, config: Config, versions: Mapping[str, str], processes: int = 1) -> None:
        """The journal's first line."""
        name = preset_of(config.strategy).name
        more = {"processes": processes} if processes > 1 else {}
        self.log("start", strategy=name, seed=config.seed, model=config.model.name, versions=versions, **more)

    def log_plan(self, stage: int, plan: StagePlan, first_step: int) -> None:
        """The lines that a stage begins with."""
        self.log("plan", stage=stage, task=plan.task, steps=plan.steps, time_unit=plan.time_unit,
                 buffer=plan.buffer_size, events=[event.to_dict() for event in plan.events])  # fmt: skip
        self.log("stage_start", stage=stage, task=plan.task, step=first_step)

    def log_events(self, stage: int, first_step: int, replayer: Drawn, task_of: Mapping[str, str]) -> None:
        """A line for each event of a stage, with how many samples of each task it drew."""
        for event, ids in zip(replayer.events, replayer.drawn, strict=True):
            self.log("event", stage=stage, step=event.step, global_step=first_step + event.step, ratio=event.ratio,
                     replayed=event.replayed, by_task=dict(Counter(task_of[one] for one in ids)))  # fmt: skip

    def learned(self) -> list[str]:
        """The tasks of all finished stages, in order."""
        return [self.scores(row)["task"] for row in self.rows()[1:]]

    def taken_back(self) -> set[str]:
        """The tasks that a rollback took back, which need not be learned again."""
        marked = {name for name, hashes in read_hashes(self.path).items() if TAKEN_BACK in hashes}
        return marked.difference(self.learned()) if marked else marked

    def forget_scores(self, tasks: Collection[str]) -> None:
        """Take out the scores and predictions of these tasks in every row."""
        for row in self.rows():
            facts = self.scores(row)
            if gone := facts["scores"].keys() & set(tasks):
                cut_lines(row / PREDICTIONS, lambda line, gone=gone: line.get("task") in gone)
                left = {name: scores for name, scores in facts["scores"].items() if name not in gone}
                write_json(row / "scores.json", {**facts, "scores": left})

    def steps(self) -> int:
        """Steps that all finished stages took."""
        return sum(self.scores(row)["steps"] for row in self.rows()[1:])

    def load_buffer(self, config: Config, seed: Sequence[Sample] = ()) -> Buffer:
        """The buffer as the last stage left it; before the first one with the `seed`, where the strategy keeps any."""
        if self.buffer.is_dir() or self.rows()[1:]:
            return Buffer.load(self.buffer, config.buffer, config.memory, config.seed)
        buffer = Buffer(config.buffer, config.memory, config.seed)
        if seed and preset_of(config.strategy).keeps_buffer:
            buffer.seed_with(seed)
        return buffer

    def journal_size(self) -> int:
        """Bytes of the journal, which are safely on the disk then."""
        with open(self.journal, "rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

    def forget_row(self, row: int, start: int = 0) -> None:
        """Take a row's lines from byte `start` on out of the journal: a resumed run is going to write them again."""
        cut_lines(self.journal, lambda line: row in (line.get("stage"), line.get("row")), start)

    def forget_unscored(self, folder: Path, row: int, scored: Collection[str]) -> None:
        """Take out what a run that was stopped wrote of a row's tasks before their scores were safe."""
        cut_lines(folder / PREDICTIONS, lambda line: line.get("task") not in scored)
        evaluated = ("evaluation", row)
        cut_lines(
            self.journal,
            lambda line: (line.get("kind"), line.get("row")) == evaluated and line.get("task") not in scored,
        )

    def scores(self, row: Path) -> dict[str, Any]:
        """The scores.json of one row."""
        found = read_json(row / "scores.json")
        needed = {"scores": dict, "costs": dict}
        if row.name.split("-")[0].strip("0"):  # a stage
            needed |= {"task": str, "fingerprint": str, "steps": int}
        if not isinstance(found, dict) or not all(isinstance(found.get(key), kind) for key, kind in needed.items()):
            raise InputError(f"{row / 'scores.json'}: is not what a run wrote; restore it, or start anew with --out")
        return found

    def write_results(self, config: Config, skipped: Mapping[str, int], versions: Mapping[str, str]) -> dict[str, Any]:
        """Write results.json anew from the rows on disk, and return it. skipped: invalid rows of each task."""
        known = self.scores(self.rows()[0])["scores"] if self.rows() else {}
        tasks = [
            {
                "name": spec.name,
                "stage": spec.train is not None,
                "metric": known.get(spec.name, {}).get("metric"),
                "skipped": skipped.get(spec.name, 0),
            }
            for spec in config.tasks
        ]
        results = self.collect(config, tasks, dict(versions))
        write_json(self.path / "results.json", results)
        return results

    def collect(self, config: Config, tasks: list[dict[str, Any]], versions: dict) -> dict:
        """results.json from the rows on disk. tasks: {"name", "stage": bool, "metric", "skipped"} each."""
        with foreign(self.stages):
            return self._collect(config, tasks, versions)

    def _collect(self, config: Config, tasks: list[dict[str, Any]], versions: dict) -> dict:
        rows = [self.scores(row) for row in self.rows()]
        chosen = preset_of(config.strategy)
        joint = chosen.joint
        trained = [t["name"] for t in tasks if t["stage"]]
        others = [t["name"] for t in tasks if not t["stage"]]
        matrices = {kind: score_matrix(rows, trained, kind) for kind in SCORES}
        guards = {kind: score_matrix(rows, others, kind) for kind in SCORES}
        stages = 1 if joint else len(trained)
        by_matrix = {kind: summarize(matrices[kind], joint) for kind in SCORES} if trained and rows else {}
        if by_matrix:  # the others take a high score for a good one
            by_matrix["nll"] = {name: by_matrix["nll"][name] for name in ("ACC", "MAA", "BWT", "FWT")}
        costs = {key: sum(row["costs"].get(key, 0) for row in rows) for key in COSTS}
        costs["peak_memory_bytes"] = max((row["costs"]["peak_memory_bytes"] for row in rows), default=0)
        return {
            "tasks": trained,
            "matrix": matrices["generated"],
            "matrices": matrices,
            "metrics": by_matrix.get("generated", {}) | {"NLL": final_loss(matrices["nll"])},
            "metrics_by_matrix": by_matrix,
            "evaluation_only": {
                "tasks": others,
                "matrices": guards,
                "change": _change(guards["generated"], others),
            },
            "task_metrics": {t["name"]: t["metric"] for t in tasks},
            "costs": costs,
            "strategy": chosen.name,
            "joint": joint,
            "seed": config.seed,
            "versions": versions,
            "finished": len(rows) == stages + 1,
            "truncated": sum(row.get("truncated", 0) for row in rows),
            "skipped_steps": {row["task"]: row["skipped_steps"] for row in rows if row.get("skipped_steps")},
            "truncated_test": {
                name: cut
                for name, scores in (rows[0]["scores"] if rows else {}).items()
                if (cut := scores["truncated"])
            },
            "skipped": {t["name"]: t["skipped"] for t in tasks},
            "privacy": privacy_facts(config, {row["task"]: row["privacy"] for row in rows if row.get("privacy")}),
        }


def read_hashes(folder: Path) -> dict[str, dict[str, str]]:
    """The hash of each split by task; empty where none were noted. A file that is no such thing is an InputError."""
    try:
        found = read_json(folder / DATA_FILE)
    except FileNotFoundError:
        return {}
    if not isinstance(found, dict) or not all(isinstance(hashes, dict) for hashes in found.values()):
        raise InputError(f"{folder / DATA_FILE}: is not what a run wrote; restore it, or start anew with --out")
    return found


def score_matrix(rows: Sequence[Mapping[str, Any]], tasks: Sequence[str], kind: str) -> list[list[float | None]]:
    """One kind of score of each task (columns) in each row, given their scores.json; None where there is none."""
    return [[row["scores"].get(task, {}).get(kind) for task in tasks] for row in rows]


def final_loss(losses: Sequence[Sequence[float | None]]) -> float | None:
    """The mean held-out loss of the last row; None where nothing is scored."""
    known = [value for value in losses[-1] if value is not None] if losses else []
    return sum(known) / len(known) if known else None


def _change(matrix: list[list[float | None]], tasks: list[str]) -> dict[str, float | None]:
    pairs = zip(tasks, matrix[0], matrix[-1], strict=True) if matrix else []
    return {task: None if None in (first, last) else last - first for task, first, last in pairs}
