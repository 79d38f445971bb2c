"""The next tile's reads, made while one is computed, in registers that are carried around the loop over tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...expression import expression as ex
from ...expression.expression import Expr
from .program import COLUMNS, Element
from .triton_space import Space

if TYPE_CHECKING:
    from .triton_writer import TritonWriter


class Ahead:
    """Prints reads for ``writer``: what differs between rows and stands where rows and columns alone say.

    ``columns``: of them as well, not only the numbers of a row.
    """

    def __init__(self, writer: TritonWriter, columns: bool) -> None:
        self.writer = writer
        program = writer.program
        values = [step.value for step in program.statements if not isinstance(step, Element)]
        values += [one.value for one in program.column_sums]
        values += [store.value for store in program.stores]
        found = {load: None for value in values for load in ex.loads(value) if self._is_known(load)}
        self._numbers = [load for load in found if program.axis_of(load) is None]
        self._columns = [load for load in found if columns and program.axis_of(load) == COLUMNS]
        self._names: list[dict[Expr, str]] = []

    def _is_known(self, load: Expr) -> bool:
        address = load.args[0]
        plain = not any(part.op in ("load", "check_index") for part in ex.walk(address))
        return plain and self.writer.program.is_row_dependent(load)

    def first(self) -> None:
        """Before the loop: what the first tile reads."""
        self._names = self._read(self.writer.tile_at(self.writer.which_program))

    def turn(self) -> None:
        """At the beginning of the loop: what was read is at hand, and the tile after this one is read."""
        w = self.writer
        spaces = [w.spaces[None], *(space for space, _ in w.pieces)]
        for space, names in zip(spaces, self._names, strict=True):
            for load, name in names.items():
                space.held[load] = w.fresh("h")
                w.add(f"{space.held[load]} = {name}")
        for old, new in zip(self._names, self._read(w.tile_at("(turn + tl.num_programs(0))")), strict=True):
            for load, name in new.items():
                w.add(f"{old[load]} = {name}")

    def _read(self, tile: str) -> list[dict[Expr, str]]:
        """Names of the reads of one tile: the row's numbers, then every piece's."""
        w = self.writer
        names = w.row_names(tile, "n")
        # Behind the last turn there is no tile.
        w.add(f"nlive = (nrow >= 0) & (nrow < {w.total})" if w.is_backwards else f"nlive = nrow < {w.total}")
        numbers = Space(w.program, None, f"[{w.tile.rows}]", "", "", "nlive", "", names)
        made = [{load: w.read(numbers.printer("n_"), load, "n") for load in self._numbers}]
        for k in range(w.tile.pieces):
            suffix = "[:, None, None, None]"
            spread = {name: text + suffix for name, text in names.items()}
            place = {**spread, COLUMNS: w.position(k)}
            space = Space(w.program, COLUMNS, w.tile.shape, suffix, w.position(k), f"nlive{suffix}", w.mask(k), place)
            printer = space.printer(f"n{k}_")
            made.append({load: w.read(printer, load, "n") for load in self._columns})
        return made
