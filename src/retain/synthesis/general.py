"""General data that the untouched model writes, of no task, so that what it could do already is rehearsed too."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from retain.buffer import Buffer
from retain.cards import TaskCard
from retain.config import Config
from retain.model import LanguageModel
from retain.quality.filters import Candidate, Reference
from retain.synthesis.prompts import Pair
from retain.synthesis.watch import watch
from retain.synthesis.writer import ANSWERS, INPUTS, Writer, Written
from retain.tasks.formats import MARK
from retain.types import Frame

log = logging.getLogger("retain")

SENTENCE_END = re.compile(r"[.!?](?=\s|$)|[\u3002\uff01\uff1f\n]")
# What needs a task: its labels, its training data, an answer that its model is sure of.
OF_A_TASK = {"consistency": None, "self_consistency": None, "balance": False, "memorization": None, "human": False}


class GeneralWriter(Writer):
    """Writes samples of no task (Xu et al. 2024, "Magpie").

    A chat model writes what a user could say, from its chat template up to where that begins, and then answers it.
    Any other model goes on from its begin-of-text token, and the first half of what it wrote is the prompt.
    """

    def __init__(self, lm: LanguageModel, config: Config) -> None:
        super().__init__(lm, config.model_copy(update={"filters": config.filters.model_copy(update=OF_A_TASK)}))
        self.opening, self.frame = chat_opening(lm), Frame(chat=True)
        if not self.opening:
            begin, end = lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id
            self.opening, self.frame = [end if begin is None else begin], Frame()

    def _candidates(
        self,
        card: TaskCard,
        labels: Sequence[str | None],
        seed: tuple[int, ...],
        demonstrations: Sequence[Pair],
        written: Written,
    ) -> list[Candidate]:
        chat, config = card.frame.chat, self.synthesis
        length = config.max_input_tokens if chat else config.max_joint_tokens
        found = self._sample([self.opening] * len(labels), length, (*seed, INPUTS), written)
        texts = [self._text(one.ids).strip() for one in found]
        if chat:
            candidates = [Candidate(text, "") for text in texts]
            self._answer(card, candidates, (*seed, ANSWERS), written)
        else:
            candidates = [Candidate(*halves(text, one.finished)) for text, one in zip(texts, found, strict=True)]
        return self._whole(candidates, written)


def write_seed(lm: LanguageModel, config: Config, folder: Path, record: Callable[..., None]) -> dict[str, float]:
    """Save a buffer in `folder` that holds what the untouched model writes, if that is asked for; returns the costs."""
    if not config.written_seed:
        return {"seconds": 0.0}
    writer = GeneralWriter(lm, config)
    card = TaskCard(config.buffer.seed.name, "", writer.frame, Reference(), config.written_seed, 0)
    with lm.base():
        written = writer.write(card, card.size, 0)
        facts = watch(writer, card, written.kept)
    if len(written.kept) < card.size:
        log.warning("buffer.seed: %d of %d samples; %s", len(written.kept), card.size, written.account)
    record("synthesis", stage=0, task=card.name, when="start", **written.facts(), drift=facts, drifted=None)
    # Without a confidence, so that it stays where synthetic samples of tasks leave.
    kept = [card.sample(f"{card.name}/synthetic/0/{k}", one.input, one.answer) for k, one in enumerate(written.kept)]
    buffer = Buffer(config.buffer, config.memory, config.seed)
    buffer.seed_with(kept)
    record("seed", stage=0, samples=len(kept), kept=len(buffer))
    buffer.save(folder)
    return {"seconds": written.seconds, "generated_tokens": written.tokens}


def chat_opening(lm: LanguageModel) -> list[int]:
    """Tokens of a chat up to where the user's first words begin; none where the tokenizer has no chat template."""
    if not lm.tokenizer.chat_template:
        return []
    chat = [{"role": "user", "content": MARK}]
    before, found, _ = lm.tokenizer.apply_chat_template(chat, tokenize=False).partition(MARK)
    return list(lm.tokenizer(before, add_special_tokens=False).input_ids) if found else []


def halves(text: str, finished: bool = True) -> Pair:
    """A text cut before its middle word, or in its middle where it has one word only.

    A text that was not finished ends with its last sentence, if it has one.
    """
    ends = [] if finished else [found.end() for found in SENTENCE_END.finditer(text)]
    text = text[: ends[-1]].strip() if ends else text
    spaces = [found.start() for found in re.finditer(r"\s+", text)]
    middle = spaces[(len(spaces) - 1) // 2] if spaces else len(text) // 2
    return text[:middle], text[middle:]
