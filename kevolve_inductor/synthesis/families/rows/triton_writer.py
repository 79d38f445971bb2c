"""The text of one Triton kernel: a program's steps over tiles of rows, in the shapes of ``triton_space``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ....exc import EmissionError
from ...expression import expression as ex
from ...expression.expression import Expr
from ...expression.triton import TRITON_TYPES
from .program import (
    COLUMNS,
    ColumnSum,
    Element,
    Pass,
    Reduce,
    RowProgram,
    Select,
    Step,
    Store,
    deviation_pairs,
    online_pairs,
    passes,
)
from .spaces import column_loads
from .triton_ahead import Ahead
from .triton_arithmetic import sums_below
from .triton_folds import DeviationFold, Fold, OnlineFold, ReduceFold, combined, identity, over, reduced
from .triton_places import Programs, TritonPlaces
from .triton_space import Space, SpacePrinter, Tile
from .triton_steps import Selector


class TritonWriter(TritonPlaces):
    """Prints one kernel."""

    def __init__(
        self, program: RowProgram, tile: Tile, selections: tuple[str, str], online: bool, programs: Programs
    ) -> None:
        if program.column_sums and tile.looped == bool(programs.count):
            raise EmissionError(
                "sums over all rows need whole rows and persistent programs, or a program for every tile"
            )
        super().__init__(program, tile, programs)
        self.pairs = online_pairs(program) if online else ()
        self.deviations = deviation_pairs(program) if online else ()
        self.joined = (*self.pairs, *(sums_below(program) if online else ()), *self.deviations)
        self.steps = passes(program, self.joined)
        if tile.spread and not self._is_pointwise:
            raise EmissionError("blocks of a row have programs of their own where nothing but stores is left of it")
        self.totals: dict[tuple[str, int], str] = {}
        self.selector = Selector(self, *selections)

    @property
    def _is_pointwise(self) -> bool:
        """Whether all that is done is to store something in every column."""
        return all(store.axis == COLUMNS for store in self.program.stores) and not self.program.statements

    def lines(self) -> list[str]:
        if self.shared:
            self.out += self.shared.opening(self.tile.span)
        self._positions()
        whole = bool(self.persistent.count) and not self.tile.looped
        held = self._held() if whole else []
        reads_ahead = whole and self.persistent.stages != 1 and self.program.rows
        ahead = Ahead(self, columns=self.persistent.stages == 0) if reads_ahead else None
        if ahead:
            ahead.first()
        if self.persistent.count:
            self._persistent_loop()
        self._rows()
        self._columns()
        for (space, _), names in zip(self.pieces, held, strict=False):
            space.held.update(names)
        if ahead:
            ahead.turn()
        for step in self.steps:
            if step.sweep:
                self._sweep(step)
            for after in step.after:
                self._step(after)
        self.indent = 0
        self._store_totals()
        return self.out

    def _store_totals(self) -> None:
        for one in self.program.column_sums if self.totals else ():
            for k, _ in enumerate(self._each_piece()):
                self._store_total(one, self.totals[one.result.value[0], k])

    def _store_total(self, part: ColumnSum, values: str) -> None:
        """What this program's rows add up to at the columns that are printed."""
        space = self.spaces[COLUMNS]
        place = f"{self.which_program} * {self.program.columns} + {space.position}"
        guard = f", mask={space.axis_mask}" if space.axis_mask else ""
        position = self.program.column_sums.index(part)
        self.add(f"tl.store(part{position} + {place}, tl.sum({values}, 0, keep_dims=True){guard})")

    def _held(self) -> list[dict[Expr, str]]:
        """What all rows read (weights), read once before the loop over tiles; names by load, for each piece."""
        pieces = []
        for k in range(self.tile.pieces):
            position = self.position(k)
            space = Space(self.program, COLUMNS, self.tile.shape, "", position, "", self.mask(k), {COLUMNS: position})
            printer = space.printer(f"k{k}_")
            held = {}
            for load in column_loads(self.program):
                if not self.program.is_row_dependent(load) and self.program.axis_of(load) == COLUMNS:
                    held[load] = self.read(printer, load, "k")
            pieces.append(held)
        return pieces

    def read(self, printer: SpacePrinter, load: Expr, prefix: str) -> str:
        """The name of a load made here, as it stands in memory."""
        text = printer.raw(load)
        for line in printer.lines:
            self.add(line)
        printer.lines.clear()
        name = self.fresh(prefix)
        self.add(f"{name} = {text}")
        return name

    def _persistent_loop(self) -> None:
        for one in self.program.column_sums:
            for k in range(self.tile.pieces):
                name = self.totals[one.result.value[0], k] = self.fresh("a")
                self.add(f"{name} = tl.zeros({self.tile.shape}, {TRITON_TYPES[one.result.dtype]})")
        self._loop("turn", f"{self.which_program}, {self.tile_count}, tl.num_programs(0)")

    def _loop(self, name: str, bounds: str) -> None:
        """Reading ahead goes through shared memory, which a loop of one stage does without."""
        stages = self.persistent.stages
        self.add(
            f"for {name} in tl.range({bounds}, num_stages={stages}):"
            if stages > 1
            else f"for {name} in range({bounds}):"
        )
        self.indent += 1

    # --- sweeps ---

    def _hoist(self, part: Step) -> None:
        """Numbers of the row that a sweep uses are computed, and read, before it."""
        if (
            isinstance(part, Element)
            or self.program.selects
            or not (isinstance(part, ColumnSum) or part.axis == COLUMNS)
            or any(part is second for _, second in self.deviations)
        ):
            return
        for value in self._numbers_of_row(part.value):
            if value not in self.hoisted:
                name = ex.var(self.fresh("h"), None, value.dtype)
                self.define_scalar(name, self.whole(None, value))
                self.hoisted[value] = name

    def _numbers_of_row(self, value: Expr) -> list[Expr]:
        """The largest parts that do not vary along the columns, names and addresses aside."""
        if value.op in ("var", "const", "size"):
            return []
        if self.program.axis_of(value) is None:
            return [value]
        if value.op == "load":
            return []
        return [number for argument in value.args for number in self._numbers_of_row(argument)]

    def _sweep(self, step: Pass) -> None:
        for part in step.sweep:
            self._hoist(part)
        if self.tile.looped:
            self._looped_sweep(step)
            return
        self._reduce([part for part in step.sweep if isinstance(part, Reduce)])
        for part in step.sweep:
            if isinstance(part, Select):
                self.selector.select(part)
        for k, _ in enumerate(self._each_piece()):
            for part in step.sweep:
                if isinstance(part, ColumnSum):
                    self._add_to_total(part, k)
                elif isinstance(part, Store):
                    self._store(part)

    def _looped_sweep(self, step: Pass) -> None:
        folds = [fold for fold in (self._fold(part, step.sweep) for part in step.sweep) if fold is not None]
        for fold in folds:
            fold.prepare()
        for fold in folds:
            for line in fold.before:
                self.add(line)

        def inside() -> None:
            for fold in folds:
                fold.inside()
            for part in step.sweep:
                if isinstance(part, ColumnSum):
                    self._store_total(part, self._live(part))
                elif isinstance(part, Store):
                    self._store(part)

        self.walk(inside, self._policy(step))
        for fold in folds:
            fold.after()

    def walk(self, inside: Callable[[], None], policy: str) -> None:
        """The loop over the blocks of a row; of a spread row its program's one. ``inside`` adds what is done with each."""
        columns, block = self.program.columns, self.tile.columns
        if self.tile.spread:
            self.add(f"c0 = (tl.program_id(0) % {self.blocks}) * {block}")
            self._block(inside, ragged=self._is_ragged)
            return
        self.spaces[COLUMNS].policy = policy
        # Blocks that end inside the row have no masks.
        whole = columns - columns % block
        if whole:
            mine = f"begin, tl.minimum(begin + {self.tile.span}, {whole})" if self.shared else f"0, {whole}"
            self._loop("c0", f"{mine}, {block}")
            self._block(inside, ragged=False)
            self.indent -= 1
        if self._is_ragged:
            # Of a shared row only the last part has an end; to the others all of it is outside.
            last = f"tl.where(part == {self.tile.parts - 1}, {whole}, {columns})"
            self.add(f"c0 = {last if self.shared else whole}")
            self._block(inside, ragged=True)

    def _policy(self, step: Pass) -> str:
        """Of rows that are read again the first time and the last."""
        sweeps = [one for one in self.steps if one.sweep]
        return "" if len(sweeps) == 1 else "evict_first" if step is sweeps[-1] else "evict_last"

    def _block(self, inside: Callable[[], None], *, ragged: bool) -> None:
        space = self.spaces[COLUMNS]
        space.axis_mask, space.run = (f"{COLUMNS} < {self.program.columns}", None) if ragged else ("", None)
        if not ragged:
            self._mark_run(space, f"c0 // {self.tile.run} + ")
        self.add(f"{COLUMNS} = c0 + block")
        # No two loops share names: Triton would carry a value from one to the next.
        self.printers[COLUMNS] = space.printer(f"{self.fresh(COLUMNS)}_")
        inside()

    def _fold(self, part: Step, sweep: Sequence[Step]) -> Fold | None:
        if isinstance(part, Reduce):
            if any(part is first and second in sweep for first, second in (*self.pairs, *self.deviations)):
                return None
            total = next((first for first, second in self.deviations if part is second), None)
            if total is not None:
                return DeviationFold(self, total, part)
            partner = next((first for first, second in self.pairs if part is second), None)
            if partner is not None:
                return OnlineFold(self, partner, part, self._sum_below(partner))
            return None if any(part is second for _, second in self.joined) else ReduceFold(self, part)
        return self.selector.fold(part) if isinstance(part, Select) else None

    def _sum_below(self, top: Reduce) -> Reduce | None:
        others = [second for first, second in self.joined[len(self.pairs) :] if first is top]
        return others[0] if others else None

    # --- steps ---

    def _step(self, part: Step) -> None:
        """What needs no sweep."""
        if isinstance(part, Store):
            self._store(part)
        elif isinstance(part, Reduce):
            self._reduce([part])
        elif isinstance(part, Select):
            self.selector.select(part)
        elif isinstance(part, Element):
            self._element(part)

    def _add_to_total(self, part: ColumnSum, piece: int) -> None:
        self.add(f"{self.totals[part.result.value[0], piece]} += {self._live(part)}")

    def _live(self, part: ColumnSum) -> str:
        """What is added up, zero in rows and columns that there are not."""
        mask = self.spaces[COLUMNS].whole_mask
        value = self.whole(COLUMNS, part.value)
        return f"tl.where({mask}, {value}, 0)" if mask else value

    def _store(self, store: Store) -> None:
        space = self.spaces[store.axis]
        value = self.value(store.axis, store.value)
        offset = self.value(store.axis, store.offset)
        guard = f", mask={space.whole_mask}" if space.whole_mask else ""
        if not self.program.rows and store.axis is None:
            offset = f"{offset} + row"  # The one row is row 0; its address has to be a tensor as its value is.
        self.add(f"tl.store(out{store.output} + ({offset}), {value}{guard})")

    def _reduce(self, reduces: Sequence[Reduce]) -> None:
        """Reductions of one axis; sums over columns go together, so that threads wait for each other once."""
        values = {reduce.result: self._partial(reduce) for reduce in reduces}
        sums = [reduce for reduce in reduces if reduce.op == "sum" and reduce.axis == COLUMNS and not self.shared]
        while len(sums) > 1:
            some, sums = sums[:3], sums[3:]
            names = [self.fresh("s") for _ in some]
            parts = ", ".join(values.pop(reduce.result) for reduce in some)
            self.add(f"{', '.join(names)} = kv_row_{'two' if len(some) == 2 else 'three'}_sums({parts})")
            for reduce, name in zip(some, names, strict=True):
                self.define_scalar(reduce.result, name)
        for reduce in reduces:
            if reduce.result in values:
                self.define_reduced(reduce, values[reduce.result])

    def define_reduced(self, reduce: Reduce, text: str) -> None:
        """The result of a reduction of which ``text`` is what this program's threads have."""
        text = reduced(reduce, text)
        if self.shared and reduce.axis == COLUMNS:
            (parts,) = self.exchanged([text], [identity(reduce)])
            text = self.along(reduce.op, parts)
        self.define_scalar(reduce.result, text)

    def along(self, op: str, text: str) -> str:
        """A reduction of the last axis of ``[rows, …]``; a number where programs share a single row."""
        return over(op, over(op, text, 1), 0) if self.one_row else over(op, text, 1)

    def exchanged(self, values: Sequence[str], nothing: Sequence[str]) -> list[str]:
        """Names of the values ``[rows, parts]`` of all programs that share a tile of rows."""
        assert self.shared is not None
        names = [self.fresh("z") for _ in values]
        for line in self.shared.exchanged(names, values, nothing, self._goes_on_alone):
            self.add(line)
            self.indent += line.startswith("if ")
        return names

    @property
    def _goes_on_alone(self) -> bool:
        """Whether rows are done once their only sweep is, and that finds one thing only."""
        sweeps = [step.sweep for step in self.steps if step.sweep]
        return self.tile.looped and len(sweeps) == 1 and len(_found_by(sweeps[0], self.joined)) == 1

    def _partial(self, reduce: Reduce) -> str:
        """All pieces' values as one."""
        if reduce.axis != COLUMNS or len(self.pieces) == 1:
            return self.masked(reduce.axis, reduce.value, identity(reduce))
        name = self.fresh("a")
        for k, _ in enumerate(self._each_piece()):
            value = self.masked(COLUMNS, reduce.value, identity(reduce))
            self.add(f"{name} = {combined(reduce, name, value) if k else value}")
        return name

    def _element(self, element: Element) -> None:
        axis = self.program.axis_of(element.source)
        assert axis is not None
        source = self.value(axis, element.source)
        name = self.fresh("e")
        # A sum in which all but one are zero; of the bits, so that the sign of a zero survives.
        bits = {"float32": "tl.int32", "float64": "tl.int64"}.get(element.source.dtype)
        taken = f"{source}.to({bits}, bitcast=True)" if bits else f"{source}.to(tl.int64)"
        self.add(f"{name} = tl.sum(tl.where({axis} == {element.position}, {taken}, 0), 1)")
        kind = TRITON_TYPES[element.result.dtype]
        self.define_scalar(element.result, f"{name}.to({kind}, bitcast=True)" if bits else f"{name}.to({kind})")


def _found_by(sweep: Sequence[Step], joined: Sequence[tuple[Reduce, Reduce]]) -> list[Step]:
    """The steps of a sweep, those that are found together once."""
    seconds = [second for _, second in joined]
    return [step for step in sweep if not any(step is second for second in seconds)]
