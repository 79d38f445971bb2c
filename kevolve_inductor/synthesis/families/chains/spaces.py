"""The schedules of a chain, the likely best first: what fits by the model of costs, in the order of its seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from ...family import Schedule, ScheduleSpace
from .cost import Cost, cost_of
from .plan import ChainPlan, Dot, Regrouped
from .sizes import padded
from .sweeps import WIDEST_HELD, is_wide_store, swept
from .triton import Writer

_SEEDS, _LEAST_ROWS_OF_WARP = 20, 8
_HEIGHTS, _BLOCKS = (256, 128, 64, 32, 16), (256, 128, 64, 32)
_LOOPS = (1, 2, 4, 8, 16)
# What changes the text of a kernel by more than a number.
_WRITTEN = ("rows", "block", "unroll")
Choices = Mapping[str, tuple[int | str | bool, ...]]


@dataclass(frozen=True)
class Ranked:
    schedule: Schedule
    cost: Cost


def triton_space(plan: ChainPlan, least_bytes: int) -> ScheduleSpace:
    """``least_bytes`` is what any kernel must move. The plan is one for which :func:`rank` finds a schedule."""
    ranked = rank(plan, least_bytes)
    choices = {name: tuple(dict.fromkeys(one.schedule[name] for one in ranked)) for name in ranked[0].schedule}
    return ScheduleSpace(choices, tuple(one.schedule for one in _varied(ranked)[:_SEEDS]))


@lru_cache(maxsize=32)
def rank(plan: ChainPlan, least_bytes: int) -> tuple[Ranked, ...]:
    """All schedules that fit, by the model's seconds; empty where none does."""
    found: list[Ranked] = []
    choices = _choices(plan)
    written = [name for name in choices if name in _WRITTEN]
    for sizes in product(*(choices[name] for name in written)):
        chosen = dict(zip(written, sizes, strict=True))
        writer = Writer(plan, {**chosen, "loop": 1, "precision": "ieee"})
        writer.body()
        units = -(-plan.seen[1] // writer.height) * plan.seen[0]
        for schedule in _expanded(choices, chosen):
            if _is_sensible(schedule, writer, units, choices):
                cost = cost_of(writer.tally, schedule, plan.dtype, units, least_bytes)
                found += [Ranked(schedule, cost)] if cost.fits else []
    return tuple(sorted(found, key=lambda one: one.cost.seconds))


def _is_sensible(schedule: Schedule, writer: Writer, units: int, choices: Choices) -> bool:
    """Is the schedule another one than those that are tried anyway, and does it share out evenly?"""
    loop, has_sweeps = int(schedule["loop"]), writer.tally.turns > 1
    if loop > 1 and (units % loop if writer.plan.batch is not None else has_sweeps and not writer.tally.fixed_bytes):
        return False
    if loop == 1 and not has_sweeps and schedule["stages"] != choices["stages"][0]:
        # Stages are of loops.
        return False
    # The matrix units take sixteen rows; more than two warps side by side along them read the same operands.
    return bool(writer.plan.pools) or _LEAST_ROWS_OF_WARP * int(schedule["warps"]) <= writer.height


def _choices(plan: ChainPlan) -> Choices:
    tallest = padded(plan.rows) if isinstance(plan.rows, int) else _HEIGHTS[0]
    heights = tuple(size for size in _HEIGHTS if size <= max(tallest, _HEIGHTS[-1])) if plan.rowwise else (tallest,)
    widths = [step_width for step in plan.steps if (step_width := swept(step, plan, _BLOCKS[-1])) is not None]
    widths += [
        store.tile.columns for store in plan.stores if is_wide_store(store) and isinstance(store.tile.columns, int)
    ]
    widest = min(padded(max(widths, default=1)), WIDEST_HELD)
    has_products = any(isinstance(step, Dot | Regrouped) for step in plan.steps)
    longest = max((pool.extent for pool in plan.pools), default=0)
    return {
        "rows": heights,
        "block": tuple(size for size in _BLOCKS if size <= widest) or _BLOCKS[:1],
        "loop": _LOOPS if has_products and not isinstance(plan.batch, str) else _LOOPS[:1],
        "unroll": tuple(dict.fromkeys(min(n, longest) for n in (8, 16, 4, 64))) if longest else (1,),
        "warps": (4, 8, 2, 16),
        "stages": (3, 2, 4) if has_products else (2,),
        "precision": ("tf32x3", "ieee") if plan.dtype == "float32" and has_products else ("ieee",),
    }


def _expanded(choices: Choices, chosen: Schedule) -> Iterator[Schedule]:
    """All schedules with what is ``chosen`` already."""
    rest = [name for name in choices if name not in chosen]
    for values in product(*(choices[name] for name in rest)):
        yield {**chosen, **dict(zip(rest, values, strict=True))}


def _varied(ranked: Sequence[Ranked]) -> list[Ranked]:
    """The best of each kind before the second best of any: neighbours in a model's order differ in little."""
    kinds: dict[tuple[object, ...], list[Ranked]] = {}
    for one in ranked:
        kind = (*(one.schedule[name] for name in ("rows", "unroll", "warps")), one.schedule["loop"] == 1)
        kinds.setdefault(kind, []).append(one)
    rounds = max(map(len, kinds.values()), default=0)
    return [members[k] for k in range(rounds) for members in kinds.values() if k < len(members)]
