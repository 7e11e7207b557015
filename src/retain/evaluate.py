"""Score a model on a task: generated answers, likelihood of the choices, held-out loss.

One forward pass over prefix-tree rows gives the loss of the right answer and the likelihood of every
choice. The same pass drafts the greedy answer: where the model's own most likely token continues one
of the answers in the tree, the next most likely token is known already. Only answers that leave the
tree are generated token by token, from where they left it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from tqdm import tqdm

from retain.faults import EVALUATION_ADVICE, memory_advice
from retain.generation import greedy
from retain.harness import run_harness
from retain.likelihood import Candidate, choice_ids, cut_prompts, score_answers
from retain.metrics import METRICS
from retain.model import LanguageModel
from retain.sections import EvaluationConfig
from retain.types import Sample, Task


@dataclass(slots=True)
class TaskScores:
    """Mean scores of one task. The likelihood scores are None where a task has no choices, and all but
    `generated` of a task of lm-eval; `truncated` of the `n`
    prompts were longer than the model's limit and cut."""

    generated: float
    likelihood: float | None
    likelihood_summed: float | None
    nll: float | None
    metric: str
    n: int
    truncated: int = 0
    seconds: float = 0.0
    eval_tokens: int = 0
    generated_tokens: int = 0

    def to_dict(self) -> dict:
        return asdict(self)


@memory_advice("evaluation", EVALUATION_ADVICE)
def evaluate_task(lm: LanguageModel, task: Task, config: EvaluationConfig) -> tuple[TaskScores, list[dict]]:
    """Scores on `task.test`, or of its lm-eval task, and one prediction record a sample."""
    started = time.perf_counter()
    if task.harness:
        return _harness_scores(lm, task, config, started)
    limit = min(config.max_new_tokens or _longest_answer(lm, task.test), lm.answer_limit)
    records, tokens, written, cut = [], 0, 0, 0
    batches = range(0, len(task.test), config.batch_size)
    lm.model.eval()
    for first in tqdm(batches, desc=f"evaluate {task.name}", unit="batch", delay=2, leave=False, disable=None):
        chunk = task.test[first : first + config.batch_size]
        prompts = cut_prompts(lm, chunk, limit)
        cut += sum(len(p) < len(lm.prompt_ids(sample)) for p, sample in zip(prompts, chunk, strict=True))
        candidates, seen = score_answers(lm, prompts, [choice_ids(lm, sample) for sample in chunk])
        answers, extra = _answers(lm, prompts, candidates, limit)
        records += [
            _record(task, sample, answer, candidates[i])
            for i, (sample, answer) in enumerate(zip(chunk, answers, strict=True))
        ]
        tokens, written = tokens + seen, written + extra
    scores = TaskScores(
        generated=_mean(records, "score"),
        likelihood=_mean(records, "likelihood"),
        likelihood_summed=_mean(records, "likelihood_summed"),
        nll=_mean(records, "nll"),
        metric=task.metric,
        n=len(records),
        truncated=cut,
        seconds=time.perf_counter() - started,
        eval_tokens=tokens,
        generated_tokens=written,
    )
    return scores, records


def _harness_scores(
    lm: LanguageModel, task: Task, config: EvaluationConfig, started: float
) -> tuple[TaskScores, list[dict]]:
    """The score of an lm-eval task, which has no held-out loss of its own."""
    found = run_harness(lm, task, config.batch_size)
    scores = TaskScores(found.score, None, None, None, task.metric, len(found.records), 0,
                        time.perf_counter() - started, found.eval_tokens, found.generated_tokens)  # fmt: skip
    return scores, found.records


def _longest_answer(lm: LanguageModel, samples: Sequence[Sample]) -> int:
    texts = [text for sample in samples for text in (sample.answer, *sample.accepted, *sample.choices)]
    return 1 + max(len(lm.tokenizer(text, add_special_tokens=False).input_ids) for text in texts)


def draft(candidates: Sequence[Candidate], stop_ids: Sequence[int], limit: int) -> tuple[list[int], bool]:
    """The greedy answer as far as the scored candidates tell it, and whether that is all of it."""
    prefix: list[int] = []
    while len(prefix) < limit:
        known = next((c for c in candidates if len(c.best) > len(prefix) and c.targets[: len(prefix)] == prefix), None)
        if known is None:
            return prefix, False
        token = known.best[len(prefix)]
        if token in stop_ids:
            return prefix, True
        prefix.append(token)
    return prefix, True


def _answers(
    lm: LanguageModel, prompts: Sequence[list[int]], candidates: Sequence[list[Candidate]], limit: int
) -> tuple[list[str], int]:
    """The greedily generated answer of each sample, and how many tokens had to be generated one by one."""
    drafts = [draft(c, lm.stop_ids, limit) for c in candidates]
    answers = [ids for ids, _ in drafts]
    open_ = [i for i, (_, complete) in enumerate(drafts) if not complete]
    written = 0
    if open_:
        begun = [answers[i] for i in open_]
        for i, answer in zip(open_, greedy(lm, [prompts[i] for i in open_], limit, begun), strict=True):
            written += len(answer) - len(answers[i])
            answers[i] = answer
    return [lm.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers], written


def _record(task: Task, sample: Sample, prediction: str, candidates: Sequence[Candidate]) -> dict:
    record = {
        "task": task.name,
        "id": sample.id,
        "prediction": prediction,
        "answer": sample.answer,
        "score": METRICS[task.metric](prediction, sample.accepted),
    }
    texts = sample.choices or (sample.answer,)
    right = texts.index(sample.answer)
    record["nll"] = float(candidates[right].losses.mean())
    if sample.choices:
        by_mean = int(np.argmin([c.losses.mean() for c in candidates]))
        by_sum = int(np.argmin([c.losses.sum() for c in candidates]))
        record |= {
            "choice": texts[by_mean],
            "likelihood": float(by_mean == right),
            "likelihood_summed": float(by_sum == right),
        }
    return record


def _mean(records: Sequence[dict], key: str) -> float | None:
    values = [r[key] for r in records if key in r]
    return float(np.mean(values)) if values else None
