"""Stencils of small planes as C++: a block of rows is copied with its padding first, and whole vectors read the copy.

Beside the borders of a plane every tap is a condition, and in a row of 28 results these are a good part. The copy holds the
fold's neutral value where the source ends, in the type of the sums. A weight that is not a number would show there, where
its tap does not count: such a block goes the other way.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ...expression import expression as ex
from ...expression.access import replace_variables
from ...expression.cpp import CPP_TYPES, CppPrinter, literal, to_storage
from ...expression.expression import Expr
from .plan import FOLDED, PLACE, REACH, StencilPlan, StencilTask, tap_name
from .windows import MARKS, Window, simplified

# Rows of results that share what they read of the copy. Where vectors are written out, their sums, a column of weights and
# what is read fit into the registers of most machines.
_GROUP = 4
_GROUPS = (8, 7, 6, 5, 4)
_REGISTERS = 16
# Values of a copy: it stays in the first-level cache beside what is written.
_MOST_COPIED = 8192
# Sums are computed for whole vectors of the widest kind.
_VECTOR = 16
# Variables that stand for a position of the source along the rows and along a row.
_DOWN, _ALONG = "down", "along"


@dataclass(frozen=True)
class _Side:
    """One window's axis: place ``a`` has tap ``k`` at position ``a * stride + base + k * dilation`` of ``size``."""

    axis: str
    number: int
    window: Window
    base: int

    @property
    def reach(self) -> int:
        return (self.window.taps - 1) * self.window.dilation + 1


@dataclass(frozen=True)
class Padded:
    """What is copied (``source``, over ``down`` and ``along``) and what a tap makes of it."""

    task: StencilTask
    down: _Side
    along: _Side
    source: Expr
    weight: Expr | None
    guarded: bool

    @property
    def pitch(self) -> int:
        """Columns of the copy."""
        return (self.columns - 1) * self.along.window.stride + self.along.reach

    @property
    def columns(self) -> int:
        """Results of a row, rounded up to whole vectors."""
        return -(-int(self.task.inner[1]) // _VECTOR) * _VECTOR

    @property
    def most_rows(self) -> int:
        """Rows of results whose copy is small enough, 0 if not one is."""
        fitting = (_MOST_COPIED // self.pitch - self.down.reach) // self.down.window.stride + 1
        return max(fitting // self.group * self.group, 0)

    @property
    def group(self) -> int:
        """Rows of results that are computed at once: what a column of weights leaves registers for, few beyond the end."""
        if self.down.reach <= self.down.window.stride:
            return 1
        fitting = [size for size in _GROUPS if size + self.down.window.taps < _REGISTERS]
        if not self.in_vectors or not fitting:
            return _GROUP
        rows = int(self.task.axes[-2][1])
        return min(fitting, key=lambda size: (-(-rows // size) * size, -size))

    @property
    def in_vectors(self) -> bool:
        """Whether products are added up in vectors that are written out: left to itself, a compiler keeps many broadcast
        weights in registers and the sums, each waiting for the one before, in memory."""
        return self.weight is not None and self.along.window.stride == 1

    def copied_rows(self, block: int) -> int:
        whole = -(-block // self.group) * self.group
        return (whole - 1) * self.down.window.stride + self.down.reach


def padded(plan: StencilPlan) -> Padded | None:
    """``None`` where a stencil is not of the kind: two windows, one along the result's rows, all sizes known."""
    task = plan.task
    if len(plan.windows) != 2 or len(task.axes) < 2 or any(w.divide != 1 for w in plan.windows):
        return None
    down, along = (_side(task, task.axes[which]) for which in (-2, -1))
    asked = {name for store in task.stores for name in ex.variables(store.value)}
    marked = any(part.op in MARKS for store in task.stores for part in ex.walk(store.value))
    if down is None or along is None or asked & {PLACE, REACH} or marked:
        return None
    factors = task.term.args if task.term.op == "mul" else (task.term,)
    sources = [factor for factor in factors if any(part.op in MARKS for part in ex.walk(factor))]
    if len(sources) != 1 or (len(factors) == 2 and plan.kind != "sum"):
        return None
    source = _at_positions(sources[0], {down.number: _DOWN, along.number: _ALONG})
    weight = next((factor for factor in factors if factor is not sources[0]), None)
    moving = {down.axis, along.axis, *(tap_name(number) for number in range(2))}
    if source is None or ex.variables(source) & moving or (weight and ex.variables(weight) & {down.axis, along.axis}):
        return None
    return Padded(task, down, along, source, weight, weight is not None and bool(task.counted))


def _side(task: StencilTask, axis: tuple[str, object]) -> _Side | None:
    number = task.window_of(axis[0])
    if number is None or not isinstance(axis[1], int):
        return None
    window, place = task.plan.windows[number], task.plan.places[number]
    if not isinstance(window.size, int) or place is None:
        return None
    return _Side(axis[0], number, window, place[1] * window.stride + window.base + window.shift)


def _at_positions(source: Expr, names: Mapping[int, str]) -> Expr | None:
    """``source`` at positions that are known to lie inside."""
    done: dict[Expr, Expr] = {}
    for part in ex.walk(source):
        if part.op in ("clamped", "inside"):
            size, number = part.value
            inside = ex.var(names[number], size)
            done[part] = inside if part.op == "clamped" else ex.const(True, "bool")
        elif part.op in MARKS:
            return None
        else:
            args = tuple(done[argument] for argument in part.args)
            done[part] = part if args == part.args else ex.make(part.op, part.dtype, args, part.value)
    return simplified(done[source], {})


def block_text(found: Padded, head: str, new_printer: Callable[[], CppPrinter], rows: int) -> str:
    """The function of signature ``head`` that computes rows ``first`` to ``last``, ``rows`` of them at most.

    Every scope has a printer of its own.
    """
    kind = CPP_TYPES[found.task.plan.held]
    lines = [
        f"{head} {{",
        "int64_t bad = 0;",
        f"alignas(64) {kind} copy[{found.copied_rows(rows) * found.pitch}];",
        *_copied(found, kind, new_printer()),
    ]
    printer = new_printer()
    values = [printer.value(weight) for weight in _weights(found)]
    if found.in_vectors:
        lines += _taken(printer, f"const {kind} weights[] = {{{', '.join(values)}}};")
    else:
        lines += _taken(printer, *(f"const {kind} w{number} = {value};" for number, value in enumerate(values)))
    (name, extent), group, row = found.task.inner, found.group, found.down.axis
    step = found.down.window.stride * found.pitch
    lines += [
        f"alignas(64) {kind} sums[{group}][{found.columns}];",
        f"for (int64_t begin = first; begin < last; begin += {group}) {{",
        f"const {kind}* __restrict top = copy + (begin - first) * {step};",
        *(_multiplied(found, kind) if found.in_vectors else _folded(found, kind)),
        f"for (int64_t {row} = begin; {row} < std::min<int64_t>(begin + {group}, last); ++{row}) {{",
        "#pragma GCC ivdep",
        f"for (int64_t {name} = 0; {name} < {extent}; ++{name}) {{",
        *_stores(found, new_printer(), f"sums[{row} - begin][{name}]"),
        "}", "}", "}", "return bad;", "}",
    ]  # fmt: skip
    return "\n".join(lines)


def _folded(found: Padded, kind: str) -> list[str]:
    """The sums of a group of rows, left to the compiler to be vectorised."""
    plan, along = found.task.plan, found.along.window
    lines = ["#pragma GCC ivdep", f"for (int64_t c = 0; c < {found.columns}; ++c) {{"]
    lines += [f"{kind} s{row} = {literal(_neutral(found), plan.held)};" for row in range(found.group)]
    for line, used in _lines_of(found):
        for column in range(along.taps):
            place = line * found.pitch + column * along.dilation
            lines.append(f"{{ const {kind} x = top[c * {along.stride} + {place}];")
            for row, tap in used:
                weight = f" * w{tap * along.taps + column}" if found.weight is not None else ""
                lines.append(f"s{row} += x{weight};" if plan.kind == "sum" else f"s{row} = kv_greater(x, s{row});")
            lines.append("}")
    return [*lines, *(f"sums[{row}][c] = s{row};" for row in range(found.group)), "}"]


def _multiplied(found: Padded, kind: str) -> list[str]:
    """The sums of a group of rows in vectors, one column of weights after another."""
    along = found.along.window
    lines = [
        f"constexpr int lanes = kv_lanes<{kind}, {_VECTOR}>();",
        f"typedef {kind} vec __attribute__((vector_size(lanes * sizeof({kind}))));",
        f"for (int64_t c = 0; c < {found.columns}; c += lanes) {{",
        f"vec {', '.join(f's{row} = {{}}' for row in range(found.group))};",
        "#pragma GCC unroll 1",
        f"for (int64_t k = 0; k < {along.taps}; ++k) {{",
        *(f"const {kind} w{tap} = weights[{tap * along.taps} + k];" for tap in range(found.down.window.taps)),
        f"const {kind}* const at = top + c + k * {along.dilation};",
        "vec x;",
    ]
    for line, used in _lines_of(found):
        lines.append(f"std::memcpy(&x, at + {line * found.pitch}, sizeof x);")
        lines += [f"s{row} += x * w{tap};" for row, tap in used]
    return [*lines, "}", *(f"std::memcpy(&sums[{row}][c], &s{row}, sizeof s{row});" for row in range(found.group)), "}"]


def _lines_of(found: Padded) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """The copy's rows under a group, each with the rows of results that it belongs to and the tap that it is of each."""
    down = found.down.window
    for line in range(found.copied_rows(found.group)):
        taps = [(row, line - row * down.stride) for row in range(found.group)]
        used = [
            (row, at // down.dilation) for row, at in taps if 0 <= at < found.down.reach and at % down.dilation == 0
        ]
        if used:
            yield line, used


def guard_text(found: Padded, printer: CppPrinter) -> list[str]:
    """Lines after which ``guard`` is 0 where all weights are numbers."""
    texts = [f"({printer.value(weight)}) * 0" for weight in _weights(found)]
    return _taken(printer, f"const {CPP_TYPES[found.task.plan.held]} guard = {' + '.join(texts)};")


def _copied(found: Padded, kind: str, printer: CppPrinter) -> list[str]:
    """Lines that fill ``copy``."""
    down, along = found.down, found.along
    whole = f"(last - first + {found.group - 1}) / {found.group} * {found.group}"
    rows = f"({whole} - 1) * {down.window.stride} + {down.reach}"
    begin, end = max(-along.base, 0), min(int(along.window.size) - along.base, found.pitch)
    value = printer.value(found.source)
    return [
        f"for (int64_t r = 0; r < {rows}; ++r) {{",
        f"{kind}* __restrict line = copy + r * {found.pitch};",
        f"std::fill_n(line, {found.pitch}, {literal(_neutral(found), found.task.plan.held)});",
        f"const int64_t {_DOWN} = first * {down.window.stride} + ({down.base}) + r;",
        f"if ({_DOWN} < 0 || {_DOWN} >= {down.window.size}) continue;",
        "#pragma GCC ivdep",
        f"for (int64_t c = {begin}; c < {end}; ++c) {{",
        f"const int64_t {_ALONG} = c + ({along.base});",
        *_taken(printer, f"line[c] = {value};"),
        "}",
        "}",
    ]


def _stores(found: Padded, printer: CppPrinter, total: str) -> list[str]:
    plan = found.task.plan
    folded = ex.make("copied", plan.held, (), FOLDED)
    printer.name(folded, total)
    lines = []
    for store in found.task.stores:
        value = replace_variables(store.value, {FOLDED: folded})
        stored = to_storage(printer.value(value), plan.outputs[store.output].dtype)
        lines += _taken(printer, f"out{store.output}[{printer.value(store.offset)}] = {stored};")
    return lines


def _taken(printer: CppPrinter, *texts: str) -> list[str]:
    """What was printed since, then ``texts``."""
    lines = [*printer.lines, *texts]
    printer.lines.clear()
    return lines


def _weights(found: Padded) -> list[Expr]:
    """The other factor of each tap, in order."""
    if found.weight is None:
        return []
    taps = itertools.product(*(range(window.taps) for window in found.task.plan.windows))
    return [simplified(found.weight, {tap_name(k): ex.index(tap) for k, tap in enumerate(here)}) for here in taps]


def _neutral(found: Padded) -> float:
    return 0.0 if found.task.plan.kind == "sum" else -math.inf
