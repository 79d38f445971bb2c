"""The report of a process: one row per region of every graph compiled since the last ``reset``.

Times are microseconds. The report is a plain value that callers may keep; it is never written unless asked.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RegionRow:
    """``share`` of the graph's modelled or measured time; ``kernel_us`` and ``speedup`` are absent where nothing was swapped.

    ``verdict`` is ``"swapped"``, or why not, in words; ``why`` explains the best trial, where there was one.
    """

    title: str
    family: str
    region_class: str
    share: float
    floor_us: float
    baseline_us: float | None
    baseline_name: str | None
    kernel_us: float | None
    speedup: float | None
    verdict: str
    search_s: float
    trials: int
    why: str | None = None


@dataclass(frozen=True)
class GraphRow:
    """A whole graph under Inductor and with its kernels; ``None`` where it was not measured, and why.

    With ``eager_us`` it is the last look at what Dynamo hands over, forward and backward together.
    """

    inductor_us: float | None
    kevolve_us: float | None
    verdict: str
    eager_us: float | None = None


@dataclass
class RunReport:
    """Grows while graphs are compiled. ``searched`` counts regions that were searched rather than looked up;
    ``look_ups_us`` is how long the store was asked about each graph's regions.
    """

    regions: list[RegionRow] = field(default_factory=list)
    rejections: list[tuple[str, str, str]] = field(default_factory=list)
    graph_verdicts: list[GraphRow] = field(default_factory=list)
    searched: int = 0
    look_ups_us: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def write(self, folder: Path) -> Path:
        """Write ``report.json`` and ``report.txt`` into ``folder``. Raises ``OSError`` where that is not possible."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.txt").write_text(self.format_table() + "\n")
        path = folder / "report.json"
        path.write_text(json.dumps(self.to_json(), indent=1))
        return path

    def format_table(self) -> str:
        """The regions as an aligned table, why each is as it is, then the whole graphs, then the rejections by reason."""
        header = ("region", "class", "share", "floor ms", "baseline ms", "kernel ms", "speedup", "verdict")
        rows = [header, *(_cells(row) for row in self.regions)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = [_aligned(row, widths) for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        lines += dict.fromkeys(f"{row.title}: {row.why}" for row in self.regions if row.why is not None)
        lines += [_graph_line(position, row) for position, row in enumerate(self.graph_verdicts)]
        reasons = Counter(f"{family}: {message}" for family, _, message in self.rejections)
        lines += [f"left to Inductor: {reason}" + (f" (×{n})" if n > 1 else "") for reason, n in reasons.items()]
        return "\n".join(lines)


def _cells(row: RegionRow) -> tuple[str, ...]:
    baseline = f"{_ms(row.baseline_us)} {row.baseline_name or ''}".strip()
    speedup = f"{row.speedup:.2f}×" if row.speedup else "–"
    shown = (f"{row.share:.0%}", _ms(row.floor_us), baseline, _ms(row.kernel_us), speedup)
    return (row.title, row.region_class, *shown, row.verdict)


def _ms(time_us: float | None) -> str:
    return "–" if time_us is None else f"{time_us / 1e3:.4g}"


def _aligned(cells: tuple[str, ...], widths: list[int]) -> str:
    texts = [0, 1, len(cells) - 1]
    padded = [
        cell.ljust(width) if column in texts else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _graph_line(position: int, row: GraphRow) -> str:
    if row.eager_us is not None:
        plain = f"Inductor {_ms(row.inductor_us)} ms, " if row.inductor_us is not None else ""
        sides = f"{plain}eager {_ms(row.eager_us)} ms, kevolve {_ms(row.kevolve_us)} ms"
        return f"graph {position}: in this process, {sides}: {row.verdict}"
    if row.inductor_us is None or row.kevolve_us is None:
        return f"graph {position}: {row.verdict}"
    ratio = row.inductor_us / row.kevolve_us
    return (
        f"graph {position}: Inductor {_ms(row.inductor_us)} ms, kevolve {_ms(row.kevolve_us)} ms "
        f"({ratio:.2f}×), {row.verdict}"
    )


_RUN = RunReport()


def last_run() -> RunReport:
    """The report of this process since it started or since ``reset``."""
    return _RUN


def reset() -> None:
    """Begin a new report; the one handed out before is no longer added to."""
    global _RUN
    _RUN = RunReport()
