"""A schedule's choices as the C++ printer needs them."""

from __future__ import annotations

from dataclasses import dataclass

from ...family import Schedule
from .program import RowProgram


@dataclass(frozen=True)
class Plan:
    """The schedule's choices as the printer needs them. ``lanes`` rows at once; 0: one at a time."""

    lanes: int
    block: int
    keep: bool
    lane_select: str
    row_select: str
    row_sort: str
    parallel_from: int
    order: str
    online: bool
    streamed: bool

    @classmethod
    def of(cls, schedule: Schedule, program: RowProgram) -> Plan:
        lanes = int(schedule["lanes"]) if schedule["algorithm"] == "lanes" else 0
        return cls(
            lanes=lanes,
            block=min(int(schedule["block"]), -(-program.columns // 64) * 64),
            keep=bool(schedule.get("keep", True)),
            lane_select=str(schedule.get("lane_select", "insert")),
            row_select=str(schedule.get("row_select", "filter")),
            row_sort=str(schedule.get("row_sort", "radix")),
            parallel_from=int(schedule.get("parallel_from", 1)),
            order="dynamic, 16" if schedule.get("order") == "dynamic" else "static",
            online=bool(schedule.get("online", False)) and not lanes,
            streamed=schedule.get("stores") == "streamed" and not lanes,
        )

    @property
    def width(self) -> str:
        """Lanes of a vector, as C++."""
        return "L" if self.lanes else "16"
