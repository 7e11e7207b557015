"""Chat templates, and what a tokenizer must bring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from retain.sections import ModelConfig
from retain.types import InputError

LONGEST_TEMPLATE = 1 << 20  # bytes


def check_tokenizer(tokenizer: Any, config: ModelConfig, base: Path) -> None:
    """Give the tokenizer the chat template of the configuration, if there is one. Raises InputError.

    A model's own template is used otherwise; a base model has none and needs none but for chats.
    """
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) < 2:  # some classes make up an empty one
        raise InputError(f"model.name: no tokenizer in {config.name!r}; a local folder needs its tokenizer.json")
    if tokenizer.eos_token_id is None:
        raise InputError(f"model.name: the tokenizer of {config.name!r} has no end-of-text token")
    if config.chat_template is not None:
        tokenizer.chat_template = _read(base / Path(config.chat_template).expanduser())
        render(tokenizer, [("user", "Hi")], True)


def _read(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            text = file.read(LONGEST_TEMPLATE + 1)
        if len(text) > LONGEST_TEMPLATE:
            raise InputError(f"model.chat_template: {path} has more than {LONGEST_TEMPLATE} bytes")
        return text.decode("utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"model.chat_template: {path} is no file of a Jinja template ({error})") from None


def render(tokenizer: Any, messages: Sequence[tuple[str, str]], add_generation_prompt: bool) -> str:
    """A chat of (role, content) as the tokenizer's template writes it. Raises InputError where it cannot."""
    if not tokenizer.chat_template:
        raise InputError(
            "model: its tokenizer has no chat template; give the data as prompt and completion, or a template's file "
            "under model.chat_template"
        )
    chat = [{"role": role, "content": content} for role, content in messages]
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=add_generation_prompt)
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(role for role, _ in messages)
        raise InputError(f"model: its chat template cannot write a chat of {roles[:200]} ({error})") from None
