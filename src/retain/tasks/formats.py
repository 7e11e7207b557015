"""Rows in alpaca, prompt/completion, chat or sharegpt form become samples; every field is checked."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from retain.tasks.files import show, suggest
from retain.types import Frame, InputError

PLACEHOLDERS = ("instruction", "input")
PLACEHOLDER = re.compile(r"\{(instruction|input)\}")
CHAT_TEMPLATE = "chat"
MARK = "\0input\0"
ROLES = ("system", "user", "assistant")
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
Messages = tuple[tuple[str, str], ...]


def check_template(template: str) -> None:
    """A template is "chat", or a text with {instruction}, {input} or both."""
    if template == CHAT_TEMPLATE:
        return
    unknown = [name for name in re.findall(r"\{(\w+)\}", template) if name not in PLACEHOLDERS]
    if unknown:
        raise InputError(
            f"template: unknown placeholder {{{unknown[0]}}}{suggest(unknown[0], list(PLACEHOLDERS))}; "
            "allowed are {instruction} and {input}"
        )
    if not PLACEHOLDER.search(template):
        raise InputError(
            f'template: {show(template)} holds neither {{instruction}} nor {{input}}; add one, or use "chat"'
        )


def fill(template: str, instruction: str, input: str) -> str:
    """Insert the texts literally, in one pass: braces in them survive.

    A line whose placeholders are all empty is dropped; elsewhere an empty one goes with the space before it.
    """
    values = {"instruction": instruction, "input": input}
    lines = []
    for line in template.split("\n"):
        names = PLACEHOLDER.findall(line)
        if names and not any(values[name] for name in names):
            continue
        for name in names:
            if not values[name]:
                line = re.sub(rf" ?\{{{name}\}}", "", line)
        lines.append(PLACEHOLDER.sub(lambda found: values[found[1]], line))
    return "\n".join(lines)


def _text(row: dict, field: str, optional: bool = False) -> str:
    """The text in a field; an optional one may be absent, null or blank."""
    value = row.get(field)
    if value is None and optional:
        return ""
    if field not in row:
        raise ValueError(f'"{field}" is missing; found {_columns(row)}')
    if not isinstance(value, str):
        raise ValueError(f'"{field}" is {show(value)}; it must be a text')
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f'"{field}" is {show(value)}; half of a surrogate pair is not valid Unicode; write the character'
        ) from None
    if not value.strip() and not optional:
        raise ValueError(f'"{field}" is {show(value)}; it must not be empty')
    return value if value.strip() else ""


def _texts(row: dict, field: str, least: int) -> tuple[str, ...]:
    """A list of different, non-empty texts; absent or null is none."""
    values = row.get(field)
    if values is None:
        return ()
    if not isinstance(values, list) or len(values) < least:
        raise ValueError(f'"{field}" is {show(values)}; it must be a list of at least {least} text(s)')
    texts = tuple(_text({field: value}, field) for value in values)
    repeated = next((text for place, text in enumerate(texts) if text in texts[:place]), None)
    if repeated is not None and field == "choices":
        raise ValueError(f'"choices" names {show(repeated)} twice; choices must differ')
    return texts


def _alpaca(row: dict, template: str) -> tuple[str, str, Messages]:
    instruction, input = _text(row, "instruction", optional=True), _text(row, "input", optional=True)
    answer = _text(row, "output")
    if not instruction and not input:
        raise ValueError('"instruction" and "input" are both empty; the model needs a prompt')
    if template == CHAT_TEMPLATE:
        question = "\n".join(filter(None, (instruction, input)))
        return "", answer, (("user", question), ("assistant", answer))
    prompt = fill(template, instruction, input)
    if not prompt.strip():
        raise ValueError("the template leaves the prompt empty; use {input} or {instruction}, whichever the row has")
    return prompt, answer, ()


def _completion(row: dict, template: str) -> tuple[str, str, Messages]:
    return _text(row, "prompt"), _text(row, "completion"), ()


def _conversation(row: dict, field: str, role: str, content: str, roles: dict[str, str]) -> tuple[str, str, Messages]:
    """Turns: an optional system message, then user and assistant, the last one an assistant's."""
    turns = row.get(field)
    if not isinstance(turns, list) or not turns:
        raise ValueError(f'"{field}" is {show(turns)}; it must be a list of messages')
    messages = []
    for place, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise ValueError(f'"{field}" item {place + 1} is {show(turn)}; it must be an object')
        speaker = roles.get(turn.get(role)) if isinstance(turn.get(role), str) else None
        if speaker is None or (speaker == "system" and place):
            allowed = f"{', '.join(roles)} (system only first)"
            raise ValueError(f'"{field}" item {place + 1}: "{role}" is {show(turn.get(role))}; allowed: {allowed}')
        try:
            messages.append((speaker, _text(turn, content)))
        except ValueError as error:
            raise ValueError(f'"{field}" item {place + 1}: {error}') from None
    if messages[-1][0] != "assistant" or "user" not in [speaker for speaker, _ in messages]:
        raise ValueError(
            f'"{field}" must hold a user turn and end with an assistant turn; it ends with {messages[-1][0]}'
        )
    return "", messages[-1][1], tuple(messages)


def _chat(row: dict, template: str) -> tuple[str, str, Messages]:
    return _conversation(row, "messages", "role", "content", {role: role for role in ROLES})


def _sharegpt(row: dict, template: str) -> tuple[str, str, Messages]:
    return _conversation(row, "conversations", "from", "value", SHAREGPT_ROLES)


class Format(NamedTuple):
    """A form of rows: the columns that tell it, and the parser: row -> (prompt, answer, messages)."""

    columns: tuple[str, ...]
    parse: Callable[[dict, str], tuple[str, str, Messages]]


FORMATS = {
    "chat": Format(("messages",), _chat),
    "sharegpt": Format(("conversations",), _sharegpt),
    "prompt/completion": Format(("prompt", "completion"), _completion),
    "alpaca": Format(("instruction", "output"), _alpaca),
}


def frame_of(rows: list[dict], form: Format, template: str) -> Frame:
    """What the prompts of all rows have in common: the one instruction they share, or the one system message.

    Without inputs the instruction is a row's own text, and all around it the template's. Where rows have both of
    their own, the whole prompt is; so it is of a row that is alone, as nothing tells what it shares with others.
    """
    alone = len(rows) < 2
    if form is FORMATS["alpaca"]:
        instructions = {_text(row, "instruction", optional=True) for row in rows}
        inputs = [_text(row, "input", optional=True) for row in rows]
        if any(inputs) and (alone or len(instructions) > 1 or not all(inputs)):
            return Frame(chat=template == CHAT_TEMPLATE)
        instruction = instructions.pop() if any(inputs) else ""
        if template == CHAT_TEMPLATE:
            return Frame(f"{instruction}\n" if instruction else "", chat=True)
        texts = (instruction, MARK) if any(inputs) else (MARK, "")
        before, found, after = fill(template, *texts).partition(MARK)
        return Frame(before, after) if found and MARK not in after else Frame()
    if form is FORMATS["prompt/completion"]:
        return Frame()
    parsed = [form.parse(row, template)[2] for row in rows]
    systems = {turns[0][1] if turns[0][0] == "system" else "" for turns in parsed}
    return Frame(chat=True, system=systems.pop() if len(systems) == 1 and not alone else "")


def _columns(row: dict) -> str:
    return ", ".join(show(name) for name in list(row)[:10]) or "no columns"


def detect(row: dict) -> Format:
    """The form of a file, by the keys of its first row."""
    for form in FORMATS.values():
        if all(column in row for column in form.columns):
            return form
    wanted = "; or ".join(f"{', '.join(form.columns)} ({name})" for name, form in FORMATS.items())
    known = sorted({column for form in FORMATS.values() for column in form.columns} - set(row))
    hints = [suggest(name, known) for name in row if isinstance(name, str)]
    raise ValueError(f"found the columns {_columns(row)}{next(filter(None, hints), '')}; needed: {wanted}")


def parse(row: Any, form: Format, template: str, labels: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """The fields of a `Sample` and the row's final answer (the optional column `answer`), checked."""
    if not isinstance(row, dict):
        raise ValueError(f"found {show(row)}; a row must be an object with named fields")
    prompt, answer, messages = form.parse(row, template)
    choices = _texts(row, "choices", 2) or labels
    if choices and answer not in choices:
        allowed = ", ".join(choices) if len(", ".join(choices)) <= 120 else f"{', '.join(choices[:5])}, …"
        raise ValueError(f"the answer {show(answer)} is not among the choices ({allowed})")
    references = _texts(row, "references", 1)
    final = _text(row, "answer") if row.get("answer") not in (None, "") else ""
    fields = {"prompt": prompt, "answer": answer, "choices": choices, "references": references}
    return {**fields, "messages": messages}, final
