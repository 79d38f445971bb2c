"""Stencils as Triton: every thread holds a few neighbouring results, a *unit*, as tensors of their own.

A unit is ``lanes`` results along the fastest axis, read and written as whole vectors, times ``rows`` results along an axis
of windows, which share what they read. Loads are aligned vectors that are split into lanes in registers: a shifted window
is then another choice of lanes, where shifted loads would be unaligned. A program has ``UNITS`` units; axes in front of all
windows are the same for a whole program where a plane has enough units, so that weights are scalars.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
from .lanes import TRITON_LANES, VECTOR_BYTES, LanePrinter, in_order, with_fills, without_clamps
from .plan import StencilPlan, StencilTask


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
        # Neighbouring threads are neighbours in the source's memory, where that is not in the order of the result's.
        side = side_axis(self.task)
        axes = sorted(self.task.axes, key=lambda axis: axis[0] == side)
        self.counts = [(name, self._count(name, extent)) for name, extent in axes]
        self.units = int(schedule["units"])
        self.plane = product(tuple(count for _, count in self.counts[self._split() :]))
        self.blocks = cdiv(self.plane, self.units)
        self.grid = product((*(count for _, count in self.counts[: self._split()]), self.blocks))

    def _count(self, name: str, extent: Dim) -> Dim:
        """How many units there are along an axis."""
        by = self.lanes if name == self.inner else self.rows if name == self.row else 1
        return extent // by if isinstance(extent, int) else extent

    def _split(self) -> int:
        """How many axes are the same for a whole program: those in front of all windows, where that wastes little."""
        first = next((k for k, (name, _) in enumerate(self.counts) if self.task.window_of(name) is not None), 0)
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
        split = self._split()
        lines = [f"program = tl.program_id(0){wide}"]
        # A size arrives as a number of 32 bits; products with it may need more.
        lines += [f"{name} = tl.zeros([1], tl.int64) + {name}" for name in self.plan.symbols]
        if split:
            lines += [
                f"unit = program % ({self.blocks}) * UNITS + tl.arange(0, UNITS)",
                f"rest = program // ({self.blocks})",
            ]
            lines += coordinates("rest", self._named(self.counts[:split]))
        else:
            lines.append("unit = program * UNITS + tl.arange(0, UNITS)")
        lines += coordinates("unit", self._named(self.counts[split:]))
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
            if by > 1:
                count = dict(self.counts)[name]
                mapping[name] = ex.iadd(ex.imul(ex.var(f"{name}_u", count), ex.index(by)), ex.index(at))
        return mapping

    def _body(self) -> list[str]:
        split = self._split()
        inside = {f"{name}_u" if self._unit_of(name) > 1 else name for name, _ in self.counts[split:]}
        printer = LanePrinter(self.plan.inputs, inside, self._is_masked())
        lines: list[str] = []
        for row in range(self.rows):
            points = [self.task.unrolled(self._mapping(row, lane), self.chained) for lane in range(self.lanes)]
            for number in range(len(self.plan.stores)):
                stores = [point[number] for point in points]
                texts = [printer.value(with_fills(store.value)) for store in stores]
                lines += [*self._stored(printer, stores, texts)]
        return lines

    def _stored(self, printer: LanePrinter, stores: Sequence[Store], texts: Sequence[str]) -> list[str]:
        output = stores[0].output
        kind = self.plan.outputs[output].dtype
        typed = [f"({text}).to({TRITON_TYPES[kind]})" if kind != "bool" else text for text in texts]
        offsets = [in_order(store.offset) for store in stores]
        mask = ", mask=mask" if self._is_masked() else ""
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
            texts.append(f"tl.store({place}, {value}{mask.replace('=mask', '=mask[:, None]') if width > 1 else mask})")
        lines = [*printer.lines, *texts]
        printer.lines.clear()
        return lines
