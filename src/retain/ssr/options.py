"""The document's configuration: its keys, the model, and what they come to as a run's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import peft
from pydantic import Field, field_validator
from transformers import AutoTokenizer, PreTrainedModel

from retain.config import Config, validate
from retain.model import LanguageModel
from retain.sections import Count, NonNegative, Positive, Probability, Section, Seed, Text, TrainingConfig
from retain.synthesis_sections import FiltersConfig, SynthesisConfig
from retain.types import Frame, InputError


class Options(Section):
    """The keys of the document's configuration beside `model` and `tokenizer`, and three of our own.

    generator_weight: of learning to write a task's inputs, in the loss; 0 is the document's code.
    template: how an input becomes a prompt; batches of token ids are prompts already. seed: of all draws.
    """

    max_length: Count = 128
    temperature: Positive = 1.0
    top_k: Annotated[int, Field(ge=0)] = 50
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    num_synthesis_examples: Count = 1000
    synthesis_batch_size: Count = 8
    perplexity_threshold: Positive = 100.0
    consistency_threshold: Probability = 0.5
    initial_synthetic_ratio: Probability = 0.2
    final_synthetic_ratio: Probability = 0.8
    warmup_steps: Annotated[int, Field(ge=0)] = 1000
    schedule_type: Literal["linear", "cosine", "exponential"] = "linear"
    generator_weight: NonNegative = 0.25
    template: Text = "Task: {description}\nInput: {input}\nOutput:"
    seed: Seed = 42

    @field_validator("template")
    @classmethod
    def _holds_an_input(cls, template: str) -> str:
        if template.count("{input}") != 1:
            raise ValueError(f"{template!r} must hold {{input}} once")
        return template

    def frame(self, description: str) -> Frame:
        """What stands around the inputs of a task."""
        before, _, after = self.template.partition("{input}")
        return Frame(*(part.replace("{description}", description) for part in (before, after)))

    def run_config(self) -> Config:
        """The same as a run's configuration. Near duplicates are told by their words, which needs no base model."""
        synthesis = SynthesisConfig(
            samples=self.num_synthesis_examples,
            batch_size=self.synthesis_batch_size,
            max_input_tokens=self.max_length,
            generator_weight=self.generator_weight,
            **self.model_dump(include={"temperature", "top_k", "top_p"}),
        )
        filters = FiltersConfig(
            perplexity=self.perplexity_threshold, consistency=self.consistency_threshold, similarity="minhash"
        )
        training = TrainingConfig(schedule="constant", warmup=0.0, max_grad_norm=None)
        return Config(tasks=[], seed=self.seed, synthesis=synthesis, filters=filters, training=training)


class Request(Section):
    """What is asked for of one task."""

    task_description: Annotated[Text, Field(pattern=r"\S")]
    num_examples: Count = 100
    batch_size: Count = 8
    num_epochs: Count = 3
    learning_rate: Positive = 5e-5


def open_model(config: Any, where: str) -> tuple[LanguageModel, Options]:
    """The language model and the checked options of a configuration. `where` begins the errors."""
    if not isinstance(config, Mapping):
        raise InputError(f"{where}: {type(config).__name__} is not a mapping with the key model")
    values = {str(key): value for key, value in config.items() if key not in ("model", "tokenizer")}
    options = validate(Options, values, where)
    model, tokenizer = config.get("model"), config.get("tokenizer")
    if isinstance(model, LanguageModel):
        return model, options
    if not isinstance(model, PreTrainedModel | peft.PeftModel) or model.get_output_embeddings() is None:
        raise InputError(f"{where}: model: {type(model).__name__} is not a transformers model that writes text")
    tokenizer = tokenizer or _tokenizer_of(model, where)
    if getattr(tokenizer, "eos_token_id", None) is None:
        raise InputError(f"{where}: tokenizer: it has no end-of-text token")
    limit = getattr(model.config, "max_position_embeddings", None) or TrainingConfig().max_length
    return LanguageModel(model, tokenizer, limit), options


def _tokenizer_of(model: Any, where: str) -> Any:
    """The tokenizer that lies beside the weights the model was loaded from."""
    name = model.config.name_or_path
    if not name:
        raise InputError(f"{where}: tokenizer: none is given, and the model says not where it came from")
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: tokenizer: none is given, and {name!r} has none ({error})") from None
