"""Scatters as C++: every thread owns some rows and some columns, and looks through all events for those of its rows.

No row has two writers, so that nothing is atomic and sums are in the order of the events, the same every time. An event's
row is found before its turn, which leaves time to fetch it. Sums of half precision are kept in single precision until all
events are in.
"""

from __future__ import annotations

from collections.abc import Callable

from ....graph.dims import Dim, product
from ....graph.region import ITEM_SIZES
from ....kernel import Argument, Kernel, Launch, Workspace
from ...expression import CPP_PRELUDE, used_only
from ...expression import expression as ex
from ...expression.cpp import CPP_STORAGE, from_storage, signature, to_storage
from ...expression.expression import Expr
from ...family import Schedule
from ..row_printers import CppRowPrinter
from .plan import ELEMENT, EVENT, ROW, Scatter, ScatterPlan

# Events that are looked through before those that belong here are combined.
_BLOCK = 1024
_LINE_BYTES = 64
_MOST_LINES = 8
_COMBINED = {"add": "{0} + {1}", "maximum": "kv_max({0}, {1})", "minimum": "kv_min({0}, {1})"}


def kernel_of(plan: ScatterPlan, arguments: tuple[Argument, ...], schedule: Schedule) -> Kernel:
    if not _is_widened(plan):
        return Kernel("cpp", _source_of(plan, schedule), (Launch("kevolve_kernel", arguments),))
    tensors, sizes = ([one for one in arguments if (one.kind == "size") == is_size] for is_size in (False, True))
    launch = Launch("kevolve_kernel", (*tensors, Argument("workspace", 0), *sizes))
    numel = str(product(plan.outputs[0].shape))
    return Kernel("cpp", _source_of(plan, schedule), (launch,), (Workspace(plan.scatter.held, numel),))


def _is_widened(plan: ScatterPlan) -> bool:
    return plan.scatter.combine == "add" and plan.outputs[0].dtype in ex.LOW_PRECISION


def _sums_dtype(plan: ScatterPlan) -> str:
    return plan.scatter.held if _is_widened(plan) else plan.outputs[0].dtype


def _source_of(plan: ScatterPlan, schedule: Schedule) -> str:
    return used_only("\n".join([CPP_PRELUDE, *_function(plan, int(schedule["ahead"])), *_entry(plan, schedule), ""]))


def _function(plan: ScatterPlan, ahead: int) -> list[str]:
    """``scatter(pointers, begin, end, low, high, sizes)``: the rows and the columns that one thread owns."""
    scatter, dtype = plan.scatter, _sums_dtype(plan)
    parameters = [f"const {CPP_STORAGE[spec.dtype]}* __restrict a{k}" for k, spec in enumerate(plan.inputs)]
    parameters.append(f"{CPP_STORAGE[dtype]}* __restrict out")
    if _is_widened(plan):
        parameters.append(f"{CPP_STORAGE[plan.outputs[0].dtype]}* __restrict result")
    parameters += [f"const int64_t {name}" for name in ("begin", "end", "low", "high", *plan.symbols)]
    return [
        f"static inline int64_t scatter({', '.join(parameters)}) {{",
        "int64_t bad = 0;",
        *_start(scatter, dtype),
        f"const int64_t events = {_number(scatter.events)};",
        f"int64_t own_event[{_BLOCK}], own_row[{_BLOCK}];",
        f"for (int64_t block = 0; block < events; block += {_BLOCK}) {{",
        *_selected(scatter),
        *_combined(scatter, dtype, ahead),
        "}",
        *(_rounded(scatter, plan.outputs[0].dtype) if _is_widened(plan) else []),
        "return bad;",
        "}",
    ]


def _entry(plan: ScatterPlan, schedule: Schedule) -> list[str]:
    ranges, parts, width = int(schedule["ranges"]), int(schedule["parts"]), _width(plan.scatter)
    sums = ["sums", "out0"] if _is_widened(plan) else ["out0"]
    given = [*(f"in{k}" for k in range(len(plan.inputs))), *sums, "begin", "end", "low", "high", *plan.symbols]
    head = signature("kevolve_kernel", plan.inputs, plan.outputs, plan.symbols)
    if _is_widened(plan):
        declared = f"__restrict out0, {CPP_STORAGE[plan.scatter.held]}* __restrict sums"
        head = head.replace("__restrict out0", declared)
    return [
        f"{head} {{",
        "int64_t failed = 0;",
        f"const int64_t rows = {_number(product(plan.scatter.rows))};",
        f"#pragma omp parallel for schedule({schedule['order']}) reduction(|:failed)",
        f"for (int64_t item = 0; item < {ranges * parts}; ++item) {{",
        f"const int64_t range = item / {parts}, part = item % {parts};",
        f"const int64_t begin = rows * range / {ranges}, end = rows * (range + 1) / {ranges};",
        f"const int64_t low = int64_t({width}) * part / {parts}, high = int64_t({width}) * (part + 1) / {parts};",
        f"failed |= scatter({', '.join(given)});",
        "}",
        "return failed != 0;",
        "}",
    ]


def _number(dim: Dim) -> str:
    return f"int64_t({dim})"


def _width(scatter: Scatter) -> int:
    return int(scatter.inner[-1][1]) if scatter.inner else 1


def _over_row(scatter: Scatter, body: list[str]) -> list[str]:
    """Loops over the elements of a row, of the last axis only those that belong here."""
    heads = [f"for (int64_t {name} = 0; {name} < {extent}; ++{name}) {{" for name, extent in scatter.inner[:-1]]
    if not scatter.inner:
        return ["{", *body, "}"]
    last = scatter.inner[-1][0]
    return [*heads, "#pragma GCC ivdep", f"for (int64_t {last} = low; {last} < high; ++{last}) {{", *body,
            "}" * (len(heads) + 1)]  # fmt: skip


def _varies(scatter: Scatter) -> Callable[[Expr], bool]:
    """Is an expression not the same for a whole row?"""
    names = {name for name, _ in scatter.inner}
    return lambda part: not names.isdisjoint(ex.variables(part))


def _start(scatter: Scatter, dtype: str) -> list[str]:
    """Every row as it is before the first event."""
    outer = CppRowPrinter("r")
    for expr in (scatter.base, scatter.offset):
        outer.hoisted(expr, _varies(scatter))
    inner = outer.within("s")
    value, offset = inner.value(scatter.base), inner.value(scatter.offset)
    store = f"out[{ROW} * {_number(scatter.step)} + {offset}] = {to_storage(value, dtype)};"
    body = [*outer.lines, *_over_row(scatter, [*inner.lines, store])]
    return [f"for (int64_t {ROW} = begin; {ROW} < end; ++{ROW}) {{", *body, "}"]


def _selected(scatter: Scatter) -> list[str]:
    """The events of a block that belong here, without a branch that would be foretold wrongly half of the time."""
    printer = CppRowPrinter("p")
    text = "int64_t(0)"
    for place, size in zip(scatter.places, scatter.rows, strict=True):
        text = f"({text} * {_number(size)} + {printer.value(place)})"
    belongs = "int64_t((row >= begin) & (row < end))"
    if scatter.condition is not None:
        belongs = f"({belongs} & int64_t({printer.value(scatter.condition)}))"
    return [
        f"const int64_t stop = std::min<int64_t>(block + {_BLOCK}, events);",
        "int64_t count = 0;",
        f"for (int64_t {EVENT} = block; {EVENT} < stop; ++{EVENT}) {{",
        *printer.lines,
        f"const int64_t {ROW} = {text};",
        f"own_event[count] = {EVENT}; own_row[count] = {ROW};",
        f"count += {belongs};",
        "}",
    ]


def _combined(scatter: Scatter, dtype: str, ahead: int) -> list[str]:
    outer = CppRowPrinter("c")
    for expr in (scatter.value, scatter.offset):
        outer.hoisted(expr, _varies(scatter))
    inner = outer.within("t")
    value, offset = inner.value(scatter.value), inner.value(scatter.offset)
    place = f"out[{ROW} * {_number(scatter.step)} + {offset}]"
    combined = _COMBINED[scatter.combine].format(ELEMENT, value)
    body = [*inner.lines, f"const auto {ELEMENT} = {from_storage(place, dtype)};"]
    body.append(f"{place} = {to_storage(combined, dtype)};")
    return [
        "for (int64_t k = 0; k < count; ++k) {",
        *(_fetched(scatter, dtype, ahead) if ahead else []),
        f"const int64_t {EVENT} = own_event[k], {ROW} = own_row[k];",
        *outer.lines,
        *_over_row(scatter, body),
        "}",
    ]


def _rounded(scatter: Scatter, dtype: str) -> list[str]:
    """The sums of the rows and columns that belong here, as the result holds them."""
    printer = CppRowPrinter("w")
    place = f"{ROW} * {_number(scatter.step)} + {printer.value(scatter.offset)}"
    body = [*printer.lines, f"result[{place}] = {to_storage(f'out[{place}]', dtype)};"]
    return [f"for (int64_t {ROW} = begin; {ROW} < end; ++{ROW}) {{", *_over_row(scatter, body), "}"]


def _fetched(scatter: Scatter, dtype: str, ahead: int) -> list[str]:
    """Fetch the row of a later event, for writing."""
    size = ITEM_SIZES[dtype]
    lines = min(_MOST_LINES, -(-_width(scatter) * size // _LINE_BYTES))
    first = f"out + own_row[std::min<int64_t>(k + {ahead}, count - 1)] * {_number(scatter.step)} + low"
    fetch = [f"__builtin_prefetch(later + {k * _LINE_BYTES // size}, 1);" for k in range(lines)]
    return [f"const auto* later = {first};", *fetch]
