"""Addresses of a row program: flat element offsets, and row axes that memory does not tell apart joined into one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

from ....graph.dims import Dim, evaluate, product
from ....graph.region import TensorSpec
from ...expression import expression as ex
from ...expression.expression import Expr


def terms(offset: Expr) -> list[Expr]:
    """The summands of an index expression."""
    if offset.op == "add" and offset.dtype == "int64":
        return [term for argument in offset.args for term in terms(argument)]
    return [offset]


def coefficient(term: Expr, name: str) -> Dim | None:
    """The factor of variable ``name`` in a summand; 0 where it does not occur, ``None`` where it occurs otherwise.

    Addresses of loads inside the summand (a table look-up) are their own matter and do not count.
    """
    if term.op == "var" and term.value[0] == name:
        return 1
    if name not in _direct_variables(term):
        return 0
    if term.op == "mul" and term.args[1].op in ("const", "size"):
        inner = coefficient(term.args[0], name)
        return None if inner is None else product((inner, term.args[1].value))
    return None


def _direct_variables(expr: Expr) -> set[str]:
    """Variables outside the addresses of loads."""
    found: set[str] = set()
    stack = [expr]
    while stack:
        part = stack.pop()
        if part.op == "var":
            found.add(part.value[0])
        if part.op != "load":
            stack.extend(part.args)
    return found


def slope(offset: Expr, name: str) -> Dim | None:
    """How far ``offset`` moves when ``name`` grows by one; ``None`` where that is not one number."""
    if name in ex.variables(offset) - _direct_variables(offset):
        return None
    return _slope(offset, name)


def _slope(offset: Expr, name: str) -> Dim | None:
    found = [coefficient(term, name) for term in terms(offset)]
    factors = [factor for factor in found if factor is None or factor != 0]
    if None in factors:
        return None
    if len(factors) > 1:
        known = [factor for factor in factors if isinstance(factor, int)]
        return sum(known) if len(known) == len(factors) else None
    return factors[0] if factors else 0


def without(offset: Expr, names: Sequence[str]) -> Expr:
    """``offset`` with every summand that depends on one of ``names`` left out."""
    return ex.isum([term for term in terms(offset) if not ex.variables(term) & set(names)])


def rejoined(offset: Expr) -> Expr:
    """``offset`` with ``(a // n) * n + a % n`` put together again, wherever a reshape took it apart."""
    parts = terms(offset)
    for part in parts:
        rest, factor = _scaled(part)
        if rest.op != "imod":
            continue
        whole = ex.make("idiv", "int64", rest.args)
        wanted = ex.imul(ex.imul(whole, rest.args[1]), ex.index(factor))
        if wanted in parts:
            left = [other for other in parts if other is not part and other is not wanted]
            return rejoined(ex.isum([*left, ex.imul(rest.args[0], ex.index(factor))]))
    return offset


def _scaled(term: Expr) -> tuple[Expr, int]:
    if term.op == "mul" and term.args[1].op == "const":
        return term.args[0], int(term.args[1].value)
    return term, 1


def flattened(expr: Expr, inputs: Sequence[TensorSpec]) -> Expr:
    """``expr`` with every load's index replaced by one element offset."""
    done: dict[Expr, Expr] = {}
    for part in ex.walk(expr):
        args = tuple(done[argument] for argument in part.args)
        if part.op == "load":
            args = (offset_of(args, inputs[part.value].stride),)
        done[part] = part if args == part.args else ex.make(part.op, part.dtype, args, part.value)
    return done[expr]


def offset_of(index: Sequence[Expr], stride: Sequence[Dim]) -> Expr:
    """The element offset of an index in a tensor with these strides."""
    return rejoined(ex.isum([ex.imul(at, ex.size(step)) for at, step in zip(index, stride, strict=True)]))


def joined_rows(
    rows: Sequence[tuple[str, Dim]], values: Sequence[Expr], offsets: Sequence[Expr]
) -> tuple[list[tuple[str, Dim]], list[Expr], list[Expr]]:
    """Neighbouring row variables made one wherever every address steps through both as through one axis."""
    left, done_values, done_offsets = list(rows), list(values), list(offsets)
    position = len(left) - 2
    while position >= 0:
        (outer, n_outer), (inner, n_inner) = left[position], left[position + 1]
        if _are_one_axis(outer, inner, n_inner, done_values, done_offsets):
            extent = product((n_outer, n_inner))
            merge = _merger(outer, inner, extent)
            done_values = [_replaced(value, merge) for value in done_values]
            done_offsets = [merge(offset) for offset in done_offsets]
            left[position : position + 2] = [(inner, extent)]
        position -= 1
    return left, done_values, done_offsets


def _are_one_axis(outer: str, inner: str, n_inner: Dim, values: Sequence[Expr], offsets: Sequence[Expr]) -> bool:
    if any(_leaks(value, {outer, inner}) for value in values):
        return False
    for offset in (*offsets, *_addresses(values)):
        steps = _slope(offset, outer), _slope(offset, inner)
        if steps[0] is None or steps[1] is None or not same(steps[0], product((steps[1], n_inner))):
            return False
    return True


def same(a: Dim, b: Dim) -> bool:
    """Whether two sizes agree under any symbols; tried on a few, which tells sums of products apart."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    source = random.Random(0)
    names = {name for dim in (a, b) if isinstance(dim, str) for name in _names(dim)}
    samples = [{name: source.randrange(2, 1000) for name in names} for _ in range(3)]
    return all(evaluate(a, sample) == evaluate(b, sample) for sample in samples)


def _names(dim: str) -> list[str]:
    words = "".join(letter if letter.isalnum() or letter == "_" else " " for letter in dim).split()
    return [word for word in words if not word.isdigit() and word not in ("cdiv", "min", "max")]


def _addresses(values: Iterable[Expr]) -> list[Expr]:
    seen: set[Expr] = set()
    return [part.args[0] for value in values for part in ex.walk(value, seen) if part.op == "load"]


def _leaks(value: Expr, names: set[str]) -> bool:
    """Whether a variable is used for anything but a multiple in an address."""
    stack, seen = [value], set[Expr]()
    while stack:
        part = stack.pop()
        if part in seen:
            continue
        seen.add(part)
        if part.op == "var" and part.value[0] in names:
            return True
        inner = terms(part.args[0]) if part.op == "load" else part.args
        stack.extend(t for t in inner if part.op != "load" or not _is_multiple(t, names))
    return False


def _is_multiple(term: Expr, names: set[str]) -> bool:
    return any(coefficient(term, name) not in (0, None) for name in names)


def _merger(outer: str, inner: str, extent: Dim) -> Callable[[Expr], Expr]:
    whole = ex.var(inner, extent)

    def merge(offset: Expr) -> Expr:
        kept = []
        for term in terms(offset):
            if coefficient(term, outer) == 0:
                step = coefficient(term, inner)
                kept.append(ex.imul(whole, ex.size(step)) if step else term)
        return ex.isum(kept)

    return merge


def _replaced(value: Expr, merge: Callable[[Expr], Expr]) -> Expr:
    done: dict[Expr, Expr] = {}
    for part in ex.walk(value):
        args = tuple(done[argument] for argument in part.args)
        if part.op == "load":
            args = (merge(args[0]),)
        done[part] = part if args == part.args else ex.make(part.op, part.dtype, args, part.value)
    return done[value]
