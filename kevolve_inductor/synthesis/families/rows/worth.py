"""Which row reductions are worth a search: those that Inductor reads, or adds up, more than once."""

from __future__ import annotations

import torch.fx

from ....exc import UnsupportedError
from ....graph.meta import tensor_of
from ..common import elements
from ..triton_tiles import next_power_of_2
from .assemble import Assembled
from .component import Component
from .operators import reduction_of
from .program import RowProgram, passes
from .spaces import MOST_REDUCED, columns_are_near

LEAST_ELEMENTS = 1 << 20
# Rows of up to this many elements Inductor keeps in a GPU's registers while it needs them (its persistent reductions), in a
# tile as long as the next power of two: what of it lies behind a row is lost, which tells where rows are not short.
_LONGEST_HELD, _SHORTEST_WASTED, _LEAST_USED = 1024, 129, 0.7
# Where the number of rows varies, long ones go through one program each: there has to be one for most units.
_LEAST_LONG_ROWS = 96
# Rows that lie next to each other are read line by line, each by a program: there have to be enough, and of some length,
# less where they are read again.
LEAST_FAR_ROWS, _SHORTEST_FAR, _SHORTEST_READ_AGAIN = 4096, 65, 12
# Of so few rows programs have parts, where these take longer than launching them.
_FEW_ROWS, _LEAST_OF_FEW = 32, 1 << 23
# Partial sums of all columns stand in a program's registers.
_MOST_SUMMED = 16384


def is_large(node: torch.fx.Node) -> bool:
    """Whether what a reduction reads is of a size that counts."""
    return elements(node.all_input_nodes[0]) >= LEAST_ELEMENTS


def is_along_memory(node: torch.fx.Node) -> bool:
    """Whether a reduction runs along the axis on which neighbours are neighbours in memory."""
    try:
        asked = reduction_of(node)
    except UnsupportedError:
        return False
    value = tensor_of(asked.source)
    return any(value.stride(dim) == 1 and value.shape[dim] != 1 for dim in asked.dims)


def check_worth(found: Assembled, component: Component, device: str) -> None:
    """Raises ``UnsupportedError`` where no kernel could be faster than Inductor's, or none of ours is."""
    program = found.program
    if not component.stands_alone(found):
        raise UnsupportedError("slower", "Inductor computes this together with what comes before or after it")
    if device != "cpu" and _lies_apart(program, found):
        return
    if device != "cpu" and _is_of_few_rows(program, found):
        return
    if not program.column_sums and not _reads_again(program):
        raise UnsupportedError("slower", "rows are read once by Inductor as well")
    if device != "cpu":
        _check_gpu(program, found)


def _lies_apart(program: RowProgram, found: Assembled) -> bool:
    """Whether rows, not columns, lie next to each other in memory: of these Inductor has too few in flight side by side."""
    rows = _elements(found) / program.columns
    shortest = _SHORTEST_READ_AGAIN if _reads_again(program) else _SHORTEST_FAR
    enough = rows >= LEAST_FAR_ROWS and program.columns >= shortest
    return enough and not program.column_sums and not columns_are_near(program)


def _reads_again(program: RowProgram) -> bool:
    return sum(bool(one.sweep) for one in passes(program)) > 1


def _is_of_few_rows(program: RowProgram, found: Assembled) -> bool:
    """Whether rows are so few that Inductor adds up parts of them first: in two kernels, and not at the rate of memory."""
    rows = _elements(found) / program.columns
    is_static = all(isinstance(extent, int) for _, extent in program.rows)
    is_few = rows <= _FEW_ROWS and _elements(found) >= _LEAST_OF_FEW and is_static
    return is_few and not program.selects and not program.column_sums and columns_are_near(program)


def _share_used(columns: int) -> float:
    return columns / (next_power_of_2(columns))


def _elements(found: Assembled) -> float:
    return max(elements(node) for node in (*found.inputs, *found.outputs))


def _check_gpu(program: RowProgram, found: Assembled) -> None:
    columns = program.columns
    if program.column_sums:
        if columns > _MOST_SUMMED:
            raise UnsupportedError("size", f"sums of {columns} columns do not fit in a program's registers")
        return
    if columns <= _LONGEST_HELD and (columns < _SHORTEST_WASTED or _share_used(columns) > _LEAST_USED):
        raise UnsupportedError("slower", f"rows of {columns} elements are held in registers by Inductor as well")
    rows = _elements(found) / columns
    is_static = all(isinstance(extent, int) for _, extent in program.rows)
    if columns > MOST_REDUCED and rows < _LEAST_LONG_ROWS and not is_static:
        raise UnsupportedError("size", f"{int(rows)} rows of {columns} elements are too few for a program each")
