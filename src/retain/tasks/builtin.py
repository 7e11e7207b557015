"""The built-in suite: jobs a small company fine-tunes for, generated from tables of phrases.

A task is a stream of random messages without repeats. A message belongs to the split its own hash
names, so splits are disjoint for every size and every seed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from retain.tasks.phrases import HOME, INCIDENTS, MONTHS, ORDERS, REVIEWS, SLOTS, SUPPORT
from retain.types import InputError

SPLIT_OF_BUCKET = ("train",) * 7 + ("validation",) + ("test",) * 2
MAX_MISSES = 20_000


def split_of(text: str) -> str:
    """The split a message belongs to: 70 % train, 10 % validation, 20 % test."""
    return SPLIT_OF_BUCKET[int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % len(SPLIT_OF_BUCKET)]


@dataclass(frozen=True, slots=True)
class BuiltinTask:
    """A generated task; `make` writes one (input, output)."""

    name: str
    summary: str
    description: str
    instruction: str
    make: Callable[[Random], tuple[str, str]]
    choices: tuple[str, ...] = ()

    def generate(self, split: str, n: int, seed: int) -> list[dict]:
        """The first n alpaca rows of a split: the same for the same seed, and none of another split."""
        random, seen, rows, misses = Random(f"{self.name}/{seed}"), set(), [], 0
        while len(rows) < n:
            text, answer = self.make(random)
            if text in seen or split_of(text) != split:
                misses += 1
                if misses > MAX_MISSES:
                    raise InputError(f"builtin:{self.name} has no {n} different {split} rows; ask for fewer")
                continue
            seen.add(text)
            misses = 0
            row = {"instruction": self.instruction, "input": text, "output": answer}
            rows.append(row | ({"choices": list(self.choices)} if self.choices else {}))
        return rows


def write(random: Random, template: str) -> str:
    """Fill {slots} from the table of phrases, and the phrases' own slots in turn; # is a digit."""
    while "{" in template:
        template = re.sub(r"\{(\w+)\}", lambda found: random.choice(SLOTS[found[1]]), template)
    return re.sub("#", lambda _: random.choice("123456789"), template)


def _sentence(text: str) -> str:
    """Capitals where sentences begin; a question keeps its own mark."""
    text = text.replace("?.", "?").replace("?,", "?")
    return re.sub(r"(?:^|[.?] )[a-z]", lambda found: found[0].upper(), text)


def _classify(table: dict[str, list[str]], frames: list[str]) -> Callable[[Random], tuple[str, str]]:
    """A message of a random label: one of its phrases inside one of the frames."""

    def make(random: Random) -> tuple[str, str]:
        label = random.choice(list(table))
        frame = random.choice(frames).replace("@", random.choice(table[label]))
        return _sentence(write(random, frame)), label

    return make


def _order_number(random: Random) -> tuple[str, str]:
    number = write(random, random.choice(["{letters}-####", "{letters}-#####"]))
    return _sentence(write(random, random.choice(ORDERS)).replace("@", number)), number


def _iso_date(random: Random) -> tuple[str, str]:
    year, month, day = random.randint(2015, 2029), random.randint(1, 12), random.randint(1, 28)
    name = MONTHS[month - 1]
    form = random.choice(["{name} {day}, {year}", "{day} {name} {year}"])
    frame = write(random, random.choice(SLOTS["dated"]))
    return frame.replace("@", form.format(name=name, day=day, year=year)), f"{year}-{month:02}-{day:02}"


def _invoice_total(random: Random) -> tuple[str, str]:
    first, second = random.sample(SLOTS["goods"], 2)
    price, other = random.randint(1, 6), random.randint(1, 6)
    frame = write(random, random.choice(SLOTS["invoice"]))
    return frame.replace("@", f"${price} for {first} plus ${other} for {second}"), f"${price + other}"


def _labels(table: dict[str, list[str]]) -> tuple[str, ...]:
    return tuple(table)


_TASKS = (
    BuiltinTask(
        "support_routing",
        "route a support message by its topic",
        "Messages that customers of an online shop write to support, each with the topic that decides which "
        "team answers: payment (charges, refunds), error (crashes), delivery (late or damaged goods) or "
        "account (login, profile).",
        "What is this message about?",
        _classify(SUPPORT, SLOTS["support_frame"]),
        _labels(SUPPORT),
    ),
    BuiltinTask(
        "incident_urgency",
        "tell a minor incident from a critical one",
        "Short notes about IT incidents, each with its urgency: critical if users cannot work or data is at "
        "risk, minor if it is cosmetic and can wait.",
        "How serious is this incident?",
        _classify(INCIDENTS, SLOTS["incident_frame"]),
        _labels(INCIDENTS),
    ),
    BuiltinTask(
        "product_sentiment",
        "tell a positive product review from a negative one",
        "One or two sentences from reviews of household products, each with the verdict of its writer: "
        "positive or negative.",
        "What is the verdict of this review?",
        _classify(REVIEWS, SLOTS["review_frame"]),
        _labels(REVIEWS),
    ),
    BuiltinTask(
        "home_intent",
        "find the intent of a smart-home command",
        "Commands spoken to a smart home, each with its intent: lights, heating, music, alarm or shopping.",
        "What is this command about?",
        _classify(HOME, SLOTS["home_frame"]),
        _labels(HOME),
    ),
    BuiltinTask(
        "order_number",
        "copy the order number out of a message",
        "Messages of customers that hold an order number such as KX-4821 among prices, dates "
        "and house numbers; the answer is the order number alone, copied exactly.",
        "Copy the order number from the message.",
        _order_number,
    ),
    BuiltinTask(
        "iso_date",
        "rewrite the date in a note as YYYY-MM-DD",
        "Short office notes with one date written in words, such as March 4, 2024; the answer is that date "
        "in ISO 8601, 2024-03-04.",
        "Write the date in the note as YYYY-MM-DD.",
        _iso_date,
    ),
    BuiltinTask(
        "invoice_total",
        "add up the amounts of a small invoice",
        "Orders of two items with small whole prices in dollars; the answer is the total with a dollar sign, "
        "such as $9.",
        "What is the total of this order in dollars?",
        _invoice_total,
    ),
)

BUILTIN = {task.name: task for task in _TASKS}
