"""The named strategies: what each does to losses and gradients. What is replayed when stands in `presets`."""

from retain.strategies.base import Strategy

STRATEGIES: dict[str, type[Strategy]] = {}
