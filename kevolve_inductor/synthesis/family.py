"""What a kernel family is: structural matcher + schedule space + emitters, written once for any shape and dtype."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch.fx

from ..kernel import Kernel, Language
from ..platforms.platform import Target

Schedule = Mapping[str, int | str | bool]
RegionClass = Literal["hot", "long tail"]


@dataclass(frozen=True)
class Match:
    """A region found by a family in an FX graph.

    ``nodes`` are replaced by the kernel, in graph order; ``inputs`` are tensor values read from outside, in the order
    of the kernel's inputs; ``outputs`` those of ``nodes`` (or ``getitem`` of them, which are nodes too) that are used
    outside, in graph order. ``plan`` is the family's own reading of the structure, given back to ``space`` and ``emit``.
    ``flops`` are the arithmetic operations that any algorithm needs.
    """

    family: str
    nodes: tuple[torch.fx.Node, ...]
    inputs: tuple[torch.fx.Node, ...]
    outputs: tuple[torch.fx.Node, ...]
    region_class: RegionClass
    plan: Any
    flops: int = 0


@dataclass(frozen=True)
class Rejection:
    """Why a structure a family looked at was left to Inductor. ``code`` is one of a small set, ``message`` for people."""

    code: Literal["dynamic", "dtype", "layout", "size", "structure", "mutation", "convexity", "platform", "budget",
                  "memory", "overlap", "slower", "unsupported"]  # fmt: skip
    message: str
    family: str = ""
    nodes: tuple[torch.fx.Node, ...] = ()


@dataclass(frozen=True)
class ScheduleSpace:
    """Finite choices by name; the first value of each is the default. ``seeds`` are schedules worth trying first."""

    choices: Mapping[str, tuple[int | str | bool, ...]]
    seeds: tuple[Schedule, ...] = field(default=())

    @property
    def default(self) -> dict[str, int | str | bool]:
        return {name: values[0] for name, values in self.choices.items()}

    @property
    def size(self) -> int:
        total = 1
        for values in self.choices.values():
            total *= len(values)
        return total


class Family(ABC):
    """Stateless; one instance serves every graph. Registered in ``families/__init__.py``, in order of precedence."""

    name: ClassVar[str]

    @abstractmethod
    def find(self, graph: torch.fx.Graph, device: str) -> Iterator[Match | Rejection]:
        """Every region of this family on ``device`` (``"cpu"``, ``"cuda"``). Must not change the graph, add guards, or raise."""

    @abstractmethod
    def space(self, match: Match, target: Target) -> ScheduleSpace:
        """The schedules that make sense for this match on this target."""

    @abstractmethod
    def emit(self, match: Match, schedule: Schedule, language: Language) -> Kernel:
        """The kernel of one schedule. Deterministic. Raises ``EmissionError`` where the schedule does not fit."""
