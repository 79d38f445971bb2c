"""Values that are the same in all columns but one, such as a one-hot row's: summed and computed once for a row."""

from __future__ import annotations

from dataclasses import replace

from ...expression import expression as ex
from ...expression.expression import Expr
from .program import COLUMNS, Element, Reduce, RowProgram, Statement, without_unused


def without_single_sums(program: RowProgram) -> RowProgram:
    """``program`` with sums of values that depend on the column only through ``column == place`` in closed form.

    With ``f`` the value where they are equal and ``g`` elsewhere such a sum is ``f + (columns - 1) g``, or ``columns · g``
    if ``place`` is no column. A ``g`` that is not finite gives what it gives in the sum.
    """
    known: dict[Expr, Expr] = {}
    kept: list[Statement] = []

    def change(value: Expr) -> Expr:
        return ex.substitute(value, lambda part: known.get(part)) if known else value

    for step in program.statements:
        if isinstance(step, Element):
            kept.append(step)
            continue
        step = _with_value(step, change(step.value))
        total = _total(step, program.columns) if isinstance(step, Reduce) else None
        if total is not None and isinstance(step, Reduce):
            known[step.result] = total
        else:
            kept.append(step)
    return without_unused(program.rewritten(kept, change)) if known else program


def _total(reduce: Reduce, columns: int) -> Expr | None:
    """The sum in closed form; ``None`` if it is not of this kind."""
    if reduce.op != "sum" or reduce.axis != COLUMNS or reduce.value.dtype not in ex.FLOATS:
        return None
    choice = _choice(reduce.value)
    if choice is None:
        return None
    test, hit, miss = choice.args
    place = _place(test)
    assert place is not None
    dtype = reduce.value.dtype
    inside = [ex.make("ge", "bool", (place, ex.index(0))), ex.make("lt", "bool", (place, ex.index(columns)))]
    one = ex.make("where", dtype, (ex.make("logical_and", "bool", tuple(inside)), hit, miss))
    others = ex.make("mul", dtype, (miss, ex.const(columns - 1, dtype)))
    return ex.make("add", dtype, (one, others))


def with_choices(program: RowProgram) -> RowProgram:
    """``program`` with such values as choices between two numbers of the row."""
    found: dict[Expr, Expr | None] = {}

    def chosen(part: Expr) -> Expr | None:
        if part not in found:
            found[part] = _choice(part) if part.args and part.dtype in ex.FLOATS else None
        return found[part]

    def change(value: Expr) -> Expr:
        return ex.substitute(value, chosen)

    if not any(_is_test(part) for value in program.expressions for part in ex.walk(value)):
        return program
    statements = [
        step if isinstance(step, Element) else _with_value(step, change(step.value)) for step in program.statements
    ]
    return program.rewritten(statements, change)


def _choice(value: Expr) -> Expr | None:
    """``where(column == place, f, g)`` where ``value`` is that."""
    tests = [part for part in ex.walk(value) if _is_test(part)]
    if len(tests) != 1:
        return None
    hit, miss = (_decided(value, tests[0], outcome) for outcome in (True, False))
    if COLUMNS in ex.variables(hit) | ex.variables(miss):
        return None
    return ex.make("where", value.dtype, (tests[0], hit, miss))


def _is_test(part: Expr) -> bool:
    return part.op == "eq" and _place(part) is not None


def _place(test: Expr) -> Expr | None:
    """What the column is compared with, a number of the row."""
    for column, place in (test.args, test.args[::-1]):
        while column.op in ("as_value", "cast") and column.dtype in ("int64", "int32"):
            column = column.args[0]
        if column.op == "var" and column.value[0] == COLUMNS and COLUMNS not in ex.variables(place):
            return place if place.dtype == "int64" else ex.cast(place, "int64")
    return None


def _decided(value: Expr, test: Expr, outcome: bool) -> Expr:
    """``value`` where ``test`` has that outcome."""

    done: dict[Expr, Expr] = {test: ex.const(outcome, "bool")}
    for part in ex.walk(value):
        if part in done:
            continue
        args = tuple(done[argument] for argument in part.args)
        if part.op == "where" and args[0].op == "const":
            done[part] = args[1 if args[0].value else 2]
        elif part.op in ("cast", "round") and args[0].op == "const":
            done[part] = ex.cast(args[0], part.value)
        else:
            done[part] = part if args == part.args else ex.make(part.op, part.dtype, args, part.value)
    return done[value]


def _with_value(step: Statement, value: Expr) -> Statement:
    return step if isinstance(step, Element) or step.value is value else replace(step, value=value)
