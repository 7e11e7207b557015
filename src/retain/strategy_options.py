"""The options of the built-in regularizers, each section with the published defaults."""

from __future__ import annotations

from typing import Literal

from retain.sections import Count, NonNegative, Positive, Probability, Section, Share


class L2Options(Section):
    """Distance to the last stage's weights."""

    weight: NonNegative = 0.5


class EwcOptions(Section):
    """Elastic weight consolidation."""

    weight: NonNegative = 5000.0
    online: bool = False
    decay: Probability = 0.9
    samples: Count = 128
    labels: Literal["model", "data"] = "model"


class SiOptions(Section):
    """Synaptic intelligence."""

    weight: NonNegative = 10.0
    damping: Positive = 0.001


class LwfOptions(Section):
    """Learning without forgetting."""

    weight: NonNegative = 1.0
    temperature: Positive = 2.0


class DerOptions(Section):
    """Dark experience replay (++)."""

    alpha: NonNegative = 0.5
    beta: NonNegative = 1.0
    top_k: Count = 64


class OLoraOptions(Section):
    """Orthogonal subspaces for the adapters of each stage."""

    weight: NonNegative = 0.5
    l2: NonNegative = 0.0


class GemOptions(Section):
    """Gradient episodic memory."""

    margin: NonNegative = 0.5
    samples: Count = 16


class AGemOptions(Section):
    """Averaged gradient episodic memory."""

    samples: Count = 32


class OsfOptions(Section):
    """Orthogonal subspace fine-tuning."""

    preserved: Share = 0.5
