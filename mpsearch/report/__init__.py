"""Tables and pictures from the saved results of studies: one HTML file that opens offline, figures as files,
and studies beside each other.
"""

from mpsearch.report.comparison import Comparison, compare
from mpsearch.report.page import write_report
from mpsearch.report.pictures import write_pictures

__all__ = ["Comparison", "compare", "write_pictures", "write_report"]
