"""A product of a product in the cheaper order: ``X (Xᵀ Y)`` with few rows and wide ``Y`` is better ``(X Xᵀ) Y``."""

from __future__ import annotations

from dataclasses import replace

from ...expression.expression import Expr
from .plan import ChainPlan, Dot, Regrouped, Step, Tile
from .sizes import padded

# The check for values that are not finite, and the branch around it, cost something as well.
_LEAST_GAIN = 1.5
# Elements of a result that a program of all rows can hold. Where there are more, the order of the graph has no kernel, and
# what the other one gains is also that no product in the middle is written to memory. Its rows come in pieces.
_MOST_HELD, _LEAST_GAIN_TALL, _PIECE = 128 * 128, 0.8, 32


def regrouped(plan: ChainPlan) -> ChainPlan:
    """``plan`` with every such pair of products joined into one step."""
    for first in plan.steps:
        readers = [step for step in (*plan.steps, *plan.stores) if first in plan.read_by(step)]
        if not isinstance(first, Dot) or len(readers) != 1 or not isinstance(readers[0], Dot):
            continue
        joined = _joined(first, readers[0], plan)
        if joined is None:
            continue
        steps: list[Step] = [joined if step is readers[0] else step for step in plan.steps if step is not first]
        cheaper = replace(plan, steps=tuple(steps))
        if _is_cheaper(joined, cheaper):
            return regrouped(cheaper)
    return plan


def _joined(first: Dot, second: Dot, plan: ChainPlan) -> Regrouped | None:
    if not _is_exactly(second.right, first.name) or plan.batch is None or not isinstance(second.rows, int):
        return None
    held = plan.by_name.keys()
    if any(tile.names & held for tile in (second.left, first.left)) or first.right.names & held:
        return None
    is_stored = not any(second in plan.read_by(step) for step in plan.steps)
    return Regrouped(second.name, second.left, first.left, first.right, second.rows, int(first.rows), first.depth,
                     second.columns, second.dtype, is_stored)  # fmt: skip


def _is_cheaper(step: Regrouped, plan: ChainPlan) -> bool:
    """``plan`` has ``step`` in it."""
    assert isinstance(step.rows, int)
    sizes = (step.rows, step.middle, step.depth, step.columns)
    rows, middle, depth, columns = (padded(size) for size in sizes)
    gain = _LEAST_GAIN
    if step.is_tall and plan.rowwise and max(rows, middle) * columns > _MOST_HELD:
        rows, middle, depth, columns = (-(-size // _PIECE) * _PIECE for size in sizes)
        gain = _LEAST_GAIN_TALL
    return rows * depth * (middle + columns) * gain <= middle * columns * (depth + rows)


def _is_exactly(tile: Tile, name: str) -> bool:
    """Is the tile what ``name`` holds, rounded at most?"""
    value: Expr = tile.value
    while value.op in ("round", "cast"):
        value = value.args[0]
    return not tile.turned and value.op == "var" and value.value[0] == name
