"""Throws hostile files at every reader: `python -m tests.fuzz --minutes 10`."""
