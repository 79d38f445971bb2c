"""Long rows in Triton that several programs share: each has a part, and what the parts give is exchanged through memory.

So a row is read from memory once, whatever its length: its parts are held in registers, or come from the cache the second
time since few rows are at work at once. Where no part is needed a second time, the program that comes last goes on alone, and
nobody waits. Programs take their places in turn, and all parts of a row stand next to each other
in the order of places: whoever waits for a part waits for one that has begun, or begins next.

Where neighbouring rows are neighbours in memory, a tile of them is shared as a row is elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from ....exc import EmissionError
from ....graph.dims import Dim
from ....kernel import Workspace
from ..triton_tiles import next_power_of_2
from .program import RowProgram

NAMES = ("shared", "arrived")


class SharedRows:
    """What ``parts`` programs of every one of ``tiles`` tiles of ``rows`` rows exchange.

    ``shared`` holds each value by tile, part and row, ``arrived`` the number of places taken and, for each exchange, how
    many parts of a tile have come to it.
    """

    def __init__(self, program: RowProgram, tiles: Dim, parts: int, rows: int) -> None:
        if not isinstance(tiles, int):
            raise EmissionError("rows of which there is an unknown number are not shared")
        if program.selects or program.column_sums:
            raise EmissionError("nothing is selected from a shared row, and nothing summed over such rows")
        self.tiles, self.parts, self.rows = tiles, parts, rows
        self._values = self._exchanges = 0

    def opening(self, span: int) -> list[str]:
        """``line`` is the tile and ``begin`` the first column of this program's part."""
        return [
            "ticket = tl.atomic_add(arrived, 1)",
            f"line = ticket // {self.parts}",
            f"part = ticket % {self.parts}",
            f"begin = part * {span}",
        ]

    def exchanged(
        self, names: Sequence[str], values: Sequence[str], nothing: Sequence[str], is_last: bool
    ) -> list[str]:  # fmt: skip
        """``names`` become tensors ``[rows, parts]`` of the single-precision ``values`` of all parts; ``nothing`` fills them
        up.

        With ``is_last`` all lines behind the first that begins a block belong in it.
        """
        width, own = next_power_of_2(self.parts), f"line * {self.parts}"
        places = [self._values + k for k in range(len(names))]
        arrived = f"arrived + {1 + self._exchanges * self.tiles} + line"
        whole, row = self.tiles * self.parts * self.rows, f"tl.arange(0, {self.rows})"
        times = f" * {self.rows}" if self.rows > 1 else ""
        lines = [
            f"tl.store(shared + ({place * whole} + ({own} + part){times} + {row}), {value})"
            for place, value in zip(places, values, strict=True)
        ]
        lines += [
            "tl.debug_barrier()",
            f"seen = tl.atomic_add({arrived}, 1) + 1",
            *([f"if seen == {self.parts}:"] if is_last else self._waiting(arrived)),
            "tl.debug_barrier()",
            f"which = tl.arange(0, {width})[None, :]",
        ]
        # Not by way of a unit's own cache, which does not hear of what others write.
        how = "" if width == self.parts else f", mask=which < {self.parts}, other={{}}"
        for name, place, none in zip(names, places, nothing, strict=True):
            at = f"shared + ({place * whole} + ({own} + which){times}{f' + {row}[:, None]' if times else ''})"
            lines.append(f"{name} = tl.load({at}{how.format(none)}, cache_modifier='.cg')")
        self._values += len(names)
        self._exchanges += 1
        return lines

    def _waiting(self, arrived: str) -> list[str]:
        return [f"while seen < {self.parts}:", f"    seen = tl.atomic_add({arrived}, 0)"]

    @property
    def workspaces(self) -> tuple[Workspace, ...]:
        """To be asked for when all is printed."""
        return (
            Workspace("float32", str(self._values * self.tiles * self.parts * self.rows)),
            Workspace("int32", str(1 + self._exchanges * self.tiles), zeroed=True),
        )
