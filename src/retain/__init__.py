"""Fine-tune a language model on one task after another and keep what it learned before."""

__all__ = ["Learner", "__version__"]


def __getattr__(name: str):
    """`Learner` needs torch and the version the package's metadata, so they are looked up when first asked for."""
    if name == "Learner":
        from retain.learner import Learner

        return Learner
    if name == "__version__":
        from importlib.metadata import version

        return version("retain")
    raise AttributeError(f"module 'retain' has no attribute {name!r}")
