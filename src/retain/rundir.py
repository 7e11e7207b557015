"""A run's directory: its journal, its stages on disk, and the results read back from them."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retain.config import Config, diff_config, dump_config, load_config
from retain.holder import HOLDER, LOCK, explain_end, hold
from retain.matrix import summarize
from retain.presets import preset_of
from retain.privacy import privacy_facts
from retain.reading import check_links, foreign, read_json
from retain.types import InputError

log = logging.getLogger("retain")
OWN = (LOCK, HOLDER, "journal.jsonl", "config.yaml.tmp", "stages")  # what a claim that broke off leaves
FREE = ("training.micro_batch_size:", "evaluation.batch_size:")  # they bound memory, not what comes out
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


class RunDir:
    """The files of one run. Row 0 is the untouched model, row k the model after stage k."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stages = path / "stages"

    def claim(self, config: Config, adopt_tasks: bool = False) -> Config:
        """Make the directory this run's, or check that it already is; returns the configuration that holds.

        Tasks may be appended to a run that exists; everything else must be the same, once something is trained.
        `adopt_tasks`: take over the list of tasks that stands there. No other process can claim it meanwhile.
        """
        left = self._lock()
        if (self.path / "journal.jsonl").exists() and self.config_file.exists():
            old = load_config(self.config_file, need_tasks=False)
            config = config.model_copy(update={"tasks": old.tasks}) if adopt_tasks else config
            if self.rows():
                self._check_same(old, config)
            else:
                left = (self.path / "journal.jsonl").unlink()
                (self.path / "data.json").unlink(missing_ok=True)
        elif self.rows() or any(path.name not in OWN for path in self.path.iterdir()):
            raise InputError(f"output: {self.path} is not empty and not a run; choose an empty or new directory")
        self.stages.mkdir(exist_ok=True)
        for leftover in self.stages.glob(".[0-9]*"):
            shutil.rmtree(leftover)
        (self.path / "journal.jsonl").touch()
        write_text(self.config_file, dump_config(config))
        drop_torn_line(self.path / "journal.jsonl")
        if left and (found := explain_end(left, self.path / "journal.jsonl")):
            log.warning("%s: %s", self.path, found[0])
            self.log("stopped", holder=left, **found[1])
        return config

    def _lock(self) -> dict[str, Any] | None:
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
        if missing := [task.name for task in old.tasks if task.name not in {t.name for t in new.tasks}]:
            raise InputError(f"output: {self.path} was run with task {', '.join(missing)} too; add it, or use --out")
        changes = diff_config(old, new.model_copy(update={"tasks": new.tasks[: len(old.tasks)]}))
        changes = [change for change in changes if not change.startswith(FREE)]
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
    def buffer(self) -> Path:
        return self.path / "buffer"

    def rows(self) -> list[Path]:
        """Folders of the finished rows, in order: 00-base, 01-first-task, ..."""
        found = [p for p in self.stages.glob("[0-9]*-*") if (p / "scores.json").is_file()]
        numbered = sorted((int(p.name.split("-")[0]), p) for p in found)
        return [p for k, (number, p) in enumerate(numbered) if number == k]

    @contextmanager
    def finish_row(self, row: int, name: str) -> Iterator[Path]:
        """A scratch folder that becomes the row's folder, and its buffer the run's, at the end or never."""
        scratch = self.stages / f".{row:02d}-{name}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        yield scratch
        os.replace(scratch, self.stages / f"{row:02d}-{name}")
        self.settle_buffer()

    def adopt(self, rows: Iterable[Path]) -> None:
        """Take over finished rows of another run, in their order, and the buffer that lies in the last one."""
        for row in rows:
            scratch = self.stages / f".{row.name}"
            shutil.copytree(row, scratch)
            os.replace(scratch, self.stages / row.name)
            self.log("adopted", row=row.name)
        self.settle_buffer()

    def settle_buffer(self) -> None:
        """Move the newest row's buffer to its place; a crash between the two moves is mended here."""
        rows = self.rows()
        fresh = rows[-1] / "buffer" if rows else None
        if fresh and fresh.is_dir():
            shutil.rmtree(self.buffer, ignore_errors=True)
            os.replace(fresh, self.buffer)

    def log(self, kind: str, **fields: Any) -> None:
        """Append one line to the journal."""
        line = {"kind": kind, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
        append_line(self.path / "journal.jsonl", line)

    def scores(self, row: Path) -> dict[str, Any]:
        """The scores.json of one row."""
        found = read_json(row / "scores.json")
        needed = {"scores": dict, "costs": dict}
        if row.name.split("-")[0].strip("0"):  # a stage
            needed |= {"task": str, "fingerprint": str, "steps": int}
        if not isinstance(found, dict) or not all(isinstance(found.get(key), kind) for key, kind in needed.items()):
            raise InputError(f"{row / 'scores.json'}: is not what a run wrote; restore it, or start anew with --out")
        return found

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
        matrices = {kind: _matrix(rows, trained, kind) for kind in SCORES}
        guards = {kind: _matrix(rows, others, kind) for kind in SCORES}
        stages = 1 if joint else len(trained)
        by_matrix = {kind: summarize(matrices[kind], joint) for kind in SCORES} if trained and rows else {}
        if by_matrix:  # the others take a high score for a good one
            by_matrix["nll"] = {name: by_matrix["nll"][name] for name in ("ACC", "MAA", "BWT", "FWT")}
        costs = {key: sum(row["costs"].get(key, 0) for row in rows) for key in COSTS}
        costs["peak_memory_bytes"] = max((row["costs"]["peak_memory_bytes"] for row in rows), default=0)
        final = [value for value in matrices["nll"][-1] if value is not None] if rows else []
        return {
            "tasks": trained,
            "matrix": matrices["generated"],
            "matrices": matrices,
            "metrics": by_matrix.get("generated", {}) | {"NLL": sum(final) / len(final) if final else None},
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


def _matrix(rows: list[dict], tasks: list[str], kind: str) -> list[list[float | None]]:
    return [[row["scores"].get(task, {}).get(kind) for task in tasks] for row in rows]


def _change(matrix: list[list[float | None]], tasks: list[str]) -> dict[str, float | None]:
    pairs = zip(tasks, matrix[0], matrix[-1], strict=True) if matrix else []
    return {task: None if None in (first, last) else last - first for task, first, last in pairs}


def drop_torn_line(path: Path) -> None:
    """Cut off the last line of a file of JSON lines, if there is one and a crash left it half-written."""
    if path.exists() and not (whole := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, whole.rfind(b"\n") + 1)


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append a value to a file of JSON lines; where the disk is full the file stays as it was."""
    with open(path, "ab", buffering=0) as file:
        start = file.seek(0, os.SEEK_END)
        try:
            content = (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", errors="backslashreplace")
            if file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(start)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    scratch = path.with_name(path.name + ".tmp")
    try:
        with open(scratch, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
