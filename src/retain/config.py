"""The configuration: one YAML file, every key checked, every default in one place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from retain import presets, privacy
from retain.config_errors import Problem, problem_report, problems_of
from retain.config_yaml import Lines, apply_override, dump_yaml, read_yaml
from retain.metrics import given_metric
from retain.sections import (
    BUILTIN,
    TASK_NAME,
    BufferConfig,
    CheckpointConfig,
    EvaluationConfig,
    GateConfig,
    LoraConfig,
    MemoryConfig,
    ModelConfig,
    ScheduleConfig,
    Section,
    Seed,
    Strategy,
    TaskConfig,
    Text,
    TrackingConfig,
    TrainingConfig,
    TriggerConfig,
)
from retain.synthesis_sections import (
    CurriculumConfig,
    FiltersConfig,
    MonitorConfig,
    PrivacyConfig,
    StorageConfig,
    SynthesisConfig,
    VllmConfig,
)
from retain.types import InputError


class Config(Section):
    """A whole run."""

    model: ModelConfig = ModelConfig()
    tasks: Annotated[list[TaskConfig], Field(description="a list of names of built-in tasks and of tasks")]
    strategy: Strategy = "mssr"
    schedule: ScheduleConfig = ScheduleConfig()
    trigger: TriggerConfig = TriggerConfig()
    memory: MemoryConfig = MemoryConfig()
    buffer: BufferConfig = BufferConfig()
    training: TrainingConfig = TrainingConfig()
    lora: LoraConfig = LoraConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    vllm: VllmConfig = VllmConfig()
    filters: FiltersConfig = FiltersConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    storage: StorageConfig = StorageConfig()
    monitor: MonitorConfig = MonitorConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    gate: GateConfig = GateConfig()
    tracking: TrackingConfig = TrackingConfig()
    template: Text = "{instruction}\n{input}\nAnswer:\n"
    on_invalid: Literal["error", "skip"] = "error"
    seed: Seed = 42
    data_seed: Seed = 42
    hold_out: bool = False
    keep_data: bool = True
    conflicts: Literal["newest", "keep", "error"] = "newest"
    conflict_similarity: Annotated[float, Field(gt=0, le=1)] | None = 0.9
    output: Text = "runs/my-run"

    @property
    def needs_validation(self) -> bool:
        """Whether something needs validation samples that a task may not bring itself."""
        chosen = presets.preset_of(self.strategy)
        adaptive = chosen.source is not None and self.curriculum.kind == "adaptive"
        return adaptive or self.scores_past_tasks or self.training.patience is not None or self.hold_out

    @property
    def scores_past_tasks(self) -> bool:
        """Whether replay waits for a fall of the past tasks' validation scores."""
        replays = presets.preset_of(self.strategy).replay is not None
        return replays and self.schedule.kind == "accuracy" and self.schedule.volume != "epoch"

    @property
    def written_seed(self) -> int:
        """Samples that the untouched model is asked to write into the buffer before the first stage."""
        seed = self.buffer.seed
        asked = seed and seed.synthesize and presets.preset_of(self.strategy).keeps_buffer
        return seed.synthesize.samples if asked else 0


SectionType = TypeVar("SectionType", bound=Section)


def validate(model: type[SectionType], values: dict[str, Any], source: str) -> SectionType:
    """`values` as a section; every wrong field in one InputError that starts with `source`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise problem_report(problems_of(error, model, values), source, {}) from None


def load_config(path: str | Path, overrides: list[str] | None = None, *, need_tasks: bool = True) -> Config:
    """Read a YAML file, lay `key=value` overrides over it and the strategy's defaults under it."""
    values, lines = read_yaml(path)
    if {"run", "strategies"} <= values.keys():
        raise InputError(f"{path}: compares strategies (`strategies`); `retain compare {path}` runs it")
    values = lay_over(values, lines, overrides or [])
    return make_config(values, str(path), lines, need_tasks=need_tasks)


def lay_over(values: dict[str, Any], lines: Lines, overrides: list[str]) -> dict[str, Any]:
    """Plain values with short forms in full and `key=value` overrides over them; `values` and `lines` change."""
    values = _spell_out(values)
    for override in overrides:
        apply_override(values, lines, override)
        values = _spell_out(values)
    return values


def make_config(values: dict[str, Any], source: str, lines: Lines | None = None, *, need_tasks: bool = True) -> Config:
    """A checked Config from plain values (as YAML gives them); all problems in one InputError."""
    values = _spell_out(values)
    problems: list[Problem] = []
    try:
        values = presets.resolve(privacy.lay_private_decoding(values))
    except InputError as error:
        problems.append((("strategy",), str(error).removeprefix("strategy: ")))
    problems += _task_problems(values, need_tasks) + privacy.privacy_problems(values)
    try:
        config = Config.model_validate({"tasks": [], **values})
    except ValidationError as error:
        problems += problems_of(error, Config, values)
    if not problems and config.synthesis.demonstrations_from == "training" and config.storage.writes_at_start:
        reason = (
            f"{config.storage.mode} writes when a task's data are gone, and synthesis.demonstrations_from: training"
        )
        problems.append((("storage", "mode"), f"{reason} shows them; set storage.mode: stored, or hybrid"))
    if not problems and not config.keep_data and (kept := _kept_data(config)):
        problems.append((("keep_data",), f"false, but {kept}; change that, or set strategy: auto"))
    if not problems and config.gate.after_stage == "raise_replay" and not presets.preset_of(config.strategy).replays:
        reason = f"raise_replay, and strategy {presets.preset_of(config.strategy).name!r} replays nothing"
        problems.append((("gate", "after_stage"), f"{reason}; set it to stop or off, or take a strategy that replays"))
    problems += [] if problems else _method_problems(config)
    if problems:
        raise problem_report(problems, source, lines or {})
    return config


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML, every key; `load_config` reads it back equal."""
    return dump_yaml(config.model_dump())


def diff_config(old: Config, new: Config) -> list[str]:
    """`training.epochs: 1 -> 2` for each key that differs, but for `output`, `checkpoint`, `vllm`, `tracking` and
    limits that change no training."""
    before, after = _settings(old), _settings(new)
    trains = "raise_replay" in (old.gate.after_stage, new.gate.after_stage)
    aside = ("output", "checkpoint", "vllm", "tracking", *(() if trains else ("gate",)))
    keys = [key for key in {**before, **after} if key.partition(".")[0] not in aside]
    return [
        f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in keys
        if before.get(key, "absent") != after.get(key, "absent")
    ]


def with_strategy(config: Config, strategy: str) -> Config:
    """The configuration under another strategy, whose defaults lie under the keys that were given."""
    return make_config({**config.model_dump(exclude_unset=True), "strategy": strategy}, f"strategy {strategy!r}")


def _method_problems(config: Config) -> list[Problem]:
    """What a strategy that brings an adapter of its own kind does not go with."""
    named = [name for name, _ in presets.preset_of(config.strategy).regularizers if name in presets.OWN_ADAPTERS]
    if not named:
        return []
    method, needs = config.training.method, f"and strategy {named[0]!r} is a kind of adapter of its own"
    if method == "full" or (method == "qlora" and "osf" in named):
        return [(("training", "method"), f"{method}, {needs}; set lora, or leave {named[0]} out")]
    return [(("lora", name), f"given, {needs}; leave one of them out") for name in config.lora.variants]


def _kept_data(config: Config) -> str | None:
    """In words, what keeps data of past tasks; None where nothing does."""
    chosen = presets.preset_of(config.strategy)
    if chosen.keeps_buffer and not chosen.source:
        return f"strategy {chosen.name!r} keeps samples of past tasks"
    if config.scores_past_tasks:
        return f"strategy {chosen.name!r} scores the validation data of past tasks (schedule.kind: accuracy)"
    if chosen.source and config.storage.mode == "hybrid":
        return "storage.mode: hybrid keeps real samples of past tasks"
    if chosen.source and config.synthesis.kept_demonstrations:
        return f"synthesis.demonstrations: {config.synthesis.demonstrations} keeps real samples of past tasks"
    return None


def _settings(config: Config) -> dict[str, Any]:
    """Every key with its value; the options of a strategy stand under their names."""
    chosen = presets.preset_of(config.strategy)
    options = {name: section.model_dump() for name, section in chosen.regularizers}
    return _flatten({**config.model_dump(), "strategy": chosen.name}) | _flatten(options, "strategy")


def _spell_out(values: dict[str, Any]) -> dict[str, Any]:
    """Short forms in full: `model: x`, `tracking: x`, `tasks: [reviews]`, `buffer: {seed: file}`, `memory:` alone."""
    sections = [name for name, field in Config.model_fields.items() if isinstance(field.default, Section)]
    values = {name: value for name, value in values.items() if value is not None or name not in sections}
    if isinstance(values.get("model"), str):
        values["model"] = {"name": values["model"]}
    if isinstance(values.get("tracking"), str):
        values["tracking"] = {"trackers": [values["tracking"]]}
    if "strategy" in values:
        values["strategy"] = presets.spell_out(values["strategy"])
    if isinstance(values.get("tasks"), list):
        values["tasks"] = [_spell_task(task) for task in values["tasks"]]
    buffer = values.get("buffer")
    if isinstance(buffer, dict) and buffer.get("seed") == "synthesize":
        values["buffer"] = {**buffer, "seed": {"name": "seed", "synthesize": {}}}
    elif isinstance(buffer, dict) and isinstance(buffer.get("seed"), str):
        values["buffer"] = {**buffer, "seed": {"name": "seed", "train": buffer["seed"]}}
    elif isinstance(buffer, dict) and isinstance(buffer.get("seed"), dict):
        values["buffer"] = {**buffer, "seed": {"name": "seed", **_spell_task(buffer["seed"])}}
    return values


def _spell_task(task: Any) -> Any:
    """`reviews` and `{builtin: reviews, ...}` as a task whose splits are the built-in ones, `{lm_eval: arc_easy}` as
    one of that name."""
    if isinstance(task, str) and TASK_NAME.fullmatch(task.removeprefix(BUILTIN)):
        task = {"builtin": task.removeprefix(BUILTIN)}
    if isinstance(task, dict) and callable(task.get("metric")):  # handed over by a program
        task = {**task, "metric": given_metric(task["metric"])}
    if isinstance(task, dict) and isinstance(task.get("lm_eval"), str):
        return {"name": re.sub(r"\.ya?ml$", "", Path(task["lm_eval"]).name), **task}
    if not isinstance(task, dict) or not isinstance(task.get("builtin"), str):
        return task
    name = task["builtin"]
    splits = dict.fromkeys(("train", "validation", "test"), f"{BUILTIN}{name}")
    return {"name": name, **splits, **{key: value for key, value in task.items() if key != "builtin"}}


def _task_problems(values: dict[str, Any], need_tasks: bool) -> list[Problem]:
    """What is wrong with the list of tasks as a whole."""
    tasks = values.get("tasks")
    if not tasks and need_tasks:
        return [(("tasks",), "missing or empty; name at least one task, such as `tasks: [product_sentiment]`")]
    if not isinstance(tasks, list):
        return []
    problems: list[Problem] = []
    seed = values.get("buffer", {}).get("seed") if isinstance(values.get("buffer"), dict) else None
    seen = {str(seed["name"]).lower(): "buffer.seed"} if isinstance(seed, dict) and "name" in seed else {}
    for index, task in enumerate(tasks):
        name = str(task.get("name", "")).lower() if isinstance(task, dict) else ""
        if name in seen:
            problems.append((("tasks", index, "name"), f"{task['name']!r} is the name of {seen[name]} too"))
        elif name:
            seen[name] = f"tasks.{index}"
    problems += _order_problems(tasks, seed) if need_tasks else []
    if need_tasks and not any(isinstance(task, dict) and task.get("train") for task in tasks):
        problems.append((("tasks",), "no task has `train`, so there is nothing to learn"))
    return problems


def _order_problems(tasks: list[Any], seed: Any) -> list[Problem]:
    """A task supersedes earlier ones, and is valid until a later one that is learned."""
    names = [task.get("name") if isinstance(task, dict) and task.get("train") else None for task in tasks]
    first = [seed["name"]] if isinstance(seed, dict) and "name" in seed else []
    problems: list[Problem] = []
    for index, task in enumerate(tasks):
        spec = task if isinstance(task, dict) else {}
        olds, until = spec.get("supersedes"), spec.get("valid_until")
        earlier, later = [*first, *filter(None, names[:index])], list(filter(None, names[index + 1 :]))
        for old in olds if isinstance(olds, list) else []:
            if old not in earlier:
                reason = f"{old!r} is no task that is learned before (there are {', '.join(earlier) or 'none'})"
                problems.append((("tasks", index, "supersedes"), reason))
        if isinstance(until, str) and until not in later:
            reason = f"{until!r} is no task that is learned after (there are {', '.join(later) or 'none'})"
            problems.append((("tasks", index, "valid_until"), reason))
    return problems


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, list) and any(isinstance(item, dict) for item in values):
        values = {item.get("name", index): item for index, item in enumerate(values)}
    if not isinstance(values, dict):
        return {prefix: values}
    parts = [_flatten(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in values.items()]
    return {key: value for part in parts for key, value in part.items()}
