"""What replay needs to know of a transformers trainer: whether it fits, its rows as text, its settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from peft import PeftModel
from torch.utils.data import IterableDataset
from transformers import Trainer

from retain.integrations.sample_losses import IGNORED
from retain.model import LanguageModel
from retain.tasks.formats import FORMATS
from retain.types import InputError, Sample

SCHEDULES = ("cosine", "linear", "constant")


def check_trainer(trainer: Trainer) -> None:
    """An InputError for what replay cannot do right under this trainer, with the reason."""
    args, data = trainer.args, trainer.train_dataset
    reason = None
    if args.world_size > 1 or args.n_gpu > 1:
        reason = "several processes or GPUs: not supported yet; start one process with one device"
    elif packing := next((name for name in ("packing", "sample_packing") if getattr(args, name, False)), None):
        flat = "padding_free" if packing == "packing" else "batch_flattening"
        reason = (f"{packing}=True: a packed row holds several samples, and a stage is planned in samples; set "
                  f"{packing}=False, and {flat}=True to compute no padding either")  # fmt: skip
    elif data is None or isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        reason = "train_dataset: replay is planned over a known number of rows; give one with a length"
    elif args.auto_find_batch_size:
        reason = "auto_find_batch_size=True: the batch size would change within a plan; set it"
    elif trainer.processing_class is None:
        reason = "processing_class: stored text is replayed through the tokenizer; give it"
    elif not trainer.model_accepts_loss_kwargs and trainer.compute_loss_func is None:
        name = type(trainer.model).__name__
        reason = f"model: {name} takes no num_items_in_batch, so new and replayed tokens cannot be weighted alike"
    if reason:
        raise InputError(f"{reason} (replay)")


def replay_fields(trainer: Trainer) -> list[str]:
    """The fields of a row as it comes to the collator, which a replayed sample then has too."""
    fields = set(trainer.train_dataset[0])
    if trainer.args.remove_unused_columns:
        trainer._set_signature_columns_if_needed()
        fields &= set(trainer._signature_columns)
    if unknown := sorted(fields - {"input_ids", "attention_mask", "labels"}):
        raise InputError(f"train_dataset: a stored text gives no {unknown[0]!r}, which its rows have; remove it")
    if "input_ids" not in fields:
        raise InputError("train_dataset: its rows have no input_ids, so a stored text cannot be laid beside them")
    return sorted(fields)


def longest(trainer: Trainer) -> int:
    """Tokens a replayed sample may have at most: the trainer's `max_length`, else what tokenizer and model can take."""
    limits = (getattr(trainer.args, "max_length", None), getattr(trainer.processing_class, "model_max_length", None),
              getattr(trainer.model.config, "max_position_embeddings", None))  # fmt: skip
    return min((limit for limit in limits if limit), default=2048)


def texts_of(row: Mapping[str, Any], lm: LanguageModel, identity: str, task: str) -> Iterator[Sample]:
    """What a row may be as text, at least one: its own columns (chat, prompt and completion), then its tokens decoded.

    Raises InputError where it has neither.
    """
    tokenizer = lm.tokenizer
    closing = tokenizer.eos_token or ""
    row, found = dict(row), False
    if isinstance(row.get("prompt"), list) and isinstance(row.get("completion"), list):
        row["messages"] = row["prompt"] + row["completion"]
    elif isinstance(row.get("completion"), str):
        row["completion"] = row["completion"].removesuffix(closing)
    for form in (FORMATS["chat"], FORMATS["sharegpt"], FORMATS["prompt/completion"]):
        if all(column in row for column in form.columns):
            try:
                prompt, answer, messages = form.parse(row, "")
            except ValueError:  # of a form that the memory does not keep, such as tool calls
                continue
            found = True
            yield Sample(identity, task, prompt, answer, messages=messages)
    ids = [int(token) for token in row.get("input_ids", ())]
    if not ids and not found:
        raise InputError(f"{identity}: no text to keep; rows need input_ids, prompt and completion, or messages")
    if not ids:
        return
    if lm.is_encoder_decoder:
        parts = ids, [token for token in row["labels"] if token != IGNORED]
    else:
        labels = row.get("labels", ids)
        first = next((place for place, label in enumerate(labels) if label != IGNORED), len(ids))
        parts = ids[:first], ids[first:]
    for skip in (0, 1):  # a tokenizer may put a first token before each text of itself
        prompt, answer = (tokenizer.decode(part) for part in (parts[0][skip:], parts[1]))
        yield Sample(identity, task, prompt, answer.removesuffix(closing))


def described(trainer: Trainer, batch_size: int) -> dict[str, Any]:
    """Model, LoRA and training in the words of retain's configuration: what `retain add` goes on with."""
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    adapter = model.active_peft_config if isinstance(model, PeftModel) else None
    name = adapter.base_model_name_or_path if adapter else model.config._name_or_path
    lora: dict[str, Any] = {}
    if adapter and hasattr(adapter, "lora_alpha"):
        targets = adapter.target_modules
        lora = {"r": adapter.r, "alpha": adapter.lora_alpha, "dropout": adapter.lora_dropout,
                "target_modules": sorted(targets) if isinstance(targets, set | list) else None}  # fmt: skip
    schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    training = {
        "epochs": max(1, math.ceil(args.num_train_epochs)),
        "batch_size": batch_size,
        "max_steps": args.max_steps if args.max_steps > 0 else None,
        "learning_rate": args.learning_rate,
        "schedule": schedule if schedule in SCHEDULES else "cosine",
        "weight_decay": args.weight_decay,
        "max_grad_norm": args.max_grad_norm or None,
        "max_length": max(8, min(longest(trainer), 1 << 20)),
    }
    return {"model": {"name": name or "unnamed"}, "lora": lora, "training": training}
