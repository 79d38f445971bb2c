"""Which schedules a GPU should try first where neighbouring rows, not columns, are neighbours in memory.

Threads go along rows first, so that a warp reads whole lines of memory; what else is needed to keep memory busy comes from
more threads along the columns: the fewer rows there are, the more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import log2

from ..triton_tiles import next_power_of_2
from .triton_seeds import Choice, Seed

# Bytes of neighbouring rows that are read together: whole lines, or at the least whole sectors.
_LINE, _SECTOR = 128, 32
# Threads at work on a unit; of a program at most. Each has four rows, or columns, at one depth.
_THREADS, _MOST_THREADS, _PER_THREAD = 1024, 1024, 4
# Half as many have twice the registers: for sums besides, or to turn around what is stored row by row.
_FEWER_THREADS = _MOST_THREADS // 2
# Where rows are held: numbers in a thread, and of a tile at most.
_HELD, _MOST_HELD = 32, 32768
# Columns that are worth a program beside others of the same rows.
_LEAST_SHARE = 128


@dataclass(frozen=True)
class FarFacts:
    """``rows`` of ``columns`` numbers, the narrowest of ``item_bytes``. ``sweeps`` read them; ``kept``: the least depth that
    what is selected needs. ``is_heavy``: a thread keeps several numbers for each that it reads (its place, a mean and
    squares off it); ``may_hold``: a program may keep its rows in registers; ``has_sums``: it adds its rows up as well;
    ``may_share``: several programs may have parts of the same rows."""

    rows: int
    columns: int
    item_bytes: int
    sweeps: int
    kept: int
    is_heavy: bool
    may_hold: bool
    has_sums: bool
    may_share: bool
    units: int

    @property
    def line(self) -> int:
        """Rows of a line of memory."""
        return _LINE // self.item_bytes

    @property
    def has_few(self) -> bool:
        """Whether a program for each line of rows is not enough for all units, and rows are long enough to be shared."""
        return self.may_share and self.rows < 2 * self.units * self.line and self.columns >= 2 * _LEAST_SHARE

    @property
    def whole(self) -> int:
        return next_power_of_2(self.columns)

    def lanes(self, rows: int, depth: int, threads: int = _MOST_THREADS) -> int:
        """Threads along the columns, that with all programs at once a unit has enough of them."""
        wanted = _PER_THREAD * _THREADS * self.units / max(1, self.rows)
        threads = _FEWER_THREADS if self.has_sums else threads
        most = min(_PER_THREAD * threads // rows, max(1, self.whole // depth))
        return 1 << max(0, min(most.bit_length() - 1, round(log2(max(1.0, wanted)))))


def far_seeds(facts: FarFacts) -> list[Seed]:
    """The likeliest schedules, best first; each has a value for every choice."""
    walked = list(_walked(facts))
    held = list(_held(facts)) if facts.may_hold else []
    # Rows that are read once gain nothing from being held, but that all reads are under way at once.
    found = [*held[:2], *walked[:2], *held[2:], *walked[2:]] if facts.sweeps > 1 else [*walked[:3], *held, *walked[3:]]
    found = [{**seed, "parts": 1} for seed in found]
    shared = list(_shared(facts)) if facts.has_few else []
    # With a program for every second unit or less, nothing else keeps memory busy.
    first = 3 if 2 * facts.rows < facts.units * facts.line else 1
    return _distinct([*shared[:first], *found[:2], *shared[first:], *found[2:]])


def short_seeds(facts: FarFacts) -> list[Seed]:
    """Of rows that are so short that nothing walks along them."""
    return _distinct({**seed, "depth": 1} for seed in _held(facts)) if facts.may_hold else []


def _shared(facts: FarFacts) -> Iterator[Seed]:
    """Several programs for the same rows: in their registers, else from the cache the second time. All parts of rows that
    wait for each other have to be at work at once, on units that others use as well."""
    most = facts.units // 2 if facts.sweeps > 1 else 4 * facts.units
    held = ((1, _HELD), (1, 2 * _HELD), (2, 2 * _HELD), (1, _HELD // 2))
    for lines, per_thread in held if facts.may_hold and facts.sweeps > 1 else ():
        rows = lines * facts.line
        own = per_thread * _FEWER_THREADS // rows
        parts = -(-facts.columns // own)
        if 1 < parts <= most:
            lanes = max(1, _PER_THREAD * _FEWER_THREADS // rows)
            yield {"algorithm": "tile", "rows": rows, "lanes": lanes, "depth": 8, "parts": parts}
    for lines, depth, times in ((1, 8, 2), (1, 4, 4), (1, 8, 4), (2, 8, 2), (1, 8, 1)):
        rows = lines * facts.line
        parts = min(most, times * facts.units // -(-facts.rows // rows), facts.columns // _LEAST_SHARE)
        if parts > 1:
            own_facts = replace(facts, rows=facts.rows * parts, columns=facts.columns // parts)
            lanes = own_facts.lanes(rows, depth, _FEWER_THREADS)
            yield {"algorithm": "loop", "rows": rows, "lanes": lanes, "depth": depth, "parts": parts}


def _distinct(seeds: Iterable[Seed]) -> list[Seed]:
    return list({tuple(sorted(seed.items())): seed for seed in seeds}.values())


def _walked(facts: FarFacts) -> Iterator[Seed]:
    # Registers for fewer numbers where each comes with others.
    heavy, light = ((1, 4), (2, 4), (1, 8), (4, 4), (1, 2)), ((1, 8), (2, 8), (1, 16), (2, 4), (4, 8), (1, 4))
    for lines, depth in heavy if facts.is_heavy or facts.has_sums else light:
        depth = max(facts.kept, depth)
        rows = lines * facts.line
        yield {"algorithm": "loop", "rows": rows, "lanes": facts.lanes(rows, depth), "depth": depth}


def _held(facts: FarFacts) -> Iterator[Seed]:
    sector = _SECTOR // facts.item_bytes
    # Few threads, each with many numbers on their way, wait for each other the least.
    for share, per_thread in ((2, _HELD), (2, 4 * _HELD), (1, _HELD), (2, _HELD // 2), (4, _HELD), (4, _HELD // 2)):
        rows = _MOST_HELD // share // facts.whole
        threads = rows * facts.whole // per_thread
        if rows >= sector and 32 <= threads <= _MOST_THREADS:
            # Wider than a few lines brings nothing.
            rows = min(rows, 4 * facts.line)
            lanes = _PER_THREAD * facts.whole // per_thread
            yield {"algorithm": "tile", "rows": rows, "lanes": max(1, lanes), "depth": max(facts.kept, 8)}


def far_choices(facts: FarFacts, seeds: list[Seed]) -> dict[str, tuple[Choice, ...]]:
    """What the seeds choose from, the first seed's values first, and what else may be tried."""
    more: dict[str, tuple[Choice, ...]] = {
        "algorithm": (),
        "lanes": (4, 8, 2, 16, 1),
        "rows": (128, 64, 32, 256),
        "depth": tuple(max(facts.kept, depth) for depth in (8, 16, 4)),
        "parts": (1, 2, 4, 8, 16, 32, 64) if facts.has_few else (1,),
    }
    return {name: tuple(dict.fromkeys([*(seed[name] for seed in seeds), *others])) for name, others in more.items()}
