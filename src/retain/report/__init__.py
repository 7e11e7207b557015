"""Read a run directory, write what people look at: an HTML report, a comparison, tables."""

from retain.report.page import write_report

__all__ = ["write_report"]
