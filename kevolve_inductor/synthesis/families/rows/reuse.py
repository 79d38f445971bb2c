"""Values of one sweep that a later sweep needs again and that cost more to compute than to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...expression import expression as ex
from ...expression.expression import Expr
from ...expression.operators import OPERATORS
from .program import COLUMNS, Element, Pass, Step

_COSTLY = 4
_SLOW_OPERATORS = {"truediv", "floordiv", "mod", "fmod", "bucketize", "check_index", "exp_below"}


def reused(steps: Sequence[Pass], cells: Mapping[Expr, Expr]) -> dict[Expr, str]:
    """The largest such expressions with a name for each; ``cells`` are replaced first."""
    earlier: set[Expr] = set()
    kept: dict[Expr, str] = {}
    for step in steps:
        present: set[Expr] = set()
        for value in (_value(one) for one in step.sweep):
            expr = ex.substitute(value, lambda part: cells.get(part))
            _collect(expr, earlier, kept)
            present.update(ex.walk(expr))
        earlier |= present
    return kept


def _collect(expr: Expr, earlier: set[Expr], kept: dict[Expr, str]) -> None:
    stack = [expr]
    while stack:
        part = stack.pop()
        if part in kept:
            continue
        if part in earlier and _is_costly(part):
            kept[part] = f"m{len(kept)}"
        else:
            stack.extend(part.args)


def _is_costly(expr: Expr) -> bool:
    """Varies along the columns and holds an operator slower than a load."""
    parts = list(ex.walk(expr))
    along = any(part.op == "var" and part.value[0] == COLUMNS for part in parts) or any(
        part.op == "var" and str(part.value[0]).startswith("x") for part in parts
    )
    return along and any(_cost(part) >= _COSTLY for part in parts)


def _cost(part: Expr) -> int:
    if part.op in _SLOW_OPERATORS:
        return _COSTLY
    return OPERATORS[part.op].flops if part.op in OPERATORS else 0


def _value(step: Step) -> Expr:
    return step.source if isinstance(step, Element) else step.value
