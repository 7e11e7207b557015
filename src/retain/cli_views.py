"""What `plan`, `simulate`, `tasks` and `models` print."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from retain.cache import cache_folder
from retain.comparison import Comparison
from retain.config import Config
from retain.costs import Hardware
from retain.presets import preset_of
from retain.types import Sample, Task

MAX_EVENTS_SHOWN = 12
MAX_TOKENIZED = 500


def make_plan(config: Config, base: Path, on: Hardware | None = None) -> dict[str, Any]:
    """The JSON of `retain plan`: stages, events, totals, tokens where the tokenizer is at hand, and with `on` what the
    run costs there."""
    from retain.choosing import settle
    from retain.scheduler import plan_run, plan_to_dict

    asked, (config, tasks, choice) = config, settle(config, base)
    stages = [task for task in tasks if task.is_stage]
    seed = _load_seed(config, base)
    sizes = [(task.name, len(task.train)) for task in stages]
    plans = plan_run(config, sizes, len(seed.train) if seed else 0)
    plan = plan_to_dict(plans, _tokens_per_sample(stages, config.model.name, base, config.training.max_length))
    plan["totals"] |= _to_write(config, sizes)
    if on:
        from retain.estimates import estimate

        plan["estimate"] = estimate(config, base, tasks, plans, on)
    return {**plan, "choice": {"taken": asked is not config, **asdict(choice)}}


def _to_write(config: Config, sizes: list[tuple[str, int]]) -> dict[str, int]:
    """What the model writes: samples, and the most tokens it may take if every candidate is dropped or full length."""
    from retain.rehearsal import asked_of_model

    synthesis, seed = config.synthesis, config.written_seed
    samples = asked_of_model(config, sizes) if preset_of(config.strategy).source else seed
    if not samples:
        return {}
    two, joint = synthesis.max_input_tokens + synthesis.max_output_tokens, synthesis.max_joint_tokens
    votes = 0 if config.filters.self_consistency is None else config.filters.votes * synthesis.max_output_tokens
    longest = (joint if synthesis.method == "joint" else two) + votes
    tokens = (samples - seed) * longest + seed * max(two, joint)  # general text is one or the other, by the model
    return {"synthetic_samples": samples, "generated_tokens_at_most": tokens * synthesis.max_attempts}


def calendar(plan: dict[str, Any]) -> RenderableType:
    """The replay calendar: a table a stage of the run, and the totals."""
    table = _table("stage", "task", "steps", "steps a tick", "event at step", "ratio", "replayed")
    for number, stage in enumerate(plan["stages"], start=1):
        unit = stage["time_unit"]
        head = [str(number), stage["task"], str(stage["steps"]), "-" if unit is None else f"{unit:.3g}"]
        rows = _event_rows(stage["events"]) or [["never" if unit is None else "none planned", "", ""]]
        for row in rows:
            table.add_row(*head, *row)
            head = [""] * 4
        table.add_section()
    totals = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in plan["totals"].items())
    notes = [Text(f"totals: {totals}")]
    if any(event.get("projected") for stage in plan["stages"] for event in stage["events"]):
        notes.append(Text("~ projected: decided while training; of a trigger the most it may fire"))
    choice = plan["choice"]
    verb = "takes" if choice["taken"] else "would take"
    notes.append(Text(f"strategy: auto {verb} {choice['strategy']}: {choice['why']}"))
    for task, why in choice["unsuited"].items():
        notes.append(Text(f"rehearsal by synthesis does not suit {task}: {why}"))
    return Group(table, *notes)


def comparison_plan(comparison: Comparison) -> RenderableType:
    """The cells of a comparison and what each would replay; those that are finished have a mark."""
    from retain.cells import cell_path
    from retain.comparison import load_data, plan_cell

    table = _table("cell", "strategy", "steps", "new samples", "replayed", "finished")
    data, projected = load_data(comparison), False
    for cell in comparison.cells:
        plan = plan_cell(cell, data[cell.label])
        projected |= plan["projected"]
        replayed = f"{'~' if plan['projected'] else ''}{plan['replayed']:,}"
        done = "yes" if cell_path(comparison, cell.label).is_file() else ""
        name = preset_of(cell.config.strategy).name
        table.add_row(Text(cell.label), name, f"{plan['steps']:,}", f"{plan['new_samples']:,}", replayed, done)
    left = sum(not cell_path(comparison, cell.label).is_file() for cell in comparison.cells)
    notes = [Text(f"{len(comparison.cells)} cells, {left} to run; compared with {comparison.reference}")]
    if comparison.file.match == "samples":
        share = f"{comparison.file.budget:g} of a stage's new samples"
        notes.append(Text(f"matched: where a method replays, it replays {share} (schedule.budget)"))
    if projected:
        notes.append(Text("~ at most: decided while training"))
    return Group(table, *notes)


def memory_tables(answer: dict[str, Any]) -> RenderableType:
    """The memory's state at each query of a trace."""
    tables = []
    for query in answer["queries"]:
        table = _table("sample", "strength", "stability", "loss", "hazard", "last review", "reviews", "log priority")
        table.title = f"step {query['step']}"
        for name, state in query["samples"].items():
            strength = state["log_strength"]
            table.add_row(
                Text(name),
                "0" if strength is None else f"{math.exp(strength):.4g}",
                *(_number(state[key]) for key in ("stability", "ema_loss", "hazard")),
                str(state["last_review"]),
                str(state["reviews"]),
                _number(state["log_priority"]),
            )
        tables.append(table)
    return Group(*tables) if tables else Text("the trace asks nothing: it has no query")


def score_table(answer: dict[str, Any]) -> RenderableType:
    """The scores of one stage's model on every task."""
    measures = ("generated", "likelihood", "likelihood_summed", "nll")
    table = _table("task", *(measure.replace("_", " ") for measure in measures), "metric", "samples")
    table.title = f"after stage {answer['stage']}" if answer["stage"] else "the untouched model"
    for task, scores in answer["scores"].items():
        values = (_number(scores[measure]) for measure in measures)
        table.add_row(task, *values, scores["metric"], str(scores["n"]))
    return table


def funnel_table(facts: dict[str, Any]) -> RenderableType:
    """What became of the samples that were written, filter by filter, and the account in words."""
    table = _table("", "samples")
    table.add_row("generated", str(facts["generated"]))
    for name, dropped in facts["dropped"].items():
        table.add_row(f"dropped by {name.replace('_', ' ')}", str(-dropped))
    spare = facts["generated"] - sum(facts["dropped"].values()) - facts["kept"]
    if spare:
        table.add_row("more than asked for", str(-spare))
    table.add_row(f"kept of {facts['asked']} asked for", str(facts["kept"]))
    spent = f"{facts['generated_tokens']:,} tokens in {facts['seconds']:.1f} s"
    return Group(table, Text(facts["account"]), Text(spent))


def builtin_tasks() -> RenderableType:
    """The built-in suite, each with an example."""
    from retain.tasks.builtin import BUILTIN

    table = _table("task", "what it teaches", "an example", lines=True)
    for name, task in BUILTIN.items():
        row = task.generate("train", 1, 42)[0]
        table.add_row(name, Text(task.description), Text(f"{row['input']}\n-> {row['output']}"))
    return Group(table, Text("in a configuration:  tasks: [" + ", ".join(list(BUILTIN)[:2]) + "]"))


def configured_tasks(config: Config, base: Path) -> RenderableType:
    """The tasks of a configuration with their sizes, and the first sample of each."""
    table = _table("task", "train", "validation", "test", "skipped", "metric", "first sample", lines=True)
    for task in _load_tasks(config, base):
        splits = (task.train, task.validation, task.test)
        first = next((split[0] for split in splits if split), None)
        sizes = [str(len(split)) if split else "-" for split in splits]
        table.add_row(task.name, *sizes, str(task.skipped), task.metric, Text(_sample(first)))
    return table


def known_models() -> RenderableType:
    """The short names, and the folders of the cache."""
    from retain.embedded import ALIASES

    table = _table("name", "model", "in the cache")
    for name, description in ALIASES.items():
        folder = cache_folder() / name
        table.add_row(name, Text(description), _size(folder) if folder.is_dir() else "no, made on first use")
    others = [folder for folder in _folders(cache_folder()) if folder.name not in ALIASES]
    for folder in others:
        table.add_row(folder.name, Text(str(folder)), _size(folder))
    hint = "`model` also takes a local path or a Hub name of transformers: a causal model or an encoder-decoder (T5)."
    return Group(table, Text(f"cache: {cache_folder()}"), Text(hint))


def _load_tasks(config: Config, base: Path) -> list[Task]:
    from retain.tasks import load_tasks

    return load_tasks(config, base, split_validation=config.needs_validation)


def _load_seed(config: Config, base: Path) -> Task | None:
    if config.buffer.seed is None or config.buffer.seed.synthesize:
        return None
    from retain.tasks import load_task

    return load_task(config.buffer.seed, config, base, needs_test=False)


def _tokens_per_sample(tasks: list[Task], model: str, base: Path, max_length: int) -> dict[str, float] | None:
    """Mean tokens a training sample has, by the model's tokenizer if that is on this machine."""
    path = _tokenizer_file(model, base)
    if path is None:
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    texts = {task.name: [_whole_text(sample) for sample in task.train[:MAX_TOKENIZED]] for task in tasks}
    encoded = {name: tokenizer.encode_batch(some) for name, some in texts.items()}
    # One more for the token that ends an answer.
    means = {name: fmean(min(len(one.ids) + 1, max_length) for one in some) for name, some in encoded.items()}
    sizes = {task.name: len(task.train) for task in tasks}
    joint = sum(means[name] * size for name, size in sizes.items()) / sum(sizes.values())
    return {**means, "joint": joint}


def _tokenizer_file(model: str, base: Path) -> Path | None:
    folders = [cache_folder() / model, base / model]
    found = [folder / "tokenizer.json" for folder in folders if (folder / "tokenizer.json").is_file()]
    if found:
        return found[0]
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model, "tokenizer.json")
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def _whole_text(sample: Sample) -> str:
    if sample.messages:
        return "\n".join(text for _, text in sample.messages)
    return f"{sample.prompt}{sample.answer}"


def _event_rows(events: list[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for event in events:
        mark = "~" if event.get("projected") else ""
        rows.append([f"{mark}{event['step']}", f"{event['ratio']:.4f}", str(event["replayed"])])
    if len(rows) <= MAX_EVENTS_SHOWN:
        return rows
    head, tail = rows[: MAX_EVENTS_SHOWN - 2], rows[-1]
    left = events[MAX_EVENTS_SHOWN - 2 : -1]
    middle = [f"... {len(left)} more", "", str(sum(event["replayed"] for event in left))]
    return [*head, middle, tail]


def _sample(sample: Sample | None) -> str:
    if sample is None:
        return ""
    prompt = _whole_text(sample).removesuffix(sample.answer).strip()
    return f"{_short(prompt)}\n-> {_short(sample.answer)}"


def _short(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _table(*columns: str, lines: bool = False) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_lines=lines)
    for column in columns:
        table.add_column(column)
    return table


def _folders(parent: Path) -> list[Path]:
    return sorted(entry for entry in parent.iterdir() if entry.is_dir()) if parent.is_dir() else []


def _size(folder: Path) -> str:
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{total / 1e6:,.0f} MB"
