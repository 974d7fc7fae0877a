"""What happened to the numbers: the records of a report, and how they are shown. Needs neither torch nor numba."""

from fpsim.report.counts import Counts
from fpsim.report.report import Report

__all__ = ["Counts", "Report"]
