"""Rewriting a program into one that selects the same with less arithmetic.

The rules hold for any values, NaN and infinities included; results may differ in the last bits, towards the exact ones.
"""

from __future__ import annotations

from dataclasses import replace

from ...expression import expression as ex
from ...expression.expression import FLOATS, Expr
from .program import (
    COLUMNS,
    Element,
    Reduce,
    RowProgram,
    Select,
    Statement,
    online_pairs,
    results_of,
    used_by,
    without_unused,
)
from .single import with_choices, without_single_sums

# The first column of the current block.
FIRST = "c0"
_RISING = {"exp", "sigmoid", "tanh"}


def simplified(program: RowProgram, online: bool = False) -> RowProgram:
    """``program`` with all rules applied. ``online``: maxima and sums of exponentials that go together are left so."""
    shorter = shortened(program)
    return shorter if online and online_pairs(shorter) else without_maxima(shorter)


def shortened(program: RowProgram) -> RowProgram:
    """``program`` with less to compute; maxima are still reductions of their own."""
    return cancelled(selected_early(with_choices(without_single_sums(without_guards(program)))))


def without_guards(program: RowProgram) -> RowProgram:
    """The sum in a logarithm of a sum of exponentials, which shifts by the maximum only if that is finite, becomes a softmax's.

    Below an infinite maximum that sum is infinite, or zero if all are ``-inf``; the other one comes with the maximum.
    """
    sums = {(s.value, s.axis): s.result for s in program.statements if isinstance(s, Reduce) and s.op == "sum"}
    known: dict[Expr, Expr] = {}
    statements: list[Statement] = []
    for step in program.statements:
        step = _renamed(step, known)
        top = _guarded_maximum(program, step)
        if top is not None and isinstance(step, Reduce):
            value, _ = step.value.args[0].args
            shifted = ex.make("exp", value.dtype, (ex.make("sub", value.dtype, (value, top)),))
            result = sums.get((shifted, step.axis))
            if result is None:
                result = ex.var(f"{step.result.value[0]}_plain", None, step.result.dtype)
                statements.append(replace(step, result=result, value=shifted))
            zero, infinite = (ex.const(number, top.dtype) for number in (0.0, float("inf")))
            whole = ex.make("where", top.dtype, (ex.make("gt", "bool", (top, zero)), infinite, zero))
            known[step.result] = ex.make("where", top.dtype, (_is_infinite(top), whole, result))
        else:
            statements.append(step)
    if not known:
        return program
    return without_unused(program.rewritten(_ordered(statements), lambda value: _rewritten(value, known)))


def _guarded_maximum(program: RowProgram, step: Statement) -> Expr | None:
    """The maximum ``m`` of ``x`` where ``step`` sums ``exp(x - (0 if |m| is infinite else m))``."""
    if not isinstance(step, Reduce) or step.op != "sum" or step.value.op != "exp" or step.value.args[0].op != "sub":
        return None
    value, shift = step.value.args[0].args
    if shift.op != "where" or shift.args[1].op != "const" or shift.args[1].value != 0:
        return None
    top = shift.args[2]
    return top if shift.args[0] is _is_infinite(top) and top in _maxima(program, value) else None


def _is_infinite(value: Expr) -> Expr:
    return ex.make("eq", "bool", (ex.make("abs", value.dtype, (value,)), ex.const(float("inf"), value.dtype)))


def with_exponentials_below(program: RowProgram) -> RowProgram:
    """Exponentials of something minus its own maximum are marked as such: ``exp_below`` is cheaper than ``exp``."""
    tops = {(s.value, s.result) for s in program.statements if isinstance(s, Reduce) and s.op == "amax"}

    def marked(part: Expr) -> Expr | None:
        if part.op == "exp" and part.args[0].op == "sub" and part.args[0].args in tops:
            return ex.make("exp_below", part.dtype, part.args)
        return None

    statements = [
        s if isinstance(s, Element) else replace(s, value=ex.substitute(s.value, marked)) for s in program.statements
    ]
    return program.rewritten(statements, lambda value: ex.substitute(value, marked))


def with_shares(program: RowProgram) -> RowProgram:
    """Division of columns by a softmax's sum as a product with its reciprocal, which exists: a sum is at least about 1.

    A division of vectors takes as long as half of an exponential.
    """
    sums = {second.result for _, second in online_pairs(program) if second.result.dtype == "float32"}

    def product(part: Expr) -> Expr | None:
        if part.op != "truediv" or part.args[1] not in sums or COLUMNS not in ex.variables(part.args[0]):
            return None
        value, total = part.args
        reciprocal = ex.make("truediv", part.dtype, (ex.const(1.0, part.dtype), total))
        return ex.make("mul", part.dtype, (ex.substitute(value, product), reciprocal))

    return program.rewritten(program.statements, lambda value: ex.substitute(value, product))


def with_constant_quotients(program: RowProgram, block: int) -> RowProgram:
    """Which channel a column is of, where all columns of a block are of the same: that of the block's first."""
    first = ex.var(FIRST, program.columns)

    def constant(part: Expr) -> Expr | None:
        if part.op != "idiv" or part.args[1].op != "const" or int(part.args[1].value) % block:
            return None
        position, by = part.args
        is_column = position.op == "var" and position.value[0] == COLUMNS
        return ex.make("idiv", part.dtype, (first, by)) if is_column else None

    statements = [
        s if isinstance(s, Element) else replace(s, value=ex.substitute(s.value, constant)) for s in program.statements
    ]
    return program.rewritten(statements, lambda value: ex.substitute(value, constant))


def selected_early(program: RowProgram) -> RowProgram:
    """Selections of rising functions of something select that instead.

    The largest of ``exp(x - m) / s`` are those of the largest ``x``. The function is then computed for what was
    selected only, and the selection need not wait for ``m`` and ``s``. Where rounding makes unequal ``x`` equal, the order
    among them changes, so this is left alone where eager promises the first of equal elements.
    """
    positive = {second.result for _, second in online_pairs(program)}
    replaced: dict[Expr, Expr] = {}
    statements: list[Statement] = []
    for step in program.statements:
        step = _renamed(step, replaced)
        if isinstance(step, Select) and step.any_of_equals:
            inner = _inner(program, step.value, positive)
            if inner is not step.value:
                values = ex.var(f"{_name(step)}_inner", None, inner.dtype)
                if step.values is not None:
                    replaced[step.values] = _with(step.value, inner, values)
                step = replace(step, value=inner, dtype=_dtype(program, inner), values=values)
        statements.append(step)
    return without_unused(program.rewritten(statements, lambda value: _rewritten(value, replaced)))


def _inner(program: RowProgram, value: Expr, positive: set[Expr]) -> Expr:
    """What ``value`` is a rising function of, along the axis."""
    axis = program.axis_of(value)
    while True:
        below = _argument(program, value, positive)
        if below is None or below.dtype not in FLOATS or program.axis_of(below) != axis:
            return value
        value = below


def _argument(program: RowProgram, value: Expr, positive: set[Expr]) -> Expr | None:
    """The argument of a step that rises with it and makes no NaN of a number that is not first in order anyway."""
    if value.op in _RISING or value.op == "round" or (value.op == "cast" and value.dtype in FLOATS):
        return value.args[0]
    if len(value.args) != 2:
        return None
    left, right = value.args
    if value.op == "truediv" and right in positive:
        return left
    if value.op == "mul" and right.op == "const" and 0 < right.value < float("inf"):
        return left
    if value.op in ("add", "sub") and right.op == "const" and abs(right.value) < float("inf"):
        return left
    if value.op == "sub" and right.op == "log" and right.args[0] in positive:
        return left
    if value.op == "sub" and right in _maxima(program, left):
        return left
    return None


def _maxima(program: RowProgram, value: Expr) -> list[Expr]:
    """Scalars that are the maximum of ``value``."""
    return [s.result for s in program.statements if isinstance(s, Reduce) and s.op == "amax" and s.value is value]


def _dtype(program: RowProgram, value: Expr) -> str:
    """The narrowest dtype known to hold ``value``."""
    return program.inputs[value.value].dtype if value.op == "load" else value.dtype


def _name(step: Select) -> str:
    result = step.values if step.values is not None else step.indices
    assert result is not None
    return str(result.value[0])


def _with(expr: Expr, old: Expr, new: Expr) -> Expr:
    return ex.substitute(expr, lambda part: new if part is old else None)


def _rewritten(expr: Expr, replaced: dict[Expr, Expr]) -> Expr:
    return ex.substitute(expr, lambda part: replaced.get(part)) if replaced else expr


def _renamed(step: Statement, replaced: dict[Expr, Expr]) -> Statement:
    if isinstance(step, Element):
        return step
    return replace(step, value=_rewritten(step.value, replaced))


def without_maxima(program: RowProgram) -> RowProgram:
    """A maximum of what is selected from, greatest first, is the first element selected."""
    statements: list[Statement] = []
    made: dict[Select, Expr] = {}
    scalars: dict[Expr, Expr] = {}
    for step in program.statements:
        if step in made:
            continue
        select = _same_choice(program, step) if isinstance(step, Reduce) else None
        if select is None or not isinstance(step, Reduce):
            statements.append(_renamed(step, scalars))
            continue
        if select not in made:
            first = select.values or ex.var(f"{_name(select)}_first", None, select.value.dtype)
            made[select] = first
            statements = [s for s in statements if s != select]
            statements.append(replace(select, values=first))
        if select.out is None:
            scalars[step.result] = made[select]
        else:
            statements.append(Element(step.result, made[select], 0))
    return without_unused(program.rewritten(_ordered(statements), lambda value: _rewritten(value, scalars)))


def _ordered(statements: list[Statement]) -> tuple[Statement, ...]:
    """Every statement behind those whose results it uses, else as they were."""
    maker = {name: step for step in statements for name in results_of(step)}
    done: dict[int, Statement] = {}

    def place(step: Statement) -> None:
        if id(step) not in done:
            for name in sorted(used_by(step)):
                if name in maker and maker[name] is not step:
                    place(maker[name])
            done[id(step)] = step

    for step in statements:
        place(step)
    return tuple(done.values())


def _same_choice(program: RowProgram, reduce: Reduce) -> Select | None:
    for select in program.selects:
        if (
            reduce.op == "amax"
            and select.order == "greatest"
            and select.axis == reduce.axis
            and select.value is reduce.value
        ):
            return select
    return None


def cancelled(program: RowProgram) -> RowProgram:
    """``(a / s) / sum(b / s)`` becomes ``a / sum(b)`` for the sum ``s`` of a softmax.

    ``s`` lies between 1 and the number of columns, or is NaN. The latter happens only if the row's maximum is not finite,
    and then, where the greatest were selected, ``a`` is NaN for the first of them and so is the sum.
    """
    positive = {second.result for _, second in online_pairs(program)}
    greatest = {s.out for s in program.selects if s.order == "greatest"}
    shorter: dict[Expr, tuple[Expr, Expr]] = {}
    statements: list[Statement] = []
    for step in program.statements:
        statements.append(step)
        if isinstance(step, Reduce) and step.op == "sum" and step.axis in greatest and _is_share(step.value, positive):
            result = ex.var(f"{step.result.value[0]}_whole", None, step.result.dtype)
            statements.append(replace(step, result=result, value=step.value.args[0]))
            shorter[step.result] = (step.value.args[1], result)

    def cancel(part: Expr) -> Expr | None:
        if part.op != "truediv" or part.args[1] not in shorter or not _is_share(part.args[0], positive):
            return None
        common, result = shorter[part.args[1]]
        return (
            ex.make("truediv", part.dtype, (part.args[0].args[0], result)) if part.args[0].args[1] is common else None
        )

    done = [s if isinstance(s, Element) else replace(s, value=ex.substitute(s.value, cancel)) for s in statements]
    return without_unused(program.rewritten(done, lambda value: ex.substitute(value, cancel)))


def _is_share(value: Expr, positive: set[Expr]) -> bool:
    return value.op == "truediv" and value.args[1] in positive
