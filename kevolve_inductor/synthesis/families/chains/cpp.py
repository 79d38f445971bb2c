"""Pools as C++: samples over threads; of each, blocks of columns whose sums stay in vector registers along the axis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ....exc import UnsupportedError
from ....platforms.platform import Target
from ...expression import CPP_PRELUDE, used_only
from ...expression import expression as ex
from ...expression.access import replace_variables
from ...expression.cpp import literal, signature, to_storage
from ...expression.expression import Expr
from ...expression.flat import FlatCppPrinter
from ...expression.remainder import CPP_REMAINDER
from ...family import Schedule, ScheduleSpace
from ..common import seeded, vector_choices, vector_pragma
from ..interaction.pieces import free_parts
from .plan import COLUMN, POSITION, ROW, ChainPlan, Pool, Reduce, Store

# Less than this many elements in all are not worth waking threads up for.
_SERIAL, _LEAST_ELEMENTS = 32768, 4096
# Partial sums of this many positions are added up, so that the error of long sums grows slowly.
_PARTIAL = 64
# Accumulators of one row that fit into a first-level cache beside what is read.
_WIDEST_ROW = 2048
_START = {"sum": 0.0, "maximum": float("-inf"), "minimum": float("inf")}
_HELPERS = {"maximum": "kv_max", "minimum": "kv_min"}


def cpp_space(plan: ChainPlan, target: Target) -> ScheduleSpace:
    """``lanes``: columns at once. Registers hold two to four vectors of sums; whole rows are read in order instead."""
    widest = max(int(pool.tile.columns) for pool in plan.pools)
    vector = 16 if "avx512f" in target.features else 8
    lanes = [widest, *(n for n in (4 * vector, 2 * vector, vector) if n < widest)]
    choices = {"lanes": tuple(lanes), "unroll": (4, 8, 2, 1), "block": (64, 16, 256), **vector_choices(target)}
    return seeded(choices, {"unroll": 8}, {"unroll": 1}, *({"lanes": n} for n in lanes[1:]), {"vector": 256})


def check_pools(plan: ChainPlan) -> None:
    """Raises ``UnsupportedError`` where rows are too wide, or there is too little to do for a kernel of its own.

    Eager rounds every float16 value on the way, which decides what overflows and does not vectorise.
    """
    if any(spec.dtype == "float16" for spec in (*plan.inputs, *plan.outputs)):
        raise UnsupportedError("dtype", "float16 is rounded at every step")
    elements = plan.seen_rows * max(pool.extent * int(pool.tile.columns) for pool in plan.pools)
    if elements < _LEAST_ELEMENTS:
        raise UnsupportedError("size", f"{elements} elements are too few for a kernel of their own")
    if max(int(pool.tile.columns) for pool in plan.pools) > _WIDEST_ROW:
        raise UnsupportedError("size", "sums of one sample do not fit into a first-level cache")


def source_of(plan: ChainPlan, schedule: Schedule) -> str:
    """Of a plan without products."""
    head = signature("kevolve_kernel", plan.inputs, plan.outputs, plan.symbols).replace("__restrict in", "__restrict a")
    elements = max(pool.extent * int(pool.tile.columns) for pool in plan.pools)
    rows, block = f"int64_t({plan.rows})", int(schedule["block"])
    body = [
        "int64_t failed = 0;",
        f"#pragma omp parallel for schedule(static) reduction(|:failed) if({rows} * {elements} > {_SERIAL})",
        f"for (int64_t first = 0; first < {rows}; first += {block}) {{",
        "int64_t bad = 0;",
        f"for (int64_t {ROW} = first; {ROW} < std::min<int64_t>(first + {block}, {rows}); ++{ROW}) {{",
        *_row(plan, int(schedule["lanes"]), int(schedule["unroll"])), "}", "failed |= bad;", "}", "return failed != 0;",
    ]  # fmt: skip
    return used_only("\n".join([vector_pragma(schedule), CPP_PRELUDE, CPP_REMAINDER, f"{head} {{", *body, "}", ""]))


def _row(plan: ChainPlan, lanes: int, unroll: int) -> Iterable[str]:
    for extent in dict.fromkeys(pool.extent for pool in plan.pools):
        yield from _pools([pool for pool in plan.pools if pool.extent == extent], lanes, unroll)
    for step in plan.steps:
        if isinstance(step, Reduce):
            yield from _reduced(step, plan)
    for store in plan.stores:
        yield from _stored(store, plan)


# --- pools ---


def _pools(pools: Sequence[Pool], lanes: int, unroll: int) -> Iterable[str]:
    columns = int(pools[0].tile.columns)
    lanes = min(lanes, columns)
    whole = columns - columns % lanes
    for pool in pools:
        yield f"float {pool.name}[{columns}];"
    yield from [f"for (int64_t c = 0; c < {whole}; c += {lanes}) {{", *_block(pools, lanes, unroll), "}"]
    if columns > whole:
        yield from [f"{{ const int64_t c = {whole};", *_block(pools, columns - whole, unroll), "}"]


def _block(pools: Sequence[Pool], lanes: int, unroll: int) -> Iterable[str]:
    """Columns ``c`` to ``c + lanes`` of all pools."""
    extent = pools[0].extent
    sums = [f"s{k}" for k in range(len(pools))]
    yield f"float {', '.join(f'{name}[{lanes}] = {{}}' for name in sums)};"
    if extent <= _PARTIAL:
        yield from _positions(pools, sums, lanes, unroll, ("0", str(extent)))
    else:
        parts = [f"t{name}" for name in sums]
        yield f"for (int64_t m = 0; m < {extent}; m += {_PARTIAL}) {{"
        yield f"float {', '.join(f'{name}[{lanes}] = {{}}' for name in parts)};"
        yield from _positions(pools, parts, lanes, unroll, ("m", f"std::min<int64_t>(m + {_PARTIAL}, {extent})"))
        yield from _lanes(lanes, [f"{total}[l] += {part}[l];" for total, part in zip(sums, parts, strict=True)])
        yield "}"
    yield from _lanes(lanes, [f"{pool.name}[c + l] = {name}[l];" for pool, name in zip(pools, sums, strict=True)])


def _positions(
    pools: Sequence[Pool], sums: Sequence[str], lanes: int, unroll: int, span: tuple[str, str]
) -> Iterable[str]:
    """The sums over positions within ``span``, ``unroll`` at a time and then one by one."""
    yield f"int64_t {POSITION} = {span[0]};"
    for step in dict.fromkeys((unroll, 1)):
        outer, inner = FlatCppPrinter("o"), FlatCppPrinter("e")
        added = []
        for pool, name in zip(pools, sums, strict=True):
            values = [_nested(outer, inner, _at(pool, k)) for k in range(step)]
            added.append(f"{name}[l] += {_balanced(values)};")
        yield f"for (; {POSITION} + {step} <= {span[1]}; {POSITION} += {step}) {{"
        yield from outer.lines
        yield from _lanes(lanes, [f"const int64_t {COLUMN} = c + l;", *inner.lines, *added])
        yield "}"


def _at(pool: Pool, ahead: int) -> Expr:
    """The value ``ahead`` positions after the one at hand."""
    position = ex.iadd(ex.var(POSITION, pool.extent), ex.index(ahead))
    return replace_variables(pool.tile.value, {POSITION: position})


def _balanced(values: Sequence[str]) -> str:
    """A sum in pairs, and pairs of pairs."""
    if len(values) == 1:
        return values[0]
    half = len(values) // 2
    return f"({_balanced(values[:half])} + {_balanced(values[half:])})"


def _nested(outer: FlatCppPrinter, inner: FlatCppPrinter, value: Expr) -> str:
    """``value`` in a loop over columns; what is the same for all of them is computed in front of it."""
    for part in free_parts(value, {COLUMN}):
        inner.name(part, outer.value(part))
    return inner.value(value)


def _lanes(lanes: int, body: Iterable[str]) -> Iterable[str]:
    return ["#pragma GCC ivdep", f"for (int64_t l = 0; l < {lanes}; ++l) {{", *body, "}"]


# --- what is computed of them ---


def _printer(plan: ChainPlan, prefix: str) -> FlatCppPrinter:
    printer = FlatCppPrinter(prefix)
    for step in plan.steps:
        text = step.name if isinstance(step, Reduce) else f"{step.name}[{COLUMN}]"
        printer.name(ex.var(step.name, None, "float32"), text)
    return printer


def _reduced(step: Reduce, plan: ChainPlan) -> Iterable[str]:
    printer = _printer(plan, "r")
    value = printer.value(step.tile.value)
    start = literal(_START[step.combine], "float32")
    yield f"float {step.name} = {start};"
    if step.combine == "sum":
        yield f"#pragma omp simd reduction(+:{step.name})"
        joined = f"{step.name} += {value};"
    else:
        joined = f"{step.name} = {_HELPERS[step.combine]}({step.name}, {value});"
    yield f"for (int64_t {COLUMN} = 0; {COLUMN} < {step.tile.columns}; ++{COLUMN}) {{"
    yield from [*printer.lines, joined, "}"]


def _stored(store: Store, plan: ChainPlan) -> Iterable[str]:
    printer = _printer(plan, "w")
    value, at = printer.value(store.tile.value), printer.value(store.offset)
    yield "#pragma GCC ivdep"
    yield f"for (int64_t {COLUMN} = 0; {COLUMN} < {store.tile.columns}; ++{COLUMN}) {{"
    yield from printer.lines
    yield f"out{store.output}[{at}] = {to_storage(value, plan.outputs[store.output].dtype)};"
    yield "}"
