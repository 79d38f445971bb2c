"""The schedules worth trying for a row program, the likeliest first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ....exc import UnsupportedError
from ....graph.dims import product
from ....graph.region import ITEM_SIZES
from ....platforms.platform import Target
from ...expression import expression as ex
from ...expression.expression import Expr
from ...family import Schedule, ScheduleSpace
from ..common import vector_choices
from ..triton_tiles import next_power_of_2
from .address import slope
from .cpp_types import is_wide
from .precise import cancels
from .program import COLUMNS, Element, Reduce, RowProgram, Select, deviation_pairs, online_pairs, passes
from .reuse import reused
from .simplify import simplified
from .triton_arithmetic import prepared, sums_below
from .triton_far_seeds import FarFacts, far_choices, far_seeds, short_seeds
from .triton_seeds import RowFacts, Seed, choices_of, seeds_of

Choice = int | str | bool

# Columns of a row that one Triton program can hold, or sort, at once; selected elements a thread can keep in order.
MOST_HELD = 8192
# The same where nothing but sums and extremes are wanted of the columns.
MOST_REDUCED = 32768
MOST_SORTED = 4096
MOST_KEPT = 64
# Selected elements that are taken one after another from a row that is held, and from what few of a long row may hold.
_FEW_EXTRACTED = 8
MOST_FILTERED = 64
# Packed rows of a sort stand on the stack twice.
_MOST_ON_STACK = 32768
_FILLS_UNIT = 16384
_SHORTEST_SCANNED = 64
# Threads of a program at first: twice as many have half of the registers each.
_WIDEST = 512
_LANE_COLUMNS = 1024
_SHORT_COLUMNS = 512
# Columns of a block of reductions; longer ones where a block is gone through for its maximum, then for its exponentials.
_BLOCKS = (256, 1024, 128)
_BLOCKS_ONLINE = (1024, 4096, 256)
# One row of so many may be left over.
_MOST_LEFT = 8
# Columns that lie apart are held for many rows at once.
_BLOCKS_APART = (32, 64, 256)
# Outputs beyond so many times the threads' own caches are written past them.
_STREAMED_CACHES = 2
_PARALLEL_ELEMENTS = 1 << 15
_NEVER = 1 << 62
# Chips whose double-precision units are few: there doubles are slower to compare than pairs of integers.
_FEW_DOUBLES = ("sm_75", "sm_86", "sm_87", "sm_89", "sm_120", "sm_121")


def check_size(program: RowProgram, device: str) -> None:
    """Raises ``UnsupportedError`` for rows that no schedule on ``device`` can hold."""
    columns = program.columns
    if device == "cpu":
        if columns > _MOST_ON_STACK and any(is_sort(program, s) for s in program.selects):
            raise UnsupportedError("size", f"rows of {columns} elements are too long to be sorted on the stack")
        return
    whole = any(
        s.axis == COLUMNS and s.count > 1 and (is_sort(program, s) or s.count > MOST_KEPT) for s in program.selects
    )
    if whole and columns > MOST_SORTED:
        raise UnsupportedError("size", f"rows of {columns} elements are too long to be sorted by one program")
    for select in program.selects:
        if is_wide(select) and (select.count > 16 or (select.count > 1 and columns > MOST_HELD)):
            raise UnsupportedError("dtype", f"{select.count} elements of {select.dtype} cannot be selected at once")


def is_sort(program: RowProgram, select: Select) -> bool:
    return select.count == program.axes[select.axis] and select.count > 1


# --- C++ ---


def cpp_space(program: RowProgram, target: Target) -> ScheduleSpace:
    columns = program.columns
    near = columns_are_near(program)
    in_lanes = _fits_lanes(program)
    sorts = any(is_sort(program, s) for s in program.selects)
    # Reductions go along contiguous rows as fast as memory gives them; selections want a row in each lane.
    most = MOST_SORTED if sorts else _LANE_COLUMNS if program.selects else _SHORTEST_SCANNED
    short = columns <= most and not _has_few_rows(program)
    first = "lanes" if in_lanes and (short or not near) else "scan"
    algorithms = [first, *(other for other in ("lanes", "scan") if other != first and (other == "scan" or in_lanes))]
    choices: dict[str, tuple[Choice, ...]] = {
        "algorithm": tuple(algorithms),
        "lanes": _cpp_lanes(program, near) if in_lanes else (1,),
        "block": (128, 512, 64) if program.selects else _BLOCKS if near else _BLOCKS_APART,
        "parallel_from": _parallel_choices(program),
        "order": ("static", "dynamic"),
    }
    if any(cancels(step) for step in program.statements):
        choices["terms"] = ("float64", "float32")
    if not program.selects:
        choices |= vector_choices(target)
    if _may_stream(program, target):
        choices["stores"] = ("streamed", "cached")
    simple = simplified(program)
    if not program.selects and online_pairs(simple):
        choices["online"] = (True, False)
        choices["block"] = _BLOCKS_ONLINE if near else _BLOCKS_APART
    if simple != program:
        choices["simplify"] = (True, False)
    if reused(passes(simple), {}) or reused(passes(program), {}):
        choices["keep"] = (True, False)
    chosen = [s for s in program.selects if 1 < s.count < program.axes[s.axis]]
    if chosen:
        choices["lane_select"] = _lane_selections(chosen)
        choices["row_select"] = ("bound", "filter", "split")
    if sorts:
        choices["row_sort"] = ("radix", "std")
    return ScheduleSpace(choices, () if program.selects else _seeds(choices))


def _cpp_lanes(program: RowProgram, near: bool) -> tuple[int, ...]:
    """Rows side by side. Where memory has them side by side, many: a column is a page of its own, or a bank, and what is
    read there should be more than a line of the cache. What is left over in the end costs one more tile."""
    few = (16, 8, 32) if program.columns <= _SHORT_COLUMNS else (8, 16)
    inner = program.rows[-1][1] if program.rows else 0
    if near or program.selects or not isinstance(inner, int):
        return few
    many = [lanes for lanes in (64, 128, 256) if _MOST_LEFT * (inner % lanes) <= inner]
    return (*many, *few[:2])


def _seeds(choices: Mapping[str, tuple[Choice, ...]]) -> tuple[Schedule, ...]:
    """The default, and what most likely is better where that is not."""
    default = {name: values[0] for name, values in choices.items()}
    tried = [name for name in ("stores", "terms", "block", "vector") if name in choices]
    return (default, *({**default, name: choices[name][1]} for name in tried))


def _may_stream(program: RowProgram, target: Target) -> bool:
    """Whether what is written is too much for caches to hold until somebody reads it."""
    if not any(feature.startswith("avx") for feature in target.features):
        return False
    least = _STREAMED_CACHES * target.shared_bytes * max(1, target.threads)
    stored = [program.outputs[store.output] for store in program.stores if store.axis == COLUMNS]
    sizes = [product((*spec.shape, ITEM_SIZES[spec.dtype])) for spec in stored]
    return any(isinstance(size, int) and size >= least for size in sizes)


def _lane_selections(chosen: list[Select]) -> tuple[str, ...]:
    most = max(s.count for s in chosen)
    if any(is_wide(s) for s in chosen):
        return ("rank",)
    if most > 16:
        return ("insert", "network") if most <= 24 else ("network", "insert")
    return ("rank", "runs", "insert", "network") if most <= 6 else ("runs", "rank", "insert", "network")


def _fits_lanes(program: RowProgram) -> bool:
    """More than one row, and selections that lanes can make."""
    if not program.rows or program.column_sums:
        return False
    for select in program.selects:
        extent = program.axes[select.axis]
        if select.count > 1 and (is_wide(select) and (select.count > 16 or is_sort(program, select))):
            return False
        if select.count > 16 and extent > 4096:
            return False
    return True


def _has_few_rows(program: RowProgram) -> bool:
    """Fewer neighbouring rows than lanes."""
    return not program.rows or (isinstance(program.rows[-1][1], int) and program.rows[-1][1] < 8)


def _parallel_choices(program: RowProgram) -> tuple[int, ...]:
    """From how many tiles of rows on threads share the work; never, as well, where there is little of it."""
    enough = max(2, _PARALLEL_ELEMENTS // (program.columns * 16))
    rows = 1
    for _, extent in program.rows:
        rows *= extent if isinstance(extent, int) else _PARALLEL_ELEMENTS
    return (enough, _NEVER) if rows * program.columns < 16 * _PARALLEL_ELEMENTS else (enough,)


# --- Triton ---


def triton_space(program: RowProgram, target: Target) -> ScheduleSpace:
    near = columns_are_near(program)
    if near and not program.selects:
        return _reduction_space(program, target)
    choices, seeds = (_near_tiles(program, target.warp_size // 32), []) if near else _far_tiles(program, target)
    if _packs_32_bits(program):
        doubles = ("int64", "float64") if _has_few_doubles(target) else ("float64", "int64")
        choices["key"] = doubles
    if program.selects and all(s.count == 1 for s in program.selects):
        choices["select"] = ("extract", "network")
    elif program.selects:
        methods = ["network", *(["extract"] if any(s.count <= _FEW_EXTRACTED for s in program.selects) else [])]
        if near and "loop" in choices["algorithm"] and any(1 < s.count <= MOST_FILTERED for s in program.selects):
            long = choices["algorithm"][0] == "loop"
            methods.insert(0 if long else len(methods), "filter")
            choices["stages"] = (3, 1) if long else (1, 3)
        if len(methods) > 1:
            choices["select"] = tuple(methods)
    if "loop" in choices["algorithm"] and (
        online_pairs(program) if program.selects else _joined(prepared(program, True, True))
    ):
        choices["online"] = (True, False)
    if not program.selects:
        # Sums over all rows: kept in persistent programs' registers, or left behind by every program that walks along rows.
        persists = bool(program.column_sums) and "loop" not in choices["algorithm"]
        choices["programs"] = tuple(target.units * n for n in (2, 4, 1, 8)) if persists else (0,)
        choices["stages"] = (1, 0) if persists else (1, 3)
    if simplified(program) != program:
        choices["simplify"] = (True, False)
    first = {name: values[0] for name, values in choices.items()}
    if program.selects and near and choices["algorithm"][0] == "loop":
        seeds = list(_long_seeds(choices, vector_of(program), _kept(program)))
    return ScheduleSpace(choices, tuple({**first, **seed} for seed in seeds))


def _long_seeds(choices: Mapping[str, tuple[Choice, ...]], vector: int, kept: int) -> Iterator[Seed]:
    """Rows of which a program has few: each thread has as many elements on their way as it has registers for."""
    tried = (("filter", 256, 32), ("filter", 128, 32), ("network", 128, 32), ("network", 256, 64), ("filter", 512, 16))
    for select, lanes, elements in tried:
        if select == "network" and kept > _FEW_EXTRACTED:
            # So much code that others are tried meanwhile.
            continue
        seed: Seed = {"select": select, "lanes": lanes, "depth": elements // vector, "stages": 1}
        if all(name in choices and value in choices[name] for name, value in seed.items()):
            yield seed
    yield {}


def _reduction_space(program: RowProgram, target: Target) -> ScheduleSpace:
    """Of rows that lie along memory, of which nothing is selected."""
    facts = _facts(program, target)
    half_warps = target.warp_size // 32
    seeds = [{**seed, "rows": int(seed["rows"]) * half_warps} for seed in seeds_of(facts)]
    choices = choices_of(facts, seeds, half_warps)
    if facts.online:
        choices["online"] = (True, False)
    if prepared(program, True, False) != prepared(program, False, False):
        choices["simplify"] = (True, False)
    more: dict[str, Choice] = {name: True for name in ("online", "simplify") if name in choices}
    return ScheduleSpace(choices, tuple({**seed, **more} for seed in seeds))


def _facts(program: RowProgram, target: Target) -> RowFacts:
    walked = prepared(program, True, True)
    pairs = online_pairs(walked)
    sweeps = [one for one in passes(walked, (*pairs, *sums_below(walked))) if one.sweep]
    reads = [load for load in column_loads(walked) if slope(load.args[0], COLUMNS) == 1]
    own = [load for load in reads if walked.is_row_dependent(load)]
    rows = product(tuple(extent for _, extent in program.rows))
    return RowFacts(
        rows=rows if isinstance(rows, int) else 0,
        columns=program.columns,
        vector=vector_of(program),
        loads=len(own),
        weights=len(reads) - len(own),
        sums=len(program.column_sums),
        sweeps=len(sweeps),
        row_bytes=sum(program.columns * ITEM_SIZES[program.inputs[load.value].dtype] for load in own),
        online=bool(pairs) and not program.column_sums,
        pointwise=not walked.statements and not walked.column_sums and all(s.axis == COLUMNS for s in walked.stores),
        units=target.units,
        shared_bytes=target.shared_bytes,
    )


def _near_tiles(program: RowProgram, half_warps: int) -> dict[str, tuple[Choice, ...]]:
    """Selections where neighbouring columns are neighbours in memory: a row over ``lanes`` threads.

    ``rows`` counts what 32 threads hold; warps of 64 threads are filled with two of it.
    """
    whole = next_power_of_2(program.columns)
    vector = vector_of(program)
    kept = _kept(program)
    algorithms = _algorithms(program, whole)
    if algorithms[0] == "tile":
        # A whole sort exchanges every value with every other lane: fewer in a thread, and more threads at work, hide that.
        lanes = _lanes_for(whole, vector, 16 if any(is_sort(program, s) for s in program.selects) else 32)
        if "loop" in algorithms:
            lanes = tuple(dict.fromkeys((*lanes, 128, 256)))
    else:
        lanes = (256, 128, 64, 512, 32)
    depths = [max(1, max(per, kept) // vector) for per in (8, 16, 4, 32, 64)]
    return {
        "algorithm": algorithms,
        "lanes": lanes,
        "rows": (2, 1, 4) if half_warps == 2 else (1, 2, 4),
        "depth": tuple(dict.fromkeys(depths)) if "loop" in algorithms else (1,),
    }


def _far_tiles(program: RowProgram, target: Target) -> tuple[dict[str, tuple[Choice, ...]], list[Seed]]:
    """Neighbouring rows are neighbours in memory: ``rows`` of them over threads, columns in each thread. With seeds, but
    where what else is computed asks for rows as a whole."""
    facts = _far_facts(program, target)
    algorithms = _algorithms(program, facts.whole)
    if facts.whole > 64 and "loop" in algorithms:
        seeds = far_seeds(facts)
        return far_choices(facts, seeds), seeds
    walks = "loop" in algorithms
    return {
        "algorithm": algorithms,
        "lanes": _lanes_for(facts.whole, 1, 32),
        "rows": (128, 64, 256, 32),
        "depth": tuple(dict.fromkeys(max(facts.kept, d) for d in (8, 16, 4))) if walks else (1,),
    }, [] if walks or program.column_sums else short_seeds(facts)


def _joined(walked: RowProgram) -> tuple[tuple[Reduce, Reduce], ...]:
    """What one sweep of an online program takes together."""
    return (*online_pairs(walked), *sums_below(walked), *deviation_pairs(walked))


def _far_facts(program: RowProgram, target: Target) -> FarFacts:
    rows = product(tuple(extent for _, extent in program.rows))
    loads = [load for load in column_loads(program) if program.is_row_dependent(load)]
    walked = prepared(program, True, True)
    return FarFacts(
        rows=rows if isinstance(rows, int) else _PARALLEL_ELEMENTS,
        columns=program.columns,
        item_bytes=min((ITEM_SIZES[program.inputs[load.value].dtype] for load in loads), default=4),
        sweeps=sum(bool(one.sweep) for one in passes(walked, _joined(walked))),
        kept=_kept(program),
        is_heavy=bool(program.selects or deviation_pairs(walked)),
        may_hold=not program.selects and len(loads) == 1,
        has_sums=bool(program.column_sums),
        may_share=not program.selects and not program.column_sums and isinstance(rows, int),
        units=target.units,
    )


def _kept(program: RowProgram) -> int:
    return max([next_power_of_2(s.count) for s in program.selects if s.count <= MOST_KEPT], default=1)


def _algorithms(program: RowProgram, whole: int) -> tuple[str, ...]:
    sorts = [s for s in program.selects if s.axis == COLUMNS and (is_sort(program, s) or s.count > MOST_KEPT)]
    wide = any(is_wide(s) and s.count > 1 for s in program.selects)
    if program.column_sums:
        # A program that walks along rows leaves a sum of its own for every column: with many rows each those are few.
        return ("tile",) if columns_are_near(program) or whole <= 64 else ("loop",)
    tile = whole <= (MOST_SORTED if sorts else MOST_HELD if program.selects else MOST_REDUCED)
    loop = not sorts and not wide and whole > 64
    if tile and loop:
        # Selections in long rows take few registers block by block; reductions read their rows once if they hold them.
        if program.selects:
            return ("tile", "loop") if whole <= 2048 else ("loop", "tile")
        held = whole * sum(map(program.is_row_dependent, column_loads(program)))
        return ("tile", "loop") if held <= MOST_REDUCED else ("loop", "tile")
    return ("tile",) if tile else ("loop",)


def _lanes_for(whole: int, vector: int, per_thread: int) -> tuple[int, ...]:
    """Threads per row, nearest to ``per_thread`` columns each first."""
    counts = [1 << k for k in range(11)]
    able = [n for n in counts if max(4, vector) <= whole // n <= 64] or [
        max(1, whole // (64 if whole > 64 else vector))
    ]
    wanted = max(1, min(whole // per_thread, _WIDEST))
    return tuple(sorted(able, key=lambda n: (abs(n.bit_length() - wanted.bit_length()), n)))


def vector_of(program: RowProgram) -> int:
    """Neighbouring columns that a thread loads at once, as far as alignment allows."""
    best = 1
    for load in column_loads(program):
        if slope(load.args[0], COLUMNS) != 1:
            continue
        size = 16 // ITEM_SIZES[program.inputs[load.value].dtype]
        steps = [slope(load.args[0], name) for name, _ in program.rows] + [program.columns]
        while size > 1 and any(not isinstance(step, int) or step % size for step in steps):
            size //= 2
        best = max(best, size)
    # A thread stores 16 bytes at most: more of its neighbours would be exchanged between threads first.
    wide = [ITEM_SIZES[program.outputs[s.output].dtype] for s in program.stores if s.axis == COLUMNS]
    best = min([best, *(16 // size for size in wide)]) if not program.selects else best
    return min(best, next_power_of_2(program.columns))


def column_loads(program: RowProgram) -> list[Expr]:
    """Reads that sweeps over the columns make."""
    values: list[Expr] = [s.value for s in program.statements if not isinstance(s, Element) and s.axis == COLUMNS]
    if not program.selects:
        values += [one.value for one in program.column_sums]
        values += [store.value for store in program.stores if store.axis == COLUMNS]
    return list({load: None for value in values for load in ex.loads(value)})


def columns_are_near(program: RowProgram) -> bool:
    """Whether no input that differs along the columns has its rows next to each other instead of them."""
    inner = program.rows[-1][0] if program.rows else ""
    slopes = [(slope(load.args[0], COLUMNS), slope(load.args[0], inner)) for load in column_loads(program)]
    return not any(along not in (0, 1) and across == 1 for along, across in slopes)


def _packs_32_bits(program: RowProgram) -> bool:
    return any(s.dtype in ("float32", "int32") or s.value.dtype in ("float32", "int32") for s in program.selects)


def _has_few_doubles(target: Target) -> bool:
    return any(feature in _FEW_DOUBLES for feature in target.features)
