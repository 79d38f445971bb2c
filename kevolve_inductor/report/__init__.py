"""What a compile did, as values and as a table; and how far it is."""

from .progress import Progress, announce, observe, progress_bar
from .report import GraphRow, RegionRow, RunReport, last_run, reset
from .warnings import warn_once

__all__ = [
    "GraphRow", "Progress", "RegionRow", "RunReport", "announce", "last_run", "observe", "progress_bar", "reset", "warn_once",
]  # fmt: skip
