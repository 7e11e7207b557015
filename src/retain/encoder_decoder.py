"""Encoder-decoder models (T5 and its kin): the encoder reads the prompt, the decoder writes the answer.

They count their positions themselves, so their rows cannot be prefix trees and are padded. What can be shared
is: the encoder runs once over each distinct prompt of a row, however many answers (choices, say) it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutput

from retain.batching import ROW_TOKENS, Encoded
from retain.model import LanguageModel

Pair = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(slots=True)
class PairRow:
    """What one forward pass takes, and where its labels are: `batching.Row` for an encoder and a decoder.

    input_ids, mask: (P, T), the distinct prompts. prompts: (B,), which of them each of the B answers belongs to.
    decoder_ids: (B, U), each answer behind the decoder's start token and without its own last token.
    members: indices of the B sequences. Label k is token `targets[k]` of sequence `members[owners[k]]`; decoder
    row `owners[k]`, column `columns[k]` predicts it. tokens: what encoder and decoder read, without padding.
    """

    members: list[int]
    input_ids: torch.Tensor
    mask: torch.Tensor
    prompts: torch.Tensor
    decoder_ids: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor
    tokens: int


def pair_of(sequence: Encoded) -> Pair:
    """The prompt and the answer of a sequence: the answer is the run of labels at its end.

    Without a prompt (the perplexity of plain text) the encoder reads end-of-text alone and every token bears loss,
    the first one too. Given the text as its input the model could copy it, and the figure would say nothing.
    """
    start = max((k + 1 for k, label in enumerate(sequence.labels) if not label), default=0)
    return sequence.ids[:start], sequence.ids[start:]


def split_pairs(pairs: Sequence[Pair], row_tokens: int = ROW_TOKENS, max_members: int | None = None) -> list[list[int]]:
    """Indices of the pairs by length of prompt, cut where a row would exceed `row_tokens` tokens (padding and
    start and end tokens included) or `max_members` pairs. A longer pair gets a row of its own."""
    rows: list[list[int]] = []
    previous, distinct, longest = None, 0, 0
    for i in sorted(range(len(pairs)), key=lambda i: (len(pairs[i][0]), pairs[i])):
        prompt, answer = pairs[i]
        distinct, longest = distinct + (prompt != previous), max(longest, len(answer), 1)
        members = len(rows[-1]) if rows else 0
        size = distinct * (len(prompt) + 1) + (members + 1) * longest
        if not rows or size > row_tokens or members == max_members:
            rows.append([])
            distinct, longest = 1, max(len(answer), 1)
        rows[-1].append(i)
        previous = prompt
    return rows


def pair_rows(
    lm: LanguageModel, sequences: Sequence[Encoded], row_tokens: int = ROW_TOKENS, max_members: int | None = None
) -> Iterator[PairRow]:
    """The forward passes that cover `sequences`."""
    pairs = [pair_of(sequence) for sequence in sequences]
    for members in split_pairs(pairs, row_tokens, max_members):
        yield _row(lm, [pairs[i] for i in members], members)


def _row(lm: LanguageModel, pairs: Sequence[Pair], members: list[int]) -> PairRow:
    distinct = {prompt: k for k, prompt in enumerate(dict.fromkeys(prompt for prompt, _ in pairs))}
    input_ids, mask = encoder_input(lm, list(distinct))
    answers = [answer for _, answer in pairs]
    decoder_ids = [(lm.decoder_start_id, *answer[:-1]) for answer in answers]
    return PairRow(
        members,
        input_ids,
        mask,
        prompts=torch.tensor([distinct[prompt] for prompt, _ in pairs], device=lm.device),
        decoder_ids=_padded(lm, decoder_ids),
        columns=torch.tensor([k for answer in answers for k in range(len(answer))], dtype=torch.long, device=lm.device),
        targets=torch.tensor([t for answer in answers for t in answer], dtype=torch.long, device=lm.device),
        owners=torch.tensor([i for i, a in enumerate(answers) for _ in a], dtype=torch.long, device=lm.device),
        tokens=int(mask.sum()) + sum(map(len, decoder_ids)),
    )


def close_prompt(lm: LanguageModel, prompt: Sequence[int]) -> tuple[int, ...]:
    """A prompt closed by end-of-text as in the models' own training.

    T5's own tokenizer closes what it reads, others do not, and truncation opens it again.
    """
    end = lm.tokenizer.eos_token_id
    return tuple(prompt) if prompt and prompt[-1] == end else (*prompt, end)


def encoder_input(lm: LanguageModel, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask (P, T) of the prompts, each closed."""
    closed = [close_prompt(lm, prompt) for prompt in prompts]
    mask = pad_sequence([torch.ones(len(ids), dtype=torch.long) for ids in closed], batch_first=True)
    return _padded(lm, closed), mask.to(lm.device)


def _padded(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    tensors = [torch.tensor(ids, dtype=torch.long) for ids in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=lm.pad_id).to(lm.device)


def read_prompts(lm: LanguageModel, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What the encoder makes (P, T, D) of its prompts; adapters count."""
    return lm.unwrapped.get_encoder()(input_ids=input_ids, attention_mask=mask)[0]


def pair_logits(lm: LanguageModel, row: PairRow) -> torch.Tensor:
    """Logits (K, V) at the K label positions of a row: `losses.label_logits` for an encoder and a decoder."""
    read = read_prompts(lm, row.input_ids, row.mask)
    with _head_at(lm, row.owners, row.columns):
        logits = lm.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=read[row.prompts]),
            attention_mask=row.mask[row.prompts],
            decoder_input_ids=row.decoder_ids,
            use_cache=False,
        ).logits
    return logits if logits.ndim == 2 else logits[row.owners, row.columns]


@contextmanager
def _head_at(lm: LanguageModel, rows: torch.Tensor, columns: torch.Tensor) -> Iterator[None]:
    """Let the head see the given positions only: these models have no `logits_to_keep`."""
    head = lm.unwrapped.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):  # an embedding that serves as head is called for the input too
        yield
        return
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][rows, columns],))
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def continue_greedily(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], begun: Sequence[Sequence[int]], limit: int
) -> list[list[int]]:
    """The most likely answer to each prompt that begins with the tokens in `begun`, at most `limit` tokens in all.

    All answers grow together from where the shortest begins; a longer beginning is followed to its end. So no
    position is padding, and models that count positions absolutely see the right ones. What follows a stop token
    is void.
    """
    input_ids, mask = encoder_input(lm, prompts)
    read = BaseModelOutput(last_hidden_state=read_prompts(lm, input_ids, mask))
    answers, stops = [list(ids) for ids in begun], set(lm.stop_ids)
    shared = min(map(len, answers))
    step = torch.tensor([[lm.decoder_start_id, *answer[:shared]] for answer in answers], device=lm.device)
    cache = None
    for length in range(shared, limit):
        out = lm.model(
            encoder_outputs=read, attention_mask=mask, decoder_input_ids=step, past_key_values=cache, use_cache=True
        )
        cache = out.past_key_values
        for answer, token in zip(answers, out.logits[:, -1].argmax(-1).tolist(), strict=True):
            if len(answer) == length:
                answer.append(token)
        if all(stops.intersection(answer) for answer in answers):
            break
        step = torch.tensor([answer[length : length + 1] for answer in answers], device=lm.device)
    return answers
