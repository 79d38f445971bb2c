"""Jagged tasks as C++: rows over threads; within a row, runs of positions that are read in step.

Every row has a fast way, taken if its index expressions prove (by their values at the ends of each run) to walk through
memory in step and in range, and a plain way that evaluates everything at every position, checks included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ....graph.dims import product
from ....graph.region import TensorSpec
from ...expression import CPP_PRELUDE, used_only
from ...expression import expression as ex
from ...expression.access import replace, replace_variables
from ...expression.cpp import CPP_TYPES, literal, signature, to_storage
from ...expression.expression import Expr
from ...expression.loops import Store, Task, merged
from ...expression.remainder import CPP_REMAINDER, Method, rewritten
from ...family import Schedule
from .plan import ACCUMULATOR, POSITION, ROW, Dense, JaggedPlan, JaggedTask, Reduce
from .runs import Opening, RowPrinter, Run, open_row, plain_fails

# Partial sums of this many positions are added up, so that the error of long sums grows slowly.
_PARTIAL = 64
_COMBINED = {"add": "{0} + {1}", "maximum": "kv_max({0}, {1})", "minimum": "kv_min({0}, {1})"}


def source_of(plan: JaggedPlan, schedule: Schedule) -> str:
    method: Method = schedule.get("remainder", "native")  # type: ignore[assignment]
    tasks = [respelled(task, method) for task in plan.tasks]
    functions = [_function(task, f"row{k}", plan, schedule) for k, task in enumerate(tasks)]
    entry = signature("kevolve_kernel", plan.inputs, plan.outputs, plan.symbols)
    arguments = [f"in{k}" for k in range(len(plan.inputs))] + [f"out{k}" for k in range(len(plan.outputs))]
    body = ["int64_t failed = 0;"]
    block = int(schedule["rows"])
    for k, task in enumerate(tasks):
        rows = f"int64_t({task.rows[1]})"
        last = f"std::min<int64_t>(block + {block}, {rows})"
        if _whole(task.fails):
            functions.append(_check(task, f"check{k}", plan))
            body.append(f"if (check{k}({', '.join([*arguments, *plan.symbols])})) return 1;")
        body += [
            f"#pragma omp parallel for schedule({schedule['order']}) reduction(|:failed) if({rows} > {block})",
            f"for (int64_t block = 0; block < {rows}; block += {block})",
            f"failed |= row{k}({', '.join([*arguments, *plan.symbols, 'block', last])});",
        ]
    text = [CPP_PRELUDE, CPP_REMAINDER, *functions, f"{entry} {{", *body, "return failed != 0;", "}", ""]
    return used_only("\n".join(text))


def respelled(task: JaggedTask, method: Method) -> JaggedTask:
    if isinstance(task, Dense):
        return dataclasses.replace(task, value=rewritten(task.value, method))
    return dataclasses.replace(task, body=rewritten(task.body, method), value=rewritten(task.value, method))


def _whole(fails: Sequence[Expr]) -> list[Expr]:
    """Those that are the same for all rows."""
    return [fail for fail in fails if not ex.variables(fail)]


def _of_rows(fails: Sequence[Expr]) -> list[Expr]:
    return [fail for fail in fails if ex.variables(fail)]


def _check(task: JaggedTask, name: str, plan: JaggedPlan) -> str:
    row = Opening()
    wrong = plain_fails(row, _whole(task.fails))
    return "\n".join(
        [f"{_head(name, plan, ())} {{", "int64_t bad = 0;", *row.lines, f"return bad | int64_t({wrong});", "}"]
    )


def _head(name: str, plan: JaggedPlan, more: tuple[str, ...]) -> str:
    head = signature(name, plan.inputs, plan.outputs, (*plan.symbols, *more))
    head = head.replace('extern "C" int64_t', "static inline int64_t")
    for k in range(len(plan.inputs)):
        head = head.replace(f"__restrict in{k}", f"__restrict a{k}")
    return head


def _function(task: JaggedTask, name: str, plan: JaggedPlan, schedule: Schedule) -> str:
    """``int64_t row<k>(pointers, sizes, begin, end)``: the rows from ``begin`` to ``end``."""
    head = _head(name, plan, ("begin", "end"))
    body = _dense(task, plan.outputs, schedule) if isinstance(task, Dense) else _reduce(task, plan.outputs)
    loop = [f"for (int64_t {ROW} = begin; {ROW} < end; ++{ROW}) {{", *body, "}"]
    return "\n".join([f"{head} {{", "int64_t bad = 0;", *loop, "return bad;", "}"])


def _guarded(row: Opening, fails: Sequence[Expr], body: list[str]) -> list[str]:
    """A row that fails is left alone: its reads may be out of range."""
    wrong = plain_fails(row, _of_rows(fails))
    opening = list(row.lines)
    if not _of_rows(fails):
        return [*opening, *body]
    return [*opening, f"if ({wrong}) {{ bad = 1; continue; }}", *body]


def _loops(axes: Sequence[tuple[str, str, str]], body: list[str], pragma: str = "#pragma GCC ivdep") -> list[str]:
    """Loops over (name, first, end), the last of which is vectorised."""
    heads = [f"for (int64_t {name} = {first}; {name} < {end}; ++{name}) {{" for name, first, end in axes]
    return [*heads[:-1], pragma, heads[-1], *body, "}" * len(heads)]


# --- one element per position ---


def _dense(task: Dense, outputs: Sequence[TensorSpec], schedule: Schedule) -> list[str]:
    row = open_row(task.value, task.length)
    plain = _plain(task, row.printer, outputs)
    if not row.has_fast_way:
        return _guarded(row, task.fails, plain)
    fast = _masked(task, row, outputs) if schedule.get("runs") == "masked" else None
    if fast is None:
        fast = [line for run in row.runs for line in _run(task, run, row.printer, outputs)]
    chosen = " & ".join(row.fast) or "true"
    return _guarded(row, task.fails, [f"if ({chosen}) {{", *fast, "} else {", *plain, "}"])


def _plain(task: Dense, outer: RowPrinter, outputs: Sequence[TensorSpec]) -> list[str]:
    printer = outer.within_row("p")
    value, offset = printer.value(task.value), printer.value(task.offset)
    store = f"out{task.output}[{offset}] = {to_storage(value, outputs[task.output].dtype)};"
    axes = [(POSITION, "0", f"{task.length}")] + [(name, "0", f"{extent}") for name, extent in task.inner]
    return _loops(axes, [*printer.lines, store], pragma="")


def _flat(task: Dense, value: Expr) -> Task:
    """The elements of a run as a task, positions and inner axes merged where all of memory allows."""
    axes = ((POSITION, task.length), *task.inner)
    position = {POSITION: ex.var(POSITION, task.length)}
    store = Store(
        replace_variables(value, position), replace_variables(task.offset, position, is_offset=True), task.output
    )
    return merged(Task(axes, (store,)))


def _scale(task: Dense, flat: Task) -> int:
    """Elements of the merged first axis for one position."""
    extent = flat.axes[0][1]
    assert isinstance(extent, int)
    return extent // task.length


def _run(task: Dense, run: Run, outer: RowPrinter, outputs: Sequence[TensorSpec]) -> list[str]:
    assert run.value is not None
    flat = _flat(task, run.value)
    scale = _scale(task, flat)
    printer = outer.within_row("t")
    store = flat.stores[0]
    value, offset = printer.value(store.value), printer.value(store.offset)
    body = [*printer.lines, f"out{task.output}[{offset}] = {to_storage(value, outputs[task.output].dtype)};"]
    axes = [(flat.axes[0][0], f"{run.low} * {scale}", f"{run.high} * {scale}")]
    axes += [(name, "0", f"{extent}") for name, extent in flat.axes[1:]]
    return _loops(axes, body)


def _masked(task: Dense, row: Opening, outputs: Sequence[TensorSpec]) -> list[str] | None:
    """One loop over all positions that reads under a condition: no branches, which short rows would mispredict.

    ``None`` where the runs outside the window read as well, or inner axes stay separate.
    """
    inside = [run for run in row.runs if run.inside]
    outside = [run for run in row.runs if not run.inside]
    if len(inside) != 1 or len({run.value for run in outside}) != 1:
        return None
    assert inside[0].value is not None and outside[0].value is not None
    flat, other = _flat(task, inside[0].value), _flat(task, outside[0].value)
    if len(flat.axes) != 1 or len(other.axes) != 1 or any(p.op == "read" for p in ex.walk(other.stores[0].value)):
        return None
    name, extent = flat.axes[0]
    scale = _scale(task, flat)
    printer = row.printer.within_row("t", guard="inside")
    printer.name(ex.var(other.axes[0][0], other.axes[0][1]), name)
    stored = outputs[task.output].dtype
    held, otherwise = printer.value(flat.stores[0].value), printer.value(other.stores[0].value)
    offset = printer.value(flat.stores[0].offset)
    chosen = to_storage(f"(inside ? {held} : {otherwise})", stored)
    condition = f"const bool inside = ({name} >= {inside[0].low} * {scale}) & ({name} < {inside[0].high} * {scale});"
    body = [condition, *printer.lines, f"out{task.output}[{offset}] = {chosen};"]
    return _loops([(name, "0", f"{extent}")], body)


# --- one element per row ---


def _reduce(task: Reduce, outputs: Sequence[TensorSpec]) -> list[str]:
    count = int(product(tuple(extent for _, extent in task.inner)))
    row = Opening() if task.length is None else open_row(task.body, task.length)
    kind = CPP_TYPES[task.held]
    wrong = plain_fails(row, _of_rows(task.fails))
    start = [f"{kind} {ACCUMULATOR}[{count}];"]
    start += [f"for (int64_t i = 0; i < {count}; ++i) {ACCUMULATOR}[i] = {literal(task.empty, task.held)};"]
    if task.length is None:
        spans = [(row.text(span.low), row.text(span.high)) for span in task.spans]
        body = [line for low, high in spans for line in _sum(task, _own(task), low, high, row.printer, count)]
    else:
        body = _sum(task, task.body, "0", f"{task.length}", row.printer, count)
        if row.has_fast_way:
            fast = [
                line
                for run in row.runs
                for line in _sum(task, run.value or task.body, run.low, run.high, row.printer, count)
            ]
            body = [f"if ({' & '.join(row.fast) or 'true'}) {{", *fast, "} else {", *body, "}"]
    check = [f"if ({wrong}) {{ bad = 1; continue; }}"] if _of_rows(task.fails) else []
    return [*row.lines, *check, *start, *body, *_finish(task, row.printer, outputs)]


def _own(task: Reduce) -> Expr:
    """The body of a segment: events are within the values, since its spans are."""

    def plain(part: Expr, _: bool) -> Expr | None:
        return part.args[0] if part.op == "within" and part.args[0].op == "var" else None

    return replace(task.body, plain)


def _place(task: Reduce) -> str:
    """Position of the current inner element among the accumulators."""
    text = "0"
    for name, extent in task.inner:
        text = f"({text} * {extent} + {name})" if text != "0" else name
    return text


def _sum(task: Reduce, value: Expr, low: str, high: str, outer: RowPrinter, count: int) -> list[str]:
    """Combine positions ``low … high`` into the accumulators."""
    if task.combine == "add" and value.op == "const" and value.value == 0:
        return []
    kind = CPP_TYPES[task.held]
    if task.combine != "add" or (task.length or 0) <= _PARTIAL:
        return _added(task, value, low, high, outer, ACCUMULATOR)
    inner = _added(task, value, "from", "to", outer, "part")
    return [
        f"for (int64_t from = {low}; from < {high}; from += {_PARTIAL}) {{",
        f"const int64_t to = std::min<int64_t>(from + {_PARTIAL}, {high});",
        f"{kind} part[{count}] = {{}};",
        *inner,
        f"for (int64_t i = 0; i < {count}; ++i) {ACCUMULATOR}[i] += part[i];",
        "}",
    ]


def _added(task: Reduce, value: Expr, low: str, high: str, outer: RowPrinter, target: str) -> list[str]:
    printer = outer.within_row("t")
    text = printer.value(value)
    axes = [(POSITION, low, high)] + [(name, "0", f"{extent}") for name, extent in task.inner]
    if task.inner or task.combine != "add" or task.held not in ex.FLOATS:
        place = f"{target}[{_place(task)}]"
        update = f"{place} = {CPP_TYPES[task.held]}({_COMBINED[task.combine].format(place, text)});"
        return _loops(axes, [*printer.lines, update], pragma="#pragma GCC ivdep" if task.inner else "")
    # One sum per row: the lanes of a vector add up parts of it.
    body = [*printer.lines, f"total += {text};"]
    loop = _loops(axes, body, pragma="#pragma omp simd reduction(+:total) reduction(|:bad)")
    return ["{", f"{CPP_TYPES[task.held]} total = 0;", *loop, f"{target}[0] += total;", "}"]


def _finish(task: Reduce, outer: RowPrinter, outputs: Sequence[TensorSpec]) -> list[str]:
    printer = outer.within_row("e")
    printer.name(ex.var(ACCUMULATOR, None, task.held), f"{ACCUMULATOR}[{_place(task)}]")
    value, offset = printer.value(task.value), printer.value(task.offset)
    body = [*printer.lines, f"out{task.output}[{offset}] = {to_storage(value, outputs[task.output].dtype)};"]
    axes = [(name, "0", f"{extent}") for name, extent in task.inner]
    return _loops(axes, body) if axes else ["{", *body, "}"]
