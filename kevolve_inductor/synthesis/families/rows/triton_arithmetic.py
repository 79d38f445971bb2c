"""Rewriting a program into one that costs a GPU fewer instructions for each element.

Rows that are read at the rate of memory leave a dozen instructions for two bytes: exponentials with a path for denormal
results, divisions and sweeps of their own for sums are most of what is above that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ...expression import expression as ex
from ...expression.expression import Expr
from .program import COLUMNS, Element, Reduce, RowProgram, Statement, online_pairs, without_unused
from .simplify import simplified

# Beside this an exponential too small for a normal number is nothing.
_NOT_SMALL = 1e-20


def prepared(program: RowProgram, simplify: bool, online: bool) -> RowProgram:
    """What is printed of ``program``: with ``simplify`` rewritten first, then with the cheaper operators.

    ``online``: maxima and sums of exponentials below them are taken in one sweep, and so are sums of what is below.
    """
    if simplify:
        program = simplified(without_second_scale(program), online)
        program = with_sums_below(program) if online else program
    return with_cheaper_operators(program, online)


def without_second_scale(program: RowProgram) -> RowProgram:
    """A scaled softmax that scales after it subtracts the maximum, and before it in rows that are not finite, always does
    the latter, as eager does: one maximum is left of two, and the test of all elements is not needed.
    """
    tops = _tops(program)

    def chosen(part: Expr) -> Expr | None:
        if part.op != "where" or program.axis_of(part.args[0]) is not None:
            return None
        late, early = part.args[1:]
        return early if _is_scaled_late(late, early, tops) else None

    return _changed(program, chosen)


def _is_scaled_late(late: Expr, early: Expr, tops: dict[Expr, Expr]) -> bool:
    """``(x - max(x)) · k`` and ``x · k - max(x · k)`` for a positive number ``k``."""
    if not (_is_scaled(late) and late.args[0].op == early.op == "sub" and _is_scaled(early.args[0])):
        return False
    below, factor = late.args
    plain, scaled = _plain(below.args[0]), early.args[0]
    return (
        scaled.op == late.op
        and scaled.args[1] is factor
        and _plain(scaled.args[0]) is plain
        and tops.get(below.args[1]) is below.args[0]
        and tops.get(early.args[1]) is scaled
    )


def _is_scaled(value: Expr) -> bool:
    """By a positive number."""
    return value.op in ("mul", "truediv") and value.args[1].op == "const" and 0 < value.args[1].value < float("inf")


def _plain(value: Expr) -> Expr:
    return value.args[0] if _is_scaled(value) and value.args[1].value == 1 else value


def with_sums_below(program: RowProgram) -> RowProgram:
    """Sums of ``x - max(x) - h``, ``h`` a number of the row, as the sum of ``x - max(x)``, all of one sign, less ``n · h``."""
    tops = {first.result: first for first, _ in online_pairs(program)}
    known: dict[Expr, Expr] = {}
    statements: list[Statement] = []
    for step in program.statements:
        below = _below_and_number(program, step, tops) if isinstance(step, Reduce) else None
        if not isinstance(step, Reduce) or below is None:
            statements.append(step)
            continue
        result = ex.var(f"{step.result.value[0]}_below", None, step.result.dtype)
        statements.append(replace(step, result=result, value=below[0]))
        many = ex.make("mul", result.dtype, (below[1], ex.const(float(program.columns), result.dtype)))
        known[step.result] = ex.make("sub", result.dtype, (result, many))
    if not known:
        return program
    changed = replace(program, statements=tuple(statements))
    return _changed(changed, known.get)


def _below_and_number(program: RowProgram, step: Reduce, tops: dict[Expr, Reduce]) -> tuple[Expr, Expr] | None:
    if step.op != "sum" or step.axis != COLUMNS or step.value.op != "sub" or step.value.dtype != "float32":
        return None
    below, number = step.value.args
    if below.op != "sub" or below.args[1] not in tops or program.axis_of(number) is not None:
        return None
    return (below, number) if tops[below.args[1]].value is below.args[0] else None


def sums_below(program: RowProgram) -> tuple[tuple[Reduce, Reduce], ...]:
    """Maxima with exponentials below them, each with a sum of what is below it: all can be had in one sweep."""
    tops = {first.result: first for first, _ in online_pairs(program)}
    return tuple(
        (tops[step.value.args[1]], step)
        for step in program.statements
        if isinstance(step, Reduce)
        and step.op == "sum"
        and step.axis == COLUMNS
        and step.value.op == "sub"
        and step.value.args[1] in tops
        and tops[step.value.args[1]].value is step.value.args[0]
    )


def with_cheaper_operators(program: RowProgram, online: bool) -> RowProgram:
    """Exponentials without denormal results where these count for nothing, and divisions without a path for divisors that
    do not occur. ``online`` leaves the sums that go with a maximum as they are recognised.
    """
    tops, pairs = _tops(program), online_pairs(program)
    totals = {second.result for _, second in pairs}
    left = {second.result for _, second in pairs} if online else set()

    def cheaper(part: Expr) -> Expr | None:
        if part.op in ("eq", "ne"):
            return _column_compared(program, part)
        if part.dtype != "float32":
            return None
        if part.op == "exp" and _is_below(part.args[0], tops, totals):
            return ex.make("exp_below", part.dtype, tuple(inside(argument) for argument in part.args))
        if part.op == "add" and any(map(_is_not_small, part.args)) and any(one.op == "exp" for one in part.args):
            return ex.make("add", part.dtype, tuple(map(exponential, part.args)))
        if part.op != "truediv" or program.axis_of(part) is None:
            return None
        value, by = part.args
        if by in totals:
            one = ex.make("truediv", part.dtype, (ex.const(1.0, part.dtype), by))
            return ex.make("mul", part.dtype, (inside(value), one))
        if by.op == "add" and any(map(_is_one, by.args)) and any(one.op == "exp" for one in by.args):
            return ex.make("fast_truediv", part.dtype, (inside(value), inside(by)))
        return None

    def exponential(part: Expr) -> Expr:
        if part.op == "exp" and part.dtype == "float32":
            return ex.make("exp_below", part.dtype, tuple(inside(argument) for argument in part.args))
        return inside(part)

    def inside(part: Expr) -> Expr:
        return ex.substitute(part, cheaper)

    statements = [
        replace(step, value=inside(step.value)) if isinstance(step, Reduce) and step.result not in left else step
        for step in program.statements
    ]
    return program.rewritten(statements, inside)


def _column_compared(program: RowProgram, part: Expr) -> Expr | None:
    """A comparison of which column this is with a number of the row, in 32 bits instead of 64."""
    for position, number in (part.args, part.args[::-1]):
        column = position.args[0] if position.op == "as_value" else position
        is_column = position.op == "as_value" and column.op == "var" and column.value[0] == COLUMNS
        if is_column and number.dtype == "int64" and program.axis_of(number) is None and program.columns < 2**31:
            return ex.make(part.op, "bool", (column, ex.make("as_column", "int32", (number,), program.columns)))
    return None


def _tops(program: RowProgram) -> dict[Expr, Expr]:
    """What each maximum over the columns is the maximum of."""
    return {
        step.result: step.value
        for step in program.statements
        if isinstance(step, Reduce) and step.op == "amax" and step.axis == COLUMNS
    }


def _is_below(value: Expr, tops: dict[Expr, Expr], totals: set[Expr]) -> bool:
    """Whether ``value`` is never above zero, and zero somewhere in the row or less than it by one number."""
    if _is_scaled(value):
        return _is_below(value.args[0], tops, totals)
    if value.op == "where":
        return all(_is_below(part, tops, totals) for part in value.args[1:])
    if value.op != "sub":
        return False
    first, second = value.args
    if second.op == "log" and second.args[0] in totals:
        return _is_below(first, tops, totals)
    return tops.get(second) is first


def _is_not_small(value: Expr) -> bool:
    return value.op == "const" and _NOT_SMALL <= value.value < float("inf")


def _is_one(value: Expr) -> bool:
    return value.op == "const" and 1 <= value.value < float("inf")


def _changed(program: RowProgram, change: Callable[[Expr], Expr | None]) -> RowProgram:
    """With subexpressions replaced wherever they stand, and what is then unused left out."""

    def changed(value: Expr) -> Expr:
        return ex.substitute(value, change)

    statements = [
        step if isinstance(step, Element) else replace(step, value=changed(step.value)) for step in program.statements
    ]
    return without_unused(program.rewritten(statements, changed))
