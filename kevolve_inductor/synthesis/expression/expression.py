"""Scalar expressions at one point of an iteration space: what a kernel computes for one element.

An :class:`Expr` is interned (equal structure is the same object), so graphs with heavy sharing stay small and printing
each object once gives common subexpressions for free. Values are held in compute types: float32 stands for float32,
bfloat16 and float16 (a ``round`` node marks where eager would round), integers and booleans for themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any
from weakref import WeakValueDictionary

import torch

from ...graph.dims import Dim

LOW_PRECISION = ("bfloat16", "float16")
FLOATS = ("float32", "float64")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8")


class Expr:
    """``op`` with ``args``; ``value`` holds what is not an expression (constant, name, input index, …).

    Leaves: ``const`` (value: number), ``var`` (value: name, extent: exclusive upper bound or ``None``), ``size`` (value:
    a symbolic dimension), ``load`` (value: input index; args: one int64 index per dimension of that input).
    ``check_index`` (value: (extent, wrap)) yields its argument as a valid index, or flags the kernel as failed;
    ``check_divisor`` yields its argument, or 1 and flags the kernel where it is zero; ``within`` (value: (extent,)) clamps
    an index into an axis, for reads whose result is discarded; ``as_value`` turns an index into a full int64 number.
    ``bucketize`` (args: value, offset of the first border; value: (input of borders, count, right, step in elements))
    yields a position. Everything else is pointwise, see ``operators``.
    """

    __slots__ = ("op", "args", "dtype", "value", "__weakref__")
    op: str
    args: tuple[Expr, ...]
    dtype: str
    value: Any

    def __repr__(self) -> str:
        inner = ", ".join([repr(a) for a in self.args] + ([repr(self.value)] if self.value is not None else []))
        return f"{self.op}({inner})"


_INTERNED: WeakValueDictionary[tuple[Any, ...], Expr] = WeakValueDictionary()


def make(op: str, dtype: str, args: tuple[Expr, ...] = (), value: Any = None) -> Expr:
    """The interned expression. ``value`` must be hashable; its type is part of the identity (``1`` is not ``True``)."""
    key = (op, dtype, tuple(map(id, args)), repr(value))
    found = _INTERNED.get(key)
    if found is not None:
        return found
    expr = Expr()
    expr.op, expr.dtype, expr.args, expr.value = op, dtype, args, value
    _INTERNED[key] = expr
    return expr


def const(value: int | float | bool, dtype: str) -> Expr:
    """A number; an integer beyond the range of ``dtype`` wraps around, as it does in eager."""
    if dtype in FLOATS:
        return make("const", dtype, value=float(value))
    return make("const", dtype, value=bool(value) if dtype == "bool" else _wrapped(int(value), dtype))


def _wrapped(value: int, dtype: str) -> int:
    bits = int(dtype.removeprefix("u").removeprefix("int"))
    value &= (1 << bits) - 1
    return value if dtype.startswith("u") or value < 1 << (bits - 1) else value - (1 << bits)


def index(value: int) -> Expr:
    return const(value, "int64")


def var(name: str, extent: Dim | None = None, dtype: str = "int64") -> Expr:
    return make("var", dtype, value=(name, extent))


def size(dim: Dim) -> Expr:
    return index(dim) if isinstance(dim, int) else make("size", "int64", value=dim)


def _is_rounded(expr: Expr, dtype: str) -> bool:
    """Whether another rounding to the low precision ``dtype`` would change nothing."""
    match expr.op:
        case "round":
            return bool(expr.value == dtype)
        case "const":
            return cast(expr, dtype) == expr
        case "where":
            return all(_is_rounded(arg, dtype) for arg in expr.args[1:])
        case "neg" | "abs":
            return _is_rounded(expr.args[0], dtype)
    return False


def cast(expr: Expr, dtype: str) -> Expr:
    """``expr`` as ``dtype``; a low-precision dtype rounds and stays in float32."""
    if dtype in LOW_PRECISION:
        inner = cast(expr, "float32")
        if inner.op == "const":
            return const(torch.tensor(inner.value, dtype=getattr(torch, dtype)).item(), "float32")
        return inner if _is_rounded(inner, dtype) else make("round", "float32", (inner,), dtype)
    if expr.dtype == dtype:
        return expr
    if expr.op == "const" and not (dtype in INTEGERS and isinstance(expr.value, float)):
        return const(expr.value, dtype)
    return make("cast", dtype, (expr,), dtype)


# --- index arithmetic: int64, never negative unless a `sub` says so; divisions fold where ranges allow ---


def iadd(a: Expr, b: Expr) -> Expr:
    if a.op == "const" and b.op == "const":
        return index(a.value + b.value)
    if a.op == "const":
        return b if a.value == 0 else make("add", "int64", (b, a))
    if b.op == "const" and b.value == 0:
        return a
    if b.op == "const" and a.op == "add" and a.args[1].op == "const":
        return iadd(a.args[0], index(a.args[1].value + b.value))
    return make("add", "int64", (a, b))


def imul(a: Expr, b: Expr) -> Expr:
    if a.op == "const" and b.op != "const":
        a, b = b, a
    if b.op == "const":
        if a.op == "const":
            return index(a.value * b.value)
        if b.value == 0:
            return b
        if b.value == 1:
            return a
        if a.op == "mul" and a.args[1].op == "const":
            return imul(a.args[0], index(a.args[1].value * b.value))
        if a.op == "add":
            return iadd(imul(a.args[0], b), imul(a.args[1], b))
    return make("mul", "int64", (a, b))


def isum(terms: Iterator[Expr] | list[Expr]) -> Expr:
    return reduce(iadd, terms, index(0))


def idivmod(a: Expr, n: Dim) -> tuple[Expr, Expr]:
    """``a // n`` and ``a % n`` for a non-negative index; multiples of ``n`` and small rests fold away."""
    if n == 1:
        return a, index(0)
    if isinstance(n, int):
        multiples = [t for t in _terms(a) if _coefficient(t) % n == 0]
        rests = [t for t in _terms(a) if _coefficient(t) % n != 0]
        quotient = isum([_scaled_down(t, n) for t in multiples])
        rest = isum(rests)
    else:
        quotient, rest = index(0), a
    bound = upper_bound(rest)
    if bound is not None and (bound == n or (isinstance(bound, int) and isinstance(n, int) and bound <= n)):
        return quotient, rest
    by = size(n)
    return iadd(quotient, make("idiv", "int64", (rest, by))), make("imod", "int64", (rest, by))


def upper_bound(expr: Expr) -> Dim | None:
    """Exclusive upper bound of an index expression, where one is known."""
    if expr.op == "const":
        return int(expr.value) + 1
    if expr.op == "var":
        extent: Dim | None = expr.value[1]
        return extent
    if expr.op == "imod" and expr.args[1].op == "const":
        return int(expr.args[1].value)
    if expr.op == "as_value":
        return upper_bound(expr.args[0])
    bounds = [upper_bound(argument) for argument in expr.args]
    if not all(isinstance(bound, int) for bound in bounds):
        return None
    values = [bound for bound in bounds if isinstance(bound, int)]
    if expr.op == "add":
        return values[0] + values[1] - 1
    if expr.op == "mul":
        return (values[0] - 1) * (values[1] - 1) + 1
    if expr.op == "idiv" and expr.args[1].op == "const":
        return (values[0] - 1) // int(expr.args[1].value) + 1
    return None


def lower_bound(expr: Expr) -> int | None:
    """Inclusive lower bound of an index expression, where one is known."""
    if expr.op == "const":
        return int(expr.value)
    if expr.op in ("var", "imod", "check_index", "within"):
        return 0
    if expr.op not in ("add", "mul", "idiv", "as_value"):
        return None
    bounds = [lower_bound(argument) for argument in expr.args]
    values = [bound for bound in bounds if bound is not None]
    if len(values) < len(bounds) or (expr.op != "add" and min(values) < 0):
        return None
    if expr.op == "idiv":
        return values[0] // int(expr.args[1].value) if expr.args[1].op == "const" else 0
    return sum(values) if expr.op == "add" else math.prod(values)


def distance(low: Expr, high: Expr) -> int | None:
    """``high - low`` of two index expressions that differ by a constant, else ``None``."""
    ends = [
        (e, 0) if e.op != "add" or e.args[1].op != "const" else (e.args[0], int(e.args[1].value)) for e in (low, high)
    ]
    ends = [(index(0), int(e.value)) if e.op == "const" else (e, more) for e, more in ends]
    return ends[1][1] - ends[0][1] if ends[0][0] is ends[1][0] else None


def _terms(expr: Expr) -> list[Expr]:
    return [t for a in expr.args for t in _terms(a)] if expr.op == "add" else [expr]


def _coefficient(term: Expr) -> int:
    if term.op == "const":
        return int(term.value)
    return int(term.args[1].value) if term.op == "mul" and term.args[1].op == "const" else 1


def _scaled_down(term: Expr, n: int) -> Expr:
    if term.op == "const":
        return index(term.value // n)
    return imul(term.args[0], index(_coefficient(term) // n))


# --- walking ---


def walk(expr: Expr, seen: set[Expr] | None = None) -> Iterator[Expr]:
    """Every distinct subexpression once, arguments first."""
    seen = set() if seen is None else seen
    stack: list[tuple[Expr, bool]] = [(expr, False)]
    while stack:
        current, done = stack.pop()
        if done:
            yield current
        elif current not in seen:
            seen.add(current)
            stack.append((current, True))
            stack.extend((argument, False) for argument in reversed(current.args))


def variables(expr: Expr) -> set[str]:
    return {e.value[0] for e in walk(expr) if e.op == "var"}


def loads(expr: Expr) -> list[Expr]:
    return [e for e in walk(expr) if e.op == "load"]


def rebuilt(expr: Expr, rule: Callable[[Expr], Expr | None]) -> Expr:
    """``expr`` with ``rule`` applied to every subexpression once that is so to its arguments; ``None`` keeps it."""
    done: dict[Expr, Expr] = {}
    for part in walk(expr):
        args = tuple(done[argument] for argument in part.args)
        same = part if args == part.args else make(part.op, part.dtype, args, part.value)
        new = rule(same)
        done[part] = same if new is None else new
    return done[expr]


def substitute(expr: Expr, replace: Callable[[Expr], Expr | None]) -> Expr:
    """``expr`` with every subexpression for which ``replace`` gives another one replaced, from the top down."""
    done: dict[Expr, Expr] = {}

    def visit(current: Expr) -> Expr:
        if current not in done:
            new = replace(current)
            if new is None:
                args = tuple(visit(argument) for argument in current.args)
                new = current if args == current.args else make(current.op, current.dtype, args, current.value)
            done[current] = new
        return done[current]

    return visit(expr)
