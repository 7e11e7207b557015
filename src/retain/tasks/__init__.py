"""Tasks: what there is to learn, read from files, the Hub or the built-in suite."""

from retain.tasks.loading import load_task, load_tasks

__all__ = ["load_task", "load_tasks"]
