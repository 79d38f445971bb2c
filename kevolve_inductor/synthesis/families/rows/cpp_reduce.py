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
    if reduce.op == "sum" and reduce.value.dtype == "float64":
        return _in_place(body, reduce)
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


def _in_place(body: RowBody, reduce: Reduce) -> Step:
    """Added up as they are computed: a block of doubles takes longer to write and to read than to sum."""
    total, name = body.fresh("a"), reduce.result.value[0]
    body.define_scalar(name)
    final = CPP_TYPES[reduce.result.dtype]
    return Step(
        reduce.value,
        lambda body, printer: [f"{total} += {body.value(printer, reduce.value)};"],
        declares=[f"double {total} = 0;"],
        finish=[f"const {final} {name} = {final}({total});"],
        sums=[total],
    )


def _all_but_last(reduce: Reduce, axis: str, extent: int) -> Expr | None:
    """What is summed where that is everything but the last position: the block there is simply one shorter."""
    value = reduce.value
    if reduce.op != "sum" or value.op != "where" or value.args[1].op != "const" or value.args[1].value != 0:
        return None
    position = ex.make("as_value", "int64", (ex.var(axis, extent),))
    is_last = ex.make("eq", "bool", (position, ex.index(extent - 1)))
    return value.args[2] if value.args[0] is is_last else None


def _online(body: RowBody, top: Reduce, total: Reduce, axis: str, block: int) -> Step:
    """A maximum and the sum of exponentials below it: a block's own maximum is known before its exponentials are.

    Where later sweeps need these again, they are kept, below the maximum that was known then, with what that makes of them.
    """
    step = Step(top.value, nothing)
    kind = CPP_TYPES[top.value.dtype]
    tile = tile_for(body, step, kind, axis, block, padded=False)
    sums, below, width = body.fresh("a"), body.fresh("m"), body.plan.width
    name, sum_name = top.result.value[0], total.result.value[0]
    for scalar in (name, sum_name):
        body.define_scalar(scalar)
    step.declares += [
        f"{kind} {name} = {lowest(top.value.dtype, kind)};",
        f"alignas(64) double {sums}[{width}] = {{}};",
    ]
    step.finish.append(f"const {kind} {sum_name} = {kind}(kv_online_sum({name}, {sums}));")
    extent = body.program.axes[axis]
    if total.value not in body.kept_below:
        step.declares.append(body.array(kind, below, block))
        step.folds.append(f"kv_online({name}, {sums}, {tile.name}, {below}, n);")
        return step
    shares, blocks = body.fresh("k"), -(-extent // block)
    step.declares += [body.array(kind, below, extent), body.array(kind, shares, blocks)]
    step.folds.append(f"kv_online({name}, {sums}, {tile.name}, {below} + c0, n);")
    step.folds.append(f"{shares}[c0 / {block}] = {name};")
    share = f"kv_online_share({shares}[i], {name})"
    step.finish.append(f"for (int i = 0; i < {blocks}; ++i) {shares}[i] = {share};")
    body.keep(total.value, below, f"({below}[{axis}] * {shares}[c0 / {block}])")
    return step
