"""Cutting an axis where the expression along it changes, e.g. at the joints of a concatenation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ...expression import expression as ex
from ...expression.expression import Expr


@dataclass(frozen=True)
class Piece:
    """``count`` positions from ``start`` on, all given by ``value``, in which the axis' variable counts from 0.

    Where ``count`` is 1 the variable does not occur.
    """

    start: int
    count: int
    value: Expr


def cut(name: str, extent: int, build: Callable[[Expr], Expr]) -> Iterator[Piece]:
    """Pieces of an axis of ``extent`` positions; ``build(position)`` is the value there, in terms of variable ``name``."""
    pending = [(0, extent)] if extent else []
    while pending:
        start, count = pending.pop()
        value = build(position(name, start, count))
        joints = sorted(set(_joints(value, name, count)))
        if not joints:
            yield Piece(start, count, value)
            continue
        edges = [0, *joints, count]
        pieces = [(start + low, high - low) for low, high in zip(edges, edges[1:], strict=False)]
        pending.extend(reversed(pieces))


def position(name: str, start: int, count: int) -> Expr:
    """``start`` plus a variable below ``count``."""
    if count == 1:
        return ex.index(start)
    return ex.iadd(ex.var(name, count), ex.index(start))


def moved(index: Expr, variable: Expr, to: Expr) -> Expr:
    """``index`` with ``to`` for ``variable``, in the normal form of index arithmetic (which bounds are read from)."""
    if index is variable:
        return to
    args = tuple(moved(argument, variable, to) for argument in index.args)
    if args == index.args:
        return index
    if index.op == "add":
        return ex.iadd(*args)
    if index.op == "mul":
        return ex.imul(*args)
    return ex.make(index.op, index.dtype, args, index.value)


def _joints(value: Expr, name: str, count: int) -> Iterator[int]:
    """Positions at which a comparison in ``value`` changes its outcome, whatever the other variables are."""
    for part in ex.walk(value):
        if part.op == "lt" and part.args[1].op == "const" and part.dtype == "bool":
            linear = _linear(part.args[0], name)
            if linear is None:
                continue
            factor, low, high = linear
            limit = int(part.args[1].value)
            joint = -((low - limit) // factor)
            if 0 < joint < count and factor * (joint - 1) + high < limit:
                yield joint


def _linear(at: Expr, name: str) -> tuple[int, int, int] | None:
    """``(a, low, high)`` where ``at`` is ``a * name + rest`` with ``low <= rest <= high``."""
    factor = 0
    rest: list[Expr] = []
    for term in terms_of(at):
        scaled = term.op == "mul" and term.args[1].op == "const"
        core, scale = (term.args[0], int(term.args[1].value)) if scaled else (term, 1)
        if core.op == "var" and core.value[0] == name:
            factor += scale
        elif name in ex.variables(term):
            return None
        else:
            rest.append(term)
    remainder = ex.isum(rest)
    low, end = ex.lower_bound(remainder), ex.upper_bound(remainder)
    if factor <= 0 or low is None or not isinstance(end, int):
        return None
    return factor, low, end - 1


def terms_of(expr: Expr) -> list[Expr]:
    """The terms of a sum of indices."""
    return [term for argument in expr.args for term in terms_of(argument)] if expr.op == "add" else [expr]


def free_parts(value: Expr, inner: set[str]) -> list[Expr]:
    """The largest subexpressions without the variables ``inner`` that are worth a name."""
    found: list[Expr] = []
    stack = [value]
    while stack:
        part = stack.pop()
        if inner & ex.variables(part):
            stack.extend(part.args)
        elif part.op not in ("const", "var", "size"):
            found.append(part)
    return found
