"""Expressions whose reads are flat, a pointer and an element offset, so that axes can be merged and tasks compared.

``flatten`` turns ``load`` into ``read`` (args: offset; value: (input, stored dtype)) and ``bucketize`` into ``search``
(args: value, offset of the first border; value: (input, stored dtype, count, right, step)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...graph.region import TensorSpec
from . import expression as ex
from .expression import Expr

ACCESSES = ("read", "search")


def flatten(expr: Expr, inputs: Sequence[TensorSpec]) -> Expr:
    """``expr`` with every load and search addressed by element offset within its input."""
    done: dict[Expr, Expr] = {}
    for part in ex.walk(expr):
        args = tuple(done[argument] for argument in part.args)
        if part.op == "load":
            spec = inputs[part.value]
            offset = ex.isum([ex.imul(at, ex.size(step)) for at, step in zip(args, spec.stride, strict=True)])
            done[part] = ex.make("read", part.dtype, (offset,), (part.value, spec.dtype))
        elif part.op == "bucketize":
            which, count, right, step = part.value
            done[part] = ex.make("search", "int64", args, (which, inputs[which].dtype, count, right, step))
        else:
            done[part] = part if args == part.args else ex.make(part.op, part.dtype, args, part.value)
    return done[expr]


@dataclass(frozen=True)
class Linear:
    """An offset as integer multiples of variables plus ``rest``, which may hold variables in other ways."""

    coefficients: Mapping[str, int]
    rest: Expr

    def of(self, variable: str) -> int:
        return self.coefficients.get(variable, 0)


def linear(offset: Expr) -> Linear:
    coefficients: dict[str, int] = {}
    rest: list[Expr] = []
    for term in terms(offset):
        factor, scale = (term.args[0], term.args[1].value) if _is_scaled(term) else (term, 1)
        if factor.op == "var" and factor.dtype == "int64" and factor.value[1] is not None:
            coefficients[factor.value[0]] = coefficients.get(factor.value[0], 0) + int(scale)
        else:
            rest.append(term)
    return Linear(coefficients, ex.isum(rest))


def _is_scaled(term: Expr) -> bool:
    return term.op == "mul" and term.args[1].op == "const"


def terms(offset: Expr) -> Iterator[Expr]:
    """The summands of an index expression; a summand that is itself a scaled sum is left whole."""
    if offset.op == "add" and offset.dtype == "int64":
        for argument in offset.args:
            yield from terms(argument)
    elif offset.op == "as_value":
        yield from terms(offset.args[0])
    else:
        yield offset


def offset_of(access: Expr) -> Expr:
    """The offset of a ``read`` or a ``search``."""
    return access.args[-1]


def accesses(exprs: Iterable[Expr]) -> list[Expr]:
    seen: set[Expr] = set()
    return [part for expr in exprs for part in ex.walk(expr, seen) if part.op in ACCESSES]


def variables_outside_offsets(exprs: Iterable[Expr]) -> set[str]:
    """Variables used in any other way than linearly within the offset of an access."""
    found: set[str] = set()
    seen: set[Expr] = set()
    stack = list(exprs)
    while stack:
        part = stack.pop()
        if part in seen:
            continue
        seen.add(part)
        if part.op == "var":
            found.add(part.value[0])
        elif part.op in ACCESSES:
            stack.extend(part.args[:-1])
            stack.append(linear(offset_of(part)).rest)
        else:
            stack.extend(part.args)
    return found


def replace(expr: Expr, new: Callable[[Expr, bool], Expr | None], is_offset: bool = False) -> Expr:
    """``expr`` with the parts that ``new`` maps replaced, from the top down, and the sums of offsets folded again.

    ``new(part, is_offset)`` is asked once for each role a part plays; ``None`` keeps it.
    """
    done: dict[tuple[Expr, bool], Expr] = {}

    def visit(part: Expr, folds: bool) -> Expr:
        key = (part, folds)
        if key not in done:
            found = new(part, folds)
            done[key] = _rebuilt(part, folds) if found is None else found
        return done[key]

    def _rebuilt(part: Expr, folds: bool) -> Expr:
        if not part.args:
            return part
        sums = folds and part.dtype == "int64" and part.op in ("add", "mul")
        last = len(part.args) - 1
        args = tuple(
            visit(argument, sums or (part.op in ACCESSES and position == last))
            for position, argument in enumerate(part.args)
        )
        if args == part.args:
            return part
        if sums:
            return ex.iadd(*args) if part.op == "add" else ex.imul(*args)
        return ex.make(part.op, part.dtype, args, part.value)

    return visit(expr, is_offset)


def replace_variables(expr: Expr, mapping: Mapping[str, Expr], is_offset: bool = False) -> Expr:
    return replace(expr, lambda part, _: mapping.get(part.value[0]) if part.op == "var" else None, is_offset)
