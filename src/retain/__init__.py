"""Fine-tune a language model on one task after another and keep what it learned before."""

from importlib.metadata import version as _version

__version__ = _version("retain")
__all__ = ["Learner", "__version__"]


def __getattr__(name: str):
    """`Learner` needs torch, so it is imported when first asked for."""
    if name == "Learner":
        from retain.learner import Learner

        return Learner
    raise AttributeError(f"module 'retain' has no attribute {name!r}")
