"""Jagged tasks as C++: rows over threads; within a row, runs of positions that are read in step.

Every row has a fast way, taken if its index expressions prove (by their values at the ends of each run) to walk through
memory in step and in range, and a plain way that evaluates everything at every position, checks included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ....graph.region import TensorSpec
from ...expression import CPP_PRELUDE
from ...expression import expression as ex
from ...expression.access import replace
from ...expression.cpp import CPP_TYPES, literal, signature, to_storage
from ...expression.expression import Expr
from ...expression.remainder import CPP_REMAINDER, rewritten
from ...family import Schedule
from ..features.cpp import FlatCppPrinter
from ..features.tasks import Store, Task, merged
from .plan import ACCUMULATOR, POSITION, ROW, Dense, JaggedPlan, Reduce
from .windows import at_position, conditions, moves_in_step, resolved, uses

_INDEX_CHECKS = ("check_index", "within")
# Partial sums of this many positions are added up, so that the error of long sums grows slowly.
_PARTIAL = 64


class RowPrinter(FlatCppPrinter):
    """``guard``, where given, is a condition under which alone memory may be read."""

    def __init__(self, prefix: str, guard: str = "") -> None:
        super().__init__(prefix)
        self.guard = guard

    def within_row(self, prefix: str, guard: str = "") -> RowPrinter:
        inner = RowPrinter(prefix, guard)
        inner._names = dict(self._names)
        return inner

    def _read(self, expr: Expr, arguments: list[str]) -> str:
        text = super()._read(expr, arguments)
        if not self.guard or not ex.variables(expr.args[0]) - {ROW}:
            return text
        return f"({self.guard} ? {text} : {CPP_TYPES[expr.dtype]}(0))"


@dataclass(frozen=True)
class _Run:
    """Positions ``low <= at < high`` (C++ names) on which ``known`` says how conditions are."""

    low: str
    high: str
    known: dict[Expr, bool]


@dataclass(frozen=True)
class _Rows:
    """The part of a task's function that opens a row: statements, its runs, and whether the fast way exists at all."""

    printer: RowPrinter
    lines: list[str]
    runs: tuple[_Run, ...]
    moves: dict[Expr, int]

    @property
    def has_fast_way(self) -> bool:
        return bool(self.moves)


def source_of(plan: JaggedPlan, schedule: Schedule) -> str:
    method = schedule.get("remainder", "native")
    tasks = [_respelled(task, str(method)) for task in plan.tasks]
    functions = [_function(task, f"row{k}", plan, schedule) for k, task in enumerate(tasks)]
    entry = signature("kevolve_kernel", plan.inputs, plan.outputs, plan.symbols)
    arguments = [f"in{k}" for k in range(len(plan.inputs))] + [f"out{k}" for k in range(len(plan.outputs))]
    body = ["int64_t failed = 0;"]
    block = int(schedule["rows"])
    for k, task in enumerate(tasks):
        rows = task.rows[1]
        call = f"row{k}({', '.join([*arguments, *plan.symbols, 'block', f'std::min<int64_t>(block + {block}, {rows})'])})"
        body += [
            f"#pragma omp parallel for schedule({schedule['order']}) reduction(|:failed) if({rows} > {block})",
            f"for (int64_t block = 0; block < {rows}; block += {block}) failed |= {call};",
        ]
    text = [CPP_PRELUDE, CPP_REMAINDER, *functions, f"{entry} {{", *body, "return failed != 0;", "}", ""]
    return "\n".join(text)


def _respelled(task: Dense | Reduce, method: str) -> Dense | Reduce:
    from dataclasses import replace as with_fields

    if isinstance(task, Dense):
        return with_fields(task, value=rewritten(task.value, method))  # type: ignore[arg-type]
    return with_fields(task, body=rewritten(task.body, method), value=rewritten(task.value, method))  # type: ignore[arg-type]


def _function(task: Dense | Reduce, name: str, plan: JaggedPlan, schedule: Schedule) -> str:
    """``int64_t row<k>(pointers, sizes, begin, end)``: the rows from ``begin`` to ``end``."""
    head = signature(name, plan.inputs, plan.outputs, (*plan.symbols, "begin", "end"))
    head = head.replace('extern "C" int64_t', "static inline int64_t")
    head = head.replace(" in", " a").replace(" out", " o")
    body = _dense(task, plan.outputs, schedule) if isinstance(task, Dense) else _reduce(task, plan.outputs, schedule)
    loop = [f"for (int64_t {ROW} = begin; {ROW} < end; ++{ROW}) {{", *body, "}"]
    return "\n".join([f"{head} {{", "int64_t bad = 0;", *loop, "return bad;", "}"])


# --- opening a row ---


def _opened(value: Expr, length: int, fails: Sequence[Expr]) -> _Rows:
    """Row-level statements for a body that depends on positions ``0 … length - 1``."""
    printer = RowPrinter("r")
    lines: list[str] = []
    windows = conditions(value, POSITION)
    main = _main_window(value, list(windows))
    runs = [_Run("0", f"{length}", {})]
    quiet: list[str] = []
    known_outside: dict[Expr, bool] = {}
    bounds: dict[object, str] = {}
    for number, (condition, (window, holds)) in enumerate(windows.items()):
        if window not in bounds:
            bounds[window] = str(number)
            low = [printer.value(ex.cast(bound, "int64")) for bound in window.lows]
            high = [printer.value(ex.cast(bound, "int64")) for bound in window.highs]
            lines += [*printer.lines, *_bounds(number, low, high, length)]
            printer.lines.clear()
        own = bounds[window]
        if main is not None and window == windows[main][0]:
            runs = _split(own, bool(window.lows), runs if len(runs) > 1 else [], condition, holds, length)
        else:
            quiet.append(f"low{own} >= high{own}")
            known_outside[condition] = not holds
    runs = [_Run(run.low, run.high, {**run.known, **known_outside}) for run in runs]
    moves = {part: moves_in_step(part.args[0], POSITION) for part in _checks(value)}
    for fail in fails:
        lines_of_fail = printer.value(fail)
        lines += [*printer.lines, f"bad |= int64_t({lines_of_fail});"]
        printer.lines.clear()
    return _Rows(printer, lines, tuple(runs), {})


def _checks(value: Expr) -> list[Expr]:
    return [part for part in ex.walk(value) if part.op in _INDEX_CHECKS and uses(part, POSITION)]
