"""A bundle for a bug report: what a run did and with which settings, without any text, name or path of the user."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from retain import presets
from retain.config import Config, load_config
from retain.config_yaml import dump_yaml
from retain.metrics import METRICS as TEXT_METRICS
from retain.report.words import METRICS, VIEWS
from retain.types import InputError

_FILES = """
config.yaml data.json journal.jsonl results.json report.html calibration.html calibration.json reviews.jsonl stages
buffer adapter rolled-back probes checkpoints samples.parquet memory.safetensors memory_trace.parquet tasks.json
memory_reviews.parquet
scores.json predictions.jsonl strategy.safetensors synthetic.jsonl synthetic.jsonl.gz synthetic.jsonl.zst README.md
.lock demonstrations.jsonl adapter_config.json adapter_model.safetensors model config.json generation_config.json
model.safetensors model.safetensors.index.json tokenizer.json tokenizer_config.json chat_template.jinja
tracking.jsonl tensorboard"""
_KEYS = """
kind time stage step task row model seed versions strategy steps time_unit buffer events ratio replayed projected new
new_loss replay_loss tokens seconds global_step by_task update_norm loss score n when asked generated kept dropped
faults generated_tokens account drift drifted perplexity_real perplexity_synthetic unigram_divergence
hidden_divergence distinct_1 distinct_2 distinct_3 label_distance unreadable truncated privacy metric nll likelihood
likelihood_summed eval_tokens train_tokens replayed_samples replayed_tokens probe_tokens train_seconds eval_seconds
peak_memory_bytes skipped passed action replay_factor failed limit value allowed low high items past exceeded certain
gone kept_in unfinished policy found near superseded ids sha256 removed stages searched left tasks matrix matrices
metrics metrics_by_matrix evaluation_only change task_metrics costs joint finished truncated_test retain torch
transformers peft accelerate numpy python alpha why unsuited
skipped_steps samples demonstrations predictions pages
holder at pid host boot since into after_step broken scored folder"""
_WORDS = """
start end resume adopted choice plan stage_start stage_end step event evaluation check past probe curriculum synthesis
seed validation conflicts stopped data_changed gate rollback erase stop off raise_replay seed base joint in-memory"""
FILE_NAMES = frozenset(_FILES.split())
# Of the journal and of results.json. What is none of these may be a label or another text.
REMOVED = ("unfinished stages", "leftovers of a crash", "buffered samples", "synthetic samples", "stored logits")
KEYS = frozenset([*_KEYS.split(), *REMOVED, *METRICS, *VIEWS])
WORDS = frozenset([*_WORDS.split(), *presets.NAMES, *TEXT_METRICS, *VIEWS])
TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00")
VERSION = re.compile(r"\d[\w.+-]{0,30}")
ALIASES = ("smollm2-135m",)


def write_bundle(run_dir: Path, target: Path, machine: Mapping[str, Any]) -> list[str]:
    """Write a zip with the scrubbed configuration, journal and results of a run, its files' sizes, and `machine`.

    Numbers stay; of texts only words that retain itself uses; tasks are called task-1, task-2, ...; any other text is
    replaced by its length. Returns the names in the zip. An existing target is an InputError.
    """
    if target.exists():
        raise InputError(f"--bundle: {target} is there already; choose another name")
    config = load_config(run_dir / "config.yaml", need_tasks=False)
    journal, results = _journal(run_dir), _json(run_dir / "results.json")
    scrub = Scrubber(config, journal, results)
    parts = {
        "machine.json": json.dumps(machine, indent=1),
        "config.yaml": dump_yaml(scrub(config.model_dump())),
        "journal.jsonl": "".join(json.dumps(scrub(line)) + "\n" for line in journal),
        "results.json": json.dumps(scrub(results), indent=1),
        "files.txt": "".join(f"{size:12d}  {name}\n" for name, size in scrub.files(run_dir)),
    }
    part = target.with_name(f".{target.name}.part")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as bundle:
            for name, text in parts.items():
                bundle.writestr(name, text)
        os.replace(part, target)
    except OSError as error:
        raise InputError(f"--bundle: {target} cannot be written: {error.strerror or error}") from None
    return list(parts)


class Scrubber:
    """Plain values without what the user wrote, or the model."""

    def __init__(self, config: Config, *values: Any) -> None:
        names = [spec.name for spec in config.tasks]
        names += [config.buffer.seed.name] if config.buffer.seed else []
        names += [name for value in values for name in _task_names(value)]
        self.tasks = {
            name: f"task-{number}" for number, name in enumerate(dict.fromkeys(names), 1) if name not in WORDS
        }
        self.words = WORDS | set(ALIASES) | set(_literals(Config))
        self.keys = KEYS | set(_fields(Config))

    def __call__(self, value: Any, key: str = "") -> Any:
        """`value` without texts; `key` is what it stands under."""
        if isinstance(value, dict):
            return {self._key(name, number): self(item, key if key == "versions" else str(name))
                    for number, (name, item) in enumerate(value.items(), 1)}  # fmt: skip
        if isinstance(value, list | tuple):
            return [self(item, key) for item in value]
        return self._text(value, key) if isinstance(value, str) else value

    def _key(self, name: Any, number: int) -> str:
        return self.tasks.get(name) or (name if name in self.keys or name in self.words else f"other-{number}")

    def _text(self, text: str, key: str) -> str:
        if text in self.tasks:
            return self.tasks[text]
        known = all(part in self.words for part in text.split(" + "))
        if known or (key == "time" and TIME.fullmatch(text)) or (key == "versions" and VERSION.fullmatch(text)):
            return text
        return f"<{len(text)} characters>"

    def files(self, run_dir: Path) -> list[tuple[str, int]]:
        """Every file's path, as far as its parts are names that a run gives, and its size in bytes."""
        found = []
        for path in sorted(run_dir.rglob("*")):
            if path.is_file() and not path.is_symlink():
                parts = [self._part(part) for part in path.relative_to(run_dir).parts]
                found.append(("/".join(parts), path.stat().st_size))
        return found

    def _part(self, part: str) -> str:
        if part in FILE_NAMES or part.isdecimal():
            return part
        number, dash, name = part.partition("-")
        known = number.removeprefix(".").isdecimal() and dash and (name in ("base", "joint") or name in self.tasks)
        return f"{number}-{self.tasks.get(name, name)}" if known else f"<{len(part)} characters>"


def _journal(run_dir: Path) -> list[Any]:
    """The journal's lines; one that is no JSON counts as a text."""
    lines = (run_dir / "journal.jsonl").read_bytes().decode("utf-8", "replace").split("\n")
    return [_parsed(line) for line in lines if line.strip()]


def _json(path: Path) -> Any:
    return _parsed(path.read_bytes().decode("utf-8", "replace")) if path.exists() else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _task_names(value: Any) -> list[str]:
    """Names under `task` and `tasks` at any depth, also of tasks that the configuration has no more."""
    if isinstance(value, list):
        return [name for item in value for name in _task_names(item)]
    if not isinstance(value, dict):
        return []
    own = [value.get("task"), *(tasks if isinstance(tasks := value.get("tasks"), list) else [])]
    return [name for name in own if isinstance(name, str)] + [n for item in value.values() for n in _task_names(item)]


def _fields(section: type[BaseModel]) -> set[str]:
    """Every key of a section and of those in it."""
    inner = (_fields(one) for field in section.model_fields.values() for one in _sections(field.annotation))
    return set(section.model_fields).union(*inner, *(r.options.model_fields for r in presets.REGULARIZERS.values()))


def _literals(section: type[BaseModel]) -> set[str]:
    """Every word that a key of a section, or of one in it, allows."""
    found = set()
    for field in section.model_fields.values():
        found |= {word for word in _words(field.annotation) if isinstance(word, str)}
        for one in _sections(field.annotation):
            found |= _literals(one)
    return found


def _words(annotation: Any) -> Collection[Any]:
    inner = get_args(annotation)
    return [part for part in inner if isinstance(part, str)] + [word for part in inner for word in _words(part)]


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]
