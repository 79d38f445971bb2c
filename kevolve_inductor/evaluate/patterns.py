"""Where an output is wrong: the shape that the wrong elements make together, and the words for it.

What a kernel got wrong shows in which elements it got wrong: a mask in the tail, an offset in whole tiles, one lane of a
vector in every n-th element. Everything here takes a few passes over the mask; tiles are looked for in a part of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .evaluation import Pattern

# Some elements of what went wrong as a whole are right by chance.
_WHOLLY = 0.9
_LEAST_TILE = 4
_LEAST_REPEATS = 4
_TAIL_SHARE = 8
_LEAST_TAIL_TILE = 16
# Elements among which tiles are looked for: more than the tiles of any kernel have.
_WINDOW = 2**21


@dataclass(frozen=True)
class Place:
    """``words`` say where, e.g. ``"rows from 96 on, of 100"``; dimensions and indices count from 0."""

    pattern: Pattern
    words: str


def find_pattern(wrong: torch.Tensor) -> Place:
    """The pattern of a mask of any shape in which at least one element is set."""
    count = int(wrong.sum())
    nearly = count >= _WHOLLY * wrong.numel()
    if count == wrong.numel():
        return Place("everything", "all elements")
    while wrong.dim() > 1 and wrong.shape[-1] == 1:
        wrong = wrong.squeeze(-1)
    place = _along(wrong, "elements") if wrong.dim() == 1 else _lines(wrong, count) or _tail(wrong)
    if place is None and not nearly:
        place = _tiles(wrong)
    # Of wrong values too, some are right by chance.
    return place or Place("everything" if nearly else "scattered", f"between {_box(wrong)}")


def _lines(wrong: torch.Tensor, count: int) -> Place | None:
    """Rows run along the last dimension, columns across all others."""
    rows, columns = wrong.any(-1), wrong.flatten(0, -2).any(0)
    wrong_rows, wrong_columns = int(rows.sum()), int(columns.sum())
    if wrong_columns > 1 and wrong_rows < rows.numel() and count >= _WHOLLY * wrong_rows * wrong.shape[-1]:
        if wrong_rows == 1:
            return Place("one row", f"row {_index(rows)} of {rows.numel()}")
        some = Place("rows", f"{wrong_rows} of {rows.numel()} rows between {_box(rows)}")
        return _along(rows.reshape(-1), "rows") or _tiles(wrong, least_rows=_LEAST_TILE) or some
    if wrong_rows > 1 and wrong_columns < columns.numel() and count >= _WHOLLY * wrong_columns * rows.numel():
        if wrong_columns == 1:
            return Place("one column", f"column {_first(columns)} of {columns.numel()}")
        some = Place("columns", f"{wrong_columns} of {columns.numel()} columns between {_box(columns)}")
        return _along(columns, "columns") or _tiles(wrong, least_columns=_LEAST_TILE) or some
    return None


def _tail(wrong: torch.Tensor) -> Place | None:
    """At the end of the whole output, or of every line along one dimension."""
    if _is_tail(wrong.reshape(-1)):
        return _tail_place(wrong.reshape(-1), "elements")
    for dim in reversed(range(wrong.dim())):
        line = _projected(wrong, dim)
        if line.numel() > 1 and _is_tail(line):
            return _tail_place(line, f"indices of dimension {dim}")
    return None


def _along(line: torch.Tensor, what: str) -> Place | None:
    """What the elements of a line have in common: they are its end, or come again at an even distance."""
    if _is_tail(line):
        return _tail_place(line, what)
    first, count = _first(line), int(line.sum())
    if count < _LEAST_REPEATS:
        return None
    step = 1 + _first(line[first + 1 :])
    repeats = line[first::step]
    if step > 1 and first < step and count == repeats.numel() and bool(repeats.all()):
        return Place("every n-th", f"one of every {step} {what}, from {first} on")
    return None


def _is_tail(line: torch.Tensor) -> bool:
    """Whether what is wrong is the end, and less or more than whole tiles."""
    size, start, count = line.numel(), _first(line), int(line.sum())
    if start >= size - max(size // _TAIL_SHARE, 1):
        return count > 1 or start == size - 1
    # The largest power of two that divides the start is the largest tile that could begin there.
    tile = start & -start
    whole_tiles = tile >= _LEAST_TAIL_TILE and count % tile == 0
    return count == size - start <= size // 2 and not whole_tiles


def _tail_place(line: torch.Tensor, what: str) -> Place:
    return Place("tail", f"{what} from {_first(line)} on, of {line.numel()}")


def _tiles(wrong: torch.Tensor, least_rows: int = 1, least_columns: int = 1) -> Place | None:
    """Blocks that are wrong as a whole: powers of two at multiples of their size, in two dimensions or in the flat output."""
    flat = _largest_tile(_window(wrong.reshape(1, -1)), 1, 1)
    tile = _largest_tile(_window(wrong), least_rows, least_columns) if wrong.dim() > 1 else None
    if tile is not None and (flat is None or math.prod(tile) >= flat[1]):
        return Place("whole tiles", f"tiles of {tile[0]}×{tile[1]}, the first at {_shown(_corner(wrong))}")
    if flat is None or least_rows > 1 or least_columns > 1:
        return None
    return Place("whole tiles", f"tiles of {flat[1]} elements in a row, the first at {_shown(_corner(wrong))}")


def _window(wrong: torch.Tensor) -> torch.Tensor:
    """Two dimensions around the first wrong element, cut where every tile that begins there is still whole."""
    if wrong.dim() > 2:
        matrices = wrong.flatten(0, -3)
        wrong = matrices[_first(matrices.flatten(1).any(1))]
    columns = wrong.shape[1]
    width = min(columns, _WINDOW)
    height = 2 ** ((_WINDOW // width).bit_length() - 1)
    top = _first(wrong.any(1)) // height * height
    left = _first(wrong.any(0)) // width * width
    return wrong[top : top + height, left : left + width]


def _largest_tile(wrong: torch.Tensor, least_rows: int, least_columns: int) -> tuple[int, int] | None:
    total, best, area = int(wrong.sum()), None, _LEAST_TILE - 1
    for rows, columns, counts in _pyramid(wrong):
        height, width = min(rows, wrong.shape[0]), min(columns, wrong.shape[1])
        if height < least_rows or width < least_columns or height * width <= area:
            continue
        blocks = counts > 0
        if not bool(blocks.all()) and total >= _WHOLLY * _elements_in(blocks, wrong.shape, rows, columns):
            best, area = (height, width), height * width
    return best


def _pyramid(wrong: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
    """How many elements are wrong in each block, for all pairs of powers of two; four passes' worth of work in all."""
    wide, columns = wrong, 1
    while True:
        tall, rows = wide, 1
        while True:
            yield rows, columns, tall
            if tall.shape[-2] == 1:
                break
            tall, rows = _pairs_added(tall.transpose(-1, -2)).transpose(-1, -2), 2 * rows
        if wide.shape[-1] == 1:
            return
        wide, columns = _pairs_added(wide), 2 * columns


def _pairs_added(counts: torch.Tensor) -> torch.Tensor:
    if counts.shape[-1] % 2:
        counts = torch.nn.functional.pad(counts, (0, 1))
    return counts[..., 0::2].to(torch.int32) + counts[..., 1::2]


def _elements_in(blocks: torch.Tensor, shape: torch.Size, rows: int, columns: int) -> int:
    """Elements of the blocks that are set; those at the borders are smaller."""
    heights = _extents(shape[-2], rows, blocks.device)
    widths = _extents(shape[-1], columns, blocks.device)
    return int((blocks * heights[:, None] * widths).sum())


def _extents(size: int, block: int, device: torch.device) -> torch.Tensor:
    extents = torch.full((math.ceil(size / block),), block, device=device)
    extents[-1] = size - block * (extents.numel() - 1)
    return extents


def _projected(wrong: torch.Tensor, dim: int) -> torch.Tensor:
    return wrong.movedim(dim, -1).flatten(0, -2).any(0) if wrong.dim() > 1 else wrong


def _first(line: torch.Tensor) -> int:
    return int(line.to(torch.uint8).argmax())


def _corner(wrong: torch.Tensor) -> tuple[int, ...]:
    """The least index of the first wrong element in each dimension."""
    return tuple(_first(_projected(wrong, dim)) for dim in range(wrong.dim()))


def _index(lines: torch.Tensor) -> str:
    """Of the only wrong line."""
    return _shown(_corner(lines))


def _box(wrong: torch.Tensor) -> str:
    """The first and last wrong index of each dimension."""
    lines = [_projected(wrong, dim) for dim in range(wrong.dim())]
    last = tuple(line.numel() - 1 - _first(line.flip(0)) for line in lines)
    return f"{_shown(_corner(wrong))} and {_shown(last)}"


def _shown(index: tuple[int, ...]) -> str:
    return str(index[0]) if len(index) == 1 else str(index)
