"""``1 + erf(x)``, of which gelu is made, where results have 16 bits: one exponential of a polynomial.

``erf`` has two cases, of which every thread computes both. What is left out is less than a hundredth of the rounding.
"""

from __future__ import annotations

from dataclasses import replace

from ...expression import expression as ex
from ...expression.expression import Expr
from .plan import ChainPlan, Dot, Pool, Reduce, Regrouped, Step, Store, Tile

ONE_PLUS_ERF = "one_plus_erf"

GELU_HELPERS = """
@triton.jit
def kv_one_plus_erf(x):
    # The logarithm of erfc(|x|) up to 4, to a relative error of 6e-6; beyond it results stay below 1e-7, as they should.
    z = tl.abs(x)
    p = 0.0004820059984922409 - 1.9976037947344594e-05 * z
    p = p * z - 0.00520487641915679
    p = p * z + 0.03386884927749634
    p = p * z - 0.1523846834897995
    p = p * z - 0.9171034693717957
    p = p * z - 1.6280598640441895
    tail = tl.exp2(p * z)
    return tl.where(x < 0, tail, 2.0 - tail)
"""


def shortened(plan: ChainPlan) -> ChainPlan:
    """``plan`` with a quicker ``1 + erf(x)`` if nothing of it is wider than 16 bits."""
    wide = [step for step in plan.steps if isinstance(step, Dot | Regrouped) and step.dtype not in ex.LOW_PRECISION]
    if wide or plan.dtype not in ex.LOW_PRECISION or any(o.dtype not in ex.LOW_PRECISION for o in plan.outputs):
        return plan
    stores = tuple(Store(_tile(store.tile), store.offset, store.output) for store in plan.stores)
    return replace(plan, steps=tuple(map(_step, plan.steps)), stores=stores)


def _step(step: Step) -> Step:
    if isinstance(step, Reduce | Pool):
        return replace(step, tile=_tile(step.tile))
    if isinstance(step, Dot):
        return replace(step, left=_tile(step.left), right=_tile(step.right))
    return replace(step, left=_tile(step.left), inner=_tile(step.inner), right=_tile(step.right))


def _tile(tile: Tile) -> Tile:
    return replace(tile, value=ex.rebuilt(tile.value, _quick))


def _quick(part: Expr) -> Expr | None:
    if part.op == "add" and part.dtype == "float32":
        for one, other in (part.args, part.args[::-1]):
            if one.op == "const" and one.value == 1 and other.op == "erf":
                return ex.make(ONE_PLUS_ERF, "float32", other.args)
    return None
