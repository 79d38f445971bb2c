"""Stencils as Triton: every thread holds a few neighbouring results, a *unit*, as tensors of their own.

A unit is ``lanes`` results along the fastest axis, read and written as whole vectors, times ``rows`` results along an axis
of windows, which share what they read. Loads are aligned vectors that are split into lanes in registers: a shifted window
is then another choice of lanes, where shifted loads would be unaligned. A program has ``UNITS`` units; axes in front of all
windows are the same for a whole program where a plane has enough units, so that weights are scalars. Where channels are
the fastest axis a program may walk: it keeps its channels, whose weights stay in registers, and takes ``steps`` places one
after another along the slowest axis of windows, whose windows overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ....exc import EmissionError
from ....graph.dims import Dim, product
from ....graph.region import ITEM_SIZES
from ....kernel import Argument, Kernel, Launch, Workspace
from ...expression import TRITON_PRELUDE
from ...expression import expression as ex
from ...expression.access import accesses, linear, offset_of
from ...expression.expression import Expr
from ...expression.loops import Axis, Store
from ...expression.remainder import TRITON_REMAINDER
from ...expression.triton import TRITON_TYPES, used_helpers
from ...family import Schedule
from ..triton_tiles import cdiv, coordinates, needs_64_bits
from .lanes import TRITON_LANES, VECTOR_BYTES, LanePrinter, in_order, unrounded, with_fills, without_clamps
from .plan import StencilPlan, StencilTask

# Threads of a warp.
_WARP = 32


@dataclass(frozen=True)
class TritonText:
    """Functions and the launches that call them, in order, without the helpers."""

    codes: tuple[str, ...]
    launches: tuple[Launch, ...]
    workspaces: tuple[Workspace, ...] = ()


def assembled(texts: Sequence[TritonText]) -> Kernel:
    """One kernel of the launches of all ``texts``, of which one at most has workspaces."""
    codes = [code for text in texts for code in text.codes]
    helpers = used_helpers(TRITON_PRELUDE + TRITON_REMAINDER + TRITON_LANES, "\n".join(codes))
    launches = tuple(launch for text in texts for launch in text.launches)
    workspaces = tuple(workspace for text in texts for workspace in text.workspaces)
    return Kernel("triton", "\n\n".join([helpers, *codes]) + "\n", launches, workspaces)


def stencil_text(plan: StencilPlan, arguments: tuple[Argument, ...], schedule: Schedule) -> TritonText:
    text = _Text(plan, schedule)
    launch = Launch(
        "kevolve_kernel", arguments, grid=(str(text.grid),), constants=(("UNITS", text.units),),
        num_warps=int(schedule["num_warps"]),
    )  # fmt: skip
    return TritonText((text.function(),), (launch,))


def row_axis(task: StencilTask) -> Axis | None:
    """The axis of windows that is fastest but for the inner one: along it results share most of what they read."""
    for axis in reversed(task.axes[:-1]):
        if task.window_of(axis[0]) is not None and isinstance(axis[1], int):
            return axis
    return None


def may_overlap(task: StencilTask, axis: str) -> bool:
    """Whether units of results along ``axis`` may begin anywhere: nothing asks for a position's remainder."""
    values = [task.term, *task.counted, *(part for store in task.stores for part in (store.value, store.offset))]
    divisions = (part for value in values for part in ex.walk(value) if part.op in ("idiv", "imod"))
    return not any(axis in ex.variables(part) for part in divisions)


def walk_axis(task: StencilTask) -> Axis | None:
    """The slowest axis of windows, where none of them is the fastest axis and something is read that no window moves."""
    windows = [name for name, _ in task.axes if task.window_of(name) is not None]
    if not windows or task.inner[0] in windows or side_axis(task) is not None:
        return None
    first = [name for name, _ in task.axes].index(windows[0])
    if not all(isinstance(extent, int) for _, extent in task.axes[first:]):
        return None
    reads = [ex.variables(offset_of(read)) for read in accesses([task.term])]
    stays = any(task.inner[0] in names and not names & set(windows) for names in reads)
    return task.axes[first] if stays else None


def side_axis(task: StencilTask) -> str | None:
    """The axis along which the source is contiguous, if that is not the result's fastest one."""
    inner = task.inner[0]
    for read in accesses([task.term]):
        offset, _ = without_clamps(offset_of(read))
        steps = linear(offset).coefficients
        if inner in steps and steps[inner] != 1:
            return next((name for name, step in steps.items() if step == 1 and name in dict(task.axes)), None)
    return None


class _Text:
    def __init__(self, plan: StencilPlan, schedule: Schedule) -> None:
        self.plan, self.task = plan, plan.task
        self.lanes, self.rows = int(schedule["lanes"]), int(schedule["rows"])
        self.inner = self.task.inner[0]
        self.chained = self.plan.kind == "sum" and self.task.term.op == "mul"
        row = row_axis(self.task)
        self.row = row[0] if row is not None else ""
        self.last_row = self._last_row(row) if row is not None else None
        # Neighbouring threads are neighbours in the source's memory, where that is not in the order of the result's.
        side = side_axis(self.task)
        axes = sorted(self.task.axes, key=lambda axis: axis[0] == side)
        self.counts = [(name, self._count(name, extent)) for name, extent in axes]
        self.units = int(schedule["units"])
        self.walk = walk_axis(self.task) if schedule.get("steps") else None
        self.steps = int(schedule.get("steps", 0)) if self.walk is not None else 0
        lead, flat = self.counts[: self._split()], self.counts[self._split() :]
        strips: Dim = 1
        if self.walk is not None:
            # What is walked along is the first axis after the leading ones.
            strips, flat = cdiv(flat[0][1], self.steps), flat[1:]
        self.lead, self.flat, self.strips = lead, flat, strips
        self.plane = product(tuple(count for _, count in flat))
        self.blocks = cdiv(self.plane, self.units)
        self.grid = product((*(count for _, count in lead), strips, self.blocks))
        if _WARP * int(schedule["num_warps"]) > self.units:
            # Vectors would be taken apart across threads, by code of Triton's that is slow and not always right.
            raise EmissionError(f"{self.units} units leave threads of {schedule['num_warps']} warps without one")
        if self.last_row is not None and self.walk is not None and self.walk[0] == self.row:
            raise EmissionError("units that overlap are not walked along")
        if isinstance(self.plane, int) and self.walk is not None and self.blocks * self.units > 2 * self.plane:  # type: ignore[operator]
            raise EmissionError(f"{self.units} units are too many for {self.plane}")

    def _last_row(self, row: Axis) -> int | None:
        """Where the last unit along the rows begins, if they do not come out even: it takes some for the second time."""
        name, extent = row[0], int(row[1])
        if extent % self.rows == 0:
            return None
        if extent < self.rows or not may_overlap(self.task, name):
            raise EmissionError(f"{self.rows} rows do not divide {extent}")
        return extent - self.rows

    def _count(self, name: str, extent: Dim) -> Dim:
        """How many units there are along an axis."""
        by = self.lanes if name == self.inner else self.rows if name == self.row else 1
        return cdiv(extent, by) if isinstance(extent, int) else extent

    def _split(self) -> int:
        """How many axes are the same for a whole program: those in front of all windows, where that wastes little."""
        first = next((k for k, (name, _) in enumerate(self.counts) if self.task.window_of(name) is not None), 0)
        if self.walk is not None:
            return first
        first = min(first, len(self.counts) - 1)
        plane = product(tuple(count for _, count in self.counts[first:]))
        if not isinstance(plane, int):
            return 0
        return first if 4 * -(-plane // self.units) * self.units <= 5 * plane else 0

    def function(self) -> str:
        plan = self.plan
        names = [f"in{k}" for k in range(len(plan.inputs))] + [f"out{k}" for k in range(len(plan.outputs))]
        parameters = [*names, *plan.symbols, "UNITS: tl.constexpr"]
        lines = [*self._place(), *self._body()]
        return "\n".join([f"@triton.jit\ndef kevolve_kernel({', '.join(parameters)}):", *(f"    {x}" for x in lines)])

    def _place(self) -> list[str]:
        """The units of this program, and the coordinates that they stand for."""
        wide = ".to(tl.int64)" if needs_64_bits((*self.plan.inputs, *self.plan.outputs)) else ""
        lines = [f"program = tl.program_id(0){wide}"]
        # A size arrives as a number of 32 bits; products with it may need more.
        lines += [f"{name} = tl.zeros([1], tl.int64) + {name}" for name in self.plan.symbols]
        if self.lead or self.walk is not None:
            lines += [
                f"unit = program % ({self.blocks}) * UNITS + tl.arange(0, UNITS)",
                f"rest = program // ({self.blocks})",
            ]
            if self.walk is not None:
                lines += [f"strip = rest % ({self.strips})", f"rest = rest // ({self.strips})"]
            lines += coordinates("rest", self._named(self.lead))
        else:
            lines.append("unit = program * UNITS + tl.arange(0, UNITS)")
        lines += coordinates("unit", self._named(self.flat))
        if self.last_row is not None:
            lines.append(f"{self.row}_first = tl.minimum({self.row}_u * {self.rows}, {self.last_row})")
        return [*lines, f"mask = unit < {self.plane}"] if self._is_masked() else lines

    def _is_masked(self) -> bool:
        return not isinstance(self.plane, int) or self.plane % self.units != 0

    def _named(self, counts: Sequence[Axis]) -> list[Axis]:
        return [(f"{name}_u" if self._unit_of(name) > 1 else name, count) for name, count in counts]

    def _unit_of(self, name: str) -> int:
        return self.lanes if name == self.inner else self.rows if name == self.row else 1

    def _mapping(self, row: int, lane: int) -> dict[str, Expr]:
        """The axes at one result of a unit."""
        mapping = {}
        for name, at in ((self.row, row), (self.inner, lane)):
            by = self._unit_of(name)
            if by > 1 and name == self.row and self.last_row is not None:
                mapping[name] = ex.iadd(ex.var(f"{name}_first", self.last_row + 1), ex.index(at))
            elif by > 1:
                count = dict(self.counts)[name]
                mapping[name] = ex.iadd(ex.imul(ex.var(f"{name}_u", count), ex.index(by)), ex.index(at))
        return mapping

    def _body(self) -> list[str]:
        inside = {name for name, _ in self._named(self.flat)}
        if f"{self.row}_u" in inside:
            inside.add(f"{self.row}_first")
        printer = LanePrinter(self.plan.inputs, inside, self._is_masked())
        rows = [self._values(row) for row in range(self.rows)]
        ahead = self._ahead(printer, [store.value for row in rows for stores in row for store in stores])
        lines: list[str] = []
        for number, row in enumerate(rows):
            for stores in row:
                texts = [printer.value(store.value) for store in stores]
                lines += self._stored(printer, stores, texts, self._masks(number, inside))
        return lines if self.walk is None else [*ahead, *self._walked(lines)]

    def _values(self, row: int) -> list[list[Store]]:
        """What is stored in one row of a unit: for each store of the plan, the lanes."""
        points = [self.task.unrolled(self._mapping(row, lane), self.chained) for lane in range(self.lanes)]
        found = []
        for number in range(len(self.plan.stores)):
            stores = [point[number] for point in points]
            found.append([Store(with_fills(self._unrounded(s.value)), s.offset, s.output) for s in stores])
        return found

    def _unrounded(self, value: Expr) -> Expr:
        return unrounded(value) if self.plan.kind == "sum" else value

    def _walked(self, lines: Sequence[str]) -> list[str]:
        """``lines`` for one place after another of a strip."""
        ((name, count),) = self._named(self.counts[len(self.lead) : len(self.lead) + 1])
        assert isinstance(count, int)
        is_whole = count % self.steps == 0
        bound = f"{self.steps}" if is_whole else f"tl.minimum({self.steps}, {count} - strip * {self.steps})"
        head = [f"for step in range({bound}):", f"    {name} = strip * {self.steps} + step"]
        return [*head, *(f"    {line}" for line in lines)]

    def _ahead(self, printer: LanePrinter, values: Sequence[Expr]) -> list[str]:
        """Statements for the numbers that are the same all along a walk."""
        if self.walk is None:
            return []
        ((name, _),) = self._named(self.counts[len(self.lead) : len(self.lead) + 1])
        moves: dict[Expr, bool] = {}
        seen: set[Expr] = set()
        for value in values:
            for part in ex.walk(value, seen):
                is_walked = part.op == "var" and part.value[0] == name
                moves[part] = is_walked or any(moves[argument] for argument in part.args)
                if part.args and part.dtype in ex.FLOATS and not moves[part]:
                    printer.value(part)
        lines = list(printer.lines)
        printer.lines.clear()
        return lines

    def _masks(self, row: int, inside: set[str]) -> dict[str, bool]:
        """What restricts the stores of that row of a unit, and whether it differs among units.

        What the last unit takes for the second time it does not store: rounded otherwise, it would depend on who is last.
        """
        masks = {"mask": True} if self._is_masked() else {}
        if self.last_row is not None and self.last_row + row < self.last_row // self.rows * self.rows + self.rows:
            masks[f"({self.row}_first + {row} >= {self.row}_u * {self.rows})"] = f"{self.row}_u" in inside
        return masks

    def _stored(
        self, printer: LanePrinter, stores: Sequence[Store], texts: Sequence[str], masks: Mapping[str, bool]
    ) -> list[str]:
        output = stores[0].output
        kind = self.plan.outputs[output].dtype
        typed = [f"({text}).to({TRITON_TYPES[kind]})" if kind != "bool" else text for text in texts]
        offsets = [in_order(store.offset) for store in stores]
        width = min(len(stores), VECTOR_BYTES // ITEM_SIZES[kind])
        steps = [ex.distance(offsets[0], offset) for offset in offsets]
        if width == 1 or steps != list(range(len(stores))):
            width = 1
        texts = []
        for first in range(0, len(stores), width):
            place, value = f"out{output} + {printer.value(offsets[first])}", typed[first]
            if width > 1:
                place = f"out{output} + ({printer.value(offsets[first])})[:, None] + tl.arange(0, {width})[None, :]"
                value = f"kv_join{width}({', '.join(typed[first : first + width])})"
            shaped = [f"{mask}[:, None]" if differs and width > 1 else mask for mask, differs in masks.items()]
            masked = f", mask={' & '.join(shaped)}" if shaped else ""
            texts.append(f"tl.store({place}, {value}{masked})")
        lines = [*printer.lines, *texts]
        printer.lines.clear()
        return lines
