"""Sums over a row whose terms may nearly cancel, with their terms in float64.

The gradient of a normalisation takes sums of products from numbers that are hardly larger. What the products lose in
float32 is then all that is left in some rows, and where eager's own errors happen to cancel it looks bad beside it.
"""

from __future__ import annotations

from dataclasses import replace

from ...expression import expression as ex
from ...expression.expression import Expr
from .program import COLUMNS, Reduce, RowProgram, Statement

_EXACT_IN_DOUBLE = ("add", "sub", "mul", "neg")


def in_double(program: RowProgram) -> RowProgram:
    """``program`` with such terms computed in float64; results are as they were."""
    statements = [_in_double(step) for step in program.statements]
    return replace(program, statements=tuple(statements))


def cancels(step: Statement) -> bool:
    """Whether ``step`` adds up products of either sign along the columns."""
    if not isinstance(step, Reduce) or step.op != "sum" or step.axis != COLUMNS:
        return False
    value = step.value
    return value.op == "mul" and value.dtype == "float32" and value.args[0] is not value.args[1]


def _in_double(step: Statement) -> Statement:
    return replace(step, value=_widened(step.value)) if isinstance(step, Reduce) and cancels(step) else step


def _widened(expr: Expr) -> Expr:
    if expr.dtype == "float32" and expr.op in _EXACT_IN_DOUBLE:
        return ex.make(expr.op, "float64", tuple(_widened(argument) for argument in expr.args))
    return ex.cast(expr, "float64")
