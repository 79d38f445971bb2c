"""Stencils as C++: rows along the fastest axis of the result are vectors, borders stand apart from the interior.

One function holds the text of a row; it is a template over whether the windows may leave the source across the row and
along it, so that in the interior every check folds away. A gradient of a strided operator writes one element for each
phase of the stride at a time, since every phase has taps of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from ....graph.dims import Dim, product
from ...expression import CPP_PRELUDE, used_only
from ...expression import expression as ex
from ...expression.access import accesses, linear, offset_of
from ...expression.cpp import CPP_TYPES, signature, to_storage
from ...expression.expression import Expr
from ...expression.flat import FlatCppPrinter
from ...expression.loops import Store
from ...expression.remainder import CPP_REMAINDER
from ...family import Schedule
from ..common import vector_pragma
from .padded import block_text, guard_text, padded
from .plan import StencilPlan
from .windows import MARKS, Window

# Less than this many taps in all are not worth waking threads up for.
_SERIAL = 65536
# More columns than this next to a row's ends are loops rather than a text each.
_EDGES = 8

_CPP_WINDOWS = r"""
template <bool whole> static inline int64_t kv_clamped(int64_t at, int64_t size) {
  return whole ? at : at < 0 ? 0 : at < size ? at : size - 1;
}
template <bool whole> static inline bool kv_inside(int64_t at, int64_t size) { return whole | ((at >= 0) & (at < size)); }
// Of a NaN and a number the NaN. One comparison each: a selection on two at once is not vectorised.
template <typename T> static inline T kv_greater(T a, T b) {
  T m = a > b ? a : b;
  return a != a ? a : m;
}
template <bool whole> static inline int64_t kv_covered(int64_t start, int64_t taps, int64_t low, int64_t high) {
  return whole ? taps : std::min<int64_t>(start + taps, high) - std::max<int64_t>(start, low);
}
// The quotient rounded up; what is negative is clamped later.
static inline int64_t kv_ceil(int64_t a, int64_t b) { return (a + (a > 0 ? b - 1 : 0)) / b; }
"""


def source_of(schedule: Schedule, *texts: str) -> str:
    """A whole source: the functions ``texts`` and the helpers that they call."""
    return used_only("\n".join([vector_pragma(schedule), CPP_PRELUDE, CPP_REMAINDER, _CPP_WINDOWS, *texts]) + "\n")


def stencil_text(plan: StencilPlan, schedule: Schedule) -> str:
    """The function ``kevolve_kernel`` and what it calls, without the prelude."""
    text = _Text(plan, schedule)
    return "\n".join([*text.functions(), text.entry()])


class WindowPrinter(FlatCppPrinter):
    """``flag(number)`` is the text that says whether window ``number`` is known to lie within the source."""

    def __init__(self, flag: Callable[[int | None], str]) -> None:
        super().__init__("t")
        self.flag = flag

    def specials(self) -> dict[str, Callable[[Expr, list[str]], str]]:
        marks = dict.fromkeys(MARKS, self._mark)
        return {**super().specials(), **marks, "maximum": lambda e, a: f"kv_greater({a[0]}, {a[1]})"}

    def _mark(self, expr: Expr, arguments: list[str]) -> str:
        *values, number = expr.value
        return f"kv_{expr.op}<{self.flag(number)}>({', '.join([arguments[0], *map(_dim, values)])})"


class _Text:
    """A *unit* is a block of rows of one point of the outer axes; ``lanes`` are the phases of the inner axis."""

    def __init__(self, plan: StencilPlan, schedule: Schedule) -> None:
        self.plan, self.task = plan, plan.task
        self.inner, self.extent = self.task.inner
        outer = self.task.axes[:-1]
        self.rows, self.outer = (outer[-1], outer[:-1]) if outer else (("row", 1), ())
        self.block, self.order = int(schedule["rows"]), schedule["order"]
        self.padded = padded(plan) if schedule.get("padded") else None
        if self.padded is not None:
            self.block = min(self.block, self.padded.most_rows)
        self.window = self.task.window_of(self.inner)
        self.lanes = phases(plan)
        # Channels that are the fastest axis have weights far apart: they are gathered once for many rows.
        # That is never together with windows along the fastest axis.
        self.width = int(schedule["lanes"]) if "lanes" in schedule and self.window is None else 0
        self.names = [f"a{k}" for k in range(len(plan.inputs))] + [f"out{k}" for k in range(len(plan.outputs))]

    def _signature(self, function: str, *numbers: str) -> str:
        head = signature(function, self.plan.inputs, self.plan.outputs, (*self.plan.symbols, *numbers))
        return head.replace("__restrict in", "__restrict a")

    def functions(self) -> list[str]:
        """What the entry calls."""
        if self.padded is None:
            return [self.row()]
        head = self._signature("kv_block", *(name for name, _ in self.outer), "first", "last")
        head = head.replace('extern "C" int64_t', "static inline int64_t")
        block = block_text(self.padded, head, lambda: WindowPrinter(lambda number: "false"), self.block)
        return [self.row(), block] if self.padded.guarded else [block]

    # --- a row ---

    def row(self) -> str:
        names = [name for name, _ in (*self.outer, self.rows)]
        head = self._signature("kv_row", *names, "from", "to")
        head = head.replace(
            'extern "C" int64_t', "template <bool across, bool along, int64_t column> static inline int64_t"
        )
        held = [f", const {CPP_TYPES[read.dtype]}* __restrict held{k}" for k, read in enumerate(self.held)]
        head = f"{head[:-1]}{''.join(held)}) {{"
        # A single column is a constant, of which the compiler folds all that depends on it.
        loop = ["#pragma GCC ivdep", "for (int64_t c = from; c < to; ++c) {"]
        at = f"const int64_t {'b' if len(self.lanes) > 1 else self.inner} = column < 0 ? c : column;"
        body = [*loop, at, *self._body(), "}"]
        return "\n".join([head, "int64_t bad = 0;", *body, "return bad;", "}"])

    @property
    def held(self) -> list[Expr]:
        """Reads that depend on the inner axis alone, with a stride."""
        if not self.width:
            return []
        found = dict.fromkeys(accesses([store.value for lane in self.lanes for store in lane]))
        return [read for read in found if is_gathered(read, self.inner)]

    def _flag(self, number: int | None) -> str:
        return "false" if number is None else "along" if number == self.window else "across"

    def _body(self) -> list[str]:
        printer = WindowPrinter(self._flag)
        for k, read in enumerate(self.held):
            printer.name(read, f"held{k}[c - from]")
        lines: list[str] = []
        for lane in self.lanes:
            for store in lane:
                value, offset = printer.value(store.value), printer.value(store.offset)
                stored = to_storage(value, self.plan.outputs[store.output].dtype)
                lines += [*printer.lines, f"out{store.output}[{offset}] = {stored};"]
                printer.lines.clear()
        return lines

    # --- all rows ---

    def entry(self) -> str:
        outer = product(tuple(extent for _, extent in self.outer))
        width = self.width or None
        head = self._signature("kevolve_kernel")
        total = f"units * {self.block} * extent > {max(1, _SERIAL // self.plan.taps)}"
        lines = [
            f"{head} {{",
            "int64_t failed = 0;",
            f"const int64_t extent = {_count(self.extent, len(self.lanes))}, rows = {_dim(self.rows[1])};",
            f"const int64_t blocks = (rows + {self.block - 1}) / {self.block};",
            f"const int64_t parts = {f'(extent + {width - 1}) / {width}' if width else 1};",
            f"const int64_t units = {_dim(outer)} * blocks * parts;",
            f"#pragma omp parallel for schedule({self.order}) reduction(|:failed) if(units > 1 && {total})",
            "for (int64_t unit = 0; unit < units; ++unit) {",
            *self._coordinates(),
            *self._gathered(),
            *self._row_calls(),
            "}",
            "return failed != 0;",
            "}",
        ]
        return "\n".join(lines)

    def _coordinates(self) -> list[str]:
        lines = [
            f"const int64_t first = unit / parts % blocks * {self.block};",
            f"const int64_t last = std::min<int64_t>(first + {self.block}, rows);",
            f"const int64_t start = unit % parts * {self.width or 1}, "
            f"end = {f'std::min<int64_t>(start + {self.width}, extent)' if self.width else 'extent'};",
        ]
        rest = "(unit / (parts * blocks))"
        for name, extent in reversed(self.outer[1:]):
            lines.append(f"const int64_t {name} = {rest} % {_dim(extent)};")
            rest = f"({rest} / {_dim(extent)})"
        return lines + [f"const int64_t {name} = {rest};" for name, _ in self.outer[:1]]

    def _gathered(self) -> list[str]:
        lines: list[str] = []
        printer = WindowPrinter(lambda number: "false")
        for k, read in enumerate(self.held):
            lines.append(f"alignas(64) {CPP_TYPES[read.dtype]} held{k}[{self.width}];")
            value = printer.value(read)
            loop = [f"for (int64_t {self.inner} = start; {self.inner} < end; ++{self.inner}) {{"]
            lines += [*loop, *printer.lines, f"held{k}[{self.inner} - start] = {value};", "}"]
            printer = WindowPrinter(lambda number: "false")
        return lines

    def _row_calls(self) -> list[str]:
        """Each row of the block, in spans."""
        names = [name for name, _ in (*self.outer, self.rows)]
        held = [f"held{k}" for k in range(len(self.held))]

        def calls(across: str) -> list[str]:
            lines = []
            for along, start, end, column in self._spans():
                arguments = ", ".join([*self.names, *self.plan.symbols, *names, start, end, *held])
                lines.append(f"failed |= kv_row<{across}, {along}, {column}>({arguments});")
            return lines

        if self.padded is not None and not self.padded.guarded:
            return [self._block_call()]
        rows = [
            f"for (int64_t {self.rows[0]} = first; {self.rows[0]} < last; ++{self.rows[0]}) {{",
            f"if ({self._is_free_across()}) {{", *calls("true"), "} else {", *calls("false"), "}",
            "}",
        ]  # fmt: skip
        if self.padded is None:
            return rows
        guard = guard_text(self.padded, WindowPrinter(lambda number: "false"))
        return [*guard, "if (guard == 0) {", self._block_call(), "} else {", *rows, "}"]

    def _block_call(self) -> str:
        arguments = [*self.names, *self.plan.symbols, *(name for name, _ in self.outer), "first", "last"]
        return f"failed |= kv_block({', '.join(arguments)});"

    def _spans(self) -> list[tuple[str, str, str, int]]:
        """A row's parts: whether windows stay within the source along it, from where to where, and the column if it is one.

        In front and behind of the interior stand few columns, of which each is a constant, or loops.
        """
        if self.window is None:
            return [("true", "start", "end", -1)]
        place, window, count = self.plan.places[self.window], self.plan.windows[self.window], len(self.lanes)
        assert place is not None
        low, high = max(-((place[1] - window.free_from()) // count), 0), _limit(window, place[1])
        if isinstance(high, int) and isinstance(self.extent, int):
            extent = self.extent // count
            low = min(low, extent)
            high = max(min(high // count, extent), low)
            edges = [*range(low), *range(high, extent)]
            if len(edges) <= _EDGES:
                inside = ("true", str(low), str(high), -1)
                return [inside, *(("false", str(at), str(at + 1), at) for at in edges)]
        first, behind = (
            f"std::min<int64_t>({low}, end)",
            f"std::max<int64_t>({low}, std::min<int64_t>({high} / {count}, end))",
        )
        behind = f"std::min<int64_t>({behind}, end)"
        return [("false", "start", first, -1), ("true", first, behind, -1), ("false", behind, "end", -1)]

    def _is_free_across(self) -> str:
        """The condition under which windows in all axes but the inner one lie within the source."""
        names = {name for name, _ in (*self.outer, self.rows)}
        conditions = []
        for number, (window, place) in enumerate(zip(self.plan.windows, self.plan.places, strict=True)):
            if number == self.window or (window.taps == 1 and place == (None, 0)):
                continue
            if place is None or place[0] not in names:
                return "false"
            conditions.append(
                f"{place[0]} >= {window.free_from() - place[1]} && {place[0]} < {_limit(window, place[1])}"
            )
        return " && ".join(conditions) or "true"


def phases(plan: StencilPlan) -> list[tuple[Store, ...]]:
    """The stores of each phase of the inner axis; one, unless the result is a strided operator's gradient."""
    task = plan.task
    number = task.window_of(task.inner[0])
    count = plan.windows[number].divide if number is not None else 1
    if count == 1 or not isinstance(task.inner[1], int) or task.inner[1] % count:
        return [task.unrolled({})]
    block = ex.imul(ex.var("b", task.inner[1] // count), ex.index(count))
    return [task.unrolled({task.inner[0]: ex.iadd(block, ex.index(phase))}) for phase in range(count)]


def is_gathered(read: Expr, inner: str) -> bool:
    """Whether a read depends on the inner axis alone, with a stride that vector loads do not have."""
    if read.op != "read":
        return False
    offset = linear(offset_of(read))
    return ex.variables(offset_of(read)) == {inner} and not ex.variables(offset.rest) and offset.of(inner) > 1


def _limit(window: Window, offset: int) -> Dim:
    """The first value of a place's variable at which a tap is behind the source."""
    scale, rest, stride = window.free_limit()
    if isinstance(window.size, int):
        return -((-scale * window.size - rest) // stride) - offset
    return f"(kv_ceil({scale} * int64_t({window.size}) + {rest}, {stride}) - {offset})"


def _count(extent: Dim, lanes: int) -> str:
    return f"int64_t({extent // lanes})" if isinstance(extent, int) else _dim(extent)


def _dim(dim: Dim) -> str:
    return f"int64_t({dim})"
