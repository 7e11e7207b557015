"""How numbers are written, and what the names mean: one place for all of the report."""

from __future__ import annotations

import math

NOTHING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"

VIEWS = {
    "generated": ("Generated answers", "The score of the greedily generated answers. Higher is better."),
    "likelihood": (
        "Likelihood",
        "How often the right choice has the highest log-probability a token. Higher is better.",
    ),
    "likelihood_summed": (
        "Likelihood, summed",
        "How often the right choice has the highest summed log-probability. Higher is better.",
    ),
    "nll": ("NLL", "Mean negative log-likelihood of the held-out answers, in nats a token. Lower is better."),
}

METRICS = {
    "ACC": ("Final average", "Mean over all tasks of the score at the end."),
    "MAA": (
        "Average along the way",
        "After each stage the mean over the tasks learned so far, then the mean over stages.",
    ),
    "BWT": (
        "Backward transfer",
        "Mean over all tasks but the last of the score at the end minus the score right after its stage. "
        "Negative: forgotten.",
    ),
    "FWT": (
        "Forward transfer",
        "Mean over all tasks but the first of the score just before its stage minus the untouched model's score.",
    ),
    "forgetting": (
        "Forgetting",
        "Mean over all tasks but the last of the largest fall below the score right after its stage "
        "(MSSR Eq. 1). Negative: it only improved.",
    ),
    "forgetting_final": (
        "Forgetting at the end",
        "Mean over all tasks but the last of the best score before the last stage minus the score at the end.",
    ),
    "retention": (
        "Retention",
        "Mean over all tasks but the last of the score at the end divided by the score right "
        "after its stage, where that is above 0.",
    ),
    "normalized_score": (
        "Normalized score",
        "Mean over tasks of the score at the end divided by the best score after any stage (MSSR Eq. 36, 37).",
    ),
    "NLL": (
        "Held-out NLL",
        "Mean over tasks of the negative log-likelihood of the held-out answers at the end, in nats a token. "
        "Lower is better.",
    ),
}
NOT_FOR_NLL = {"forgetting", "forgetting_final", "retention", "normalized_score"}  # they take high for good

COSTS = {
    "train_tokens": "Tokens trained on",
    "replayed_samples": "Replayed samples",
    "replayed_tokens": "Replayed tokens",
    "probe_tokens": "Probe tokens",
    "eval_tokens": "Evaluation tokens",
    "generated_tokens": "Generated tokens",
    "train_seconds": "Time in optimizer steps",
    "eval_seconds": "Time in evaluation",
    "seconds": "Time in all",
    "peak_memory_bytes": "Peak memory",
}


def number(value: float | None, digits: int = 2) -> str:
    """0.83; a proper minus; a dash for nothing."""
    if value is None or not math.isfinite(value):
        return NOTHING
    written = f"{value:,.{digits}f}"
    if float(written.replace(",", "")) == 0:
        written = written.lstrip("-")
    return written.replace("-", MINUS)


def signed(value: float | None, digits: int = 2) -> str:
    """+0.05, or a proper minus; what rounds to zero has no sign."""
    written = number(value, digits)
    is_zero = not any(digit in "123456789" for digit in written)
    return written if written.startswith(MINUS) or is_zero else f"+{written}"


def whole(value: float | None) -> str:
    """81,920."""
    return number(value, 0)


def compact(value: float) -> str:
    """A tick label: 0, 0.5, 1, 12, 3k."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}".replace("-", MINUS)


def duration(seconds: float | None) -> str:
    """3.1 s, 6 min 52 s, 2 h 01 min."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def cost(name: str, value: float | None) -> str:
    """A cost in the unit its name tells: time, memory or a count."""
    if value is None:
        return NOTHING
    if name.endswith("seconds"):
        return duration(value)
    if name.endswith("bytes"):
        return f"{value / 2**30:.2f} GiB"
    return whole(value)
