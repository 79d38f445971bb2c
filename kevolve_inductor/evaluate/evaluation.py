"""The outcome of judging one kernel. What a status does not have, its class does not declare.

All times are microseconds per call, medians; speedups are ratios of interleaved pairs against the fastest baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal

from ..platforms.profile import Profile

Pattern = Literal["everything", "one row", "rows", "one column", "columns", "whole tiles", "tail", "every n-th", "scattered",
                  "nan placement", "shape or dtype", "input changed", "out of bounds write", "unwritten", "not repeatable",
                  "selection"]  # fmt: skip
Limiter = Literal["memory", "compute", "latency", "launch", "occupancy", "load imbalance", "unknown"]


@dataclass(frozen=True)
class Diagnosis:
    """Why the kernel is as fast as it is. ``source`` names where the figures come from (e.g. ``"measured time"``).

    ``ceiling_share`` is the larger of the shares of memory's and arithmetic's measured ceilings. ``occupancy``, from 0 to
    1, is what registers, shared memory and block size allow, ``occupancy_limit`` which of them allows no more.
    ``profile`` is there for accepted kernels only, and says for each of its figures whose it is.
    """

    limiter: Limiter
    source: str
    achieved_bytes_per_s: float
    achieved_flops_per_s: float
    ceiling_share: float
    registers: int | None = None
    spills: int | None = None
    shared_bytes: int | None = None
    occupancy: float | None = None
    occupancy_limit: str | None = None
    profile: Profile | None = None


@dataclass(frozen=True)
class Passed:
    """Correct on every input tried and timed. ``speedup_low`` is the lower bound of its 95 % confidence interval.

    ``complete`` is false where the kernel was only screened: a slow one on some inputs, in a large region any on none until
    it is to be decided.
    ``sanitizers``: what each of them did, in words; empty where none was asked.
    """

    status: ClassVar[str] = "passed"
    latency_us: float
    baselines_us: dict[str, float]
    speedup: float
    speedup_low: float
    max_error: float
    diagnosis: Diagnosis
    build_s: float
    complete: bool = True
    sanitizers: dict[str, str] = field(default_factory=dict)

    @property
    def best_baseline(self) -> str:
        return min(self.baselines_us, key=lambda name: self.baselines_us[name])


@dataclass(frozen=True)
class BuildFailed:
    status: ClassVar[str] = "build failed"
    stage: str
    message: str
    line: int | None = None


@dataclass(frozen=True)
class ResourceFailed:
    status: ClassVar[str] = "over a limit"
    resource: str
    needed: int
    available: int


@dataclass(frozen=True)
class Mismatch:
    """``check`` names the check that refused it; ``inputs`` the distribution it failed on.

    ``place`` says in words which elements are wrong, ``likely_cause`` what mostly makes them so; absent where nothing
    about the values is known.
    """

    status: ClassVar[str] = "mismatch"
    check: str
    pattern: Pattern
    inputs: str
    output: int
    wrong_elements: int
    total_elements: int
    worst_index: tuple[int, ...]
    worst_error: float
    place: str | None = None
    likely_cause: str | None = None


@dataclass(frozen=True)
class Crashed:
    status: ClassVar[str] = "crashed"
    signal: int | None
    message: str


@dataclass(frozen=True)
class TimedOut:
    status: ClassVar[str] = "timed out"
    limit_s: float


@dataclass(frozen=True)
class Refused:
    """Not allowed to run, or too good to be true: kept for review. ``check`` names the rule."""

    status: ClassVar[str] = "refused"
    check: str
    message: str


@dataclass(frozen=True)
class Compiled:
    """Built for a target that is not here: resources known, correctness and speed are not."""

    status: ClassVar[str] = "compiled"
    target: str
    registers: int | None
    spills: int | None
    shared_bytes: int | None
    occupancy: float | None = None


Evaluation = Passed | BuildFailed | ResourceFailed | Mismatch | Crashed | TimedOut | Refused | Compiled

_CLASSES: Mapping[str, type[Any]] = {
    cls.status: cls for cls in (Passed, BuildFailed, ResourceFailed, Mismatch, Crashed, TimedOut, Refused, Compiled)
}


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    return {"status": evaluation.status, **asdict(evaluation)}


def from_json(data: dict[str, Any]) -> Evaluation:
    """Raises ``KeyError`` or ``TypeError`` on anything but what ``to_json`` wrote, in this version or another.

    Fields that another version added are left out.
    """
    kind = _CLASSES[data["status"]]
    values = _known(kind, data)
    if "diagnosis" in values:
        diagnosis = _known(Diagnosis, values["diagnosis"])
        if diagnosis.get("profile") is not None:
            diagnosis["profile"] = Profile.from_json(diagnosis["profile"])
        values["diagnosis"] = Diagnosis(**diagnosis)
    if "worst_index" in values:
        values["worst_index"] = tuple(values["worst_index"])
    result: Evaluation = kind(**values)
    return result


def _known(kind: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    return {part.name: data[part.name] for part in fields(kind) if part.name in data}


@dataclass(frozen=True)
class Baselines:
    """Times of the region itself, measured when its session was opened; absent where one could not be built."""

    times_us: dict[str, float]
    failures: dict[str, str]


@dataclass(frozen=True)
class GraphVerdict:
    """Whole graph with and without the swaps, interleaved. ``reason`` says why it could not be measured.

    ``mode`` names the settings of Inductor's (``Platform.modes``) under which ``kevolve_us`` was measured, ``None`` its
    defaults; ``swapped`` is false where that is the graph without the swaps.
    """

    inductor_us: float | None
    kevolve_us: float | None
    correct: bool
    reason: str | None = None
    mode: str | None = None
    swapped: bool = True


@dataclass(frozen=True)
class ModeTimes:
    """Microseconds of a whole graph in one of Inductor's modes beside its default, interleaved, each with the swaps
    (``kevolve``) and without (``inductor``). What is ``None`` was not there to be measured, was wrong, or took too long.
    """

    inductor_us: float | None = None
    kevolve_us: float | None = None
    mode_us: float | None = None
    kevolve_mode_us: float | None = None
