"""What a C++ sweep does with the values of a block, and where it has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...expression import CppPrinter
from ...expression.expression import Expr

if TYPE_CHECKING:
    from .cpp import RowBody

# Rows of a multiple of this length are searched where they lie; others are padded in a tile.
_WHOLE_VECTORS = 16


@dataclass
class Step:
    """``declares`` stand before the sweep, ``put`` gives the statements for one position, ``folds`` follow each block,
    ``finish`` the sweep. ``sums`` are variables to which ``put`` adds at every position."""

    value: Expr
    put: Callable[[RowBody, CppPrinter], list[str]]
    declares: list[str] = field(default_factory=list)
    folds: list[str] = field(default_factory=list)
    finish: list[str] = field(default_factory=list)
    sums: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Tile:
    """The values of a block, at ``name``. ``owned``: may be written, so that its last vector can be filled up."""

    name: str
    owned: bool = True

    def rows(self, body: RowBody, fill: str) -> str:
        """Number of vectors, the last one filled up with ``fill``."""
        if body.plan.lanes:
            return "n"
        width = body.plan.width
        return f"kv_pad<{width}>({self.name}, n, {fill})" if self.owned else f"n / {width}"


def tile_for(
    body: RowBody, step: Step, kind: str, axis: str, block: int, convert: str = "", padded: bool = True
) -> Tile:
    """The block's values as a tile: one that is there anyway, or a new one to which they are written.

    ``padded``: its last vector will be filled up.
    """
    if not convert:
        there = body.tile_of(step.value, kind)
        if there is not None:
            return Tile(there)
        memory = body.memory_of(step.value, kind, axis)
        if memory is not None and not (padded and body.program.axes[axis] % _WHOLE_VECTORS):
            return Tile(f"({memory} + c0)", owned=False)
    tile = body.fresh("b")
    step.declares.append(body.array(kind, tile, block))

    def put(body: RowBody, printer: CppPrinter) -> list[str]:
        value = body.value(printer, step.value)
        return [f"{body.at(tile, f'{axis} - c0')} = {convert.format(value) if convert else value};"]

    step.put = put
    return Tile(tile)


def nothing(body: RowBody, printer: CppPrinter) -> list[str]:
    return []
