"""Which layouts of a forward pass compute what the model computes of each sequence alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from retain.batching import Encoded
from retain.losses import label_logits, make_rows, token_losses
from retain.model import LanguageModel
from retain.types import InputError

LAYOUTS = ("tree", "masked", "padded", "single")
# What configurations call the number of tokens that a layer attends to.
WINDOWS = ("sliding_window", "window_size", "attention_window_size", "attention_chunk_size", "local_attention")
FAILURES = (TypeError, ValueError, RuntimeError, IndexError, AttributeError, AssertionError)
PROBE = (40, 33, 21)  # lengths of the probed sequences
SHARED = 12  # tokens that all of them begin with


def choose_layout(lm: LanguageModel) -> str:
    """Set and return the fastest layout in which the model computes the losses that it computes of sequences alone.

    Not every architecture honors trees, masks and positions, or padding, so the model is asked once, on three short
    sequences. What acts on longer ones only is read from its configuration: a window shorter than the longest
    sequence would be lost in a tree or under a mask, and rotations that depend on the longest sequence of a batch
    leave nothing but sequences one by one. Many small products do not suit a GPU, so trees are for the CPU; an
    encoder-decoder has rows of its own. Raises InputError for a model that fails even on a sequence alone.
    """
    lm.use_layout("single")
    try:
        expected = _probe(lm)
    except FAILURES as error:
        raise InputError(f"model: {lm.model.config.model_type} cannot be trained here ({error})") from error
    lm.use_layout(next((layout for layout in allowed_layouts(lm) if _agrees(lm, layout, expected)), "single"))
    lm.pads_left = lm.layout != "single" and (lm.is_encoder_decoder or _pads_left(lm))
    return lm.layout


def allowed_layouts(lm: LanguageModel) -> Sequence[str]:
    """The layouts that the lengths of sequences, the device and the configuration leave, fastest first; none of them
    where only "single" is left."""
    config = lm.model.config.get_text_config()
    if lm.is_encoder_decoder:
        return ("padded",)
    if any(limit < lm.max_length for limit in _stretched_beyond(config)):
        return ()
    windows = [getattr(config, name, None) or lm.max_length for name in WINDOWS]
    if min(windows) < lm.max_length:
        return ("padded",)
    return LAYOUTS[lm.device.type != "cpu" : -1]


def _stretched_beyond(config: Any) -> Iterator[int]:
    """Lengths beyond which longrope takes other rotations for the whole batch.

    A dynamic RoPE does so beyond `max_position_embeddings`, which no sequence here is.
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    known = getattr(config, "original_max_position_embeddings", None)
    for part in [rope, *(part for part in rope.values() if isinstance(part, Mapping))]:
        if part.get("rope_type", part.get("type")) == "longrope":
            yield part.get("original_max_position_embeddings") or known or 0


def _agrees(lm: LanguageModel, layout: str, expected: torch.Tensor) -> bool:
    try:
        lm.use_layout(layout)
        return _close(lm, _probe(lm), expected)
    except FAILURES:
        return False


def _close(lm: LanguageModel, found: torch.Tensor, expected: torch.Tensor) -> bool:
    tolerance = 1e-3 if lm.dtype.itemsize >= 4 else 5e-2
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance)


def _sequences(lm: LanguageModel) -> list[list[int]]:
    """Token ids of three sequences that begin alike; none of them is a special token of common vocabularies."""
    vocabulary = lm.model.get_input_embeddings().num_embeddings
    return [[(5 + 7 * k + (0 if k < SHARED else 31 * row)) % vocabulary for k in range(length)]
            for row, length in enumerate(PROBE)]  # fmt: skip


@torch.no_grad()
def _probe(lm: LanguageModel) -> torch.Tensor:
    """The loss of each token behind the shared ones, in nats, one sequence after another."""
    lm.model.eval()
    sequences = [Encoded.of(ids[:SHARED], ids[SHARED:]) for ids in _sequences(lm)]
    found: list[torch.Tensor] = [torch.empty(0)] * len(sequences)
    for row in make_rows(lm, sequences):
        losses = token_losses(label_logits(lm, row), row).float().cpu()
        for place, member in enumerate(row.members):
            found[member] = losses[row.owners.cpu() == place]
    return torch.cat(found)


@torch.no_grad()
def _pads_left(lm: LanguageModel) -> bool:
    """Whether the model writes on from left-padded prompts what it writes on from each alone."""

    def first_logits(prompts: Sequence[list[int]]) -> torch.Tensor:
        width = max(map(len, prompts))
        out = lm.model.generate(
            input_ids=torch.tensor([[lm.pad_id] * (width - len(p)) + p for p in prompts], device=lm.device),
            attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=lm.device),
            do_sample=False, num_beams=1, max_new_tokens=1, pad_token_id=lm.pad_id,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        return out.logits[0].log_softmax(-1).float().cpu()

    prompts = _sequences(lm)
    try:
        return _close(lm, first_logits(prompts), torch.cat([first_logits([prompt]) for prompt in prompts]))
    except FAILURES:
        return False
