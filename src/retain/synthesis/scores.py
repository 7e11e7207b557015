"""What the model itself says of texts: perplexity, consistency, and where they lie in its hidden space (MATH 5)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch

from retain.batching import split_padded
from retain.likelihood import choice_ids, cut_prompts, normalize, score_answers
from retain.losses import sample_losses
from retain.model import LanguageModel
from retain.types import Sample


def perplexities(lm: LanguageModel, texts: Sequence[str], base: bool = False) -> np.ndarray:
    """Perplexity (N,) of each text without any prompt: exp(-1/T sum_t log p(x_t | x_<t)), T its own tokens.

    Of a synthetic sample the text is its input, a separator and its answer (SSR 2, 3; MATH 5). The first token
    counts if something stands before it: a begin-of-text token of the tokenizer, or the start of a decoder. A text
    without a token that counts has an infinite perplexity. base: under the model without its adapter.
    """
    opening = lm.prompt_ids(Sample("", "", "", ""))
    ids = [lm.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    unscored = 0 if opening or lm.is_encoder_decoder else 1
    scored = [i for i, tokens in enumerate(ids) if len(tokens) > unscored]
    found = np.full(len(texts), np.inf)
    with lm.base() if base else nullcontext(), np.errstate(over="ignore"):
        losses = sample_losses(lm, [lm.sequence(opening, ids[i]) for i in scored])
        found[scored] = np.exp(losses.double().numpy())
    return found


def consistencies(lm: LanguageModel, samples: Sequence[Sample]) -> np.ndarray:
    """How sure the model is of each sample's answer y given its input x, (N,) in [0, 1] (SSR 2, 7.2; MATH 5).

    With choices: p(y | x) / sum_c p(c | x), each the product over the tokens of an answer and its end; 0 where the
    answer is none of them. Free text: exp(1/T sum_t log p(y_t | x, y_<t)). Temperature 1, no top-k or top-p.
    """
    scored, _ = score_answers(lm, cut_prompts(lm, samples), [choice_ids(lm, sample) for sample in samples])
    found = np.zeros(len(samples))
    for i, (sample, candidates) in enumerate(zip(samples, scored, strict=True)):
        if not sample.choices:
            found[i] = np.exp(-candidates[0].losses.mean())
        elif sample.answer in sample.choices:
            logs = normalize(np.array([-candidate.losses.sum() for candidate in candidates]))
            found[i] = np.exp(logs[sample.choices.index(sample.answer)])
    return found


def embeddings(lm: LanguageModel, texts: Sequence[str]) -> np.ndarray:
    """Mean hidden state (N, D), float32, of each text's tokens in the last layer (of the encoder, if there is one).

    A text without tokens lies at 0.
    """
    model = lm.unwrapped
    body = model.get_encoder() if lm.is_encoder_decoder else model.base_model
    ids = [lm.tokenizer(text, add_special_tokens=False).input_ids[: lm.max_length] for text in texts]
    found = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    lm.model.eval()
    for batch in lm.team.share(split_padded([len(tokens) for tokens in ids])):
        width = len(ids[batch[0]])
        if not width:
            continue
        padded = torch.tensor([ids[i] + [lm.pad_id] * (width - len(ids[i])) for i in batch], device=lm.device)
        mask = torch.tensor([[1] * len(ids[i]) + [0] * (width - len(ids[i])) for i in batch], device=lm.device)
        with torch.no_grad():
            hidden = body(input_ids=padded, attention_mask=mask)[0]
        total = (hidden * mask[..., None]).sum(1, dtype=torch.float64)
        found[batch] = (total / mask.sum(1, keepdim=True).clamp(min=1)).float().cpu().numpy()
    lm.team.total([torch.from_numpy(found)], lm.device)
    return found
