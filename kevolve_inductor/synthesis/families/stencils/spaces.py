"""Schedules of stencils: how results are shared out among threads, and what one thread takes at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ....graph.region import ITEM_SIZES
from ....platforms.platform import Target
from ...expression.access import accesses
from ...expression.loops import Axis
from ...family import Schedule, ScheduleSpace
from .. import common
from .cpp import is_gathered, phases
from .lanes import VECTOR_BYTES
from .padded import padded
from .plan import StencilPlan, StencilTask
from .triton import may_overlap, row_axis, walk_axis
from .weights import BackwardPlan, WeightPlan

_SHORT_ROW = 128
_LANES = (256, 128, 64)
_UNITS = (128, 256, 512)
# About how many places a program walks along.
_WALKS = (7, 14, 4)
# The most taps that a thread of a GPU has written out one by one, in a row of its results and in all of them.
_MOST_IN_ROW, _MOST_TEXT = 640, 800
# Running products of all taps that a program of four warps keeps in registers.
_SUM_ELEMENTS = 6144


def cpu_space(plan: StencilPlan | BackwardPlan, sizes: Mapping[str, int], target: Target) -> ScheduleSpace:
    """``sizes`` are those of the first output, by axis."""
    choices: dict[str, tuple[int | str | bool, ...]] = {}
    if isinstance(plan, BackwardPlan):
        if plan.stencil is None:
            return common.seeded({"order": ("static", "dynamic")})
        plan = plan.stencil
    task = plan.task
    reads = accesses([store.value for lane in phases(plan) for store in lane])
    if task.window_of(task.inner[0]) is None and any(is_gathered(read, task.inner[0]) for read in reads):
        choices["lanes"] = _LANES
    total = math.prod(sizes.values())
    extent = task.inner[1] if isinstance(task.inner[1], int) else sizes.get(task.inner[0], 1)
    axes = task.axes[:-1]
    rows = axes[-1][1] if axes and isinstance(axes[-1][1], int) else 1
    others = max(total // (rows * max(extent, 1)), 1)
    # The longest blocks of rows of which there are enough for all threads.
    blocks = [size for size in (rows, 64, 16, 4, 1) if size <= rows]
    blocks.sort(key=lambda size: (others * -(-rows // size) < 4 * target.threads, -size))
    choices["rows"] = tuple(dict.fromkeys(blocks))[:3]
    choices["order"] = ("static", "dynamic")
    copied = padded(plan)
    if copied is not None and copied.most_rows:
        # The longer a row, the less its ends matter.
        choices["padded"] = (True, False) if extent < _SHORT_ROW else (False, True)
    # Products fill long vectors; extremes and sums wait for memory, or for the end of a short row.
    first, second = (512, 256) if plan.term.op == "mul" else (256, 512)
    choices |= common.vector_choices(target, (first, second))
    return common.seeded(
        choices, {"order": "dynamic"}, {"vector": second}, {"padded": extent >= _SHORT_ROW}, {"lanes": 64}
    )


def gpu_space(plan: StencilPlan | BackwardPlan) -> ScheduleSpace:
    choices: dict[str, tuple[int | str | bool, ...]] = {}
    changes: list[Schedule] = []
    if isinstance(plan, BackwardPlan):
        choices, changes = _sums_space(plan.weights)
        if plan.stencil is None:
            return common.seeded(choices, *changes)
        plan = plan.stencil
    task = plan.task
    extent = task.inner[1]
    widest = VECTOR_BYTES // min(ITEM_SIZES.get(spec.dtype, 4) for spec in (*plan.inputs, *plan.outputs))
    lanes = [size for size in (8, 4, 2, 1) if isinstance(extent, int) and extent % size == 0] or [1]
    lanes = [size for size in lanes if plan.taps * size <= _MOST_IN_ROW] or [1]
    # Vectors of 16 bytes first, then wider units, then narrower ones.
    preferred = min(widest, lanes[0])
    lanes.sort(key=lambda size: (size != preferred, -size))
    row = row_axis(task)
    rows = [size for size in (1, 2, 4, 7, 8) if row is not None and _divides(task, row, size)] or [1]
    most = max(1, _MOST_TEXT // (plan.taps * lanes[0]))
    # Along rows that overlap, several at once read less, and more of them where windows are long; results of windows far
    # apart share nothing.
    shared = _overlap(plan, row[0]) if row is not None else 0
    rows = [size for size in rows if size <= most] or [1]
    # Threads whose results are no vectors have registers for more.
    many = shared > 4 or (shared > 1 and lanes[0] == 1)
    rows.sort(key=lambda size: (abs(size - (4 if many else 2 if shared else 1)), size))
    choices |= {"lanes": tuple(lanes[:3]), "rows": tuple(rows[:3]), "units": _UNITS, "num_warps": (4, 2, 8)}
    changes = [{"units": 256, "num_warps": 8}, {"units": 256}, {"rows": rows[:3][-1]}, *changes]
    steps = _steps(plan, lanes[0], rows[0])
    if steps:
        choices["steps"] = (0, *steps)
        changes = [*_walks(lanes[:3][-1], steps), *changes]
    return common.seeded(choices, *changes)


def _divides(task: StencilTask, row: Axis, size: int) -> bool:
    """Whether rows come out even in units of ``size``, or a few may be computed twice."""
    extent = int(row[1])
    return extent % size == 0 or (extent >= 4 * size and size in (2, 4) and may_overlap(task, row[0]))


def _walks(narrow: int, steps: Sequence[int]) -> list[Schedule]:
    """Weights of few channels leave registers for many warps, which is what keeps enough reads under way."""
    few: Schedule = {"lanes": narrow, "rows": 1}
    found: list[Schedule] = [
        {**few, "units": 256, "steps": steps[-1]},
        {"lanes": narrow, "steps": steps[0]},
        {**few, "steps": steps[0]},
        {"lanes": 4, "steps": steps[0]},
        {**few, "units": 512, "num_warps": 8, "steps": steps[len(steps) // 2]},
    ]
    return [seed for number, seed in enumerate(found) if seed not in found[:number]]


def _steps(plan: StencilPlan, lanes: int, rows: int) -> list[int]:
    """Places that a program walks along: a strip's ends are read twice, and weights once; but programs have to suffice.

    None where what a program does not walk along is too little for its threads.
    """
    axis, row = walk_axis(plan.task), row_axis(plan.task)
    if axis is None:
        return []
    counts = {name: int(extent) for name, extent in plan.task.axes[plan.task.axes.index(axis) :]}
    counts[plan.task.inner[0]] //= lanes
    if row is not None:
        counts[row[0]] //= rows
    along = counts.pop(axis[0])
    if 2 * math.prod(counts.values()) < _UNITS[0]:
        return []
    return list(dict.fromkeys(-(-along // max(1, along // size)) for size in _WALKS if along >= 2 * size))


def _sums_space(plan: WeightPlan) -> tuple[dict[str, tuple[int | str | bool, ...]], list[Schedule]]:
    """Tiles whose running products stay in registers, and a few programs for each multiprocessor."""
    tile = next((size for size in (1024, 512) if size * (plan.taps + 1) <= _SUM_ELEMENTS), 256)
    choices: dict[str, tuple[int | str | bool, ...]] = {
        "tile": (tile, tile // 2, 2 * tile), "programs": (1056, 528, 2112), "sum_warps": (4, 8),
    }  # fmt: skip
    return choices, [{"programs": 2112}, {"tile": tile // 2}]


def _overlap(plan: StencilPlan, axis: str) -> int:
    """How many taps along ``axis`` a window shares with the next one."""
    number = plan.task.window_of(axis)
    return max(plan.windows[number].taps - plan.windows[number].stride, 0) if number is not None else 0
