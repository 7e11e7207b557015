"""Read a run directory, write what people look at: an HTML report, a comparison, tables."""

from retain.report.comparison import write_comparison
from retain.report.dumbbells import comparison_svg
from retain.report.page import write_report

__all__ = ["comparison_svg", "write_comparison", "write_report"]
