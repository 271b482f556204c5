"""Tables and pictures from the saved results of a study: one HTML file that opens offline."""

from mpsearch.report.page import write_report

__all__ = ["write_report"]
