"""Row programs as Triton.

A program holds a few rows. Their columns are a tensor ``[rows, lanes, depth, vector]``: neighbouring columns in a
thread's vector, then across threads, then in a thread's further vectors. So each thread keeps many columns of one row,
and selections work mostly within threads. Rows that do not fit into a tile are walked over in blocks, once for every
sweep of the program.

Either every program has one tile of rows, or a fixed number of *persistent* programs goes over all tiles: then the next
tile is read while one is computed, and sums over all rows are kept in registers until the end (``triton_columns``).
"""

from __future__ import annotations

from dataclasses import replace

from ....exc import EmissionError
from ....kernel import Kernel, Launch
from ...expression import TRITON_PRELUDE
from ...expression.triton import used_helpers
from ...family import Schedule
from ..common import arguments_of
from ..triton_tiles import next_power_of_2
from .program import RowProgram
from .spaces import columns_are_near, vector_of
from .triton_arithmetic import prepared
from .triton_columns import ColumnTotals
from .triton_places import Programs
from .triton_prelude import ROW_HELPERS
from .triton_shared import NAMES as SHARED_NAMES
from .triton_space import Tile
from .triton_writer import TritonWriter

_FUNCTION = "row_program"
_WARP = 32
_MOST_WARPS = 32
_MOST_PER_THREAD = 128
# Each is printed for itself.
_MOST_PIECES = 8


def emit_triton(program: RowProgram, schedule: Schedule) -> Kernel:
    """Raises ``EmissionError`` where the schedule does not fit."""
    online = bool(schedule.get("online", False)) and schedule["algorithm"] == "loop"
    program = prepared(program, bool(schedule.get("simplify", True)), online)
    tile, warps = tile_of(program, schedule)
    programs = Programs(int(schedule.get("programs", 0)), int(schedule.get("stages", 1)))
    selections = str(schedule.get("key", "int64")), str(schedule.get("select", "network"))
    writer = TritonWriter(program, tile, selections, online, programs)
    totals = ColumnTotals(program, writer.programs) if program.column_sums else None
    names = [f"in{k}" for k in range(len(program.inputs))] + [f"out{k}" for k in range(len(program.outputs))]
    names += totals.names if totals else SHARED_NAMES if writer.shared else []
    body = "\n".join(f"    {line}" for line in writer.lines())
    code = f"@triton.jit\ndef {_FUNCTION}({', '.join([*names, *program.symbols])}):\n{body}"
    code = f"{code}\n\n{totals.function()}" if totals else code
    source = f"{used_helpers(TRITON_PRELUDE + ROW_HELPERS, code)}\n\n{code}\n"
    extra = totals or writer.shared
    workspaces = extra.workspaces if extra else ()
    arguments = arguments_of(program.inputs, program.outputs, program.symbols, len(workspaces))
    launch = Launch(_FUNCTION, arguments, (str(writer.programs),), num_warps=warps, num_stages=1)
    more = (totals.launch(arguments),) if totals else ()
    return Kernel("triton", source, (launch, *more), workspaces)


def tile_of(program: RowProgram, schedule: Schedule) -> tuple[Tile, int]:
    """The tile of a schedule and the warps that share it.

    Where columns are neighbours in memory a row is spread over ``lanes`` threads; up to a warp of them, so that a warp
    holds several rows, else one row per program, or ``beside`` each other as many in threads of their own. Where rows are
    neighbours, threads go along them first.
    """
    lanes, algorithm = int(schedule["lanes"]), schedule["algorithm"]
    near = columns_are_near(program)
    vector = vector_of(program) if near else 1
    power = next_power_of_2(program.columns)
    if lanes * vector > 2 * power:
        raise EmissionError(f"{lanes} threads for {program.columns} columns")
    depth, pieces, parts = max(1, power // (lanes * vector)), 1, int(schedule.get("parts", 1))
    own = -(-program.columns // parts)
    if algorithm != "tile":
        depth = min(depth, int(schedule["depth"]))
    elif near and not program.selects:
        depth, pieces = pieces_of(-(-own // (lanes * vector)))
    elif parts > 1:
        depth = max(1, next_power_of_2(own) // lanes)
    if depth * pieces * vector > _MOST_PER_THREAD:
        raise EmissionError(f"{depth * pieces * vector} columns of a row in one thread")
    rows = int(schedule["rows"])
    if near:
        beside = int(schedule.get("beside", 1)) if program.rows else 1
        rows = rows * max(1, _WARP // lanes) * beside if program.rows else 1
        warps = max(1, lanes // _WARP) * beside
    else:
        warps = max(1, rows * lanes // (4 * _WARP))
    if warps > _MOST_WARPS:
        raise EmissionError(f"{warps} warps in a program")
    tile = Tile(rows, lanes, depth, vector, algorithm != "tile", algorithm == "spread", pieces)
    if parts > 1:
        if tile.spread or (near and tile.rows > 1):
            raise EmissionError("programs share single rows, or neighbouring ones, that are held or walked over")
        tile = _shared(tile, own, program.columns)
    return tile, next_power_of_2(warps)


def _shared(tile: Tile, own: int, columns: int) -> Tile:
    """``tile`` of rows of which every program has about ``own`` columns: whole blocks, or all that the tile holds."""
    span = -(-own // tile.columns) * tile.columns if tile.looped else tile.columns * tile.pieces
    if span >= columns:
        raise EmissionError(f"a row of {columns} columns has no parts of {span}")
    return replace(tile, parts=-(-columns // span), span=span)


def pieces_of(runs: int) -> tuple[int, int]:
    """Depth and number of the pieces in which ``runs`` vectors of every thread are held; few, and with little in vain."""
    depth = 1
    while -(-runs // depth) > _MOST_PIECES or -(-runs // depth) % 2 == 0:
        depth *= 2
    return depth, -(-runs // depth)
