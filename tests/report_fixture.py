"""A run directory in the format of the trainer, made up: scores fall with time, replay holds them up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import yaml

from retain.buffer import Buffer
from retain.cards import TaskCard, write_cards
from retain.matrix import summarize
from retain.sections import BufferConfig, MemoryModel
from retain.store import NAME, write_lines
from retain.types import Frame, Sample, Task

TASKS = ("sst2", "ag_news", "trec", "dbpedia")
VIEWS = ("generated", "likelihood", "likelihood_summed", "nll")
STEPS, BATCH = 40, 8
HOSTILE = (
    '<script>alert("name")</script>',
    '"><img src=x onerror=alert(1)>',
    "[red]brackets[/red] & 'quotes' ${x} {{y}}",
    "a_task_name_that_is_far_too_long_for_any_label_in_any_figure_\u202e\x1b[31m_" + "x" * 60,
)
HOSTILE_TEXTS = (
    '<script>document.title="owned"</script>',
    "</td></table><img src=x onerror=alert(1)>",
    "ignore all previous instructions [bold]\x1b[31mred\x1b[0m \u202egnp.exe\u202c \u2028 \ud800",
    "x" * 100_000,
)
CONFIG_ATTACK = "</pre></details><script>document.title='owned'</script>"


def build_run(
    path: Path,
    strategy: str = "mssr",
    tasks: tuple[str, ...] = TASKS,
    *,
    stages: int | None = None,
    evaluation_only: tuple[str, ...] = ("mmlu",),
    results: bool = True,
    seed: int = 42,
    storage: str = "stored",
    curriculum: dict | None = None,
    texts: tuple[str, ...] = (),
) -> Path:
    """Write a run; with fewer `stages` than tasks unfinished, without `results` the journal alone.

    Strategy "ssr" writes synthetic samples too, `texts` as the inputs where there are any.
    """
    joint, replay = strategy == "joint", strategy not in ("none", "joint")
    total = 1 if joint else len(tasks)
    done = total if stages is None else stages
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True, exist_ok=True)
    scores = _scores(rng, tasks, evaluation_only, done, joint, 0.12 if replay else 0.75)
    journal = Journal(path)
    journal.write("start", strategy=strategy, seed=seed, model="smollm2-135m", versions=VERSIONS)
    for task in (*tasks, *evaluation_only):
        journal.evaluation(0, task, scores)
    trace = []
    names = ["joint"] if joint else list(tasks)
    curriculum = {"kind": "linear", **(curriculum or {})}
    for stage in range(1, done + 1):
        _write_stage(journal, rng, stage, names, replay, trace)
        for task in (*tasks, *evaluation_only):
            journal.evaluation(stage, task, scores)
        if strategy == "ssr":
            _write_synthesis(journal, path, stage, names, storage, curriculum["kind"] == "adaptive", texts)
    if done == total:
        journal.write("end", seconds=412.5)
    journal.close()
    _write_config(path, strategy, tasks, evaluation_only, seed, storage, curriculum)
    if trace:
        _write_trace(path, trace)
    if results:
        summary = _results(scores, tasks, evaluation_only, strategy, seed, joint, done == total, replay)
        (path / "results.json").write_text(json.dumps(summary), encoding="utf-8")
    return path


VERSIONS = {"retain": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.9"}


class Journal:
    def __init__(self, path: Path):
        self.file = (path / "journal.jsonl").open("w", encoding="utf-8")
        self.minute = 0

    def write(self, kind: str, **fields: object) -> None:
        self.minute += 1
        hour, minute = divmod(self.minute % 1440, 60)
        time = f"2026-03-01T{hour:02d}:{minute:02d}:00+00:00"
        self.file.write(json.dumps({"kind": kind, "time": time, **fields}) + "\n")

    def evaluation(self, row: int, task: str, scores: dict) -> None:
        values = {view: scores[view][task][row] for view in VIEWS}
        self.write("evaluation", row=row, task=task, **values, metric="exact_match", n=100, seconds=3.1)

    def close(self) -> None:
        self.file.close()


def _scores(rng, tasks, evaluation_only, done, joint, fall) -> dict[str, dict[str, list]]:
    scores: dict[str, dict[str, list]] = {view: {} for view in VIEWS}
    for column, task in enumerate(tasks):
        base, peak = rng.uniform(0.05, 0.4), rng.uniform(0.8, 0.95)
        row, cells = 1 if joint else column + 1, []
        for stage in range(done + 1):
            level = base if stage < row else base + (peak - base) * (1 - fall * (1 - 0.5 ** (stage - row)))
            cells.append(round(float(np.clip(level + rng.normal(0, 0.01), 0, 1)), 2))
        has_choices = column != 2
        scores["generated"][task] = cells
        scores["likelihood"][task] = [min(cell + 0.03, 1.0) if has_choices else None for cell in cells]
        scores["likelihood_summed"][task] = [min(cell + 0.02, 1.0) if has_choices else None for cell in cells]
        scores["nll"][task] = [round(2.6 - 2.4 * cell, 3) for cell in cells]
    for task in evaluation_only:
        cells = [round(float(0.31 - 0.01 * stage), 2) for stage in range(done + 1)]
        scores["generated"][task] = scores["likelihood"][task] = scores["likelihood_summed"][task] = cells
        scores["nll"][task] = [round(1.4 + 0.02 * stage, 3) for stage in range(done + 1)]
    return scores


def _write_stage(journal: Journal, rng, stage: int, names: list[str], replay: bool, trace: list) -> None:
    task, first, past = names[stage - 1], (stage - 1) * STEPS, names[: stage - 1]
    steps = (2, 5, 9, 14, 20, 27, 35) if replay and past else ()
    gaps = np.diff([0, *steps])
    plan = [
        {"step": step, "ratio": 0.3, "replayed": round(BATCH * int(gap) * 0.43)}
        for step, gap in zip(steps, gaps, strict=True)
    ]
    journal.write("plan", stage=stage, task=task, steps=STEPS, time_unit=4.2 if past else None,
                  buffer=320 * len(past), events=plan)  # fmt: skip
    journal.write("stage_start", stage=stage, task=task, step=first)
    pending, amounts = 0, {event["step"]: event for event in plan}
    for step in range(1, STEPS + 1):
        if step in amounts:
            event = amounts[step]
            pending += event["replayed"]
            shares = rng.multinomial(event["replayed"], np.ones(len(past)) / len(past))
            by_task = {name: int(share) for name, share in zip(past, shares, strict=True)}
            now = first + step
            journal.write("event", stage=stage, step=step, global_step=now, ratio=0.3 - 0.0004 * now,
                          replayed=event["replayed"], by_task=by_task)  # fmt: skip
        mixed = min(pending, BATCH)
        pending -= mixed
        new_loss = 0.25 + 2.1 * np.exp(-step / 9) + rng.normal(0, 0.08)
        replay_loss = float(0.35 + rng.normal(0, 0.06)) if mixed else None
        journal.write("step", stage=stage, task=task, step=step, global_step=first + step,
                      new_loss=float(new_loss), replay_loss=replay_loss, new=BATCH, replayed=mixed,
                      seconds=0.9, tokens=512, learning_rate=2e-4)  # fmt: skip
        if past and replay and step % 4 == 0:
            trace += _refresh(rng, stage, first, step, past)
    journal.write("stage_end", stage=stage, task=task, step=first + STEPS, seconds=41.0, truncated=0,
                  replayed_samples=sum(event["replayed"] for event in plan) - pending)  # fmt: skip


def _refresh(rng, stage: int, first: int, step: int, past: list[str]) -> list[dict]:
    strength = np.exp(-rng.gamma(2.0, step / 40, size=30))
    stability = np.clip(1 + rng.gamma(2.0, 0.4 * stage, size=30), 1, 10)
    tasks = [past[index % len(past)] for index in range(30)]
    return [
        {"stage": stage, "step": first + step, "id": f"{task}/{index}", "task": task, "hazard": 0.1,
         "strength": float(m), "stability": float(s), "ema_loss": None if index == 0 else 0.4}
        for index, (task, m, s) in enumerate(zip(tasks, strength, stability, strict=True))
    ]  # fmt: skip


def _write_synthesis(journal: Journal, path: Path, stage: int, names: list[str], storage: str, adaptive, texts) -> None:
    """What a stage wrote of its task: the account, the samples that the storage mode keeps, a curriculum's checks."""
    task = names[stage - 1]
    far = stage == 3
    drift = {"perplexity_real": 40.0 + stage, "perplexity_synthetic": 120.0 if far else 43.0 + 2 * stage,
             "unigram_divergence": 0.31, "hidden_divergence": 12.5, "distinct_1": 0.71, "distinct_2": 0.93,
             "distinct_3": 0.98, "labels": {"<b>good</b>": 0.6, "bad": 0.4}, "label_distance": 0.1}  # fmt: skip
    dropped = {"unreadable": 3, "heuristics": 40 + 5 * stage, "consistency": 12, "perplexity": 8, "diversity": 2}
    generated = 120 + sum(dropped.values())
    account = f"120 of {generated} candidates were kept: heuristics (<i>no words</i> {stage}) dropped most."
    journal.write("synthesis", stage=stage, task=task, when="end", asked=100, generated=generated, kept=100,
                  dropped=dropped, faults={}, generated_tokens=9000 + stage, seconds=31.5, account=account,
                  drift=drift, drifted="perplexity 120.0 against 43.0 of real samples" if far else None)  # fmt: skip
    for step in range(0, STEPS + 1, 8) if adaptive and stage > 1 else ():
        journal.write("curriculum", stage=stage, step=step, ratio=0.3, new_loss=2.0 - 0.03 * step,
                      old_loss=0.8 + 0.005 * step)  # fmt: skip
    folder = path / "stages" / f"{stage:02d}-{stage}"
    for made in (path / "stages" / "00-base", folder):
        made.mkdir(parents=True, exist_ok=True)
        (made / "scores.json").write_text("{}")
    inputs = texts or [f"{stage} synthetic text {k}" for k in range(100)]
    rows = [{"id": f"{task}/synthetic/{stage}/{k}", "task": task, "input": text, "answer": "good" if k % 2 else "bad",
             "perplexity": 40.0 + k, "consistency": 0.9, "votes": None} for k, text in enumerate(inputs)]  # fmt: skip
    if storage in ("stored", "hybrid"):
        write_lines(folder / NAME, rows, "gzip")
    learned = [Task(name, [Sample(f"{name}/{k}", name, f"Say: {name} real {k}\n", "good", ("good", "bad"))
                           for k in range(9)], frame=Frame("Say: ", "\n"))
               for name in names[:stage]]  # fmt: skip
    write_cards(folder, [TaskCard.of(one, place) for place, one in enumerate(learned, start=1)])
    buffer = Buffer(BufferConfig(), MemoryModel())
    buffer.admit([Sample(row["id"], task, f"Say: {row['input'][:50]}\n", row["answer"], confidence=0.9)
                  for row in rows[: 0 if storage == "on-demand" else 9]], 0, {}, stage)  # fmt: skip
    if storage == "hybrid":
        buffer.admit([sample for one in learned for sample in one.train], 0, {}, stage)
    buffer.save(path / "buffer")


def _write_trace(path: Path, trace: list[dict]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(trace), path / "memory_trace.parquet")


def _write_config(path: Path, strategy: str, tasks, evaluation_only, seed: int, storage: str, curriculum) -> None:
    config = {
        "model": {"name": "smollm2-135m"},
        "tasks": [{"name": task, "train": "a.jsonl", "description": CONFIG_ATTACK} for task in tasks]
        + [{"name": task, "test": "test.jsonl"} for task in evaluation_only],
        "strategy": strategy,
        "curriculum": curriculum,
        "storage": {"mode": storage},
        "monitor": {"lower_by": 0.1},
        "seed": seed,
    }  # fmt: skip
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _results(scores, tasks, evaluation_only, strategy, seed, joint, finished, replay) -> dict:
    def table(view: str, names) -> list | None:
        columns = [scores[view][name] for name in names]
        return [list(row) for row in zip(*columns, strict=True)]

    matrices = {view: table(view, tasks) for view in VIEWS}
    by_matrix = {view: summarize(rows, joint) for view, rows in matrices.items()}
    final = {name: scores["generated"][name] for name in evaluation_only}
    final_nll = [cell for cell in matrices["nll"][-1] if cell is not None]
    return {
        "tasks": list(tasks), "matrix": matrices["generated"], "matrices": matrices, "joint": joint,
        "metrics": {**by_matrix["generated"], "NLL": sum(final_nll) / len(final_nll)},
        "metrics_by_matrix": by_matrix,
        "evaluation_only": {
            "tasks": list(evaluation_only),
            "matrices": {view: table(view, evaluation_only) for view in VIEWS},
            "change": {name: cells[-1] - cells[0] for name, cells in final.items()},
        },
        "task_metrics": dict.fromkeys([*tasks, *evaluation_only], "exact_match"),
        "costs": {"train_tokens": 81920, "replayed_samples": 357 * replay, "replayed_tokens": 18421 * replay,
                  "probe_tokens": 0, "eval_tokens": 250311, "generated_tokens": 4120, "train_seconds": 164.0,
                  "eval_seconds": 232.4, "seconds": 412.5, "peak_memory_bytes": 1_931_000_000},
        "strategy": strategy, "seed": seed, "versions": VERSIONS, "finished": finished,
        "truncated": 3, "skipped": {tasks[0]: 2},
    }  # fmt: skip
