"""Score the model on a task of lm-eval, with lm-eval's own prompts, requests and metrics."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from retain.model import LanguageModel
from retain.tasks.harness import Harness, apart
from retain.types import InputError, Task


@dataclass(frozen=True, slots=True)
class HarnessScores:
    """The score, one record a sample, and the tokens that were read and written."""

    score: float
    records: list[dict[str, Any]]
    eval_tokens: int
    generated_tokens: int


def run_harness(lm: LanguageModel, task: Task, batch_size: int) -> HarnessScores:
    """The model's score on an lm-eval task; the same again for the same weights.

    No global random state changes: shots are drawn from lm-eval's own generator, seeded with `data_seed`. Raises
    InputError for a score that is not within 0 and 1.
    """
    from lm_eval.evaluator import evaluate

    harness: Harness = task.harness
    for one in harness.loaded["tasks"].values():
        shots = harness.num_fewshot if harness.num_fewshot is not None else one.get_config("num_fewshot")
        one.set_config(key="num_fewshot", value=shots or 0)
        one.set_fewshot_seed(seed=harness.seed)
    layout = lm.layout
    lm.use_layout("padded")
    try:
        with apart(), torch.random.fork_rng():
            model = _wrapped(lm, batch_size)
            found = evaluate(model, harness.loaded, limit=harness.limit, bootstrap_iters=0,
                             apply_chat_template=harness.apply_chat_template)  # fmt: skip
    finally:
        lm.use_layout(layout)
    key, score = _score(found["results"].get(harness.name, {}), harness, task.name)
    names = list(harness.loaded["tasks"])
    records = [line for name in names for line in _records(task.name, name, found["samples"][name], key)]
    return HarnessScores(score, records, model.read, model.written)


def _wrapped(lm: LanguageModel, batch_size: int) -> Any:
    """The model as lm-eval takes it, with a copy of the tokenizer, which it changes; counts tokens."""
    from lm_eval.models.huggingface import HFLM

    class Counting(HFLM):
        read = written = 0

        def _loglikelihood_tokens(self, requests: Sequence, *args: Any, **options: Any) -> list:
            self.read += sum(len(context) + len(answer) for _, context, answer in requests)
            return super()._loglikelihood_tokens(requests, *args, **options)

        def _model_generate(self, context: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
            whole = super()._model_generate(context, *args, **options)
            self.read += context.numel()
            self.written += whole.numel() - (0 if lm.is_encoder_decoder else context.numel())
            return whole

    return Counting(pretrained=lm.model, tokenizer=copy.deepcopy(lm.tokenizer), batch_size=batch_size,
                    max_length=lm.positions)  # fmt: skip


def _score(results: dict[str, Any], harness: Harness, task: str) -> tuple[str, float]:
    """The metric's key in lm-eval's results ("acc,none": the name and the filter), and its value."""
    keys = [key for key in results if harness.metric in (key, key.partition(",")[0])]
    value = results[keys[0]] if keys else None
    if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
        others = ", ".join(key for key in results if "," in key and "_stderr," not in key)
        raise InputError(
            f"task {task!r}: lm_eval: {harness.metric} of {harness.name} is {value!r}; a score lies between 0 and 1. "
            f"Set metric to another one of {others or 'its subtasks, and name one of these'}"
        )
    return keys[0], float(value)


def _records(task: str, part: str, samples: Sequence[dict[str, Any]], key: str) -> Iterator[dict[str, Any]]:
    """A prediction record for each sample whose own score is a number."""
    metric, _, chosen = key.partition(",")
    for sample in samples:
        value = sample.get(metric)
        if sample["filter"] == chosen and isinstance(value, int | float):
            answers = sample["filtered_resps"]
            if answers and all(isinstance(one, list | tuple) for one in answers):  # log-likelihoods of the choices
                answers = [max(range(len(answers)), key=lambda k, each=answers: each[k][0])]
            yield {"task": task, "id": f"{task}/{part}/{sample['doc_id']}", "prediction": str(answers[0]),
                   "answer": str(sample["target"]), "score": float(value)}  # fmt: skip
