"""Scans as Triton: a program goes along its lines block by block, scans each block and joins it to what came before.

Lines along the fastest axis are rows of a tile ``[LINES, BLOCK]``; others are columns of a tile ``[BLOCK, LINES]``.
"""

from __future__ import annotations

from ....graph.dims import product
from ....kernel import Argument, Kernel, Launch
from ...expression import TRITON_PRELUDE
from ...expression import expression as ex
from ...expression.access import replace_variables
from ...expression.loops import Store
from ...expression.remainder import TRITON_REMAINDER
from ...expression.triton import TRITON_TYPES, literal, used_helpers
from ...family import Schedule
from ..triton_tiles import INT32, TilePrinter, cdiv, coordinates, needs_64_bits
from .plan import BEFORE, PLACE, PLACE_BEFORE, RUNNING, ScanPlan, start_of

# Functions that join one value with another; pairs have joins of their own.
_JOINS = {"sum": "kv_join_sum", "product": "kv_join_product", "maximum": "kv_max", "minimum": "kv_min"}
# Joins of what stands earlier (a) and later (b). A reduction may also meet values out of order, so that of equal extremes
# the later place is found by its number.
_HELPERS = """
@triton.jit
def kv_join_sum(a, b):
    return a + b

@triton.jit
def kv_join_product(a, b):
    return a * b

@triton.jit
def kv_seen_later(a, b, better, i, j):
    same = (a == b) | ((a != a) & (b != b))
    return (same & (j > i)) | ((a == a) & (better | (b != b)))

@triton.jit
def kv_join_maximum(a, i, b, j):
    later = kv_seen_later(a, b, b > a, i, j)
    return tl.where(later, b, a), tl.where(later, j, i)

@triton.jit
def kv_join_minimum(a, i, b, j):
    later = kv_seen_later(a, b, b < a, i, j)
    return tl.where(later, b, a), tl.where(later, j, i)

@triton.jit
def kv_level(x):
    return tl.where(tl.abs(x) < float("inf"), x, 0.0).to(x.dtype)

@triton.jit
def kv_decay(a, b):
    d = kv_level(a) - kv_level(b)
    return tl.exp(tl.where(d > 0, 0.0, d).to(a.dtype))

@triton.jit
def kv_join_logsumexp(a, x, b, y):
    top = kv_max(a, b)
    return top, x * kv_decay(a, top) + y * kv_decay(b, top)
"""


def kernel_of(plan: ScanPlan, arguments: tuple[Argument, ...], schedule: Schedule) -> Kernel:
    text = _Text(plan)
    code = text.function()
    count = product(tuple(extent for _, extent in plan.task.lines))
    if plan.task.lane is None:
        block = int(schedule["block"])
        lines = max(1, int(schedule["tile"]) // block)
        lines = min(lines, 1 << (count - 1).bit_length()) if isinstance(count, int) else lines
        grid = str(cdiv(count, lines))
    else:
        block, lines = int(schedule["block"]), int(schedule["lanes"])
        blocks = cdiv(plan.task.lane[1], lines)
        grid = f"({count}) * ({blocks})"
    launch = Launch(
        "kevolve_kernel",
        arguments,
        grid=(grid,),
        constants=(("LINES", lines), ("BLOCK", block)),
        num_warps=int(schedule["num_warps"]),
    )
    helpers = used_helpers(TRITON_PRELUDE + TRITON_REMAINDER + _HELPERS, code)
    return Kernel("triton", f"{helpers}\n\n{code}\n", (launch,))


class _Text:
    def __init__(self, plan: ScanPlan) -> None:
        self.plan, self.task = plan, plan.task
        self.is_row = self.task.lane is None
        self.axis = 1 if self.is_row else 0
        self.kind = TRITON_TYPES[plan.held]
        self.none = literal(start_of(plan.kind, plan.held), plan.held)
        self.is_tuple = plan.is_pair or plan.kind == "logsumexp"
        self.join = _JOINS.get(plan.kind, "") if not self.is_tuple else f"kv_join_{plan.kind}"
        length = self.task.scan[1]
        self.place = "tl.int32" if isinstance(length, int) and length < INT32 else "tl.int64"
        self.wide = ".to(tl.int64)" if needs_64_bits((*plan.inputs, *plan.outputs)) else ""
        self.masks = {self.task.scan[0]: "at_mask"}
        along = self.task.lines if self.task.lane is None else (self.task.lane,)
        self.masks |= {name: "line_mask" for name, _ in along}

    def function(self) -> str:
        plan = self.plan
        names = [f"in{k}" for k in range(len(plan.inputs))] + [f"out{k}" for k in range(len(plan.outputs))]
        parameters = [*names, *plan.symbols, "LINES: tl.constexpr", "BLOCK: tl.constexpr"]
        ways = [way for way, used in (("", {RUNNING, PLACE}), ("b", {BEFORE, PLACE_BEFORE})) if used & plan.used]
        lines = [*self._lines(), *self._edges(), *(line for way in ways for line in self._carries(way))]
        body = [line for way in ways for line in self._scan(way)]
        lines += [f"for start in range(0, {self.task.scan[1]}, BLOCK):"]
        lines += [f"    {line}" for line in (*self._positions(), *body, *self._stores())]
        return "\n".join([f"@triton.jit\ndef kevolve_kernel({', '.join(parameters)}):", *(f"    {x}" for x in lines)])

    def _lines(self) -> list[str]:
        """The lines of this program, and the coordinates that they stand for."""
        lines = [f"program = tl.program_id(0){self.wide}"]
        if self.task.lane is None:
            count = product(tuple(extent for _, extent in self.task.lines))
            lines += ["line = (program * LINES + tl.arange(0, LINES))[:, None]", f"line_mask = line < {count}"]
            return lines + coordinates("line", self.task.lines)
        name, extent = self.task.lane
        lines += [
            f"blocks = ({extent} + LINES - 1) // LINES",
            f"{name} = (program % blocks * LINES + tl.arange(0, LINES))[None, :]",
            f"line_mask = {name} < {extent}",
            "line = program // blocks",
        ]
        return lines + coordinates("line", self.task.lines)

    def _positions(self) -> list[str]:
        name, extent = self.task.scan
        place = "[None, :]" if self.is_row else "[:, None]"
        lines = [f"{name} = (start + tl.arange(0, BLOCK){self.wide}){place}", f"at_mask = {name} < {extent}"]
        lines += ["mask = line_mask & at_mask"]
        if {BEFORE, PLACE_BEFORE} & self.plan.used:
            lines += [f"earlier = {name} - 1", "earlier_mask = at_mask & (earlier >= 0)"]
        return lines

    def _carries(self, way: str) -> list[str]:
        shape = "[LINES, 1]" if self.is_row else "[1, LINES]"
        lines = [f"{way}carry = tl.full({shape}, {self.none}, {self.kind})"]
        if self.plan.kind == "logsumexp":
            lines.append(f"{way}carried = tl.full({shape}, 0.0, {self.kind})")
        elif self.is_tuple:
            lines.append(f"{way}carried = tl.full({shape}, -1, {self.place})")
        return lines

    def _scan(self, way: str) -> list[str]:
        """``<way>value`` (and ``<way>second``, a place or a sum): with the element at each position, or before it."""
        name, extent = self.task.scan
        body, at, mask = self.task.body, name, "mask"
        masks = self.masks
        if way:
            body = replace_variables(body, {name: ex.var("earlier", extent)})
            at, mask, masks = "earlier", "line_mask & earlier_mask", {**masks, "earlier": "earlier_mask"}
        printer = TilePrinter(masks, {}, f"{way}t")
        value = printer.value(body)
        lines = [*printer.lines, f"{way}x = tl.where({mask}, {value}, {self.none}).to({self.kind})"]
        if not self.is_tuple:
            return [
                *lines,
                f"{way}value = {self.join}({way}carry, tl.associative_scan({way}x, {self.axis}, {self.join}))",
                f"{way}carry = {self.join}({way}carry, tl.reduce({way}x, {self.axis}, {self.join}, keep_dims=True))",
            ]
        if self.plan.kind == "logsumexp":
            lines.append(f"{way}y = tl.exp({way}x - kv_level({way}x))")
        else:
            lines.append(f"{way}y = tl.where({mask}, {at}, -1).to({self.place})")
        pair = f"({way}x, {way}y), {self.axis}, {self.join}"
        return [
            *lines,
            f"{way}value, {way}second = tl.associative_scan({pair})",
            f"{way}value, {way}second = {self.join}({way}carry, {way}carried, {way}value, {way}second)",
            f"{way}last, {way}lasts = tl.reduce({pair}, keep_dims=True)",
            f"{way}carry, {way}carried = {self.join}({way}carry, {way}carried, {way}last, {way}lasts)",
        ]

    def _stores(self) -> list[str]:
        printer = TilePrinter(self.masks, {}, "e")
        for way, first, second in (("", RUNNING, PLACE), ("b", BEFORE, PLACE_BEFORE)):
            text = f"{way}value"
            if self.plan.kind == "logsumexp":
                text = f"(kv_level({way}value) + tl.log({way}second))"
            printer.name(ex.var(first, None, self.plan.held), text)
            printer.name(ex.var(second), f"{way}second.to(tl.int64)")
        return [line for store in self.task.stores for line in self._store(printer, store, "mask")]

    def _edges(self) -> list[str]:
        """What outputs hold in front of a line's first position."""
        printer = TilePrinter(self.masks, {}, "f")
        return [line for store in self.task.edges for line in self._store(printer, store, "line_mask")]

    def _store(self, printer: TilePrinter, store: Store, mask: str) -> list[str]:
        value, offset = printer.value(store.value), printer.value(store.offset)
        lines = [*printer.lines]
        printer.lines.clear()
        # An offset that depends on one axis only is given the shape of the tile.
        place = f"out{store.output} + tl.where({mask}, {offset}, 0)"
        return [*lines, f"tl.store({place}, {value}, mask={mask})"]
