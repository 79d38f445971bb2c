"""Evolution over a finite space of schedules: known good ones, drafts, then mutation and crossover of the best."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .searcher import Candidate, Choice, Memory, Origin, Schedule, Searcher, Space
from .tree import Node, Selection, Tree

# A point of the space: for each choice, in order of name, the position of its value.
Point = tuple[int, ...]

CROSSOVER_SHARE = 0.3
# Now and then an independent draft, against a population that has become too alike.
DRAFT_SHARE = 0.1
SECOND_MUTATION_SHARE = 0.3
# Children that were asked before are made again so many times before another schedule is drafted instead.
CHILD_ATTEMPTS = 12


@dataclass(frozen=True)
class Tournament:
    """Each winner is the fittest of ``size`` nodes drawn from the ``population`` fittest."""

    size: int = 3
    population: int = 16

    def select(self, tree: Tree, count: int, rng: random.Random) -> tuple[Node, ...]:
        pool = tree.ranked()[: self.population]
        winners: list[Node] = []
        while pool and len(winners) < count:
            # The pool is ranked, so the lowest position drawn is the fittest.
            winners.append(pool.pop(min(rng.randrange(len(pool)) for _ in range(self.size))))
        return tuple(winners)


class EvolutionSearcher(Searcher):
    """First the schedules in ``warm`` (the best known of near shapes, best first), then the space's seeds and its default,
    then those in ``distant`` (that won for what is less alike), then ``drafts`` random schedules that cover every value of
    every choice evenly, then children of the best so far, until the whole space has been asked. Of schedules from elsewhere
    values that this space does not have are replaced by the nearest.

    ``seed`` fixes all chance. ``selection`` picks the parents.
    Raises ``ValueError`` where a seed of the space uses a name or value that the space does not have.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        drafts: int = 10,
        warm: Sequence[Schedule] = (),
        distant: Sequence[Schedule] = (),
        selection: Selection | None = None,
    ) -> None:
        self._space = _Space(space.choices)
        self._rng = random.Random(seed)
        self._selection = selection if selection is not None else Tournament()
        self._tree = Tree()
        self._asked: set[Point] = set()
        first, last = ([self._space.nearest(schedule) for schedule in known] for known in (warm, distant))
        seeds = [self._space.point(schedule) for schedule in space.seeds]
        self._openings: Iterator[tuple[Point, Origin]] = iter(
            [(point, "seed") for point in (*first, *seeds, self._space.default, *last)]
            + [(point, "draft") for point in self._space.spread(drafts, self._rng)]
        )
        self._drafts_left = drafts

    @property
    def tree(self) -> Tree:
        """The record of this search. Read only."""
        return self._tree

    @property
    def best(self) -> tuple[Candidate, float] | None:
        ranked = self._tree.ranked()
        return (ranked[0].candidate, ranked[0].fitness) if ranked else None

    def ask(self) -> Candidate | None:
        if len(self._asked) >= self._space.size:
            return None
        for point, origin in self._openings:
            if point not in self._asked:
                self._drafts_left -= origin == "draft"
                return self._propose(point, (), "clean", origin)
        if self._drafts_left > 0:
            self._drafts_left -= 1
            return self._draft()
        return self._child() or self._draft()

    def tell(self, candidate: Candidate, score: float) -> None:
        self._tree.tell(candidate, score)

    def _propose(self, point: Point, parents: tuple[int, ...], memory: Memory, origin: Origin) -> Candidate:
        candidate = Candidate(len(self._tree), parents, self._space.schedule(point), memory, origin)
        self._asked.add(point)
        self._tree.add(candidate)
        return candidate

    def _draft(self) -> Candidate:
        return self._propose(self._space.unseen(self._asked, self._rng), (), "clean", "draft")

    def _child(self) -> Candidate | None:
        if self._rng.random() < DRAFT_SHARE:
            return None
        for _ in range(CHILD_ATTEMPTS):
            crossing = self._rng.random() < CROSSOVER_SHARE
            parents = self._selection.select(self._tree, 2 if crossing else 1, self._rng)
            if not parents:
                return None
            points = [self._space.point(node.candidate.schedule) for node in parents]
            crossed = len(points) == 2
            child = self._space.crossed(points[0], points[1], self._rng) if crossed else self._mutated(points[0])
            if child not in self._asked:
                ids = tuple(node.candidate.id for node in parents)
                return self._propose(child, ids, *(("both", "crossover") if crossed else ("inherit", "mutation")))
        return None

    def _mutated(self, point: Point) -> Point:
        point = self._space.mutated(point, self._rng)
        if self._rng.random() < SECOND_MUTATION_SHARE:
            point = self._space.mutated(point, self._rng)
        return point


class _Space:
    """Choices as points. Names are sorted, so that a mapping's order does not influence the search."""

    def __init__(self, choices: Mapping[str, tuple[Choice, ...]]) -> None:
        self._names = tuple(sorted(choices))
        self._values = tuple(tuple(choices[name]) for name in self._names)
        for name, values in zip(self._names, self._values, strict=True):
            # Compared with their types: 1 and True are two choices.
            if not values or len({(type(value), value) for value in values}) < len(values):
                raise ValueError(f"choice {name!r} needs one or more different values, not {values!r}")
        self.size = math.prod(len(values) for values in self._values)
        self.default: Point = (0,) * len(self._names)

    def schedule(self, point: Point) -> dict[str, Choice]:
        return {name: values[at] for name, values, at in zip(self._names, self._values, point, strict=True)}

    def point(self, schedule: Schedule) -> Point:
        """Raises ``ValueError`` where a name or value is not of this space. A name left out has its default."""
        unknown = schedule.keys() - set(self._names)
        if unknown:
            raise ValueError(f"no such choice: {', '.join(sorted(unknown))}")
        return tuple(
            _position(name, values, schedule[name]) if name in schedule else 0
            for name, values in zip(self._names, self._values, strict=True)
        )

    def nearest(self, schedule: Schedule) -> Point:
        """The point most like a schedule of another space: sizes by their ratio, anything else equal or the default."""
        return tuple(
            _nearest(name, values, schedule[name]) if name in schedule else 0
            for name, values in zip(self._names, self._values, strict=True)
        )

    def spread(self, count: int, rng: random.Random) -> list[Point]:
        """``count`` points in which each value of each choice occurs equally often, give or take one."""
        columns: list[list[int]] = []
        for values in self._values:
            column: list[int] = []
            while len(column) < count:
                column += rng.sample(range(len(values)), len(values))
            columns.append(column[:count])
            rng.shuffle(columns[-1])
        return [tuple(column[row] for column in columns) for row in range(count)]

    def mutated(self, point: Point, rng: random.Random) -> Point:
        """``point`` with one choice changed, where any has another value."""
        open_choices = [at for at, values in enumerate(self._values) if len(values) > 1]
        if not open_choices:
            return point
        at = rng.choice(open_choices)
        other = rng.randrange(len(self._values[at]) - 1)
        return (*point[:at], other + (other >= point[at]), *point[at + 1 :])

    def crossed(self, left: Point, right: Point, rng: random.Random) -> Point:
        return tuple(rng.choice(pair) for pair in zip(left, right, strict=True))

    def unseen(self, seen: set[Point], rng: random.Random) -> Point:
        """A random point that is not in ``seen``, which must not hold the whole space."""
        number = rng.randrange(self.size)
        # Points are numbered; from a random one on, a free one is met after len(seen) steps at the latest.
        while (point := self._numbered(number)) in seen:
            number = (number + 1) % self.size
        return point

    def _numbered(self, number: int) -> Point:
        digits: list[int] = []
        for values in self._values:
            number, digit = divmod(number, len(values))
            digits.append(digit)
        return tuple(digits)


def _position(name: str, values: tuple[Choice, ...], value: Choice) -> int:
    for at, known in enumerate(values):
        if known == value and type(known) is type(value):
            return at
    raise ValueError(f"{name}={value!r} is not one of {values!r}")


def _nearest(name: str, values: tuple[Choice, ...], value: Choice) -> int:
    try:
        return _position(name, values, value)
    except ValueError:
        wanted = _size(value)
    if wanted is None:
        return 0
    sizes = ((_size(known), at) for at, known in enumerate(values))
    distances = [(abs(math.log(size / wanted)), at) for size, at in sizes if size is not None]
    return min(distances)[1] if distances else 0


def _size(value: Choice) -> int | None:
    """Positive integers are sizes; flags and names are not."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
