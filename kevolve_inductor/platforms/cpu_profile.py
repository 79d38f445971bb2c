"""What a CPU kernel does with its threads and its processor, beyond the time it takes."""

from __future__ import annotations

import time

import torch

from .counters import count_events
from .executor import Call, Executor
from .profile import Profile

_ROUNDS = 5
_BUDGET_S = 1.0


def profile_threads(executor: Executor, call: Call) -> Profile:
    """One thread's time against all threads' time, in turn, and the events of a call on one thread.

    Threads that wait for each other spin, so that neither their processor time nor their instructions would say how much
    they work: what one thread alone needs does.
    """
    threads = torch.get_num_threads()
    deadline = time.monotonic() + _BUDGET_S
    times_us: dict[int, list[float]] = {1: [], threads: []}
    try:
        while len(times_us[1]) < _ROUNDS and (not times_us[1] or time.monotonic() < deadline):
            for count in times_us:
                torch.set_num_threads(count)
                # Threads that were left aside have to come back first.
                call()
                times_us[count] += executor.measure([call], 1, cold=True)[0]
        torch.set_num_threads(1)
        counts = count_events(call)
    finally:
        torch.set_num_threads(threads)
    # The least of each: whatever else the machine does only adds, and to all threads together more than to one.
    efficiency = min(times_us[1]) / (threads * min(times_us[threads]))
    measured = Profile.of("measured time", {"parallel_efficiency": min(efficiency, 1.0), "threads": threads})
    counted = Profile.of("hardware counters", {k: v for k, v in counts.events.items() if k != "page_faults"})
    faults = Profile.of("system's counters", {"page_faults": counts.events.get("page_faults")})
    refused = Profile() if counts.refusal is None else Profile.without("hardware counters", counts.refusal)
    return measured | counted | faults | refused
