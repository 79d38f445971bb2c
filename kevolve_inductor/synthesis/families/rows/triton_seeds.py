"""Which schedules of a row reduction a GPU should try first, from the length of a row and what threads hold of it.

Rows are read at the rate of memory while enough programs are at work on a unit: two at least, so that one reads while
another waits for its threads or stores, with a few registers for each value that is held and some for everything else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import log2

from ..triton_tiles import next_power_of_2

Choice = int | str | bool
Seed = dict[str, Choice]

# Of a unit; what a thread needs beside the values of its row; threads of a unit and of a program.
_REGISTERS = 65536
_MOST_REGISTERS = 255
_FEW_REGISTERS = 24
_MOST_THREADS = 2048
_FEW_THREADS = 512
_WIDEST = 1024
_NARROWEST = 32
# Columns that are worth a program beside others of the row.
_LEAST_SHARE = 4096
# Values of a row in a thread: more need the registers of other threads, fewer do not pay for waiting for each other.
_MANY_HELD = 32
# The same of one tensor.
_MANY_HELD_ALONE = 22
# The same where sums over all rows are kept as well: a thread's numbers, not its columns.
_MANY_SUMMED = 40
# A row of up to this many numbers is held by one program.
MOST_HELD = 32768
_MOST_IN_THREAD = 128


@dataclass(frozen=True)
class RowFacts:
    """What is known of a row: ``vector`` columns are read at once, ``loads`` tensors differ between rows and ``weights`` do
    not, ``sums`` go over all rows, ``sweeps`` read the row again. ``row_bytes`` are read of a row, ``online``: with a
    maximum and what depends on it in one sweep. ``pointwise``: nothing is reduced. ``rows``: 0 where their number varies.
    """

    rows: int
    columns: int
    vector: int
    loads: int
    weights: int
    sums: int
    sweeps: int
    row_bytes: int
    online: bool
    pointwise: bool
    units: int
    shared_bytes: int

    @property
    def is_held(self) -> bool:
        return self.sums > 0 or self.columns * max(1, self.loads) <= MOST_HELD

    @property
    def may_share(self) -> bool:
        """Whether several programs could read a row once where one would read it again, or would be one of too few."""
        is_long = self.columns * max(1, self.loads) > MOST_HELD or self.rows < 2 * self.units
        reduced = not self.sums and not self.pointwise and (self.sweeps > 1 or self.rows < self.units)
        return reduced and is_long and self.rows > 0 and self.columns >= 2 * _LEAST_SHARE

    def in_thread(self, lanes: int) -> int:
        """Columns, in whole vectors."""
        run = lanes * self.vector
        return -(-self.columns // run) * self.vector

    def registers(self, lanes: int) -> int:
        """Of a thread, if it may have so many."""
        numbers = self.sums + self.loads + (self.weights if self.sums else 0)
        return _FEW_REGISTERS + self.in_thread(lanes) * max(1, numbers)

    def programs(self, lanes: int) -> int:
        """How many fit on a unit."""
        threads = max(lanes, _NARROWEST)
        return min(_MOST_THREADS // threads, _REGISTERS // (min(self.registers(lanes), _MOST_REGISTERS) * threads))

    def rows_beside(self, lanes: int) -> int:
        """Rows that a persistent program has in threads of their own: so many that it has threads enough, and that each
        unit has several of them."""
        rows = max(1, _FEW_THREADS // 2 // lanes)
        while self.rows and rows > 1 and rows * 2 * self.units > self.rows:
            rows //= 2
        return rows

    def persistent(self, rows: int, each: int) -> int:
        """How many programs of ``rows`` rows, ``each`` on a unit at most: no more than finish their last turn together."""
        most = self.units * each
        tiles = -(-self.rows // rows)
        turns = -(-tiles // most)
        return -(-tiles // turns) if self.rows else most

    def lanes(self, wanted: int, numbers: int) -> list[int]:
        """Threads of a row, those first of which enough run at once and which hold about ``wanted`` values."""
        filled = [n for n in _powers(1, _WIDEST) if n * self.vector < 2 * self.columns]
        able = [n for n in filled if n >= _NARROWEST and self.in_thread(n) <= _MOST_IN_THREAD] or filled[-1:]
        able = [n for n in able if self.registers(n) <= _MOST_REGISTERS] or able

        def distance(lanes: int) -> tuple[bool, float, int]:
            far = abs(log2(self.in_thread(lanes) * max(1, numbers) / wanted))
            programs = self.programs(lanes)
            return programs * lanes < _FEW_THREADS, far + (programs < 2), lanes

        return sorted(able, key=distance)


def _powers(first: int, last: int) -> list[int]:
    return [1 << k for k in range(first.bit_length() - 1, last.bit_length())]


def seeds_of(facts: RowFacts) -> list[Seed]:
    """The likeliest schedules, best first; each has a value for every choice."""
    shared = list(_shared(facts)) if facts.may_share else []
    found = _unshared(facts)
    # One program's rows are long for a cache, or there are too few of them.
    first = 3 if facts.rows < facts.units or facts.rows * facts.columns > 2**21 * facts.units else 1
    found = [*shared[:first], *found[:2], *shared[first:], *found[2:]] if shared else found
    return list({tuple(sorted(seed.items())): seed for seed in found}.values())


def _unshared(facts: RowFacts) -> list[Seed]:
    if facts.sums:
        found = list(_summed(facts))
    elif facts.pointwise:
        found = list(_spread(facts))
    elif facts.is_held:
        held, walked = list(_held(facts)), list(_walked(facts))
        found = [*held[:2], walked[0], *held[2:4], *walked[1:3], *held[4:]]
    else:
        found = list(_walked(facts))
    return found


def _seed(algorithm: str, lanes: int, **others: Choice) -> Seed:
    plain: Seed = {
        "algorithm": algorithm,
        "lanes": lanes,
        "rows": 1,
        "depth": 1,
        "programs": 0,
        "stages": 1,
        "parts": 1,
        "beside": 1,
    }
    return {**plain, **others}


def _held(facts: RowFacts) -> Iterable[Seed]:
    """Rows in registers, read once; where one of them fills a unit, the next one is read into shared memory meanwhile."""
    lanes = facts.lanes(_MANY_HELD if facts.loads > 1 else _MANY_HELD_ALONE, facts.loads)
    # With more than one tensor Triton may choose layouts in which every thread holds the whole row.
    fills = facts.programs(lanes[0]) < 2 and facts.loads == 1 and not facts.weights
    is_read_ahead = fills and 2 * facts.row_bytes <= facts.shared_bytes
    if fills and not is_read_ahead:
        # Nothing hides that threads wait for each other: few of them wait the least.
        lanes = sorted(lanes)
    for n in lanes[:2]:
        yield _seed("tile", n)
    if is_read_ahead:
        yield _seed("tile", lanes[0], programs=facts.units, stages=3)
    for n in lanes[2:4]:
        yield _seed("tile", n)


def _shared(facts: RowFacts) -> Iterable[Seed]:
    """Rows in the registers of several programs; else in the cache, walked over by as many as few rows keep busy."""
    most = facts.units // 2
    if facts.sweeps < 2:
        yield from _shared_once(facts)
        return
    for lanes, each in ((512, 16), (256, 16), (512, 32), (1024, 32), (256, 32), (1024, 64)):
        parts = -(-facts.columns * facts.loads // (lanes * each))
        if 1 < parts <= most:
            yield _seed("tile", lanes, parts=_spread_evenly(parts, most))
    for lanes, columns in ((512, 16), (1024, 8), (256, 32)):
        depth = max(1, columns // (facts.vector * max(1, facts.loads)))
        parts = min(most, facts.columns // (lanes * facts.vector * depth))
        while parts > 1:
            yield _seed("loop", lanes, depth=depth, parts=_spread_evenly(parts, most))
            parts = parts // 4 if lanes == 512 else 0


def _shared_once(facts: RowFacts) -> Iterable[Seed]:
    """Nobody waits: as many programs as run at once, or some more."""
    for lanes, columns, times in ((512, 16, 4), (256, 16, 8), (1024, 8, 2), (512, 8, 4), (512, 32, 2), (512, 16, 8)):
        depth = max(1, columns // (facts.vector * max(1, facts.loads)))
        parts = min(facts.units * times // facts.rows, facts.columns // (lanes * facts.vector * depth))
        if parts > 1:
            yield _seed("loop", lanes, depth=depth, parts=parts)


def _spread_evenly(parts: int, most: int) -> int:
    """The next power of two, if so many wait for each other: so that parts are whole tiles where rows are."""
    power = next_power_of_2(parts)
    return power if power <= most else parts


def _walked(facts: RowFacts) -> Iterable[Seed]:
    """Blocks of a row. A second sweep finds what the first one read in a cache if few rows are at work at once."""
    once = ((256, 32, 1), (512, 16, 1), (128, 32, 1), (256, 16, 3), (1024, 8, 1), (512, 32, 1), (64, 32, 1))
    again = ((1024, 8, 1), (512, 16, 1), (1024, 16, 1), (512, 32, 1), (1024, 32, 1), (512, 8, 3))
    for lanes, columns, stages in once if facts.sweeps < 2 else again:
        depth = max(1, columns // (facts.vector * max(1, facts.loads)))
        if lanes * facts.vector * depth <= facts.columns:
            yield _seed("loop", lanes, depth=depth, stages=stages)
    yield _seed("loop", min(256, max(_NARROWEST, facts.lanes(_MANY_HELD, 1)[0])))


def _spread(facts: RowFacts) -> Iterable[Seed]:
    for lanes, depth in ((64, 2), (128, 2), (64, 4), (256, 2), (128, 4), (256, 1)):
        if lanes * facts.vector * depth <= 2 * facts.columns:
            yield _seed("spread", lanes, depth=depth)
    yield from _walked(facts)


def _summed(facts: RowFacts) -> Iterable[Seed]:
    """Persistent programs; two rows are in flight beside the one at work, or one in registers.

    Where few threads hold a row, a program's others have rows beside it: all of them leave one partial sum.
    """
    lanes = facts.lanes(_MANY_SUMMED, facts.sums + facts.loads + facts.weights)
    first, *more = lanes

    def seed(n: int, stages: int, times: int = 1, rows: int = 1) -> Seed:
        beside = facts.rows_beside(n)
        each = max(1, facts.programs(n) // beside) if rows == 1 else 1
        used = (stages - 1) * facts.row_bytes * rows * beside * each
        programs = facts.persistent(rows * beside, times * each)
        fitting = stages if used <= facts.shared_bytes * 3 // 4 else 0
        return _seed("tile", n, programs=programs, stages=fitting, rows=rows, beside=beside)

    deep, near = [seed(first, 4), seed(first, 3)], [seed(first, 0)]
    # Several sums leave a thread little to do besides: then fewer threads with more of a row each, read into registers.
    fewer = [seed(n, 0) for n in more if n < first][:1]
    yield from [*fewer, *deep, *near] if facts.sums > 1 else [*near, *deep, *fewer]
    yield seed(first, 0, rows=2)
    yield seed(first, 3, times=2)
    for n in more[:2]:
        yield seed(n, 3)
        yield seed(n, 0)
    yield seed(first, 3, rows=2)


def choices_of(facts: RowFacts, seeds: list[Seed], least_rows: int) -> dict[str, tuple[Choice, ...]]:
    """What the seeds choose from, the first seed's values first, and what else may be tried."""
    lanes = facts.lanes(_MANY_SUMMED, facts.sums + facts.loads + facts.weights)
    others: dict[str, Iterable[Choice]] = {
        "algorithm": () if facts.sums else ("loop", "tile") if facts.is_held else ("loop",),
        "lanes": lanes if facts.sums else (512, 256, 128, 1024, 64, 32),
        "rows": [least_rows * n for n in ((1, 2) if facts.sums else (1, 2, 4))],
        "depth": () if facts.sums else [max(1, columns // facts.vector) for columns in (32, 16, 8, 64)],
        "programs": [facts.units * n for n in (2, 4, 1, 8)] if facts.sums else (0,),
        "stages": (3, 0, 4, 1) if facts.sums else (1, 3),
        "beside": (1, 2, 4, 8) if facts.sums else (1,),
        # Parts wait for each other: all of a row's have to be at work at once, on a unit that others use as well.
        "parts": _powers(1, facts.units // 2) if facts.may_share and facts.sweeps > 1 else (1,),
    }
    return {name: tuple(dict.fromkeys([*(seed[name] for seed in seeds), *more])) for name, more in others.items()}
