"""A product of a product in the cheaper order: ``X (Xᵀ Y)`` with few rows and wide ``Y`` is better ``(X Xᵀ) Y``."""

from __future__ import annotations

from dataclasses import replace

from ...expression.expression import Expr
from .plan import ChainPlan, Dot, Regrouped, Step, Tile
from .sizes import padded

# The check for values that are not finite, and the branch around it, cost something as well.
_LEAST_GAIN = 1.5


def regrouped(plan: ChainPlan) -> ChainPlan:
    """``plan`` with every such pair of products joined into one step."""
    for first in plan.steps:
        readers = [step for step in (*plan.steps, *plan.stores) if first in plan.read_by(step)]
        if not isinstance(first, Dot) or len(readers) != 1 or not isinstance(readers[0], Dot):
            continue
        joined = _joined(first, readers[0], plan)
        if joined is not None:
            steps: list[Step] = [joined if step is readers[0] else step for step in plan.steps if step is not first]
            return regrouped(replace(plan, steps=tuple(steps)))
    return plan


def _joined(first: Dot, second: Dot, plan: ChainPlan) -> Regrouped | None:
    if not _is_exactly(second.right, first.name) or plan.batch is None or not isinstance(second.rows, int):
        return None
    held = plan.by_name.keys()
    if any(tile.names & held for tile in (second.left, first.left)) or first.right.names & held:
        return None
    rows, middle, depth, columns = (padded(size) for size in (second.rows, first.rows, first.depth, first.columns))
    written = middle * columns * (depth + rows)
    if rows * depth * (middle + columns) * _LEAST_GAIN > written:
        return None
    return Regrouped(second.name, second.left, first.left, first.right, second.rows, int(first.rows), first.depth,
                     second.columns, second.dtype)  # fmt: skip


def _is_exactly(tile: Tile, name: str) -> bool:
    """Is the tile what ``name`` holds, rounded at most?"""
    value: Expr = tile.value
    while value.op in ("round", "cast"):
        value = value.args[0]
    return not tile.turned and value.op == "var" and value.value[0] == name
