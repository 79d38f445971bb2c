"""Selections in Triton: by networks within and between threads, or by taking the first element again and again.

Of rows that are walked over block by block, most blocks can be passed over (``"filter"``): as many threads as elements
are wanted have seen one each that is no worse than the last of their best, and what is worse than that is not selected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....exc import EmissionError
from ...expression import expression as ex
from ...expression.expression import Expr
from ...expression.triton import TRITON_TYPES
from ..triton_tiles import next_power_of_2
from .program import COLUMNS, Select
from .spaces import MOST_FILTERED
from .triton_folds import Fold
from .triton_registers import Registers
from .triton_types import Packing, key_of, packing_of

if TYPE_CHECKING:
    from .triton_writer import TritonWriter

_MOST_EXTRACTED = 16


class Selector:
    """Prints selections for one writer. ``method``: ``"network"``, ``"filter"`` or ``"extract"``."""

    def __init__(self, writer: TritonWriter, key: str, method: str) -> None:
        self.writer, self.key, self.method = writer, key, method

    # --- a whole axis at hand ---

    def select(self, select: Select) -> None:
        w = self.writer
        packing = packing_of(select, w.program.axes[select.axis], self.key)
        if select.count == 1 and (packing is None or self.method == "extract"):
            self._first(select)
            return
        if packing is None or (self.method == "extract" and select.count <= _MOST_EXTRACTED):
            self._extract(select)
            return
        packed = self.packed(select, packing, select.axis)
        rows = w.tile.rows
        if select.count == 1:
            name = w.fresh("p")
            w.add(f"{name} = tl.min({w.flat(select.axis, packed)}, 1)")
            self.define(select, packing, name)
            return
        width, lanes, deep = self._extent(select.axis)
        registers = Registers(w, rows, lanes)
        values = registers.taken(f"tl.reshape({packed}, [{rows}, {lanes}, {deep}])", deep)
        wanted = next_power_of_2(select.count)
        if wanted <= deep and (wanted < deep or lanes > 1):
            width = wanted
            first = registers.first_of_lanes(registers.first_of_thread(values, wanted))
            name = registers.joined(first, (rows,))
        else:
            whole = registers.joined(registers.sort(values), (rows, lanes))
            name = w.fresh("p")
            w.add(f"{name} = tl.reshape({whole}, [{rows}, {width}])")
        assert select.out is not None
        w.axis_space(select.out, width)
        self.define(select, packing, name)

    def _extent(self, axis: str) -> tuple[int, int, int]:
        """Width of an axis as a tensor, over how many threads a row is spread there, and positions per thread."""
        tile = self.writer.tile
        if axis == COLUMNS:
            return tile.columns, tile.lanes, tile.per_thread
        width = int(self.writer.spaces[axis].shape.strip("[]").split(",")[1])
        return width, 1, width

    def packed(self, select: Select, packing: Packing, axis: str) -> str:
        """The axis' packed values as a name; beyond its end stands the last one."""
        w = self.writer
        value = w.whole(axis, select.value)
        name, held = w.fresh("p"), w.fresh("x")
        w.add(f"{held} = {value}")
        position = w.spaces[axis].position
        w.add(f"{name} = {packing.packed(held, position)}")
        mask = w.spaces[axis].axis_mask
        if mask:
            w.add(f"{name} = tl.where({mask}, {name}, {packing.last})")
        return name

    def define(self, select: Select, packing: Packing, name: str) -> None:
        statement, value, position = packing.unpacked(name)
        self.writer.add(statement)
        if select.values is not None:
            self._named(select, select.values, value)
        if select.indices is not None:
            self._named(select, select.indices, position)

    def _named(self, select: Select, result: Expr, text: str) -> None:
        w = self.writer
        if select.out is None:
            w.define_scalar(result, text)
        else:
            w.add(f"{result.value[0]} = {text}")
            w.spaces[select.out].name(str(result.value[0]), str(result.value[0]))

    # --- one element ---

    def _first(self, select: Select) -> None:
        """The best value, then the lowest position that has it."""
        w = self.writer
        values = w.fresh("x")
        w.add(f"{values} = {self.held(select)}")
        self.first_of(select, values, w.spaces[select.axis].position)

    def held(self, select: Select) -> str:
        """The axis' values in the dtype they are compared in, the worst beyond its end."""
        w = self.writer
        value = w.whole(select.axis, select.value)
        if held_dtype(select) != select.value.dtype:
            value = f"{value}.to({TRITON_TYPES[held_dtype(select)]})"
        mask = w.spaces[select.axis].axis_mask
        return f"tl.where({mask}, {value}, {worst(select)})" if mask else value

    def first_of(self, select: Select, values: str, positions: str) -> None:
        """``positions`` that were never set, and those of values as bad as can be, count as the first."""
        w = self.writer
        suffix = w.spaces[select.axis].row_suffix
        best, place = w.fresh("x"), w.fresh("i")
        w.add(f"{best} = {best_of(select, w.flat(select.axis, values))}{suffix}")
        equal = f"({values} == {best})"
        if select.value.dtype in ex.FLOATS:
            equal = f"({equal} | (({values} != {values}) & ({best} != {best})))"
        at = f"tl.where({equal}, {positions}, 2147483647)"
        w.add(f"{place} = tl.min({w.flat(select.axis, at)}, 1)")
        w.add(f"{place} = tl.where({place} >= {w.program.axes[select.axis]}, 0, {place})")
        self.places(select, [place])

    # --- one element after another ---

    def _extract(self, select: Select) -> None:
        """The least key, then the lowest position that has it, marked as taken; any dtype."""
        w = self.writer
        if select.count > _MOST_EXTRACTED:
            raise EmissionError(f"{select.count} elements of 64 bits cannot be selected at once")
        wide = select.value.dtype in ("float64", "int64")
        last, kind = ("9223372036854775807", "tl.int64") if wide else ("2147483647", "tl.int32")
        space = w.spaces[select.axis]
        keys, left = w.fresh("p"), w.fresh("g")
        w.add(f"{keys} = {key_of(select, w.whole(select.axis, select.value))}")
        w.add(f"{left} = tl.full({space.shape}, 1, tl.int1)" + (f" & ({space.axis_mask})" if space.axis_mask else ""))
        found = []
        for _ in range(select.count):
            best, place = w.fresh("p"), w.fresh("i")
            w.add(f"{best} = tl.min({w.flat(select.axis, f'tl.where({left}, {keys}, {last})')}, 1)")
            equal = f"({keys} == {best}{space.row_suffix}) & {left}"
            at = f"tl.where({equal}, {space.position}, 2147483647)"
            w.add(f"{place} = tl.min({w.flat(select.axis, at)}, 1)")
            w.add(f"{left} = {left} & ({space.position} != {place}{space.row_suffix})")
            found.append(place)
        self.places(select, found)

    def places(self, select: Select, found: list[str]) -> None:
        """Names the selected: positions as found, values read again from where they stand."""
        w = self.writer
        index = select.indices if select.indices is not None else ex.var(w.fresh("i"), w.program.axes[select.axis])
        if select.out is None:
            w.define_scalar(index, f"{found[0]}.to(tl.int64)")
        else:
            w.axis_space(select.out, next_power_of_2(len(found)))
            name = str(index.value[0])
            w.add(f"{name} = tl.zeros({w.spaces[select.out].shape}, tl.int64)")
            for k, place in enumerate(found):
                w.add(f"{name} = tl.where({select.out} == {k}, {place}[:, None].to(tl.int64), {name})")
            w.spaces[select.out].name(name, name)
        if select.values is not None:
            moved = ex.substitute(select.value, lambda part: index if _is_position(part, select.axis) else None)
            self._named(select, select.values, w.value(select.out, moved))

    # --- block by block ---

    def fold(self, select: Select) -> Fold:
        packing = packing_of(select, self.writer.program.columns, self.key)
        wanted = next_power_of_2(select.count)
        if packing is None or (select.count == 1 and self.method == "extract"):
            if select.count > 1:
                raise EmissionError("elements of 64 bits cannot be selected block by block")
            return _PlaceFold(self, select)
        if self.method == "filter" and 1 < select.count <= MOST_FILTERED:
            return _FilteredFold(self, select, packing, wanted)
        seen = self.writer.tile.per_thread
        if wanted > seen:
            raise EmissionError(f"{select.count} elements cannot be kept by threads that see {seen} at once")
        return _PackedFold(self, select, packing, wanted)


def _is_position(part: Expr, axis: str) -> bool:
    return part.op == "var" and part.value[0] == axis


class _PackedFold(Fold):
    """Every thread keeps the first ``wanted`` of what it has seen, in order."""

    def __init__(self, selector: Selector, select: Select, packing: Packing, wanted: int) -> None:
        self.selector, self.select, self.packing = selector, select, packing
        w = selector.writer
        self.names = [w.fresh("q") for _ in range(wanted)]
        self.registers = Registers(w, w.tile.rows, w.tile.lanes)
        kind = TRITON_TYPES[packing.kind]
        shape = w.tile.shape if wanted == 1 else f"[{w.tile.rows}, {w.tile.lanes}]"
        super().__init__([f"{name} = tl.full({shape}, {packing.last}, {kind})" for name in self.names])

    def inside(self) -> None:
        w, wanted = self.selector.writer, len(self.names)
        packed = self.selector.packed(self.select, self.packing, COLUMNS)
        if wanted == 1:
            w.add(f"{self.names[0]} = kv_lower({self.names[0]}, {packed})")
            return
        deep = w.tile.per_thread
        new = self.registers.taken(f"tl.reshape({packed}, [{w.tile.rows}, {w.tile.lanes}, {deep}])", deep)
        kept = self.registers.first_of_two(self.names, self.registers.first_of_thread(new, wanted))
        w.add(f"{', '.join(self.names)} = {', '.join(kept)}")

    def after(self) -> None:
        w = self.selector.writer
        if len(self.names) == 1:
            name = w.fresh("p")
            w.add(f"{name} = tl.min({w.flat(COLUMNS, self.names[0])}, 1)")
        else:
            name = self.registers.joined(self.registers.first_of_lanes(self.names), (w.tile.rows,))
            assert self.select.out is not None
            w.axis_space(self.select.out, len(self.names))
        self.selector.define(self.select, self.packing, name)


class _FilteredFold(Fold):
    """The first ``wanted`` of the row so far, in order; blocks in which every value is worse than the ``bound`` are passed over.

    A sweep of its own finds the best value that each thread sees; as many of these as are wanted are distinct elements,
    so that what is worse than the last of them is not selected. What a block has beside them is few: it is taken one by
    one, as long as anything is better than the last that is held.
    """

    def __init__(self, selector: Selector, select: Select, packing: Packing, wanted: int) -> None:
        if selector.writer.tile.lanes < wanted:
            raise EmissionError(f"{selector.writer.tile.lanes} threads have no {wanted} best values")
        self.selector, self.select, self.packing, self.wanted = selector, select, packing, wanted
        self.held, self.bound = selector.writer.fresh("q"), selector.writer.fresh("b")
        self.extreme, self.past = ("max", "<") if select.order == "greatest" else ("min", ">")
        infinity = "float('-inf')" if self.extreme == "max" else "float('inf')"
        self.nothing = infinity if select.value.dtype in ex.FLOATS else worst(select)
        shape = f"[{selector.writer.tile.rows}, {wanted}]"
        super().__init__([f"{self.held} = tl.full({shape}, {packing.last}, {TRITON_TYPES[packing.kind]})"])

    def prepare(self) -> None:
        w, best = self.selector.writer, self.selector.writer.fresh("m")
        kind = TRITON_TYPES[held_dtype(self.select)]
        w.add(f"{best} = tl.full([{w.tile.rows}, {w.tile.lanes}], {self.nothing}, {kind})")

        def inside() -> None:
            values, mask = self._values(), w.spaces[COLUMNS].axis_mask
            known = f"tl.where({mask}, {values}, {self.nothing})" if mask else values
            of_thread = f"tl.{self.extreme}({w.per_lane(known)}, 2)"
            w.add(f"{best} = tl.{self.extreme}imum({best}, {of_thread}.to({kind}))")

        w.walk(inside, "evict_last")
        w.add(f"{self.bound} = tl.{self.extreme}({best}, 1)")
        w.add(f"for _ in range({self.select.count - 1}):")
        # Equal ones go together, which makes the bound no stricter.
        taken = f"({best} {self.past} {self.bound}[:, None])"
        w.add(f"    {self.bound} = tl.{self.extreme}(tl.where({taken}, {best}, {self.nothing}), 1)")

    def inside(self) -> None:
        w = self.selector.writer
        space, near = w.spaces[COLUMNS], w.fresh("g")
        inside = f" & ({space.axis_mask})" if space.axis_mask else ""
        w.add(f"{near} = (({self._values()} {self.past} {self.bound}[:, None, None, None]) == 0){inside}")
        w.add(f"if {_any(f'tl.reshape({near}, [{w.tile.rows * w.tile.columns}])')}:")
        w.indent += 1
        # What is named in a branch is not what has that name outside of it.
        outer, w.printers[COLUMNS] = w.printers[COLUMNS], space.printer(f"{w.fresh('c')}_")
        self._take(near)
        w.printers[COLUMNS] = outer
        w.indent -= 1

    def _take(self, near: str) -> None:
        w, left, best = self.selector.writer, *map(self.selector.writer.fresh, "pm")
        packed = self.selector.packed(self.select, self.packing, COLUMNS)
        first = f"{best} = tl.min({w.flat(COLUMNS, left)}, 1)"
        w.add(f"{left} = tl.where({near}, {packed}, {self.packing.last})")
        w.add(first)
        # Triton 3.6 does not compile loops that carry what their condition alone reads.
        w.add(f"while {_any(f'{best} < tl.max({self.held}, 1)')}:")
        w.add(f"    {self.held} = kv_inserted({self.held}, {best})")
        w.add(f"    {left} = tl.where({left} == {best}[:, None, None, None], {self.packing.last}, {left})")
        w.add(f"    {first}")

    def _values(self) -> str:
        w, name = self.selector.writer, self.selector.writer.fresh("x")
        w.add(f"{name} = {w.whole(COLUMNS, self.select.value)}.to({TRITON_TYPES[held_dtype(self.select)]})")
        return name

    def after(self) -> None:
        assert self.select.out is not None
        self.selector.writer.axis_space(self.select.out, self.wanted)
        self.selector.define(self.select, self.packing, self.held)


def _any(flags: str) -> str:
    """Whether one of ``flags`` along the only axis is set."""
    return f"tl.max(({flags}).to(tl.int32), 0) > 0"


class _PlaceFold(Fold):
    """The first element by value and position apart."""

    def __init__(self, selector: Selector, select: Select) -> None:
        self.selector, self.select = selector, select
        w = selector.writer
        self.best, self.place = w.fresh("x"), w.fresh("i")
        shape, kind = w.tile.shape, TRITON_TYPES[held_dtype(select)]
        super().__init__([f"{self.best} = tl.full({shape}, {worst(select)}, {kind})",
                          f"{self.place} = tl.full({shape}, 2147483647, tl.int32)"])  # fmt: skip

    def inside(self) -> None:
        w, best = self.selector.writer, self.best
        values, better = w.fresh("x"), w.fresh("g")
        w.add(f"{values} = {self.selector.held(self.select)}")
        w.add(f"{better} = {is_better(self.select, values, best)}")
        w.add(f"{best} = tl.where({better}, {values}, {best})")
        w.add(f"{self.place} = tl.where({better}, {COLUMNS}, {self.place})")

    def after(self) -> None:
        self.selector.first_of(self.select, self.best, self.place)


def held_dtype(select: Select) -> str:
    """In what values are compared; booleans and bytes as small integers."""
    return {"bool": "int8", "uint8": "int16"}.get(select.value.dtype, select.value.dtype)


def worst(select: Select) -> str:
    """A value that no other one is behind."""
    dtype = held_dtype(select)
    if dtype in ex.FLOATS:
        return {"greatest": "float('-inf')", "least": "float('inf')", "smallest": "float('nan')"}[select.order]
    bits = {"int64": 63, "int32": 31, "int16": 15, "int8": 7}[dtype]
    return f"(-{2**bits})" if select.order == "greatest" else str(2**bits - 1)


def is_better(select: Select, new: str, old: str) -> str:
    if select.value.dtype not in ex.FLOATS:
        return f"{new} {'>' if select.order == 'greatest' else '<'} {old}"
    if select.order == "smallest":
        return f"({new} < {old}) | (({old} != {old}) & ({new} == {new}))"
    sign = "<=" if select.order == "greatest" else ">="
    return f"(({new} {sign} {old}) == 0) & ({old} == {old})"


def best_of(select: Select, values: str) -> str:
    if select.value.dtype not in ex.FLOATS:
        return f"tl.{'max' if select.order == 'greatest' else 'min'}({values}, 1)"
    if select.order == "smallest":
        return f"tl.min(tl.where({values} != {values}, float('inf'), {values}), 1)"
    return f"tl.reduce({values}, 1, {'kv_max' if select.order == 'greatest' else 'kv_min'})"
