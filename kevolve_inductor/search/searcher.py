"""The search side of ask and tell: candidates, and who proposes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

Choice = int | str | bool
Schedule = Mapping[str, Choice]
Origin = Literal["seed", "draft", "mutation", "crossover"]
Memory = Literal["clean", "inherit", "siblings", "both"]


class Space(Protocol):
    """Finite choices by name, the first value of each the default, and schedules worth trying first.

    ``synthesis.family.ScheduleSpace`` is one.
    """

    @property
    def choices(self) -> Mapping[str, tuple[Choice, ...]]: ...

    @property
    def seeds(self) -> Sequence[Schedule]: ...


@dataclass(frozen=True)
class Candidate:
    """A proposal.

    ``id`` counts from 0 within one search; ``parents`` are the ids it was made from. ``memory`` says what a synthesizer
    that learns from history may see of it: nothing (``"clean"``), the parents' trajectory (``"inherit"``), their other
    children (``"siblings"``), or ``"both"``.
    """

    id: int
    parents: tuple[int, ...]
    schedule: Schedule
    memory: Memory
    origin: Origin

    def __post_init__(self) -> None:
        if self.memory not in get_args(Memory):
            raise ValueError(f"memory operator {self.memory!r} is not one of {get_args(Memory)}")
        if self.origin not in get_args(Origin):
            raise ValueError(f"origin {self.origin!r} is not one of {get_args(Origin)}")
        if any(not 0 <= parent < self.id for parent in self.parents):
            raise ValueError(f"candidate {self.id} cannot have parents {self.parents}")


class Searcher(ABC):
    """Proposes schedules of one space and learns from their scores.

    Lifecycle: ``ask`` and ``tell`` alternate in any rhythm until ``ask`` returns ``None``; several candidates may be
    out at the same time, so that they can be built together, and are told in any order. A candidate that is never told
    (the search was interrupted) costs nothing but itself. The searcher reads no clock and runs nothing: when to stop is
    the caller's business, see :class:`~kevolve_inductor.search.budget.Budget`.

    Same space, same seed, same tells: same asks, in any process. No schedule is asked twice.
    Not thread-safe. Owned by one tuner; holds no resources, so there is nothing to close.
    """

    @abstractmethod
    def ask(self) -> Candidate | None:
        """The next candidate; ``None`` once every schedule of the space has been asked."""

    @abstractmethod
    def tell(self, candidate: Candidate, score: float) -> None:
        """The fitness of an asked candidate: time of the reference over its own, 0 on any failure.

        Raises ``ValueError`` for a candidate that was not asked or was told before, and for a score that is negative
        or not finite.
        """

    @property
    @abstractmethod
    def best(self) -> tuple[Candidate, float] | None:
        """The candidate with the highest score above 0, the earlier one on a tie."""
