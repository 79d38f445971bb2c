"""What the family reads off a graph: products and reductions in order, each over tiles of what came before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ....graph.dims import Dim
from ....graph.region import TensorSpec
from ...expression import expression as ex
from ...expression.expression import Expr
from .sizes import padded

# Variables of a plan's expressions: the sample, and the row and the column of a tile as it is held.
# A pool's value also depends on the position along the axis that is summed over.
SAMPLE, ROW, COLUMN, POSITION = "b", "p", "q", "n"
Combine = Literal["sum", "maximum", "minimum"]
# Of a regrouped product with more rows a program takes some: the square of all would not fit registers.
TALLEST = 128


@dataclass(frozen=True)
class Tile:
    """``value`` at each (``p``, ``q``) of ``rows`` × ``columns``; a product takes the transpose where ``turned``."""

    value: Expr
    rows: Dim
    columns: Dim
    turned: bool = False

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(ex.variables(self.value))


@dataclass(frozen=True)
class Dot:
    """``name`` [rows, columns] (float32) is ``left`` [rows, depth] times ``right`` [depth, columns], both of ``dtype``.

    It is added to what the step called ``onto`` gives, if there is one.
    """

    name: str
    left: Tile
    right: Tile
    rows: Dim
    depth: int
    columns: int
    dtype: str
    onto: str = ""

    @property
    def tiles(self) -> tuple[Tile, ...]:
        return (self.left, self.right)


@dataclass(frozen=True)
class Regrouped:
    """``left @ (inner @ right)`` computed as ``(left @ inner) @ right``: [rows, middle], [middle, depth], [depth, columns].

    Where the square ``left @ inner`` or ``right`` is not finite, the two orders differ, and the written one is taken.
    ``is_stored``: nothing is computed of it but what is stored.
    """

    name: str
    left: Tile
    inner: Tile
    right: Tile
    rows: Dim
    middle: int
    depth: int
    columns: int
    dtype: str
    is_stored: bool

    @property
    def tiles(self) -> tuple[Tile, ...]:
        return (self.left, self.inner, self.right)

    @property
    def is_tall(self) -> bool:
        """Has it so many rows that a program takes some of them, and squares those with all?"""
        return padded(self.rows) > TALLEST


@dataclass(frozen=True)
class Reduce:
    """``name`` (float32) combines ``tile`` over ``axes`` (0: its rows, 1: its columns), which stay with size one."""

    name: str
    combine: Combine
    tile: Tile
    axes: tuple[int, ...]

    @property
    def tiles(self) -> tuple[Tile, ...]:
        return (self.tile,)


@dataclass(frozen=True)
class Pool:
    """``name`` [rows, columns] (float32) is the sum of ``tile`` over ``extent`` positions, which reads inputs alone."""

    name: str
    tile: Tile
    extent: int

    @property
    def tiles(self) -> tuple[Tile, ...]:
        return (self.tile,)


@dataclass(frozen=True)
class Store:
    """``tile`` is written to output ``output`` at element ``offset``."""

    tile: Tile
    offset: Expr
    output: int


Step = Dot | Regrouped | Reduce | Pool


@dataclass(frozen=True)
class ChainPlan:
    """Steps in an order in which they can be computed, then what is stored.

    ``batch`` is the number of samples (``None``: everything is rows of one matrix) and ``rows`` their rows. Where
    ``rowwise``, no step joins rows, so that a program may take some of them. ``seen`` are the numbers of samples and of
    their rows at compile time. ``written`` is the same with products in the order of the graph, where this one's is cheaper.
    """

    batch: Dim | None
    rows: Dim
    steps: tuple[Step, ...]
    stores: tuple[Store, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    symbols: tuple[str, ...]
    seen: tuple[int, int]
    written: ChainPlan | None = None

    @cached_property
    def by_name(self) -> dict[str, Step]:
        return {step.name: step for step in self.steps}

    @cached_property
    def rowwise(self) -> bool:
        return all(is_rowwise(step, self.rows, self.by_name) for step in self.steps)

    def read_by(self, step: Step | Store) -> Iterator[Step]:
        """The steps whose results ``step`` reads."""
        tiles = (step.tile,) if isinstance(step, Store) else step.tiles
        names = {name for tile in tiles for name in tile.names} | ({step.onto} if isinstance(step, Dot) else set())
        return (other for other in self.steps if other.name in names)

    @property
    def seen_rows(self) -> int:
        return self.seen[0] * self.seen[1]

    @property
    def flops(self) -> int:
        """Of all products and pools, at the sizes seen."""
        total = sum(2 * self.seen[1] * int(pool.tile.columns) * pool.extent for pool in self.pools)
        for step in self.steps:
            if isinstance(step, Dot | Regrouped):
                rows = step.rows if isinstance(step.rows, int) and self.batch is not None else self.seen[1]
                columns = step.columns if isinstance(step, Dot) else step.columns + step.middle
                total += 2 * rows * step.depth * columns
        return total * self.seen[0]

    @property
    def dtype(self) -> str:
        """The dtype that the products take; float32 where there are none."""
        return next((step.dtype for step in self.steps if isinstance(step, Dot | Regrouped)), "float32")

    @property
    def pools(self) -> tuple[Pool, ...]:
        return tuple(step for step in self.steps if isinstance(step, Pool))


def is_rowwise(step: Step, rows: Dim, held: dict[str, Step]) -> bool:
    """Does each row of the result of ``step`` depend on that row of earlier results alone?"""
    if isinstance(step, Pool):
        return step.tile.rows == rows
    if isinstance(step, Reduce):
        return 0 not in step.axes and step.tile.rows == rows
    if step.rows != rows:
        return False
    if isinstance(step, Regrouped):
        # None of its operands is held.
        return step.is_tall
    return not (step.right.names & held.keys()) and not (step.left.turned and step.left.names & held.keys())
