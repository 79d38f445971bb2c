"""What kernels of rows and of columns share: lines and their parts, masks, carried values, and stores."""

from __future__ import annotations

from abc import ABC, abstractmethod

from ....graph.dims import Dim, product
from ...expression import expression as ex
from ...expression.access import replace_variables
from ...expression.loops import Store
from ..triton_tiles import TilePrinter, needs_64_bits
from .plan import BEFORE, PLACE, PLACE_BEFORE, RUNNING, ScanPlan
from .triton_joins import Joins


class ScanText(ABC):
    """Functions that go along lines ``step`` positions at a time, on a tile of ``shape``.

    ``parts`` above one cuts each line: a first function finds what each part comes to, a second one begins every part with
    the join of what stands before it. ``line_axis`` and ``axis`` are the tile's dimensions along lines and positions.
    """

    shape: str
    carry_shape: str
    axis: int
    step: int

    def __init__(self, plan: ScanPlan, parts: int, count: Dim, lines: int) -> None:
        self.plan, self.task, self.parts, self.count = plan, plan.task, parts, count
        self.joins = Joins(plan)
        self.name, self.extent = plan.task.scan
        self.wide = ".to(tl.int64)" if needs_64_bits((*plan.inputs, *plan.outputs)) else ""
        # Masks that would hold everywhere are left out.
        self.line_mask = None if _divides(lines, count) else "line_mask"
        self.names = [f"in{k}" for k in range(len(plan.inputs))] + [f"out{k}" for k in range(len(plan.outputs))]
        self.totals = [f"totals{k}" for k in range(len(self.joins.dtypes))] if parts > 1 else []
        self.asks_before = bool({BEFORE, PLACE_BEFORE} & plan.used)
        self.asks_running = bool({RUNNING, PLACE} & plan.used)

    @property
    def is_bounded(self) -> bool:
        """May a step reach beyond the end of a line?"""
        return not _divides(self.step, self.extent)

    @property
    def is_single(self) -> bool:
        """Is a line one step?"""
        return self.parts == 1 and isinstance(self.extent, int) and self.extent <= self.step

    def function(self, name: str, only_totals: bool = False) -> str:
        parameters = [*self.names, *self.plan.symbols, *self.totals]
        lines = [f"program = tl.program_id(0){self.wide}", *self._part(), *self._lines()]
        lines += [f"whole = tl.full({self.shape}, 1, tl.int1)", *self._first_carry(only_totals)]
        if not only_totals:
            lines += self._edges()
        body = [*self._positions(), *(self._total() if only_totals else self._turn())]
        if self.is_single:
            lines += ["start = 0", *body]
        else:
            lines += [f"for start in {self._bounds()}:", *(f"    {line}" for line in body)]
        if only_totals:
            lines += self._keep_totals()
        return "\n".join([f"@triton.jit\ndef {name}({', '.join(parameters)}):", *(f"    {line}" for line in lines)])

    # --- parts ---

    def _part(self) -> list[str]:
        if self.parts == 1:
            return []
        turn = self.parts * self.step
        # Steps of a part; of a size that is not known perhaps one more than needed, which cannot leave 32 bits.
        steps = -(-self.extent // turn) if isinstance(self.extent, int) else f"({self.extent} // {turn} + 1)"
        return [
            f"part = program % {self.parts}",
            f"program = program // {self.parts}",
            f"span = {steps} * {self.step}",
            "begin = part * span",
        ]

    def _bounds(self) -> str:
        if self.parts == 1:
            return f"range(0, {self.extent}, {self.step})"
        return f"range(begin, tl.minimum(begin + span, {self.extent}), {self.step})"

    def _first_carry(self, only_totals: bool) -> list[str]:
        if self.is_single:
            return []
        if self.parts == 1 or only_totals:
            return self.joins.nothing("carry", self.carry_shape)
        place = "[None, :]" if self.axis == 1 else "[:, None]"
        guard = f"(other < part){' & line_mask' if self.line_mask else ''}"
        lines = [f"other = tl.arange(0, {self.parts}){self.wide}{place}"]
        for name, source, none in zip(self.joins.names("earlier"), self.totals, self.joins.nones, strict=True):
            lines.append(f"{name} = tl.load({source} + (other * ({self.count}) + line), mask={guard}, other={none})")
        return [*lines, self.joins.reduce("carry", "earlier", self.axis)]

    def _keep_totals(self) -> list[str]:
        guard = f", mask={self.line_mask}" if self.line_mask else ""
        return [
            f"tl.store({place} + (part * ({self.count}) + line), {name}{guard})"
            for place, name in zip(self.totals, self.joins.names("carry"), strict=True)
        ]

    # --- lines and positions ---

    @abstractmethod
    def _lines(self) -> list[str]:
        """``line``, the numbers of this program's lines, their mask and coordinates."""

    @abstractmethod
    def _positions(self) -> list[str]:
        """The positions of a step that begins at ``start``."""

    @abstractmethod
    def _total(self) -> list[str]:
        """``carry`` joined with all elements of a step."""

    @abstractmethod
    def _turn(self) -> list[str]:
        """A step: everything stored, and ``carry`` after it."""

    def printer(self, at_mask: str | None, prefix: str, at: str) -> TilePrinter:
        """Prints values at the position ``at``."""
        masks = {at: at_mask} if at_mask else {}
        if self.line_mask:
            along = (*self.task.lines, *([self.task.lane] if self.task.lane else []))
            masks |= {name: self.line_mask for name, _ in along}
        return TilePrinter(masks, {}, prefix)

    def element(self, printer: TilePrinter, stem: str, at: str, at_mask: str | None) -> list[str]:
        """The element at a position, nothing beyond a line's end."""
        value = printer.value(self._moved(self.task.body, at))
        live = f"whole & {at_mask}" if at_mask else "whole"
        x, none, kind = self.joins.names(stem)[0], self.joins.nones[0], self.joins.types()[0]
        lines = [*printer.lines, f"{x} = tl.where({live}, {value}, {none}).to({kind})"]
        printer.lines.clear()
        if self.plan.kind == "logsumexp":
            lines.append(f"{stem}_second = kv_alone({x})")
        elif self.joins.is_tuple:
            lines.append(f"{stem}_second = tl.where({live}, {at}, -1).to({self.joins.types()[1]})")
        return lines

    def results(self, printer: TilePrinter, running: str, before: str) -> None:
        """Declares the scan's results at a position."""
        for stem, first, second in ((running, RUNNING, PLACE), (before, BEFORE, PLACE_BEFORE)):
            text = f"(kv_level({stem}) + tl.log({stem}_second))" if self.plan.kind == "logsumexp" else stem
            printer.name(ex.var(first, None, self.plan.held), text)
            printer.name(ex.var(second), f"{stem}_second.to(tl.int64)")

    def stored(
        self, printer: TilePrinter, store: Store, at: str, at_mask: str | None, shape: str
    ) -> tuple[list[str], str]:
        """Statements for a store's value and place, and the store."""
        value = printer.value(self._moved(store.value, at))
        offset = printer.value(self._moved(store.offset, at, is_offset=True))
        lines = [*printer.lines]
        printer.lines.clear()
        mask = " & ".join(one for one in (self.line_mask, at_mask) if one)
        guard = f", mask={mask}" if mask else ""
        # Selecting an offset by a mask would hide from Triton that neighbours are adjacent.
        return lines, f"tl.store(out{store.output} + tl.broadcast_to({offset}, {shape}), {value}{guard})"

    def _moved(self, expr: ex.Expr, at: str, is_offset: bool = False) -> ex.Expr:
        return replace_variables(expr, {self.name: ex.var(at, self.extent)}, is_offset)

    def _edges(self) -> list[str]:
        """What outputs hold in front of a line's first position."""
        printer = self.printer(None, "f", self.name)
        found = [self.stored(printer, store, self.name, None, self.carry_shape) for store in self.task.edges]
        return [line for lines, store in found for line in (*lines, store)]


def _divides(by: int, number: Dim) -> bool:
    return isinstance(number, int) and number % by == 0


def lines_of(plan: ScanPlan) -> Dim:
    """How many lines there are, the fastest axis inside of the scan's included."""
    axes = (*plan.task.outer, *plan.task.inner)
    return product(tuple(extent for _, extent in axes))
