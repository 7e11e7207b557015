"""Config sections of synthesized rehearsal: writing, filters, curriculum, storage, watching and privacy."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from retain.sections import Count, NonNegative, Positive, Probability, Section, Seed, Share, Steps, Text


class SynthesisConfig(Section):
    """How the model writes its own rehearsal data (SSR 5, 7.1; MATH 4)."""

    method: Literal["two-stage", "joint", "in-context", "pairs"] = "two-stage"
    samples: Count | Share | Literal["adaptive"] = 1000
    generator_weight: NonNegative = 0.25
    prompt: Text = "Generate a training example for: {description}\nInput:"
    class_conditioned: bool = False
    demonstrations: Annotated[int, Field(ge=0)] = 0
    demonstrations_from: Literal["kept", "training"] = "kept"
    inputs_by: Literal["latest", "base"] = "latest"
    answers: Literal["sample", "greedy", "asked"] = "sample"
    sampling: Literal["single", "mixed"] = "single"
    temperature: Positive = 1.0
    top_k: Annotated[int, Field(ge=0)] = 50
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    repetition_penalty: Positive = 1.0
    max_input_tokens: Count = 128
    max_output_tokens: Count = 64
    max_joint_tokens: Count = 256
    batch_size: Count = 32
    max_attempts: Count = 5
    min_yield: Probability = 0.05
    every: Count | None = None
    engine: Literal["transformers", "vllm"] = "transformers"

    @field_validator("prompt")
    @classmethod
    def _tells_the_task(cls, prompt: str) -> str:
        names = set(re.findall(r"\{(\w+)\}", prompt))
        if not names or names - {"description", "name"}:
            raise ValueError(f"{prompt!r} must hold {{description}} or {{name}} and no other placeholder")
        return prompt

    @property
    def kept_demonstrations(self) -> int:
        """Real samples of each task that the run directory keeps to show them."""
        return self.demonstrations if self.demonstrations_from == "kept" else 0

    @field_validator("answers")
    @classmethod
    def _asks(cls, answers: str, info: ValidationInfo) -> str:
        if answers == "asked" and not info.data.get("class_conditioned"):
            raise ValueError("asked needs class_conditioned: true; else no label is asked for")
        return answers

    @field_validator("demonstrations_from")
    @classmethod
    def _has_demonstrations(cls, source: str, info: ValidationInfo) -> str:
        method, count = info.data.get("method"), info.data.get("demonstrations")
        if source == "training" and method not in ("in-context", "pairs"):
            raise ValueError(f"training needs method: in-context or pairs; {method} shows no samples")
        if source == "training" and method == "in-context" and not count:
            raise ValueError("training needs demonstrations: how many each prompt shows, such as 4")
        return source


class VllmConfig(Section):
    """What an engine of vLLM takes of the machine (`synthesis.engine: vllm`); no text depends on it."""

    gpu_memory_utilization: Share = 0.3
    max_model_len: Count | None = None


class FiltersConfig(Section):
    """Which synthetic samples are kept (SSR 2, 3, 7.2, 9; MATH 5). A filter that is null or false is off."""

    heuristics: bool = True
    min_words: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    perplexity: Positive | Literal["auto"] | None = 100.0
    perplexity_model: Literal["generator", "base"] = "generator"
    consistency: Probability | None = 0.5
    self_consistency: Probability | None = None
    votes: Count = 5
    diversity: Probability | None = 0.9
    diversity_form: Literal["cap", "penalty"] = "cap"
    diversity_weight: NonNegative = 1.0
    similarity: Literal["hidden", "minhash", "jaccard", "rouge", "sentence-transformers"] = "hidden"
    embedding_model: Text = "sentence-transformers/all-MiniLM-L6-v2"
    keep_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    select: Literal["first", "kmeans"] = "first"
    stricter: bool = False
    balance: bool = False
    memorization: Probability | None = 0.8
    human: bool = False
    human_samples: Count = 100
    human_above: Annotated[int, Field(ge=0)] = 1000
    human_required: Probability = 0.8


class CurriculumConfig(Section):
    """The synthetic share of a mixed batch over a stage (SSR 2, 3, 5, 7.3, 9.5; MATH 4)."""

    kind: Literal[
        "constant",
        "linear",
        "cosine",
        "cosine_decay",
        "exponential",
        "adaptive",
        "similarity",
        "growing",
        "difficulty",
        "concatenate",
    ] = "linear"
    initial: Annotated[float, Field(ge=0, lt=1)] = 0.2
    final: Annotated[float, Field(ge=0, lt=1)] = 0.8
    warmup: Annotated[
        Count | Annotated[float, Field(gt=0, le=1)],
        Field(description="a whole number of steps of at least 1, or a share of the stage above 0 and at most 1.0"),
    ] = 1.0
    rate: Positive = 5.0
    delta: Share = 0.1
    tolerance: NonNegative = 0.1
    check_every: Steps = 0.1
    when_calm: Literal["hold", "raise"] = "hold"
    lowest: Annotated[float, Field(ge=0, lt=1)] = 0.1
    highest: Annotated[float, Field(ge=0, lt=1, validate_default=True)] = 0.9
    difficulty: Literal["easy", "hard"] = "easy"
    max_mix: Annotated[float, Field(ge=0, lt=1)] = 0.8
    split: Literal["even", "similarity", "size"] = "even"
    draw: Literal["uniform", "confidence"] = "confidence"
    weight_by_confidence: bool = True
    lambda_replay: NonNegative = 1.0
    lambda_quality: NonNegative = 0.0

    @field_validator("highest")
    @classmethod
    def _bounds_in_order(cls, highest: float, info: ValidationInfo) -> float:
        lowest = info.data.get("lowest", 0.0)
        if lowest > highest:
            raise ValueError(f"{highest:g} is below lowest ({lowest:g})")
        return highest


class StorageConfig(Section):
    """Where synthetic samples live between stages (SSR 5, 7.4, 9.10)."""

    mode: Literal["stored", "cached", "on-demand", "hybrid"] = "stored"
    compression: Literal["gzip", "zstd"] = "gzip"
    cache_size: Count = 10000
    real_samples: Count = 100
    refresh_every: Count = 3

    @property
    def writes_at_start(self) -> bool:
        """Whether a stage's start writes what is not kept, when the past tasks' data are gone."""
        return self.mode in ("cached", "on-demand")


class MonitorConfig(Section):
    """Watching the generator drift (SSR 8, 9.1): above a limit the run warns and lowers the synthetic share."""

    perplexity_ratio: Positive | None = 2.0
    divergence: Positive | None = None
    lower_by: Annotated[float, Field(ge=0, lt=1)] = 0.1


class DpSgdConfig(Section):
    """DP-SGD (Abadi et al. 2016): each sample's gradient clipped, and noise on their sum."""

    noise_multiplier: Positive = 1.0
    max_grad_norm: Positive = 1.0
    delta: Share = 1.0e-5


class PrivacyConfig(Section):
    """Differential privacy of what the model writes, and of training."""

    epsilon_per_token: Positive | None = None
    clip: Positive = 10.0
    dp_sgd: DpSgdConfig | None = None
    noise_seed: Seed | None = None
