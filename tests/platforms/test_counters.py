from __future__ import annotations

import mmap

import pytest

from kevolve_inductor.platforms.counters import EVENTS, count_events

PAGES = 300


def touch_pages():
    with mmap.mmap(-1, PAGES * mmap.PAGESIZE) as memory:
        for page in range(PAGES):
            memory[page * mmap.PAGESIZE] = 1


def test_what_is_counted_is_what_happened_and_what_is_not_has_a_reason():
    touching, idle = count_events(touch_pages), count_events(lambda: None)
    assert set(touching.events) <= set(EVENTS)
    assert touching.refusal is not None or set(touching.events) == set(EVENTS)
    if "page_faults" in touching.events:
        assert PAGES <= touching.events["page_faults"] < 2 * PAGES
        assert idle.events["page_faults"] < PAGES / 10
    if "instructions" in touching.events:
        assert touching.events["instructions"] > 10 * PAGES


def test_counters_are_closed_when_the_call_raises():
    def fail():
        raise ValueError("the call's own")

    for _ in range(300):
        with pytest.raises(ValueError, match="own"):
            count_events(fail)
