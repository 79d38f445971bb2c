"""What a compile did, as values and as a table; and how far it is."""

from .progress import Progress, announce, observe, progress_bar
from .report import GraphRow, RegionRow, RunReport, last_run, reset

__all__ = ["GraphRow", "Progress", "RegionRow", "RunReport", "announce", "last_run", "observe", "progress_bar", "reset"]
