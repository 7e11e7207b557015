"""Write samples of a task that a finished run has learned, with their scores, into a file."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from retain.cards import CARDS_FILE, TaskCard, read_cards, texts_of
from retain.config import Config, diff_config, load_config
from retain.device import open_model
from retain.presets import preset_of
from retain.quality.memorization import TrainingTexts
from retain.rundir import RunDir
from retain.sections import TaskConfig
from retain.selfsynthesis import check_descriptions, learned_card, real_pairs, sample_row
from retain.store import COMPRESSIONS, DEMONSTRATIONS, read_lines, write_lines
from retain.synthesis.prompts import SHOWING, Pair
from retain.synthesis.writer import Writer, Written
from retain.tasks import load_task
from retain.types import InputError
from retain.weights import load_weights

log = logging.getLogger("retain")

CHANGEABLE = ("synthesis.", "filters.", "tasks.", "seed")
NUMBER = 1  # of this writing; 0 is the run's own, so that its samples are not written again


def synthesize(
    run_dir: Path,
    task: str,
    count: int,
    out: Path,
    *,
    stage: int | None = None,
    overrides: Sequence[str] = (),
    demonstrations: Path | None = None,
    force: bool = False,
) -> Written:
    """Write `count` samples of `task` into `out` (.jsonl, .jsonl.gz or .jsonl.zst), one a line with its scores.

    stage: whose adapter writes, the last finished one by default. overrides: `key=value` of the sections synthesis
    and filters, of a task, and of the seed. demonstrations: rows with input and answer to show in the prompt. An
    existing file is an InputError without `force`.
    """
    compression = _compression(out, force)
    config = _config(run_dir, overrides, demonstrations is not None)
    folder, number, learned = _stage(run_dir, config, task, stage)
    shown = _demonstrations(folder, task, demonstrations)
    part = _part(out)
    lm, _ = open_model(config, run_dir)
    load_weights(lm, folder)
    writer = Writer(lm, config)
    card, real = _card(writer, config, run_dir, folder, task, learned)
    if not shown:
        drawn = config.synthesis.demonstrations_from == "training"
        shown = real if drawn else real[: config.synthesis.demonstrations]
    if config.synthesis.method in SHOWING and not shown:
        raise InputError(
            f"synthesis.method: {config.synthesis.method} shows real samples, and {run_dir} keeps none of {task}; "
            "give some with --demonstrations, or set synthesis.method=two-stage"
        )
    written = writer.write(card, count, number, shown, NUMBER)
    if config.privacy.epsilon_per_token is None:  # a score is outside the bound of a draw
        writer.score(card, written.kept)
    rows = [sample_row(f"{task}/synthesized/{number}/{k}", task, one) for k, one in enumerate(written.kept)]
    os.replace(write_lines(part, rows, compression), out)
    return written


def _compression(out: Path, force: bool) -> str | None:
    """How `out` is compressed, by its suffix, after a look whether it may be written."""
    if not re.search(rf"\.jsonl({'|'.join(COMPRESSIONS)})?$", out.name):
        allowed = ", ".join(f".jsonl{suffix}" for suffix in ("", *COMPRESSIONS))
        raise InputError(f"--out: {str(out)!r}; its name must end in one of {allowed}")
    if out.is_dir():
        raise InputError(f"--out: {out} is a directory; name a file in it")
    if out.exists() and not force:
        raise InputError(f"--out: {out} is there already; choose another name, or overwrite it with --force")
    return COMPRESSIONS.get(out.suffix)


def _part(out: Path) -> Path:
    """The file beside `out` that takes its place once it is whole; a place that cannot be written is an InputError."""
    part = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written: {error.strerror or error}") from None
    return part


def _config(run_dir: Path, overrides: Sequence[str], showing: bool) -> Config:
    """The run's configuration under the overrides; `showing`: with a method that shows demonstrations."""
    file = run_dir / "config.yaml"
    config = load_config(file, list(overrides), need_tasks=False)
    if showing and config.synthesis.method not in SHOWING:
        config = load_config(file, [*overrides, "synthesis.method=in-context"], need_tasks=False)
    changes = diff_config(load_config(file, need_tasks=False), config)
    if fixed := [change for change in changes if not change.startswith(CHANGEABLE)]:
        allowed = "synthesis, filters, a task's keys and the seed"
        raise InputError(f"{fixed[0]}: the run was trained with the old value; what may change here: {allowed}")
    return config


def _stage(run_dir: Path, config: Config, task: str, stage: int | None) -> tuple[Path, int, dict[str, int]]:
    """The folder of the stage whose adapter writes, its number, and the stage that learned each task by then."""
    directory = RunDir(run_dir)
    rows = directory.rows()
    stage = len(rows) - 1 if stage is None else stage
    if not 1 <= stage < len(rows):
        raise InputError(f"stage: {run_dir} has {max(len(rows) - 1, 0)} finished stages; {stage} is none of them")
    learned = {directory.scores(row)["task"]: number for number, row in enumerate(rows[1 : stage + 1], start=1)}
    if preset_of(config.strategy).joint:
        learned = {spec.name: 1 for spec in config.tasks if spec.train}
    if task not in learned:
        raise InputError(f"--task: {task!r} is not learned after stage {stage} of {run_dir}; {', '.join(learned)} are")
    return rows[stage], stage, learned


def _demonstrations(folder: Path, task: str, given: Path | None) -> list[Pair]:
    """The user's demonstrations, or those that the run kept of the task."""
    if given is None and not (folder / DEMONSTRATIONS).exists():
        return []
    rows = read_lines(given or folder / DEMONSTRATIONS, ("input", "answer"))
    found = [(row["input"], row["answer"]) for row in rows if given or row.get("task") == task]
    if given and not found:
        raise InputError(f"--demonstrations: {given} is empty")
    return found


def _card(
    writer: Writer, config: Config, run_dir: Path, folder: Path, task: str, learned: Mapping[str, int]
) -> tuple[TaskCard, list[Pair]]:
    """What is known of the task: the run's card, or one made of its data, which come along as pairs."""
    specs = {spec.name: spec for spec in config.tasks if spec.name in learned}
    cards = {card.name: card for card in read_cards(folder)} if (folder / CARDS_FILE).exists() else {}
    if task in cards:
        card, real = replace(cards[task], description=specs[task].description or cards[task].description), []
    if task not in cards or config.synthesis.demonstrations_from == "training":
        loaded = load_task(specs[task], config, run_dir, config.needs_validation, needs_test=False)
        check_descriptions(config, [loaded])
        real = real_pairs(loaded)
        card = card if task in cards else learned_card(writer, loaded, learned[task], real)
    if config.filters.memorization is None or config.privacy.dp_sgd:
        return card, real
    return card.with_texts(_training_texts(specs.values(), config, run_dir)), real


def _training_texts(specs: Iterable[TaskConfig], config: Config, run_dir: Path) -> TrainingTexts | None:
    """The texts that no sample may copy; None, with a warning, where the data of a learned task are gone."""
    try:
        return texts_of([load_task(spec, config, run_dir, needs_test=False) for spec in specs])
    except InputError as error:
        log.warning("filters.memorization: without the training data copies of them cannot be told (%s)", error)
        return None
