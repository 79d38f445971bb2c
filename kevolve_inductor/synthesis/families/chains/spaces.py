"""The schedules of a chain, the likely best first: what fits by the model of costs, in the order of its seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from ....exc import EmissionError
from ...family import Schedule, ScheduleSpace
from ..triton_tiles import passes_caches_by
from .cost import PROCESSORS, Cost, cost_of
from .joined import may_be_joined
from .plan import ChainPlan, Dot, Regrouped
from .sizes import padded
from .straight import may_be_straight
from .sweeps import WIDEST_HELD, WideError, is_wide_store, order_of, swept
from .triton import Writer, writer_of

_SEEDS, _LEAST_ROWS_OF_WARP, _LEAST_PIECE = 20, 8, 64
_HEIGHTS, _BLOCKS = (256, 128, 64, 32, 16), (256, 128, 64, 32)
# Programs on a processor at once, of which each then does an equal share of the units.
_RESIDENT, _MOST_UNITS = (1, 2, 3, 4, 6, 8), 64
_UNLOOPED: Schedule = {"loop": 1, "stages": 1, "precision": "ieee"}
# Six products of three parts of eight digits each, where three of two parts leave out the last digits of 24.
_MORE_DIGITS = "bf16x6"
# What changes the text of a kernel by more than a number.
_WRITTEN = ("rows", "block", "straight", "unroll", "ahead", "joined")
# Schedules that differ in these are of different kinds. What the model takes for slower by the factor comes last.
_KIND, _FAR = ("rows", "straight", "unroll", "warps"), 1.5
Choices = Mapping[str, tuple[int | str | bool, ...]]


@dataclass(frozen=True)
class Ranked:
    schedule: Schedule
    cost: Cost


def triton_space(plan: ChainPlan, least_bytes: int) -> ScheduleSpace:
    """``least_bytes`` is what any kernel must move. The plan is one for which :func:`rank` finds a schedule."""
    space = _space(plan, least_bytes)
    if plan.written is None or not _is_possible(plan.written, least_bytes):
        return space
    other = _space(plan.written, least_bytes)
    names = {name: (*space.choices[name], *other.choices[name]) for name in space.choices}
    choices = {"regrouped": (True, False), **{name: tuple(dict.fromkeys(values)) for name, values in names.items()}}
    first, *more = ({"regrouped": False, **seed} for seed in other.seeds)
    seeds = [{"regrouped": True, **seed} for seed in space.seeds]
    # Another order rounds in other places, which is refused where values cancel: early enough for there to be another.
    return ScheduleSpace(choices, (*seeds[:2], first, *seeds[2:], *more))


def _is_possible(plan: ChainPlan, least_bytes: int) -> bool:
    try:
        return bool(rank(plan, least_bytes))
    except WideError:
        return False


def _space(plan: ChainPlan, least_bytes: int) -> ScheduleSpace:
    ranked = rank(plan, least_bytes)
    choices = {name: tuple(dict.fromkeys(one.schedule[name] for one in ranked)) for name in ranked[0].schedule}
    seeds = [{**one.schedule, "once": False} for one in _varied(ranked)[:_SEEDS]]
    choices["once"] = (False, True) if passes_caches_by(least_bytes) else (False,)
    if choices["once"][-1]:
        seeds.insert(1, {**seeds[0], "once": True})
    if _MORE_DIGITS in choices["precision"]:
        # As fast on paper: which of both is, and whether fewer digits suffice everywhere, is to be known early.
        seeds.insert(1, {**seeds[0], "precision": _MORE_DIGITS})
    return ScheduleSpace(choices, tuple(seeds))


@lru_cache(maxsize=32)
def rank(plan: ChainPlan, least_bytes: int) -> tuple[Ranked, ...]:
    """All schedules that fit, by the model's seconds; empty where none does."""
    found: list[Ranked] = []
    texts: dict[tuple[object, ...], list[list[str]]] = {}
    pieces: set[tuple[str, ...]] = set()
    choices = _choices(plan)
    written = [name for name in choices if name in _WRITTEN]
    for sizes in product(*(choices[name] for name in written)):
        chosen = dict(zip(written, sizes, strict=True))
        if chosen["straight"] and (int(chosen["block"]) < _LEAST_PIECE or chosen["joined"]):
            # Each piece has addresses of its own, and its products follow one another as they are.
            continue
        writers = {1: writer_of(plan, {**chosen, **_UNLOOPED})}
        writer = writers[1]
        try:
            text = writer.body()
        except EmissionError:
            continue
        if chosen["straight"] and _is_known(writer, plan, chosen, pieces):
            continue
        units = _units(writer)
        # Without a loop over units, what is loaded ahead may be nothing.
        others = texts.setdefault(tuple(chosen[name] for name in written if name != "ahead"), [])
        is_new = text not in others
        others.append(text)
        for schedule in _expanded(choices, chosen):
            loop = int(schedule["loop"])
            if (is_new or loop > 1) and _is_sensible(schedule, writer, units, choices):
                one_sample = writer.shares_sample(loop)
                if one_sample and loop not in writers:
                    # What belongs to the sample is then loaded once, and held.
                    writers[loop] = writer_of(plan, {**chosen, **_UNLOOPED, "loop": loop})
                    writers[loop].body()
                tally = writers[loop if one_sample else 1].tally
                cost = cost_of(tally, schedule, plan.dtype, units, least_bytes, one_sample)
                found += [Ranked(schedule, cost)] if cost.fits else []
    return tuple(sorted(found, key=lambda one: (one.cost.seconds, one.cost.shared_bytes)))


def _is_known(writer: Writer, plan: ChainPlan, chosen: Schedule, known: set[tuple[str, ...]]) -> bool:
    """Does another size of pieces cut everything as this one does, in programs of one unit and of several?"""
    several = writer.shares if isinstance(writer.shares, int) and writer.shares > 1 and plan.batch is not None else 2
    looped = writer_of(plan, {**chosen, **_UNLOOPED, "loop": several})
    text = (str(chosen["ahead"]), *looped.body(), "", *writer_of(plan, {**chosen, **_UNLOOPED}).body())
    if text in known:
        return True
    known.add(text)
    return False


def _is_sensible(schedule: Schedule, writer: Writer, units: int, choices: Choices) -> bool:
    """Is the schedule another one than those that are tried anyway, and does it share out evenly?"""
    loop, has_sweeps, ahead = int(schedule["loop"]), writer.tally.turns > 1, bool(schedule["ahead"])
    flat = loop > 1 and writer.may_be_flat
    if loop > 1 and (loop not in _loops(writer, units) or (has_sweeps and not flat and not writer.tally.fixed_bytes)):
        return False
    if flat and not writer.tally.late_bytes and ahead != choices["ahead"][0]:
        return False
    if (loop == 1 or ahead) and not has_sweeps and schedule["stages"] != choices["stages"][0]:
        # Stages are of loops, and of what Triton loads ahead itself.
        return False
    if loop == 1 and not has_sweeps and ahead != choices["ahead"][0]:
        return False
    # The matrix units take sixteen rows; more than two warps side by side along them read the same operands.
    return bool(writer.plan.pools) or _LEAST_ROWS_OF_WARP * int(schedule["warps"]) <= writer.height


def _choices(plan: ChainPlan) -> Choices:
    tallest = padded(plan.rows) if isinstance(plan.rows, int) else _HEIGHTS[0]
    heights = tuple(size for size in _HEIGHTS if size <= max(tallest, _HEIGHTS[-1])) if plan.rowwise else (tallest,)
    widths = [step_width for step in plan.steps if (step_width := swept(step, plan, _BLOCKS[-1])) is not None]
    widths += [
        store.tile.columns
        for store in plan.stores
        if is_wide_store(store, plan) and isinstance(store.tile.columns, int)
    ]
    widest = min(padded(max(widths, default=1)), WIDEST_HELD)
    has_products = any(isinstance(step, Dot | Regrouped) for step in plan.steps)
    longest = max((pool.extent for pool in plan.pools), default=0)
    return {
        "rows": heights,
        "block": tuple(size for size in _BLOCKS if size <= widest) or _BLOCKS[:1],
        "loop": _all_loops(plan, heights) if has_products else (1,),
        "unroll": tuple(dict.fromkeys(min(n, longest) for n in (8, 16, 4, 64))) if longest else (1,),
        "straight": (False, True) if may_be_straight(plan) else (False,),
        "ahead": (True, False) if has_products else (False,),
        "joined": (True, False) if may_be_joined(plan) else (False,),
        "warps": (4, 8, 2, 16),
        "stages": _stages(plan) if has_products else (2,),
        "precision": ("tf32x3", _MORE_DIGITS, "ieee") if plan.dtype == "float32" and has_products else ("ieee",),
    }


def _stages(plan: ChainPlan) -> tuple[int, ...]:
    """Turns of several sweeps are short, so that more of them pass before what is loaded arrives."""
    return (3, 2, 4, 5) if len(order_of(plan, _BLOCKS[-1]).sweeps) > 1 else (3, 2, 4)


def _loops(writer: Writer, units: int) -> set[int]:
    """How many units a program may take: all at once, or all rows of a sample."""
    shares = -(-writer.plan.seen[1] // writer.height)
    even = {-(-units // (PROCESSORS * resident)) for resident in _RESIDENT}
    return {loop for loop in (*even, *((shares,) if writer.plan.batch is not None else ())) if 1 < loop <= _MOST_UNITS}


def _all_loops(plan: ChainPlan, heights: Sequence[int]) -> tuple[int, ...]:
    """For any height."""
    writers = [writer_of(plan, {"rows": height, "block": _BLOCKS[0], "loop": 1, "unroll": 1, "ahead": False, "joined": False,
                                "straight": False, "stages": 1, "precision": "ieee"}) for height in heights]  # fmt: skip
    found = {loop for writer in writers for loop in _loops(writer, _units(writer))}
    return (1, *sorted(found))


def _units(writer: Writer) -> int:
    return -(-writer.plan.seen[1] // writer.height) * writer.plan.seen[0]


def _expanded(choices: Choices, chosen: Schedule) -> Iterator[Schedule]:
    """All schedules with what is ``chosen`` already."""
    rest = [name for name in choices if name not in chosen]
    for values in product(*(choices[name] for name in rest)):
        yield {**chosen, **dict(zip(rest, values, strict=True))}


def _varied(ranked: Sequence[Ranked]) -> list[Ranked]:
    """The best of each kind before the second best of any: neighbours in a model's order differ in little.

    Kinds that are much slower by the model come last.
    """
    limit = _FAR * min((one.cost.seconds for one in ranked), default=0.0)
    kinds: dict[tuple[object, ...], dict[int, list[Ranked]]] = {}
    far: list[Ranked] = []
    for one in ranked:
        if one.cost.seconds > limit:
            far.append(one)
        else:
            # With a loop over units and without one, and how it loads: which is better is the model's weakest side.
            looped = one.schedule["loop"] == 1 or 2 + int(one.schedule["ahead"])
            kinds.setdefault(_kind(one.schedule), {}).setdefault(looped, []).append(one)
    return [*_in_turn([members for both in kinds.values() for members in both.values()]), *far]


def _kind(schedule: Schedule) -> tuple[object, ...]:
    """Schedules of one kind have the same shape; the size of pieces changes little."""
    return (*(schedule[name] for name in _KIND), schedule["block"] if not schedule["straight"] else 0)


def _in_turn(kinds: Sequence[list[Ranked]]) -> list[Ranked]:
    rounds = max(map(len, kinds), default=0)
    return [members[k] for k in range(rounds) for members in kinds if k < len(members)]
