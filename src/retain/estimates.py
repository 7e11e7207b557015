"""What a planned run costs on a named device: its tokens counted from the data, the rest by `retain.costs`.

Rows are laid out as training and evaluation lay them out, so that what sequences have in common counts once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from retain import costs
from retain.architecture import outline, shape_of
from retain.batching import ROW_TOKENS, Encoded, common_prefix, split_padded, split_rows
from retain.config import Config
from retain.costs import DEVICES, Hardware, Passes, Shape
from retain.layouts import allowed_layouts
from retain.likelihood import choice_ids, cut_prompts
from retain.model import LanguageModel
from retain.plans import StagePlan
from retain.presets import preset_of
from retain.run import joined
from retain.trainer import new_batches
from retain.types import Sample, Task

MOST_STEPS, MOST_ITEMS = 100, 200  # of a stage and of a test set are laid out; the rest counts like these


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens as the run's own account counts them, and what goes through the model for them."""

    tokens: float = 0.0
    passes: Passes = field(default_factory=Passes)
    written: float = 0.0  # at most
    decoding_steps: float = 0.0  # at most

    def __add__(self, other: Work) -> Work:
        return Work(
            self.tokens + other.tokens,
            self.passes + other.passes,
            self.written + other.written,
            self.decoding_steps + other.decoding_steps,
        )

    def scaled(self, factor: float) -> Work:
        """The same work `factor` times."""
        tokens, written, steps = (factor * one for one in (self.tokens, self.written, self.decoding_steps))
        return Work(tokens, self.passes.scaled(factor), written, steps)


def estimate(config: Config, base: Path, tasks: Sequence[Task], plans: Sequence[StagePlan], on: Hardware) -> dict:
    """Tokens, operations, memory and hours of a run as JSON has them. Raises InputError.

    Passes of regularizers, of triggers, of early stopping and of filters are not in it.
    """
    lm, counted = outline(config, base)
    shape, dense = shape_of(lm), on.device != "cpu"
    stages = [task for task in tasks if task.is_stage]
    stages = [joined(stages)] if preset_of(config.strategy).joint else stages
    training = Work()
    for number, plan in enumerate(plans, start=1):
        training += _stage(lm, config, stages[: number - 1], stages[number - 1], plan, number, dense)
    scoring = _scoring(lm, config, tasks, plans, dense)
    width = 4 if on.device == "cpu" or config.training.precision == "float32" else 2
    speed = DEVICES[on.device].peak * on.mfu * on.processes
    flops = {
        "training": costs.training_flops(shape, training.passes),
        "evaluation": costs.forward_flops(shape, scoring.passes),
    }
    hours = {name: count / speed / 3600 for name, count in flops.items()}
    seconds = costs.decoding_seconds(
        shape, scoring.decoding_steps, config.evaluation.batch_size, width, DEVICES[on.device], on.mfu
    )
    hours["writing_at_most"] = seconds / on.processes / 3600
    return {
        "device": on.device,
        "processes": on.processes,
        "mfu": on.mfu,
        "weights": shape.weights,
        "trained_weights": shape.trained,
        "counted_by": "tokenizer" if counted else "characters",
        "tokens": {
            "training": round(training.tokens),
            "training_computed": round(training.passes.computed),
            "evaluation": round(scoring.tokens),
            "written_at_most": round(scoring.written),
        },
        "flops": flops,
        "memory_bytes": _memory(shape, config, training.passes, scoring.passes, width, on),
        "hours": {**hours, "total": sum(hours.values())},
    }


def _stage(
    lm: LanguageModel, config: Config, past: Sequence[Task], task: Task, plan: StagePlan, number: int, dense: bool
) -> Work:
    """The steps of one stage; of a long one some, evenly taken. What is replayed is drawn from the past uniformly."""
    rng = np.random.default_rng([config.seed, number])
    pool = [sample for known in past for sample in known.train] or task.train
    replayed = sum(event.replayed for event in plan.events)
    due = np.diff(np.floor(np.linspace(0, replayed, plan.steps + 1) + 0.5)).astype(int)
    every = -(-plan.steps // MOST_STEPS)
    found, new, again = Work(), 0, 0
    batches = enumerate(new_batches(task.train, plan, config.seed, number))
    for step, batch in islice(batches, 0, None, every):
        extra = [pool[place] for place in rng.integers(0, len(pool), due[step])]
        sequences = [lm.encode(sample) for sample in (*batch, *extra)]
        passes = _passes(lm, sequences, dense, config.training.micro_batch_size)
        found += Work(tokens=sum(map(len, sequences)), passes=passes)
        new, again = new + len(batch), again + len(extra)
    lm.forget()
    return found.scaled((int(plan.new_per_step.sum()) + replayed) / (new + again))


def _scoring(lm: LanguageModel, config: Config, tasks: Sequence[Task], plans: Sequence[StagePlan], dense: bool) -> Work:
    """All looks at the test samples: the untouched model, each stage's, and those between."""
    learned = [task.name for task in tasks if task.is_stage]
    joint, after = preset_of(config.strategy).joint, config.evaluation.after
    found = Work()
    for task in filter(lambda task: task.test, tasks):
        place = learned.index(task.name) if task.name in learned and not (config.evaluation.unseen or joint) else 0
        times = 1 + len(plans) - place
        times += 0 if after == "stage" else sum(plan.steps // after for plan in plans)
        found += _look(lm, config, task.test, dense).scaled(times)
    return found


def _look(lm: LanguageModel, config: Config, samples: Sequence[Sample], dense: bool) -> Work:
    """One look at a task's test samples: every answer to every prompt, and the answers written at full length."""
    some, size = samples[:MOST_ITEMS], config.evaluation.batch_size
    longest = max(len(ids) for sample in some for ids in choice_ids(lm, sample))
    limit = min(config.evaluation.max_new_tokens or longest, lm.answer_limit)
    found = Work()
    for first in range(0, len(some), size):
        chunk = some[first : first + size]
        prompts = cut_prompts(lm, chunk, limit)
        answers = [choice_ids(lm, sample) for sample in chunk]
        sequences = [lm.sequence(list(p), list(a)) for p, own in zip(prompts, answers, strict=True) for a in own]
        passes = _passes(lm, sequences, dense)
        found += Work(passes.computed, passes, limit * len(chunk), limit)
    return found.scaled(len(samples) / len(some))


def _passes(lm: LanguageModel, sequences: Sequence[Encoded], dense: bool, most: int | None = None) -> Passes:
    """The passes that cover the sequences. dense: attention looks at all pairs of a row, as with a mask."""
    found = Passes()
    for tokens, pairs, labels in _rows(lm, sequences, most):
        found += Passes(tokens, tokens**2 if dense else pairs, labels, tokens, labels)
    return found


def _rows(lm: LanguageModel, sequences: Sequence[Encoded], most: int | None) -> Iterator[tuple[int, int, int]]:
    """Tokens, query-key pairs and labels of each row, in the layout that its configuration leaves the model."""
    layout = next(iter(allowed_layouts(lm)), "single")
    if layout in ("padded", "single"):
        for members in split_padded([len(one.inputs) for one in sequences], 1 if layout == "single" else most):
            widest = max(len(sequences[i].inputs) for i in members)
            yield widest * len(members), widest**2 * len(members), sum(sum(sequences[i].labels) for i in members)
        return
    for members in split_rows(sequences, ROW_TOKENS, most):
        tokens, pairs, labels, previous = 0, 0, 0, ()
        for i in members:
            shared = common_prefix(previous, previous := sequences[i].inputs)
            fresh = len(previous) - shared
            tokens, pairs = tokens + fresh, pairs + fresh * len(previous)
            # Labels that a prefix tree shares are predicted once.
            labels += sum(sequences[i].labels[max(shared, 1) :])
        yield tokens, pairs, labels


def _weight_bytes(shape: Shape, config: Config) -> float:
    """Of the weights that stay frozen; those that are trained count with their optimizer."""
    stored = {"auto": 4, "float32": 4, "float64": 8}.get(config.model.dtype, 2)
    if not shape.adapted:
        return 0.0
    if config.training.method == "qlora":  # embedding and head are not quantized
        return costs.NF4_BYTES * shape.active + 2.0 * (shape.weights - shape.active)
    return float(stored * shape.weights)


def _memory(
    shape: Shape, config: Config, training: Passes, scoring: Passes, width: int, on: Hardware
) -> dict[str, float | None]:
    """Bytes on each device, the libraries' own and what lies unused between tensors apart."""
    kept, checkpointed = costs.activation_bytes(shape, training.longest, width)
    cached = costs.cache_bytes(shape, config.evaluation.batch_size, scoring.longest, width)
    parts = {
        "weights": _weight_bytes(shape, config),
        "adapter_and_optimizer": float(costs.ADAMW_BYTES * shape.trained),
        "activations": kept,
        "logits": costs.logit_bytes(shape, max(training.most_labels, scoring.most_labels), width),
    }
    total = parts["weights"] + parts["adapter_and_optimizer"] + max(kept + parts["logits"], cached)
    more = {"activations_if_checkpointed": checkpointed, "evaluation_cache": cached}
    return {**parts, **more, "total": total, "device": DEVICES[on.device].memory}
