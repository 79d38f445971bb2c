"""The Triton kernel: a program takes a sample, or some rows, through all steps; only inputs and outputs are in memory."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import replace

from ....graph.dims import Dim, product
from ....graph.region import ITEM_SIZES
from ....kernel import Argument, Kernel, Launch
from ...expression import TRITON_PRELUDE
from ...expression import expression as ex
from ...expression.access import replace_variables
from ...expression.expression import Expr
from ...expression.remainder import TRITON_REMAINDER
from ...expression.triton import TRITON_TYPES, literal, used_helpers
from ...family import Schedule
from ..triton_tiles import cdiv, needs_64_bits
from .ahead import FIRST, NEXT, ROWS
from .cost import Tally
from .early import load_early
from .joined import joined_operands, pair_of
from .plan import POSITION, SAMPLE, ChainPlan, Dot, Pool, Reduce, Regrouped, Step, Store, Tile
from .printing import CHAIN_HELPERS, ChainPrinter, Scope
from .sizes import padded
from .sweeps import Sweep, is_wide, order_of
from .tiles import Extent, Tiles

_FUNCTION = "kevolve_kernel"
# Columns of the middle axis at once where a regrouped product is computed as it is written.
WRITTEN_BLOCK = 32
_NEUTRAL = {"sum": 0.0, "maximum": float("-inf"), "minimum": float("inf")}
_HELPERS = {"maximum": "kv_max", "minimum": "kv_min"}


def emit_triton(plan: ChainPlan, arguments: tuple[Argument, ...], schedule: Schedule) -> Kernel:
    """Raises ``EmissionError`` where the schedule does not fit."""
    writer = writer_of(plan, schedule)
    names = [f"in{k}" for k in range(len(plan.inputs))] + [f"out{k}" for k in range(len(plan.outputs))]
    lines = [f"  {line}" for line in writer.body()]
    code = "\n".join([f"@triton.jit\ndef {_FUNCTION}({', '.join([*names, *plan.symbols])}):", *lines])
    helpers = used_helpers(TRITON_PRELUDE + TRITON_REMAINDER + CHAIN_HELPERS, code)
    source = "\n\n".join(part for part in (helpers, code) if part) + "\n"
    launch = Launch(
        _FUNCTION, arguments, (writer.grid,), num_warps=int(schedule["warps"]), num_stages=int(schedule["stages"])
    )
    return Kernel("triton", source, (launch,))


def writer_of(plan: ChainPlan, schedule: Schedule) -> Writer:
    from .straight import StraightWriter
    from .tall import TallWriter

    if any(isinstance(step, Regrouped) and step.is_tall for step in plan.steps) and plan.rowwise:
        return TallWriter(plan, schedule)
    return (StraightWriter if schedule["straight"] else Writer)(plan, schedule)


class Writer:
    """Writes the kernel of one schedule; ``tally`` then says what it does for a unit: a sample, or a tile of its rows."""

    def __init__(self, plan: ChainPlan, schedule: Schedule) -> None:
        self.plan = plan
        self.height = int(schedule["rows"]) if plan.rowwise else padded(plan.rows)
        self.block, self.loop, self.unroll = (int(schedule[name]) for name in ("block", "loop", "unroll"))
        self.stages, self.joined = schedule["stages"], schedule["joined"] is True
        self.once = (SAMPLE, *ROWS) if schedule.get("once") else ()
        self.precision = f', input_precision="{schedule["precision"]}"' if plan.dtype == "float32" else ""
        self.wide = needs_64_bits((*plan.inputs, *plan.outputs))
        self.masks: dict[str, str] = {}
        self.tally = Tally()
        self.tiles = Tiles(plan, self.height, self.wide, self.masks, self.tally, schedule["ahead"] is True)
        self.row_kind: Extent = "rows" if plan.rowwise else "whole"
        self.order = order_of(plan, self.block)
        self.tally.sweeps, self.tally.may_be_flat = self.sweeps, self.may_be_flat
        self.shares = cdiv(plan.rows, self.height) if plan.rowwise else 1
        self.units = self.shares if plan.batch is None else product((plan.batch, self.shares))
        self.grid = str(cdiv(self.units, self.loop))
        if self.shares_sample(self.loop):
            self.tiles.moving.discard(SAMPLE)
        self._loops = 0

    def shares_sample(self, loop: int) -> bool:
        """Do all of a program's ``loop`` units belong to one sample?"""
        return loop > 1 and self.plan.batch is not None and isinstance(self.shares, int) and self.shares % loop == 0

    # --- the frame: which sample, which rows ---

    def body(self) -> list[str]:
        top = Scope(ChainPrinter(self.masks, "t", self.once))
        wide = ".to(tl.int64)" if self.wide else ""
        if self.loop == 1:
            top.lines.append(f"unit = tl.program_id(0){wide}")
            self._place(top, "")
            if self.tiles.ahead:
                self._load_early(top)
            self._unit(top)
            return top.lines
        # What is the same for all units of a program is declared and loaded before the loop.
        self.tiles.fixed = top
        first = f"tl.program_id(0){wide} * {self.loop}"
        top.lines.append(f"unit_first = {first}")
        self._place(top, FIRST)
        inner = top.nested("u")
        inner.is_unit, inner.moving = True, self.tiles.moving
        if SAMPLE not in self.tiles.moving:
            top.lines.append(f"{SAMPLE} = {SAMPLE}{FIRST}")
        inner.lines.append(f"more = turn < {self.loop - 1}")
        inner.lines.extend(
            f"{name} = {self._within(f'{first} + turn{step}')}"
            for name, step in (("unit", ""), (f"unit{NEXT}", " + 1"))
        )
        self._place(inner, "")
        self._place(inner, NEXT)
        self._unit(inner)
        inner.close(f"for turn in tl.range(0, {self.loop}{', flatten=True' if self.is_flat else ''}):")
        return top.lines

    @property
    def sweeps(self) -> int:
        return len(self.order.sweeps)

    @property
    def may_be_flat(self) -> bool:
        """May the turns of the only sweep of all units follow one another without a break?

        Triton then loads the first blocks of a unit while it computes what comes after the sweep of the one before.
        """
        return self.sweeps == 1 and not any(isinstance(step, Regrouped | Pool) for step in self.plan.steps)

    @property
    def is_flat(self) -> bool:
        return self.loop > 1 and self.may_be_flat

    def _load_early(self, scope: Scope) -> None:
        load_early(self.order, self.tiles, self.row_kind, scope)

    def _within(self, unit: str) -> str:
        """The last program does the last unit several times if there are not enough of them."""
        if isinstance(self.units, int) and self.units % self.loop == 0:
            return unit
        return f"tl.minimum({unit}, {self._total()} - 1)"

    def _shares(self) -> str:
        return f"(({self.plan.rows} + {self.height - 1}) // {self.height})"

    def _total(self) -> str:
        """All units, in the kernel."""
        parts = [f"({self.plan.batch})"] if self.plan.batch is not None else []
        return " * ".join([*parts, *([self._shares()] if self.shares != 1 else [])]) or "1"

    def _place(self, scope: Scope, turn: str) -> None:
        """Says which sample, and which of its rows, the unit of a turn is."""
        unit, start = f"unit{turn}", f"start{turn}"
        if self.plan.batch is None:
            scope.lines.append(f"{start} = {unit} * {self.height}")
            return
        whole = self.shares == 1
        shares = self._shares()
        if SAMPLE in self.tiles.moving or turn == FIRST:
            scope.lines.append(f"{SAMPLE}{turn} = {unit}" if whole else f"{SAMPLE}{turn} = {unit} // {shares}")
        scope.lines.append(f"{start} = 0" if whole else f"{start} = {unit} % {shares} * {self.height}")

    def _unit(self, scope: Scope) -> None:
        for extent in dict.fromkeys(pool.extent for pool in self.plan.pools):
            self._pools(extent, [pool for pool in self.plan.pools if pool.extent == extent], scope)
        regrouped = [step for step in self.plan.steps if isinstance(step, Regrouped)]
        for step in regrouped:
            self._square(step, scope)
        # It must not know anything that the first order makes of results.
        again = scope.nested("w_")
        self._parts(scope)
        self.tally.operand_bytes = sum(scope.operands.values())
        if not regrouped:
            return
        # Both orders differ where a result is not finite: then everything is computed, and written, once more.
        again.as_written, again.times = True, 0
        again.lines.append("tl.debug_barrier()")
        self._parts(again)
        odd = " + ".join(self._odd(step) for step in regrouped)
        again.close(f"if {odd} > 0:")

    def _parts(self, scope: Scope) -> None:
        for part in self.order.parts:
            if isinstance(part, Sweep):
                self._sweep(part, scope)
            elif isinstance(part, Store):
                self._store(part, scope, "whole")
            elif not isinstance(part, Pool):
                self._step(part, scope)

    # --- pools ---

    def _pools(self, extent: int, pools: list[Pool], scope: Scope) -> None:
        """One pass over the axis, ``unroll`` positions at a time, whose loads are all under way together."""
        unroll = min(self.unroll, extent)
        sizes = [self.height * padded(pool.tile.columns) for pool in pools]
        for pool in pools:
            scope.lines.append(f"{pool.name} = tl.zeros([{self.height}, {padded(pool.tile.columns)}], tl.float32)")
        turns, loaded = extent // unroll, self.tally.own_bytes
        if turns > 1:
            inner, head = self._looped(extent - extent % unroll, unroll, scope)
            assert inner.sweep is not None
            positions = [f"{inner.sweep[0]}_{k}" for k in range(unroll)]
            inner.lines.extend(f"{name} = {inner.sweep[0]} + {k}" for k, name in enumerate(positions))
            self._pooled(pools, [ex.var(name, extent) for name in positions], inner)
            inner.close(head)
        rest = range(extent - extent % unroll if turns > 1 else 0, extent)
        if rest:
            self._pooled(pools, [ex.index(at) for at in rest], scope)
        self.tally.turns += turns
        self.tally.flight_bytes = max(self.tally.flight_bytes, (self.tally.own_bytes - loaded) // turns)
        self.tally.computes([*sizes, sizes[0] * unroll // 2])
        self.tally.held += sum(sizes)

    def _pooled(self, pools: list[Pool], positions: list[Expr], scope: Scope) -> None:
        for pool in pools:
            for number, position in enumerate(positions):
                tile = replace(pool.tile, value=replace_variables(pool.tile.value, {POSITION: position}))
                text, _ = self.tiles.full(tile, (self.row_kind, "whole"), scope)
                scope.lines.append(f"{pool.name}_part {'+=' if number else '='} {text}")
            scope.lines.append(f"{pool.name} += {pool.name}_part")

    # --- steps ---

    def _step(self, step: Step, scope: Scope) -> None:
        self._wide_values(step.tiles, scope)
        pair = pair_of(step, self.plan) if self.joined and isinstance(step, Dot) else None
        if pair is not None and isinstance(step, Dot):
            self._wide_values(pair.tiles, scope)
            self._named_wide({pair.onto}, scope)
            scope.lines.append(f"{step.name} = {self._dot_of_two(pair, step, scope)}")
            # Joined operands take as many registers as the result of the first product would.
            self._holds(self._elements(pair, scope), scope, is_loop=True)
        elif isinstance(step, Dot):
            self._named_wide({step.onto}, scope)
            scope.lines.append(f"{step.name} = {self._dot(step, scope, total=step.onto)}")
        elif isinstance(step, Regrouped):
            self._regrouped(step, scope)
        elif isinstance(step, Reduce):
            scope.lines.append(f"{step.name} = {self._reduced(step, 'whole', scope)}")
        if isinstance(step, Regrouped) or (isinstance(step, Dot) and not step.onto):
            self._holds(self._elements(step, scope), scope, is_loop=is_wide(step))
        scope.done.add(step.name)

    def _wide_values(self, tiles: Iterable[Tile], scope: Scope) -> None:
        """The blocks of wide values that ``tiles`` read, as far as this scope has not computed them."""
        self._named_wide({name for tile in tiles for name in tile.names}, scope)

    def _named_wide(self, names: Set[str], scope: Scope) -> None:
        for step in self.plan.steps:
            if is_wide(step) and step.name in names and step.name not in scope.done:
                self._step(step, scope)

    def _dot(self, step: Dot, scope: Scope, depth: Extent = "whole", total: str = "") -> str:
        places = self.tiles.size(depth, step.depth, scope)
        self.tally.flops += 2 * self._elements(step, scope) * places * scope.times
        self.tally.least_rows = min(self.tally.least_rows, self._rows(step.rows))
        left = self.tiles.operand(step.left, (self.row_kind, depth), 1, step.dtype, scope)
        right = self.tiles.operand(step.right, (depth, self._columns(step)), 0, step.dtype, scope)
        return f"tl.dot({left}, {right}{total and f', {total}'}{self.precision})"

    def _dot_of_two(self, first: Dot, second: Dot, scope: Scope) -> str:
        """``second``, and below it ``first``."""
        self.tally.flops += 4 * self._elements(second, scope) * padded(second.depth) * scope.times
        self.tally.least_rows = min(self.tally.least_rows, self._rows(second.rows))
        left, right = joined_operands(first, second, self.tiles, (self.row_kind, self._columns(second)), scope)
        return f"tl.dot({left}, {right}{first.onto and f', {first.onto}'}{self.precision})"

    def _reduced(self, step: Reduce, columns: Extent, scope: Scope) -> str:
        text, placed = self.tiles.full(step.tile, (self.row_kind, columns), scope)
        masks = [self.masks[placed.names[axis]] for axis in step.axes if placed.names[axis] in self.masks]
        if masks:
            text = f"tl.where({' & '.join(masks)}, {text}, {literal(_NEUTRAL[step.combine], 'float32')})"
        for axis in reversed(step.axes):
            if step.combine == "sum":
                text = f"tl.sum({text}, axis={axis}, keep_dims=True)"
            else:
                text = f"tl.reduce({text}, {axis}, {_HELPERS[step.combine]}, keep_dims=True)"
        return text

    def _columns(self, step: Dot | Regrouped) -> Extent:
        return "swept" if is_wide(step) else "whole"

    def _rows(self, rows: Dim) -> int:
        return self.height if self.plan.rowwise else padded(rows)

    def _elements(self, step: Dot | Regrouped, scope: Scope) -> int:
        return self._rows(step.rows) * self.tiles.size(self._columns(step), step.columns, scope)

    def _holds(self, elements: int, scope: Scope, is_loop: bool) -> None:
        """Counts the registers of a result, which lives for a turn of a loop or, as an operand, from now on."""
        if is_loop:
            scope.results.append(elements)
        elif scope.times:
            self.tally.computes([elements])
            self.tally.holds(elements, ITEM_SIZES[self.plan.dtype])

    # --- sweeps ---

    def _sweep(self, sweep: Sweep, scope: Scope) -> None:
        for step in sweep.sums:
            scope.lines.append(f"{step.name} = {self._start(step)}")
        inner, head = self._looped(sweep.extent, min(self.block, padded(sweep.extent)), scope)
        for step in sweep.sums:
            self._wide_values(step.tiles, inner)
            # Nothing is added so that the product is done before a branch: else each instruction of it waits for the last.
            zero = " + 0.0" if self.is_flat and isinstance(step, Dot) else ""
            inner.lines.append(f"{step.name} = {self._summed(step, inner)}{zero}")
        for store in sweep.stores:
            self._wide_values((store.tile,), inner)
            self._store(store, inner, "swept")
        self._close(inner, head, sweep.sums)

    def _looped(self, extent: int, block: int, scope: Scope) -> tuple[Scope, str]:
        """The body of a new loop over blocks of an axis, and its head."""
        self._loops += 1
        start = f"c{self._loops}"
        inner = scope.looped(f"s{self._loops}_", start, extent, block)
        return inner, f"for {start} in tl.range(0, {extent}, {block}):"

    def _close(self, inner: Scope, head: str, sums: Iterable[Step]) -> None:
        inner.close(self._pipelined(head) if inner.late_bytes else head)
        held = [self._elements(step, inner) for step in sums if isinstance(step, Dot)]
        if inner.times:
            through_shared = sum(inner.operands.values()) + (0 if self.tiles.ahead else inner.late_bytes)
            self.tally.looped_bytes = max(self.tally.looped_bytes, through_shared)
            self.tally.turns += inner.times
            self.tally.late_bytes = max(self.tally.late_bytes, inner.late_bytes)
            self.tally.computes([*inner.results, *held])
        for elements in held:
            self.tally.holds(elements, ITEM_SIZES[self.plan.dtype])

    def _pipelined(self, head: str) -> str:
        """Without this Triton loads only operands ahead; the loop over units has a say of its own where both are one."""
        return head if self.tiles.ahead or self.is_flat else head.replace("):", f", num_stages={self.stages}):")

    def _start(self, step: Step) -> str:
        if isinstance(step, Reduce):
            rows = 1 if 0 in step.axes or step.tile.rows == 1 else self._rows(step.tile.rows)
            return f"tl.full([{rows}, 1], {literal(_NEUTRAL[step.combine], 'float32')}, tl.float32)"
        assert isinstance(step, Dot)
        return f"tl.zeros([{self._rows(step.rows)}, {padded(step.columns)}], tl.float32)"

    def _summed(self, step: Step, scope: Scope) -> str:
        if isinstance(step, Dot):
            return self._dot(step, scope, "swept", step.name)
        assert isinstance(step, Reduce)
        return self._combined(step, self._reduced(step, "swept", scope))

    def _combined(self, step: Reduce, part: str) -> str:
        """What was reduced so far, and one more part."""
        return f"{step.name} + {part}" if step.combine == "sum" else f"{_HELPERS[step.combine]}({step.name}, {part})"

    # --- regrouped products ---

    def _square(self, step: Regrouped, scope: Scope) -> None:
        """``left @ inner``, as an operand, and for each of its rows how often a result was not finite."""
        left = self.tiles.operand(step.left, ("whole", "whole"), 1, step.dtype, scope)
        inner = self.tiles.operand(step.inner, ("whole", "whole"), 0, step.dtype, scope)
        rows, depth = padded(step.rows), padded(step.depth)
        self.tally.flops += 2 * rows * depth * padded(step.middle)
        self._holds(rows * depth, scope, is_loop=False)
        square = f"tl.dot({left}, {inner}{self.precision}).to({TRITON_TYPES[step.dtype]})"
        scope.lines.append(f"{step.name}_square = {square}")
        scope.lines.append(f"{step.name}_odd = tl.zeros([{rows}], tl.int32)")

    def _regrouped(self, step: Regrouped, scope: Scope) -> None:
        name, columns = step.name, self._columns(step)
        right = self.tiles.operand(step.right, ("whole", columns), 0, step.dtype, scope)
        if not scope.as_written:
            self.tally.flops += 2 * self._elements(step, scope) * padded(step.depth) * scope.times
            scope.lines.append(f"{name} = tl.dot({name}_square, {right}{self.precision})")
            scope.lines.append(f"{name}_odd += tl.max(({name} - {name} != 0).to(tl.int32), 1)")
            return
        size = self.tiles.size(columns, step.columns, scope)
        scope.lines.append(f"{name}_right = {right}")
        scope.lines.append(f"{name} = tl.zeros([{padded(step.rows)}, {size}], tl.float32)")
        inner, head = self._looped(step.middle, min(WRITTEN_BLOCK, padded(step.middle)), scope)
        first = self.tiles.operand(step.inner, ("swept", "whole"), 1, step.dtype, inner)
        part = self._finite(f"tl.dot({first}, {name}_right{self.precision})", step, inner)
        left = self.tiles.operand(step.left, ("whole", "swept"), 1, step.dtype, inner)
        inner.lines.append(f"{name} = tl.dot({left}, {part}, {name}{self.precision})")
        inner.close(head)

    def _finite(self, part: str, step: Regrouped, scope: Scope) -> str:
        """Rows of ``inner @ right`` as an operand, to which nothing spreads that does not exist."""
        mask = self.masks.get(self.tiles.coordinate("swept", step.middle, 0, scope))
        return f"{f'tl.where({mask}, {part}, 0.0)' if mask else part}.to({TRITON_TYPES[step.dtype]})"

    def _odd(self, step: Regrouped) -> str:
        """How often a result was not finite."""
        return f"tl.sum({step.name}_odd, 0)"

    # --- results ---

    def _store(self, store: Store, scope: Scope, columns: Extent) -> None:
        value, at, placed = self.tiles.stored(store, (self.row_kind, columns), scope)
        mask = " & ".join(self.masks[name] for name in placed.names if name in self.masks)
        scope.lines.append(f"tl.store(out{store.output} + {at}, {value}{mask and f', mask={mask}'})")
