"""The last step of a scatter in Triton: the rows of some places, gathered and added in the order of their events.

A tile is ``[EVENTS, ROWS, COLUMNS]``. As in bags, indices that values are looked up by are read and checked together,
since no load is moved across an assertion; then all values are read, which are added last and in pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

from ....graph.dims import product
from ....graph.region import TensorSpec
from ...expression import expression as ex
from ...expression.expression import Expr
from ...expression.triton import TRITON_TYPES, literal
from ..bags.checks import COMBINED, BagPrinter, checked, in_pairs
from ..triton_tiles import coordinates, indented, needs_64_bits
from .plan import EVENT, ROW, ScatterPlan
from .tiles import Tile, elements_of


class SumText:
    """The function ``name`` that sums rows of at most ``longest`` events, or with ``is_long`` the others, as listed."""

    def __init__(self, plan: ScatterPlan, name: str, tile: Tile, longest: int, *, is_long: bool) -> None:
        self.plan, self.scatter = plan, plan.scatter
        # What holds the events of rows in their order, and the number of a program.
        self.ids, self.program = "ranks", "tl.program_id(0)"
        self.name, self.tile, self.longest, self.is_long = name, tile, longest, is_long
        specs: tuple[TensorSpec, ...] = (*plan.inputs, *plan.outputs)
        self.wide = ".to(tl.int64)" if needs_64_bits(specs) else ""
        self.rows = product(self.scatter.rows)
        self.elements = elements_of(self.scatter)
        self.parts = -(-self.elements // tile.columns)
        self.kind = TRITON_TYPES[self.scatter.held]
        self.neutral = literal(self.scatter.neutral, self.scatter.held)
        # Of very many numbers of one sign each addition loses as much again: eager adds them in parts.
        self.is_compensated = is_long and self.scatter.combine == "add" and self.scatter.held in ex.FLOATS
        # Rows that end where the tile does are not masked.
        self.is_ragged = bool(self.elements % tile.columns)
        self.masks = {name: "place_mask" for name, _ in self.scatter.inner if self.is_ragged} | {ROW: "row_mask"}

    def function(self, names: Sequence[str]) -> str:
        return "\n".join([f"@triton.jit\ndef {self.name}({', '.join(names)}):", *indented(self.body())])

    def body(self) -> list[str]:
        return [
            f"program = {self.program}",
            f"place = program % {self.parts} * {self.tile.columns} + {self._range(self.tile.columns, 2)}",
            *([f"place_mask = place < {self.elements}"] if self.is_ragged else []),
            *coordinates("place", self.scatter.inner),
            *(self._listed() if self.is_long else self._numbered()),
        ]

    def joined(self) -> str:
        """Joins what lies side by side, by a fixed tree."""
        return f"@triton.jit\ndef kevolve_joined(a, b):\n    return {COMBINED[self.scatter.combine].format('a', 'b')}"

    def _range(self, count: int, axis: int) -> str:
        """Numbers along an axis of the tile, which is a plain row where there is but one event and one row."""
        spread = ", ".join(":" if axis == k else "None" for k in range(3))
        return f"tl.arange(0, {count})" + ("" if self.tile.is_row else f"[{spread}]")

    def _numbered(self) -> list[str]:
        count = self.tile.rows
        several, spread = (f" + tl.arange(0, {count})[None, :]", "[:, :, None]") if count > 1 else ("", "")
        return [
            f"own = (program // {self.parts}){self.wide} * {count}{several}",
            f"count = tl.load(counts + own, mask=own < {self.rows}, other={self.longest + 1})",
            f"own_mask = count <= {self.longest}",
            "count = tl.where(own_mask, count, 0)",
            f"low = {self._low()}",
            *self._opened(),
            f"{ROW} = own{spread}",
            f"row_mask = own_mask{spread}",
            *self._sums(),
        ]

    def _low(self) -> str:
        """Where the events of rows start."""
        return "tl.load(starts + own, mask=own_mask, other=0)"

    def _opened(self) -> list[str]:
        """Statements before any event is read."""
        return []

    def _final(self, combined: str) -> str:
        """What is written, of the events and the base ``combined``."""
        return combined

    def _closed(self) -> list[str]:
        """Statements before the result is written."""
        return []

    def _listed(self) -> list[str]:
        body = [
            f"{ROW} = tl.load(longs + number){self.wide}",
            f"row_mask = {ROW} < {self.rows}",
            f"count = tl.load(counts + {ROW})",
            f"low = tl.load(starts + {ROW})",
            *self._sums(),
        ]
        each = f"range(program // {self.parts}, tl.load(counts + {self.rows} + 1), tl.num_programs(0) // {self.parts})"
        return [f"for number in {each}:", *indented(body)]

    def _sums(self) -> list[str]:
        """All events of the rows at hand, combined with what the rows start as."""
        tile, value = self.tile, self.scatter.value
        outer = BagPrinter(self.masks, {}, "r")
        outer.hoisted(value, lambda part: EVENT in ex.variables(part))
        shape = [tile.columns] if tile.is_row else [tile.events, tile.rows, tile.columns]
        most = "count" if tile.rows == 1 else "tl.max(count)"
        lines = [*outer.taken(), f"total = tl.full({shape}, {self.neutral}, {self.kind})"]
        if self.is_compensated:
            lines.append(f"lost = tl.zeros({shape}, {self.kind})")
        lines.append(f"for start in range(0, {most}, {tile.events * tile.steps}):")
        lines += indented(self._steps(outer))
        if tile.events > 1:
            lines.append("total = tl.reduce(total, 0, kevolve_joined, keep_dims=True)")
        base, offset = outer.value(self.scatter.base), outer.value(self.scatter.offset)
        combined = self._final(COMBINED[self.scatter.combine].format("total", base))
        at = f"out0 + {ROW} * {self.scatter.step} + {offset}" + ("" if self.scatter.inner else " + place * 0")
        mask = "row_mask & place_mask" if self.is_ragged else "row_mask"
        return [*lines, *outer.taken(), *self._closed(), f"tl.store({at}, {combined}, mask={mask})"]

    def _steps(self, outer: BagPrinter) -> list[str]:
        value, side = self.scatter.value, self.tile.events
        lines, printers = [], []
        for step in range(self.tile.steps):
            several = f" + tl.arange(0, {side})[:, None]" if side > 1 else ""
            lines.append(f"at{step} = start + {step * side}{several}")
            lines.append(f"mask{step} = at{step} < count")
            lines.append(f"{EVENT}{step} = tl.load({self.ids} + low + at{step}, mask=mask{step}, other=0){self.wide}")
            printers.append(outer.within(f"s{step}_", self.masks | {EVENT: f"mask{step}"}))
            for variable in {part for part in ex.walk(value) if part.op == "var" and part.value[0] == EVENT}:
                printers[-1].name(variable, f"{EVENT}{step}")
        lines += self._numbers(printers)
        values = [printer.value(value) for printer in printers]
        lines += [line for printer in printers for line in printer.taken()]
        kept = [f"tl.where({self._spread(f'mask{k}')}, {text}, {self.neutral})" for k, text in enumerate(values)]
        joined = in_pairs(self.scatter.combine, [f"{text}.to({self.kind})" for text in kept])
        if self.is_compensated:
            return [*lines, *_compensated(joined)]
        return [*lines, f"total = {COMBINED[self.scatter.combine].format('total', joined)}"]

    def _spread(self, name: str) -> str:
        """Numbers of events beside columns."""
        return name if self.tile.is_row else f"{name}[:, :, None]"

    def _numbers(self, printers: Sequence[BagPrinter]) -> list[str]:
        """What is the same along a row: as ``[EVENTS, ROWS]``, so that a lane reads it once and not for every column."""
        inner = {name for name, _ in self.scatter.inner}
        parts: dict[Expr, None] = {
            part: None for part in ex.walk(self.scatter.value) if inner.isdisjoint(ex.variables(part))
        }
        lines = checked(parts, printers)
        for step, printer in enumerate(printers):
            printer.masks = {**self.masks, EVENT: self._spread(f"mask{step}")}
            for part in parts:
                if EVENT in ex.variables(part):
                    printer.name(part, self._spread(printer.value(part)))
        return lines


def _compensated(value: str) -> list[str]:
    """``total`` and what it has ``lost`` by rounding, after ``value`` (Kahan's sum)."""
    return [
        f"added = {value} - lost",
        "sum = total + added",
        "lost = (sum - total) - added",
        # What is not finite loses nothing.
        'lost = tl.where(tl.abs(lost) < float("inf"), lost, 0.0)',
        "total = sum",
    ]
