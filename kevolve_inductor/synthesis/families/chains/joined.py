"""Two products of one sum as one: ``v g + u h`` is ``[v u]`` times ``g`` upon ``h``, for which threads wait only once.

Triton waits for each product before it begins the next one of a loop, although they follow one another in one accumulator.
"""

from __future__ import annotations

from ...expression import expression as ex
from ...expression.access import replace_variables
from .plan import COLUMN, ROW, ChainPlan, Dot, Tile
from .printing import Scope
from .sizes import padded
from .tiles import Extent, Placed, Tiles

# The matrix units take operands of one product from registers: twice so many columns of 16-bit values.
_DEEPEST = 128


def pair_of(step: Dot, plan: ChainPlan) -> Dot | None:
    """The product that ``step`` is joined with: that which it is added to, if an even number of them follow one another."""
    below, length = step.onto, 1
    while below:
        length, below = length + 1, getattr(plan.by_name[below], "onto", "")
    first = plan.by_name.get(step.onto)
    if length % 2 or not isinstance(first, Dot) or first.depth != step.depth or padded(step.depth) > _DEEPEST:
        return None
    return first if _are_alike(first.right, step.right, step.dtype) else None


def may_be_joined(plan: ChainPlan) -> bool:
    return any(isinstance(step, Dot) and pair_of(step, plan) is not None for step in plan.steps)


def _are_alike(first: Tile, second: Tile, dtype: str) -> bool:
    """Are both loaded, as they are, from the same places of two tensors?"""
    if first.turned != second.turned or any(tile.value.op != "read" for tile in (first, second)):
        return False
    return first.value.args == second.value.args and first.value.value[1] == second.value.value[1] == dtype


def joined_operands(
    first: Dot, second: Dot, tiles: Tiles, extents: tuple[Extent, Extent], scope: Scope
) -> tuple[str, str]:
    """Operands of the product that computes both; ``extents`` are of its rows and columns.

    The left one is put together in front of the loop that ``scope`` is the body of.
    """
    return _beside(first, second, tiles, extents[0], scope), _below(first, second, tiles, extents[1], scope)


def _beside(first: Dot, second: Dot, tiles: Tiles, rows: Extent, scope: Scope) -> str:
    home = scope.parent or scope
    name = f"{second.name}_left"
    if home.declares(name):
        return name
    home.declared.add(name)
    parts = [tiles.operand(step.left, (rows, "whole"), 1, step.dtype, home) for step in (first, second)]
    shape = [tiles.size(rows, second.rows, scope), 2 * padded(second.depth)]
    # Joined along a new last axis, which then comes before the columns.
    home.lines.append(f"{name} = tl.reshape(tl.permute(tl.join({', '.join(parts)}), (0, 2, 1)), {shape})")
    return name


def _below(first: Dot, second: Dot, tiles: Tiles, columns: Extent, scope: Scope) -> str:
    turned, depth = second.right.turned, padded(second.depth)
    axis = int(turned)
    at = _both(second, axis, tiles, scope)
    across = tiles.coordinate(columns, second.columns, 1 - axis, scope)
    names = (across, at) if turned else (at, across)
    mapping = {ROW: ex.var(names[0], second.right.rows), COLUMN: ex.var(names[1], second.right.columns)}
    reads = [replace_variables(step.right.value, mapping) for step in (first, second)]
    offset = scope.printer.value(reads[0].args[0])
    masks = sorted(tiles.masks[name] for name in names if name in tiles.masks)
    slots = ", ".join(f"in{read.value[0]}" for read in reads)
    masked = f", mask={' & '.join(masks)}, other=0" if masks else ""
    text = f"tl.load(tl.where({at}_two < {depth}, {slots}) + {offset}{masked})"
    sides = (depth, tiles.size(columns, second.columns, scope))
    for read in reads:
        tiles.count_operand(Placed(read, names, sides[::-1] if turned else sides), scope)
    return f"tl.trans({text})" if turned else text


def _both(step: Dot, axis: int, tiles: Tiles, scope: Scope) -> str:
    """The coordinates of an axis along which what is summed over comes twice."""
    depth, lead, place = padded(step.depth), "pq"[axis], ("[:, None]", "[None, :]")[axis]
    name = f"{lead}_{step.depth}_both"
    if not scope.declares(name):
        scope.top.declared.add(name)
        scope.top.lines.append(f"{name}_two = (tl.arange(0, {2 * depth})){place}")
        scope.top.lines.append(f"{name} = ({name}_two % {depth}){tiles.wide}")
    if depth != step.depth:
        tiles.masks[name] = f"({name} < {step.depth})"
    return name
