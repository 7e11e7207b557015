"""Changed truth: stored samples whose answer newer data correct, and tasks that are no longer valid."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from retain.buffer import Buffer
from retain.config import Config
from retain.metrics import exact_match, normalize
from retain.presets import preset_of
from retain.quality.duplicates import MinHash
from retain.quality.ngrams import words
from retain.types import Frame, InputError, Sample, Task

log = logging.getLogger("retain")

LONG = 8  # words from which two inputs can be nearly the same; in shorter ones every word may matter
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Conflict:
    """A stored sample, the newer one that answers the same question otherwise, and how alike the questions are."""

    stored: str
    newer: str
    similarity: float


def retired_tasks(config: Config, stages: Sequence[str]) -> set[str]:
    """The tasks that are not rehearsed in the last of `stages` (names in the order they are learned).

    One that a task learned by then `supersedes`, and one whose `valid_until` names such a task.
    """
    specs = [*config.tasks, *([config.buffer.seed] if config.buffer.seed else [])]
    superseded = {old for spec in specs if spec.name in stages for old in spec.supersedes}
    return superseded | {spec.name for spec in specs if spec.valid_until in stages}


def find_conflicts(
    stored: Sequence[Sample], tasks: Sequence[Task], frames: Mapping[str, Frame], similarity: float | None
) -> list[Conflict]:
    """Stored samples that a later one of `tasks`, which come in the order they are learned, answers otherwise.

    The same question: the whole prompt (of a chat all turns but the last), or with MSSR's Norm the same. Nearly the
    same: prompts of one frame whose inputs have at least 8 words, the same numbers, and a Jaccard similarity of word
    3-shingles of at least `similarity` (MinHash over 128 hashes, standard error at most 0.045). Another answer: none
    of those accepted for it by the newest task that has it is the same by Norm. Samples that ask nothing, with an empty
    prompt, are in no conflict.
    """
    order = {task.name: number for number, task in enumerate(tasks)}
    truth: dict[str, tuple[int, list[Sample]]] = {}
    for number, task in enumerate(tasks):
        for sample in filter(_question, task.train):
            known = truth.get(question := _question(sample))
            truth[question] = (number, [*(known[1] if known and known[0] == number else []), sample])
    found, others = [], []
    for old in stored:
        number, answers = truth.get(_question(old), (-1, []))
        if number <= order.get(old.task, -1):
            others.append(old)
        elif not _agree(old, answers):
            found.append(Conflict(old.id, answers[0].id, 1.0))
    return found if similarity is None else found + _near(others, tasks, order, frames, similarity)


def _question(sample: Sample) -> str:
    """What is asked, by Norm; empty where nothing is."""
    turns = [(role, normalize(text)) for role, text in sample.messages[:-1] or (("", sample.prompt),)]
    return "\0".join(f"{role}:{text}" for role, text in turns) if any(text for _, text in turns) else ""


def _agree(old: Sample, answers: Collection[Sample]) -> bool:
    return any(exact_match(old.answer, new.accepted) or exact_match(old.answer, (new.answer,)) for new in answers)


def _near(
    stored: Sequence[Sample],
    tasks: Sequence[Task],
    order: Mapping[str, int],
    frames: Mapping[str, Frame],
    similarity: float,
) -> list[Conflict]:
    """Conflicts of questions that are nearly the same, frame by frame; an answer that agrees with one settles it."""
    found = []
    framed = [(old, frames.get(old.task, Frame())) for old in stored]
    for frame in dict.fromkeys(task.frame for task in tasks):
        olds = [(old, text) for old, own in framed if own == frame and _is_long(text := own.input_of(old))]
        news = [(new, text) for task in tasks if task.frame == frame and olds for new in task.train
                if _is_long(text := frame.input_of(new))]  # fmt: skip
        index = MinHash([text for _, text in news + olds], similarity)
        for place in range(len(news)):
            index.add(place)
        for place, (old, text) in enumerate(olds, start=len(news)):
            shares = index.similarities(place, similarity)
            alike = (shares >= similarity).nonzero()[0].tolist()
            alike = [k for k in alike if order[news[k][0].task] > order.get(old.task, -1)]
            mates = [k for k in alike if _numbers(news[k][1]) == _numbers(text)]
            if mates and not _agree(old, [news[k][0] for k in mates]):
                nearest = max(mates, key=lambda k: shares[k])
                found.append(Conflict(old.id, news[nearest][0].id, float(shares[nearest])))
    return found


def _is_long(text: str) -> bool:
    return len(words(text)) >= LONG


def _numbers(text: str) -> Counter[str]:
    return Counter(word for word in words(text) if any(char.isdigit() for char in word))


def frame_of_samples(samples: Sequence[Sample]) -> Frame:
    """The frame of samples whose data are not at hand: the whole prompt is their own, but for a system message that
    all have."""
    chats = [sample.messages for sample in samples if sample.messages]
    systems = {turns[0][1] if turns[0][0] == "system" else "" for turns in chats}
    return Frame(chat=True, system=systems.pop() if len(systems) == 1 and len(chats) > 1 else "") if chats else Frame()


def stored_tasks(buffer: Buffer, learned: Sequence[str]) -> list[Task]:
    """The past stages in their order, as far as stored samples tell of them: their names and frames."""
    stored: dict[str, list[Sample]] = {name: [] for name in learned}
    for sample in buffer.samples.values():
        stored.setdefault(sample.task, []).append(sample)
    return [Task(name, frame=frame_of_samples(stored[name])) for name in learned]


def settle_conflicts(
    buffer: Buffer, config: Config, stages: Sequence[Task], run_log: Callable[..., None]
) -> list[Conflict]:
    """Before the last of `stages` trains: drop what is retired, and treat conflicts as `conflicts` says.

    Stored samples are compared with the data of that stage; written ones, which may bring an old answer back, with
    those of every later task at hand. What was found is logged by id. With `error` conflicts are an InputError.
    """
    retired = retired_tasks(config, [task.name for task in stages])
    gone = [sample for sample in buffer.samples.values() if sample.task in retired]
    buffer.drop(sample.id for sample in gone)
    newer = stages if preset_of(config.strategy).source else stages[-1:]
    if config.privacy.dp_sgd:  # what is kept may not depend on real samples
        newer = ()
    frames = {task.name: task.frame for task in stages}
    found = find_conflicts(list(buffer.samples.values()), newer, frames, config.conflict_similarity)
    tasks = Counter(buffer.samples[one.stored].task for one in found)
    if found and config.conflicts == "error":
        shown = ", ".join(f"{one.stored} by {one.newer}" for one in found[:SHOWN])
        raise InputError(
            f"conflicts: error, and {len(found)} stored samples are answered otherwise by newer data ({shown}"
            f"{', ...' if len(found) > SHOWN else ''}); correct the data, or set conflicts: newest or keep"
        )
    if config.conflicts == "newest":
        buffer.drop(one.stored for one in found)
    if found or gone:
        by_task = dict(Counter(sample.task for sample in gone))
        run_log("conflicts", stage=len(stages), task=stages[-1].name, policy=config.conflicts, found=len(found),
                near=sum(one.similarity < 1 for one in found), by_task=dict(tasks), superseded=by_task,
                ids=[[one.stored, one.newer, round(one.similarity, 3)] for one in found])  # fmt: skip
    if found:
        then = "and are rehearsed all the same" if config.conflicts == "keep" else "and are not rehearsed any more"
        listed = ", ".join(f"{count} of {task}" for task, count in tasks.items())
        log.warning("%s: stored samples are answered otherwise by it %s: %s", stages[-1].name, then, listed)
    if gone:
        log.info("%s: %d samples of %s are retired", stages[-1].name, len(gone), ", ".join(by_task))
    return found
