"""The schedule spaces: which algorithms and sizes make sense for a plan on a target."""

from __future__ import annotations

from collections.abc import Iterator

from ....graph.region import ITEM_SIZES
from ....platforms.platform import Target
from ...family import Schedule, ScheduleSpace
from ..triton_tiles import next_power_of_2, passes_caches_by
from .pairs import KnownPairs
from .places import are_few
from .structure import Plan

# Scratch of one thread beyond this leaves the second-level cache of common processors, and may leave the stack.
_SCRATCH_BYTES = 1 << 19
_SERIAL = 1 << 40

_TILES = ("dots 4x4", "dots 2x8", "dots 2x4", "dots 3x5", "dots 5x5", "panel 8x2", "panel 8x1", "panel 16x1", "panel 12x2",
          "panel 4x4", "lanes 5x5", "lanes 4x6", "lanes 4x4", "lanes 3x3")  # fmt: skip


def cpp_space(plan: Plan, target: Target) -> ScheduleSpace:
    item = ITEM_SIZES[plan.shape.held]
    sizes = [size for size in (64, 32, 16) if size <= max(4 * target.warp_size, 16)][:2]
    # Registers longer than a feature are mostly padding.
    sizes.sort(key=lambda size: (size // item > max(plan.shape.width, 16 // item), -size))
    tiles = [tile for tile in _TILES if not tile.startswith("lanes") or _lanes_fit(plan, sizes[0])]
    batch = plan.shape.batch
    large = isinstance(batch, int) and batch * plan.shape.features * plan.shape.width >= 1 << 20
    choices: dict[str, tuple[int | str | bool, ...]] = {
        "tile": tuple(tiles),
        "vector_bytes": tuple(sizes),
        "in_place": (True, False),
        "grain": (1 << 16,) if large else (1 << 16, 1 << 12, _SERIAL),
    }
    return ScheduleSpace(choices, tuple(_seeds(choices, _cpp_seeds(sizes))))


def _cpp_seeds(sizes: list[int]) -> list[Schedule]:
    wide, narrow = sizes[0], sizes[-1]
    return [
        {"tile": "dots 2x8", "vector_bytes": narrow},
        {"tile": "lanes 5x5", "vector_bytes": wide},
        {"tile": "panel 8x2", "vector_bytes": narrow},
        {"tile": "dots 4x4", "vector_bytes": narrow, "in_place": False},
        {"tile": "panel 16x1", "vector_bytes": wide, "in_place": False},
    ]


def _lanes_fit(plan: Plan, vector_bytes: int) -> bool:
    """Do a block's samples, their copies and their products fit into the scratch of a thread?"""
    features = plan.shape.features
    return vector_bytes * features * (2 * (plan.shape.width + vector_bytes) + features) <= 2 * _SCRATCH_BYTES


def triton_space(plan: Plan, target: Target) -> ScheduleSpace:
    tile, depth = max(16, next_power_of_2(plan.shape.features)), max(16, next_power_of_2(plan.shape.width))
    known = all(isinstance(s.pairs, KnownPairs) and are_few(s.pairs) for s in plan.segments if s.pairs is not None)
    single = plan.shape.stored == "float32"
    # fp32 products keep their operands in registers, so that a whole row of features would spill.
    whole = min(depth, 32 if single else 256)
    group = _group(plan, tile, depth) if known else 1
    groups = [size for size in (1, 2, 4, 8, 16) if size == 1 or (known and tile * tile * size <= 1 << 13)]
    warps = 8 if tile >= 128 else 4 if tile >= 64 or group >= 4 or single else 2
    choices: dict[str, tuple[int | str | bool, ...]] = {
        "store": ("scatter", "gather") if known else ("gather",),
        "group": _first(group, groups),
        "loop": (1, 2, 4, 8),
        # That many walk over all samples, so that only the first loads of each wait.
        "programs": (0, *(target.units * n for n in (8, 4, 16, 2))),
        "warps": _first(warps, [1, 2, 4, 8] if tile < 64 else [4, 8, 2] if tile < 128 else [8, 4]),
        "stages": (2, 3, 4),
        "chunk": _first(whole, [size for size in (128, 64, 32, 16) if size < depth]),
        "precision": ("ieee", "tf32x3", "bf16x6") if single else ("ieee",),
        "once": (False, True) if _passes_caches_by(plan) else (False,),
    }
    return ScheduleSpace(choices, tuple(_seeds(choices, _triton_seeds(single, tile, target.units))))


def _passes_caches_by(plan: Plan) -> bool:
    batch, item = plan.shape.batch, ITEM_SIZES[plan.shape.stored]
    return isinstance(batch, int) and passes_caches_by(batch * plan.shape.features * plan.shape.width * item)


def _group(plan: Plan, tile: int, depth: int) -> int:
    """Samples at once such that a program of few warps loads some 8 KB and keeps the products in registers."""
    if plan.shape.stored == "float64":
        return 1
    if plan.shape.stored == "float32":
        return max(1, 1024 // (tile * tile))
    return max(1, min(8, 4096 // (tile * depth)))


def _triton_seeds(single: bool, tile: int, units: int) -> list[Schedule]:
    walking: Schedule = {"group": 1, "loop": 1, "warps": 2, "stages": 3, "programs": 8 * units}
    seeds: list[Schedule] = [
        {"group": 1, "loop": 4, "warps": 1, "stages": 3},
        {"group": 1, "loop": 4, "warps": 2, "stages": 3},
        walking,
        {**walking, "once": True},
        {**walking, "store": "gather"},
        {**walking, "stages": 4, "programs": 4 * units},
        {"group": 1, "loop": 4, "warps": 2, "stages": 3, "once": True},
        {"group": 1, "loop": 1, "warps": 1},
        {"group": 1, "loop": 4, "warps": 4, "stages": 3, "store": "gather"},
        {"group": 4, "loop": 1, "warps": 4},
        {"group": 1, "loop": 1, "warps": 4, "store": "gather"},
        {"group": 1, "loop": 4, "warps": 2, "stages": 3, "store": "gather"},
    ]
    if single:
        precise: Schedule = {"precision": "tf32x3"}
        small = [{**precise, "group": 8, "warps": 4}] if tile == 16 else []
        one: list[Schedule] = [{**precise, "group": 1, "warps": 1}, {**precise, "group": 1, "warps": 2, "chunk": 16}]
        one[1:1] = [{**one[0], "precision": "bf16x6"}]
        seeds = [*small, *one, {**precise, "group": 1, "warps": 2, "loop": 4, "stages": 3}, *seeds]
    return seeds


def _seeds(choices: dict[str, tuple[int | str | bool, ...]], changes: list[Schedule]) -> Iterator[Schedule]:
    """The default with each of ``changes``, where those are choices at all."""
    default = {name: values[0] for name, values in choices.items()}
    for change in changes:
        if all(value in choices[name] for name, value in change.items()):
            yield {**default, **change}


def _first(value: int, values: list[int]) -> tuple[int, ...]:
    return (value, *(other for other in values if other != value))
