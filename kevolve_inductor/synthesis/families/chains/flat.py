"""Expressions as kernels need them: reads by element offset, in which an index that one view has split and another one
joined again is one index, and without roundings that only lose accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence

from ....graph.region import TensorSpec
from ...expression import expression as ex
from ...expression.access import flatten, replace, terms
from ...expression.expression import Expr
from .plan import Dot, Pool, Reduce, Step, Tile


def folded(at: Expr) -> Expr:
    """An index or offset in which ``(x // n) * n * k + (x % n) * k`` is ``x * k``."""
    parts = [(_core(term), _factor(term)) for term in terms(at)]
    for place, (quotient, much) in enumerate(parts):
        if quotient.op != "idiv" or quotient.args[1].op != "const":
            continue
        x, n = quotient.args
        for other, (rest, little) in enumerate(parts):
            if rest.op == "imod" and rest.args == (x, n) and much == little * n.value:
                kept = [term for k, term in enumerate(terms(at)) if k not in (place, other)]
                return folded(ex.isum([ex.imul(x, ex.index(little)), *kept]))
    return at


def _changed(part: Expr) -> Expr | None:
    new = folded(part)
    return None if new is part else new


def _core(term: Expr) -> Expr:
    return term.args[0] if _is_scaled(term) else term


def _factor(term: Expr) -> int:
    return int(term.args[1].value) if _is_scaled(term) else 1


def _is_scaled(term: Expr) -> bool:
    return term.op == "mul" and term.args[1].op == "const"


def flat_tile(tile: Tile, inputs: Sequence[TensorSpec]) -> Tile:
    """``tile`` with reads in place of loads."""
    value = replace(
        flatten(_unrounded(tile.value), inputs), lambda part, is_offset: _changed(part) if is_offset else None
    )
    return Tile(value, tile.rows, tile.columns, tile.turned)


def flat_step(step: Step, inputs: Sequence[TensorSpec]) -> Step:
    if isinstance(step, Reduce):
        return Reduce(step.name, step.combine, flat_tile(step.tile, inputs), step.axes)
    if isinstance(step, Pool):
        return Pool(step.name, flat_tile(step.tile, inputs), step.extent)
    assert isinstance(step, Dot)
    left, right = flat_tile(step.left, inputs), flat_tile(step.right, inputs)
    return Dot(step.name, left, right, step.rows, step.depth, step.columns, step.dtype)


def _unrounded(value: Expr) -> Expr:
    """Without eager's roundings to bfloat16, whose range is that of float32; those to float16 decide what overflows."""
    done: dict[Expr, Expr] = {}
    for part in ex.walk(value):
        args = tuple(done[argument] for argument in part.args)
        same = part if args == part.args else ex.make(part.op, part.dtype, args, part.value)
        done[part] = args[0] if part.op == "round" and part.value == "bfloat16" else same
    return done[value]
