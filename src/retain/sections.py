"""The sections of the configuration: every key with its default and what it may hold."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Steps = Annotated[
    Count | Share,
    Field(description="a whole number of steps of at least 1, or a share of the stage above 0 and below 1"),
]
Strategy = Annotated[
    str | list[Any] | dict[str, Any],
    Field(description="a name, names joined by +, a list of these, or a mapping with a name and options"),
]
Modules = Annotated[
    Annotated[list[Text], Field(min_length=1)] | Text,
    Field(description="a list of names, or one pattern"),
]

TASK_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
RESERVED_NAMES = ("base", "joint")
BUILTIN = "builtin:"


class Section(BaseModel):
    """Strict: no unknown key, no true for 1, no "5" for 5, nothing infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class MemoryModel(Section):
    """Parameters of the memory model (MSSR Table 9 and 10). A simulation trace sets these."""

    alpha: NonNegative = 0.01
    gamma_d: NonNegative = 0.20
    phi: Literal["sigmoid", "identity", "power", "log"] = "sigmoid"
    phi_k: Positive = 10.0
    phi_c: float = 0.5
    phi_power: Positive = 2.0
    phi_kappa: Positive = 9.0
    ema_beta: Annotated[float, Field(ge=0, lt=1)] = 0.95
    quantile_low: Probability = 0.05
    quantile_high: Annotated[Probability, Field(validate_default=True)] = 0.95
    eta_s: NonNegative = 0.05
    beta_s: NonNegative = 0.5
    rho: NonNegative = 0.01
    gamma_s: NonNegative = 1.0
    s_min: Positive = 1.0
    s_max: Annotated[Positive, Field(validate_default=True)] = 10.0
    sigma_s: NonNegative = 0.0
    theta: Share = 0.5
    time_unit: Literal["auto", "interval"] | Positive = "auto"
    priority: Literal["retention", "risk", "gain", "confidence", "uniform"] = "retention"
    zeta: NonNegative = 1.0
    beta_m: NonNegative = 1.0
    rho_m: NonNegative = 0.01

    @field_validator("quantile_high")
    @classmethod
    def _quantiles_in_order(cls, high: float, info: ValidationInfo) -> float:
        low = info.data.get("quantile_low", 0.0)
        if low >= high:
            raise ValueError(f"{high:g} is not above quantile_low ({low:g})")
        return high

    @field_validator("s_max")
    @classmethod
    def _stabilities_in_order(cls, s_max: float, info: ValidationInfo) -> float:
        s_min = info.data.get("s_min", 0.0)
        if s_min > s_max:
            raise ValueError(f"{s_max:g} is below s_min ({s_min:g})")
        return s_max


class MemoryConfig(MemoryModel):
    """The memory model inside a run."""

    refresh_every: Steps = 0.025
    staleness_cap: Positive = 10.0
    candidates: Count = 1


class ScheduleConfig(Section):
    """When and how much to replay (MSSR Eq. 8, 9, 26, 29; Table 10)."""

    kind: Literal["expanding", "fixed", "geometric", "explicit", "every", "threshold", "loss", "accuracy"] = "expanding"
    first_interval: Steps = 0.05
    explicit: Annotated[list[Positive], Field(min_length=1, description="a list of numbers above 0")] = [
        1,
        2,
        4,
        7,
        15,
    ]
    eta_p: NonNegative = 0.5
    rho_p: NonNegative = 0.05
    lambda_0: Annotated[float, Field(ge=0, le=0.9)] = 0.3
    lambda_min: Annotated[float, Field(ge=0, le=0.9)] = 0.05
    beta_r: NonNegative = 1.0e-5
    ratio_form: Literal["interpolated", "additive", "constant"] = "interpolated"
    volume: Literal["proportional", "batch", "epoch"] = "proportional"
    max_mix: Annotated[float, Field(ge=0, lt=1)] = 0.5
    clock: Literal["stage", "global", "updates"] = "stage"
    replay_weight: NonNegative = 1.0
    budget: Positive | None = None


class TriggerConfig(Section):
    """What calls for replay under `schedule.kind: loss` and `accuracy`."""

    signal: Literal["averages", "probe", "variance"] = "averages"
    short: Annotated[float, Field(ge=0, lt=1)] = 0.9
    long: Annotated[float, Field(ge=0, lt=1, validate_default=True)] = 0.99
    z: NonNegative = 2.0
    probe: Count = 32
    rise: NonNegative = 0.1
    window: Annotated[int, Field(ge=2)] = 20
    growth: Annotated[float, Field(ge=1)] = 2.0
    eval_every: Steps = 0.1
    drop: Annotated[float, Field(ge=0, lt=1)] = 0.02

    @field_validator("long")
    @classmethod
    def _averages_in_order(cls, long: float, info: ValidationInfo) -> float:
        short = info.data.get("short", 0.0)
        if short >= long:
            raise ValueError(f"{long:g} is not above short ({short:g})")
        return long


class TaskConfig(Section):
    """One task: files (or Hub names, or `builtin:NAME`) and how to read them."""

    name: str
    train: Text | None = None
    validation: Text | None = None
    test: Text | None = None
    description: str = ""
    max_train: Count | None = None
    max_validation: Count | None = None
    max_test: Count | None = None
    metric: str | None = None
    template: Text | None = None
    on_invalid: Literal["error", "skip"] | None = None
    supersedes: list[Text] = []
    valid_until: Text | None = None
    lm_eval: Text | None = None
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    apply_chat_template: bool = False

    @field_validator("lm_eval")
    @classmethod
    def _is_only_evaluated(cls, lm_eval: str | None, info: ValidationInfo) -> str | None:
        for field in ("train", "validation", "test", "template"):
            if lm_eval and info.data.get(field):
                raise ValueError(f"{lm_eval!r} beside {field}; lm-eval brings its own data and prompts, leave one out")
        return lm_eval

    @field_validator("num_fewshot", "apply_chat_template")
    @classmethod
    def _is_of_lm_eval(cls, value: int | bool | None, info: ValidationInfo) -> int | bool | None:
        if value and "lm_eval" in info.data and not info.data["lm_eval"]:
            raise ValueError(f"{value!r} without lm_eval; it sets the prompts of an lm-eval task alone")
        return value

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, name: str) -> str:
        if not TASK_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a task name (allowed: 1 to 64 letters, digits, _ and -)")
        if name.lower() in RESERVED_NAMES:
            raise ValueError(f"{name!r} is taken: the run directory uses it; choose another name")
        return name


class GeneralConfig(Section):
    """General data that the untouched model writes before the first stage."""

    samples: Count = 200


class SeedConfig(TaskConfig):
    """What is rehearsed from the first stage on: the data of a task, or text that the untouched model writes."""

    name: str = "seed"
    synthesize: Annotated[GeneralConfig | None, Field(validate_default=True)] = None

    @field_validator("synthesize")
    @classmethod
    def _stands_alone(cls, synthesize: GeneralConfig | None, info: ValidationInfo) -> GeneralConfig | None:
        if synthesize and info.data.get("train"):
            raise ValueError("the seed is either written (synthesize) or read (train); leave one of them out")
        if not synthesize and not info.data.get("train", True):
            raise ValueError("nothing to rehearse; name a file under train, or set buffer.seed: synthesize")
        return synthesize


class BufferConfig(Section):
    """The bounded store of replayable samples (MSSR Table 12)."""

    capacity: Count = 1024
    admission: Literal["balanced", "reservoir", "fifo", "surprise"] = "balanced"
    seed: SeedConfig | None = None
    history: bool = True


class ModelConfig(Section):
    """The model to fine-tune: an alias, a local path or a Hub name."""

    name: Text = "smollm2-135m"
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    trust_remote_code: bool = False
    revision: Text | None = None
    chat_template: Text | None = None


class TrainingConfig(Section):
    """Optimization, the same under every strategy (MSSR Table 11)."""

    method: Literal["lora", "qlora", "full"] = "lora"
    epochs: Count = 1
    batch_size: Count = 8
    micro_batch_size: Count | None = None
    max_steps: Count | None = None
    patience: Count | None = None
    learning_rate: Positive = 2.0e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    weight_decay: NonNegative = 0.01
    max_grad_norm: Positive | None = 1.0
    max_skipped_steps: Count = 5
    max_length: Annotated[int, Field(ge=8)] = 2048
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    @field_validator("micro_batch_size")
    @classmethod
    def _divides_batch_size(cls, micro: int | None, info: ValidationInfo) -> int | None:
        batch = info.data.get("batch_size")
        if micro and batch and batch % micro:
            raise ValueError(f"{micro} does not divide batch_size ({batch})")
        return micro


class LoraConfig(Section):
    """Low-rank adapters through PEFT (MSSR Table 11)."""

    r: Count = 8
    alpha: Positive = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Modules | None = None
    exclude_modules: Modules | None = None
    target_parameters: Annotated[list[Text], Field(min_length=1, description="a list of names")] | None = None
    modules_to_save: Annotated[list[Text], Field(min_length=1, description="a list of names")] | None = None
    layers_to_transform: Annotated[list[Index], Field(min_length=1, description="a list of numbers from 0")] | None = (
        None
    )
    layers_pattern: Text | None = None
    rank_pattern: Annotated[dict[Text, Count], Field(description="a rank for each pattern")] = {}
    alpha_pattern: Annotated[dict[Text, Positive], Field(description="an alpha for each pattern")] = {}
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: Literal[True, False, "gaussian", "orthogonal"] = True

    @property
    def variants(self) -> dict[str, Any]:
        """What differs from plain LoRA, under PEFT's names."""
        return self.model_dump(exclude={"r", "alpha", "dropout", "target_modules"}, exclude_defaults=True)


class CheckpointConfig(Section):
    """When a stage is saved inside, so that it goes on from there after a crash. Changes no result."""

    every: Count | None = None
    minutes: Positive | None = 10.0
    keep: Count = 2


class EvaluationConfig(Section):
    """What is measured, and when."""

    batch_size: Count = 32
    after: Literal["stage"] | Count = "stage"
    unseen: bool = True
    max_new_tokens: Count | None = None
    save_predictions: bool = True


class TrackingConfig(Section):
    """Experiment trackers that hear of a run while it goes on, through Accelerate."""

    trackers: Annotated[
        list[Literal["tensorboard", "wandb", "mlflow", "trackio"]],
        Field(description="a list of tensorboard, wandb, mlflow, trackio"),
    ] = []
    project: Text = "retain"
    run: Text | None = None
    options: Annotated[
        dict[str, dict[str, Any]], Field(description="a mapping from a tracker to options of its own")
    ] = {}

    @field_validator("options")
    @classmethod
    def _are_of_a_tracker(cls, options: dict[str, dict[str, Any]], info: ValidationInfo) -> dict[str, dict[str, Any]]:
        if others := [name for name in options if name not in info.data.get("trackers", options)]:
            raise ValueError(f"{others[0]!r} is not among trackers")
        return options


def _limits(kind: Any, what: str) -> Any:
    return Annotated[
        kind | dict[str, kind] | None, Field(description=f"{what}, or one for each task by its name, or null")
    ]


class GateConfig(Section):
    """What the model must still be able to do after a stage; null sets no limit."""

    forgetting: _limits(Probability, "0 to 1") = None
    mean_forgetting: Probability | None = None
    score: _limits(Probability, "0 to 1") = None
    nll: _limits(NonNegative, "at least 0") = None
    nll_rise: _limits(NonNegative, "at least 0") = None
    general: _limits(Probability, "0 to 1") = None
    noise: Literal["fail", "pass"] = "fail"
    level: Share = 0.95
    after_stage: Literal["off", "stop", "raise_replay"] = "off"
    raise_by: Annotated[float, Field(gt=1)] = 1.5
