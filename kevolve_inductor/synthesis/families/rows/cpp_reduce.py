"""C++ reductions within a sweep: block by block into one accumulator per lane, brought together at the end of the row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...expression import expression as ex
from ...expression.cpp import CPP_TYPES
from ...expression.expression import Expr
from .cpp_tiles import Step, nothing, tile_for
from .cpp_types import highest, lowest, work_type
from .program import Reduce

if TYPE_CHECKING:
    from .cpp import RowBody


def reduce_step(body: RowBody, reduce: Reduce, axis: str, block: int) -> Step:
    if body.plan.lanes:
        return _in_lanes(body, reduce, axis, block)
    if reduce in body.joined:
        return _online(body, reduce, body.joined[reduce], axis, block)
    if reduce in body.joined.values():
        return Step(reduce.value, nothing)
    return _along_row(body, reduce, axis, block)


def _accumulator(reduce: Reduce) -> tuple[str, str, str]:
    """The types in which values and accumulators are held, and what the latter start from."""
    dtype, kind = reduce.value.dtype, work_type(reduce.value.dtype)
    held = "double" if reduce.op == "sum" and dtype == "float32" else kind
    return kind, held, {"sum": "0", "amax": lowest(dtype, kind), "amin": highest(dtype, kind)}[reduce.op]


def _in_lanes(body: RowBody, reduce: Reduce, axis: str, block: int) -> Step:
    step = Step(reduce.value, nothing)
    kind, held, identity = _accumulator(reduce)
    tile = tile_for(body, step, kind, axis, block)
    name, total = reduce.result.value[0], body.fresh("a")
    step.declares += [f"alignas(64) {held} {total}[L];", f"for (int l = 0; l < L; ++l) {total}[l] = {identity};"]
    step.folds.append(f"kv_fold_{reduce.op}<L>({total}, {tile.name}, n);")
    final = CPP_TYPES[reduce.result.dtype]
    body.define_scalar(name)
    step.finish += [body.scalar(final, name), f"for (int l = 0; l < L; ++l) {name}[l] = {final}({total}[l]);"]
    return step


def _along_row(body: RowBody, reduce: Reduce, axis: str, block: int) -> Step:
    extent = body.program.axes[axis]
    most = _all_but_last(reduce, axis, extent)
    count = "n" if most is None else f"std::min<int64_t>(n, {extent - 1} - c0)"
    step = Step(reduce.value if most is None else most, nothing)
    kind, held, identity = _accumulator(reduce)
    tile = tile_for(body, step, kind, axis, block, padded=False)
    name, total, width = reduce.result.value[0], body.fresh("a"), body.plan.width
    step.declares.append(f"alignas(64) {held} {total}[{width}];")
    step.declares.append(f"for (int l = 0; l < {width}; ++l) {total}[l] = {identity};")
    helper = "kv_total" if reduce.op == "sum" else f"kv_along_{reduce.op}"
    step.folds.append(f"{helper}({total}, {tile.name}, {count});")
    final = CPP_TYPES[reduce.result.dtype]
    body.define_scalar(name)
    step.finish.append(body.scalar(final, name))
    step.finish.append(f"{name} = {final}(kv_across_{reduce.op}<{width}>({total}));")
    return step


def _all_but_last(reduce: Reduce, axis: str, extent: int) -> Expr | None:
    """What is summed where that is everything but the last position: the block there is simply one shorter."""
    value = reduce.value
    if reduce.op != "sum" or value.op != "where" or value.args[1].op != "const" or value.args[1].value != 0:
        return None
    position = ex.make("as_value", "int64", (ex.var(axis, extent),))
    is_last = ex.make("eq", "bool", (position, ex.index(extent - 1)))
    return value.args[2] if value.args[0] is is_last else None


def _online(body: RowBody, top: Reduce, total: Reduce, axis: str, block: int) -> Step:
    """A maximum and the sum of exponentials below it: a block's own maximum is known before its exponentials are."""
    step = Step(top.value, nothing)
    kind = CPP_TYPES[top.value.dtype]
    tile = tile_for(body, step, kind, axis, block, padded=False)
    sums, width = body.fresh("a"), body.plan.width
    for one in (top, total):
        body.define_scalar(one.result.value[0])
    name, sum_name = top.result.value[0], total.result.value[0]
    step.declares += [f"{kind} {name} = {lowest(top.value.dtype, kind)};", f"alignas(64) double {sums}[{width}] = {{}};"]
    step.folds.append(f"kv_online<{block}>({name}, {sums}, {tile.name}, n);")
    step.finish.append(f"const {kind} {sum_name} = {kind}(kv_online_sum({name}, {sums}));")
    return step
