"""A model of what a schedule costs: registers and shared memory of a program, traffic and arithmetic of the whole kernel.

Its numbers are those of current data-centre GPUs. It orders schedules and leaves out those that cannot fit; the search
measures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ....platforms.platform import Ceilings
from ...family import Schedule

# Products of float32 take several passes of the matrix units.
CEILINGS = Ceilings(4.3e12, {"bfloat16": 7.8e14, "float16": 7.8e14, "float32": 1.3e14}, 4e-6)
# Of a vendor's products of float32, which do without the matrix units.
VENDOR_FLOAT32_FLOPS_PER_S = 6e13
_CACHE_BYTES_PER_S = 9e12
# A thread has 255 registers; the model is not exact to the last of them, so that almost another program fits, too.
_SLACK = 0.25
# A compiler that has to makes do with somewhat fewer registers than it would take: where one program needs more than all.
_SQUEEZED = 0.85
# Shared memory of each program that is not its own.
_OWN_BYTES = 1024
PROCESSORS, _REGISTERS, _MOST_PER_THREAD, _SHARED_BYTES, _MOST_WARPS = 132, 65536, 244, 228 * 1024, 64
# Registers for addresses and loop variables, from compiled chains of several kinds.
_FIXED_REGISTERS, _LOOP_REGISTERS, _SWEEP_REGISTERS = 40, 8, 4
# The part of the peak rate that small products reach; bytes under way in a processor that saturate memory; what passes
# between the first load of a block and the last use of it, and how often that before a program's first result.
_SCALAR_OPS_PER_S = 2.5e13
# The large instructions take 64 rows and four warps; the part of their rate that the small ones reach.
_LARGE_ROWS, _LARGE_WARPS, _SMALL_SHARE, _SMALL_COST = 64, 4, 0.6, 1.15
# Threads of many warps wait long for each other.
_MANY_WARPS, _MANY_COST = 8, 1.3
_FEWEST_STAGES, _HELD_UP_AHEAD = 2, 0.5
# How often what is loaded one turn ahead is late where turns are short: in kernels of more sweeps than a few.
_LATE_SHARE, _FEW_SWEEPS = 0.25, 2
# Of each turn: its barriers, and where several sweeps follow one another, products that wait for one another.
# Two products joined wait less; the warps of a program that has a processor for itself all wait at the same time.
_TURN_S, _WAIT_S, _JOINED_SHARE, _ALONE = 1e-7, 1.5e-7, 0.6, 3.0
_PRODUCT_SHARE, _IN_FLIGHT_BYTES, _LATENCY_S, _STARTING = 0.65, 40 * 1024, 1e-6, 2


@dataclass
class Tally:
    """What a program does for one unit of work, counted while its kernel is written.

    ``own_bytes`` are loaded for every unit, ``fixed_bytes`` once for all of a program, which holds
    ``fixed_values`` in registers; ``peak`` is the most 32-bit values
    at a time; ``operand_bytes`` those of a unit's own operands in straight code, ``looped_bytes`` the most in one turn of
    a loop; ``turns`` of blocks follow one another; ``flight_bytes`` are loaded at once for other things than products.

    ``early_bytes`` are loaded outside of loops, ``sample_bytes`` of them for all rows of a sample; ``late_bytes`` in a
    turn for other things than products. ``step_bytes`` are the most operands of one product, where
    others come after it; ``kept_bytes`` pass through shared memory beside what is loaded. ``scalar_ops`` are done by the
    threads themselves, and ``least_rows`` those of the smallest product. There are ``sweeps`` in it, one after another;
    ``may_be_flat``: the turns of all units' only sweep can be those of one loop.
    """

    flops: int = 0
    own_bytes: int = 0
    fixed_bytes: int = 0
    fixed_values: int = 0
    held: float = 0
    peak: float = 0
    operand_bytes: int = 0
    looped_bytes: int = 0
    turns: int = 1
    flight_bytes: int = 0
    early_bytes: int = 0
    sample_bytes: int = 0
    late_bytes: int = 0
    step_bytes: int = 0
    kept_bytes: int = 0
    scalar_ops: int = 0
    least_rows: int = 1 << 20
    sweeps: int = 0
    may_be_flat: bool = False

    def computes(self, results: list[int]) -> None:
        """``results`` are the elements of values that exist together, beside those that are held."""
        if results:
            self.peak = max(self.peak, self.held + sum(results) + max(results) / 2)

    def holds(self, elements: int, item_bytes: int) -> None:
        """A value is kept as an operand of later products."""
        self.held += elements * item_bytes / 4


@dataclass(frozen=True)
class Cost:
    """``seconds`` by the model (infinite where no program fits), ``registers`` of a thread, ``shared_bytes`` of a program."""

    seconds: float
    registers: int
    shared_bytes: int

    @property
    def fits(self) -> bool:
        return self.registers <= _MOST_PER_THREAD and math.isfinite(self.seconds)


def cost_of(tally: Tally, schedule: Schedule, dtype: str, units: int, least_bytes: int, one_sample: bool) -> Cost:
    """Of a kernel for ``units`` units that has to move ``least_bytes`` to and from memory.

    ``one_sample``: all units of a program belong to the same sample.
    """
    loop, stages, warps, ahead = (int(schedule[name]) for name in ("loop", "stages", "warps", "ahead"))
    sample_bytes = tally.sample_bytes if one_sample else 0
    carried = ahead * ((tally.early_bytes - sample_bytes if loop > 1 else 0) + tally.late_bytes) // (128 * warps)
    carried += tally.fixed_values // (64 * warps) if loop > 1 else 0
    carried += _SWEEP_REGISTERS * max(0, tally.sweeps - 1)
    registers = _FIXED_REGISTERS + int(tally.peak) // (32 * warps) + (_LOOP_REGISTERS if loop > 1 else 0) + carried
    # Products of float32 take what is held in two parts.
    parts = 2 if dtype == "float32" and loop > 1 else 1
    registers += registers // 4 if dtype == "float32" else 0
    straight = parts * tally.operand_bytes * (stages if loop > 1 and not ahead else 1)
    shared = max(straight, tally.looped_bytes * stages) + parts * tally.fixed_bytes + tally.kept_bytes
    if loop == 1 and tally.step_bytes:
        shared = tally.step_bytes
    by_registers = _REGISTERS / (32 * warps * registers)
    by_registers = int(by_registers + _SLACK) if by_registers >= _SQUEEZED else 0
    resident = min(by_registers, _SHARED_BYTES // (shared + _OWN_BYTES), _MOST_WARPS // warps)
    if not resident:
        return Cost(math.inf, registers, shared)
    programs = -(-units // loop)
    busy = min(resident, -(-programs // PROCESSORS))
    cached = (tally.own_bytes - sample_bytes) * units + (sample_bytes + tally.fixed_bytes) * programs
    memory_s = (
        least_bytes / CEILINGS.bytes_per_s / min(1.0, resident * max(shared, tally.flight_bytes, 1) / _IN_FLIGHT_BYTES)
    )
    rate = CEILINGS.flops_per_s[dtype] * _PRODUCT_SHARE * min(1.0, busy * warps / 8)
    small = tally.least_rows < _LARGE_ROWS or warps < _LARGE_WARPS
    rate *= _SMALL_SHARE if small else 1
    waves = programs / (resident * PROCESSORS)
    # The last wave is full only by chance; what loads ahead hides latency.
    ragged = math.ceil(waves) / waves if waves > 1 else 1 / min(1.0, programs / PROCESSORS)
    parts_s = sorted((tally.flops * units / rate, tally.scalar_ops * units / _SCALAR_OPS_PER_S))
    # Products and the rest follow one another within a program.
    work_s = max(memory_s, cached / _CACHE_BYTES_PER_S, parts_s[1] + parts_s[0] / resident)
    if tally.turns == 1 and (ahead or loop == 1 or stages == _FEWEST_STAGES):
        # Loads into registers hold up the products that come after them, unless other programs fill the gap.
        # Those of the next unit are under way meanwhile.
        held_up = _HELD_UP_AHEAD if ahead and loop > 1 else 1.0
        work_s = max(work_s, memory_s + held_up * tally.flops * units / rate * min(1.0, 2 / busy))
    work_s *= (_SMALL_COST if small else 1) * (_MANY_COST if warps > _MANY_WARPS else 1)
    waited_s = _WAIT_S * (_JOINED_SHARE if schedule["joined"] else 1.0) * (_ALONE if resident == 1 else 1.0)
    turns_s = waves * loop * tally.turns * (_TURN_S + (waited_s if tally.sweeps > 1 else 0.0))
    waits_s = math.ceil(waves) * _waits(tally, schedule) / resident * _LATENCY_S
    return Cost(work_s * math.sqrt(ragged) + turns_s + waits_s, registers, shared)


def _waits(tally: Tally, schedule: Schedule) -> float:
    """How often a program waits for memory in vain, unless another one is there to compute.

    Triton begins to load at the end of a turn, so that of two stages nothing overlaps.
    """
    loop, stages, ahead = int(schedule["loop"]), int(schedule["stages"]), bool(schedule["ahead"])
    if loop > 1 and tally.may_be_flat:
        return _STARTING + loop * tally.turns / (stages - 1) ** 2 / 4
    if loop == 1 and ahead and tally.turns == 1 and not tally.step_bytes:
        # All latencies pass together.
        return _STARTING
    # Where sweeps follow one another, what one loads is seldom there when the next one begins.
    of_loops = (tally.turns - 1) / (stages - (1.5 if tally.sweeps > 1 else 1.0))
    if ahead and tally.sweeps > _FEW_SWEEPS and tally.late_bytes:
        # What comes through registers is only one turn ahead.
        of_loops += _LATE_SHARE * tally.turns / tally.sweeps
    of_unit = 0.5 if ahead and loop > 1 else 1 / (stages - 1) if loop > 1 else 1
    return _STARTING + loop * (of_loops + of_unit)
