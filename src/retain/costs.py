"""What a run costs a machine: operations, memory and time from the shape of a model and counts of tokens."""

from __future__ import annotations

from dataclasses import dataclass

ADAMW_BYTES = 16  # a trained weight, its gradient and two moments, each in float32
NF4_BYTES = 4.127 / 8  # of a weight in 4 bits with double quantization (Dettmers et al. 2023, arXiv 2305.14314)
USUAL_MFU = 0.35  # share of a device's peak that training reaches; 0.3 to 0.5 is common for dense transformers


@dataclass(frozen=True, slots=True)
class Device:
    """peak: dense 16-bit matrix operations a second (of a CPU core: 32-bit); memory: bytes, None for what the machine
    has; bandwidth: bytes a second."""

    peak: float
    memory: float | None
    bandwidth: float


# Dense peaks with accumulation in float32, from the makers' data sheets and architecture papers (NVIDIA: T4, A100,
# L4, L40S, H100 SXM, H200; GA102 and Ada papers for the GeForce cards). A sheet that gives the figure with sparsity
# counts twice. The CPU is one core with AVX2 at 3 GHz: 2 units of 8 lanes, a multiplication and an addition each.
DEVICES: dict[str, Device] = {
    "cpu": Device(96e9, None, 20e9),
    "t4": Device(65e12, 16e9, 320e9),
    "rtx3090": Device(71e12, 24e9, 936e9),
    "rtx4090": Device(165e12, 24e9, 1008e9),
    "l4": Device(121e12, 24e9, 300e9),
    "l40s": Device(362e12, 48e9, 864e9),
    "a100-40gb": Device(312e12, 40e9, 1555e9),
    "a100": Device(312e12, 80e9, 2039e9),
    "h100": Device(989e12, 80e9, 3350e9),
    "h200": Device(989e12, 141e9, 4800e9),
}


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where a run is to take place: a name in `DEVICES`, processes with one device each (of `cpu` cores), and
    the share of the peak that is reached."""

    device: str
    processes: int = 1
    mfu: float = USUAL_MFU


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's dimensions. weights: all of them; active: those of the linear layers but the head that a token
    passes, of a mixture of experts the chosen ones; trained: those of the adapter, or all under full fine-tuning."""

    weights: int
    active: int
    trained: int
    layers: int
    hidden: int
    heads: int
    head_width: int
    key_value_heads: int
    intermediate: int
    vocabulary: int

    @property
    def adapted(self) -> bool:
        """Whether an adapter is trained beside frozen weights."""
        return self.trained < self.weights


@dataclass(frozen=True, slots=True)
class Passes:
    """What goes through a model. computed: tokens after what sequences share is computed once; pairs: query-key
    products a head and layer; labels: positions at which the head runs; longest: tokens of the largest pass."""

    computed: float = 0.0
    pairs: float = 0.0
    labels: float = 0.0
    longest: int = 0
    most_labels: int = 0

    def __add__(self, other: Passes) -> Passes:
        return Passes(
            self.computed + other.computed,
            self.pairs + other.pairs,
            self.labels + other.labels,
            max(self.longest, other.longest),
            max(self.most_labels, other.most_labels),
        )

    def scaled(self, factor: float) -> Passes:
        """The same passes `factor` times."""
        return Passes(self.computed * factor, self.pairs * factor, self.labels * factor, self.longest, self.most_labels)


def forward_flops(shape: Shape, passes: Passes) -> float:
    """2 N a token, 4 L A a query-key pair, 2 H V a label: N active weights, L layers, A width of all heads
    (Kaplan et al. 2020, arXiv 2001.08361, Table 1; the head apart, for it runs on labels only)."""
    attention = 4.0 * shape.layers * shape.heads * shape.head_width * passes.pairs
    active = shape.active + (shape.trained if shape.adapted else 0)
    return 2.0 * active * passes.computed + attention + 2.0 * shape.hidden * shape.vocabulary * passes.labels


def training_flops(shape: Shape, passes: Passes) -> float:
    """Forward and backward: of every product the gradient of what it reads, and of its weights where they are trained.

    With an adapter 4 N + 6 N_adapter a token instead of 6 N; attention has no frozen operand and costs three forwards.
    """
    forward = forward_flops(shape, passes)
    attention = 4.0 * shape.layers * shape.heads * shape.head_width * passes.pairs
    if not shape.adapted:
        return 3.0 * forward
    return 2.0 * forward + attention + 2.0 * shape.trained * passes.computed


def activation_bytes(shape: Shape, tokens: int, width: int) -> tuple[float, float]:
    """Bytes that a training pass over `tokens` keeps for its backward pass, and with gradient checkpointing.

    A layer keeps about 8 H + 2 K + 4 I numbers a token (norms, projections, the gated MLP; H hidden, K keys and values,
    I intermediate) and, with a dense mask, two attention matrices; checkpointing keeps its input and one layer's all.
    """
    keys = shape.key_value_heads * shape.head_width
    numbers = tokens * (8 * shape.hidden + 2 * keys + 4 * shape.intermediate) + 2 * shape.heads * tokens**2
    return float(width * shape.layers * numbers), float(width * (shape.layers * tokens * shape.hidden + numbers))


def logit_bytes(shape: Shape, labels: int, width: int) -> float:
    """The logits of a pass in the run's precision and in float32, with their gradients."""
    return float(labels * shape.vocabulary * (width + 4) * 2)


def cache_bytes(shape: Shape, sequences: int, tokens: int, width: int) -> float:
    """Keys and values of `sequences` of `tokens` each, kept while answers are written."""
    return float(2 * shape.layers * shape.key_value_heads * shape.head_width * width * sequences * tokens)


def decoding_seconds(shape: Shape, steps: float, sequences: int, width: int, device: Device, mfu: float) -> float:
    """`steps` of one token for each of `sequences`: all weights are read once a step, or the products take longer."""
    reading = shape.weights * width / device.bandwidth
    computing = forward_flops(shape, Passes(computed=sequences, labels=sequences)) / (device.peak * mfu)
    return steps * max(reading, computing)
