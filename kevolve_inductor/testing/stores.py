"""The conformance suite of the store.

Each check takes a function that opens the same, at first empty, store anew (as another process would) and raises
``AssertionError``. Run every one of ``STORE_CHECKS``, each on a store of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..cache.entry import Entry, TrialRow, Verdict
from ..cache.store import Store
from ..exc import CorruptEntryError
from ..kernel import Argument, Kernel, Launch, digest_of

OpenStore = Callable[[], Store]


def example_kernel(number: int = 0) -> Kernel:
    source = (
        f'extern "C" int64_t k(const float* __restrict a, float* __restrict o) {{ o[0] = a[0] + {number}; return 0; }}'
    )
    return Kernel("cpp", source, (Launch("k", (Argument("input", 0), Argument("output", 0))),))


def example_entry(number: int = 0, kernel: Kernel | None = None, **changes: Any) -> Entry:
    """An entry for key number ``number``; a verdict for the baseline where no kernel is given."""
    key_fields = {"schema": 1, "number": number}
    verdict: Verdict = "baseline" if kernel is None else "kernel"
    fields: dict[str, Any] = {
        "key": digest_of(key_fields),
        "verdict": verdict,
        "kernel": None if kernel is None else kernel.digest,
        "evaluation": {"status": "passed", "speedup": 2.5, "worst_error": math.inf},
        "region": {"inputs": [], "nodes": [], "outputs": ["i0"], "symbols": [], "argument": {"float": "inf"}},
        "key_fields": key_fields,
        "trials": 12,
        "search_s": 3.25,
        "family": "example",
        "schedule": {"block": 64, "vector": True},
        "title": f"example {number}",
        "created": 1.75e9,
    }
    return Entry(**{**fields, **changes})


def check_empty(open_store: OpenStore) -> None:
    store = open_store()
    key = example_entry().key
    assert store.get(key) is None
    assert store.trials(key) == ()
    assert store.recall("ceilings", "here") is None
    assert list(store.entries()) == []
    assert store.verify() == []


def check_returns_what_was_put(open_store: OpenStore) -> None:
    kernel = example_kernel()
    entry = example_entry(0, kernel)
    store = open_store()
    store.put(entry, kernel)
    for reader in (store, open_store()):
        assert reader.get(entry.key) == entry
        assert reader.kernel(kernel.digest) == kernel
        assert reader.kernel(kernel.digest).digest == kernel.digest
        assert list(reader.entries()) == [entry]
        assert reader.verify() == []


def check_keeps_baseline_verdicts(open_store: OpenStore) -> None:
    entry = example_entry(1, evaluation=None, schedule=None)
    open_store().put(entry, None)
    assert open_store().get(entry.key) == entry


def check_replaces(open_store: OpenStore) -> None:
    first, second = example_kernel(1), example_kernel(2)
    store = open_store()
    store.put(example_entry(0, first), first)
    other = open_store()
    other.put(example_entry(0, second), second)
    for reader in (store, other, open_store()):
        found = reader.get(example_entry().key)
        assert found is not None
        assert found.kernel == second.digest
        assert len(list(reader.entries())) == 1


def check_refuses_a_kernel_of_another_entry(open_store: OpenStore) -> None:
    store = open_store()
    for entry, kernel in (
        (example_entry(0, example_kernel(1)), example_kernel(2)),
        (example_entry(), example_kernel()),
    ):
        try:
            store.put(entry, kernel)
        except ValueError:
            continue
        raise AssertionError("an entry was put with a kernel that is not its own")
    assert list(store.entries()) == []


def check_generation_follows_choices(open_store: OpenStore) -> None:
    store, kernels = open_store(), (example_kernel(1), example_kernel(2))
    seen = [store.generation()]
    steps: tuple[Callable[[], None], ...] = (
        lambda: store.put(example_entry(0, kernels[0]), kernels[0]),
        lambda: store.put(example_entry(0, kernels[1]), kernels[1]),
        lambda: store.put(example_entry(0), None),
        lambda: store.put(example_entry(1), None),
        lambda: store.remember("graph", "a", {"swap": False}),
        lambda: store.remember("graph", "a", {"swap": True}),
        lambda: open_store().put(example_entry(2), None),
    )
    for number, step in enumerate(steps):
        step()
        generation = store.generation()
        assert generation not in seen, f"step {number} changed a choice, not the generation"
        assert open_store().generation() == generation, f"step {number}: another process sees another generation"
        seen.append(generation)


def check_generation_ignores_the_rest(open_store: OpenStore) -> None:
    store = open_store()
    store.put(example_entry(0), None)
    generation = store.generation()
    store.put(example_entry(0, title="another", trials=99, created=2e9), None)
    store.append_trials(example_entry().key, [TrialRow(0, (), {}, "passed", 1.0)])
    store.remember("ceilings", "here", 1.0)
    store.get(example_entry().key)
    assert store.generation() == open_store().generation() == generation


def check_generation_is_of_the_content(open_store: OpenStore) -> None:
    """The way to a state leaves no trace in it."""
    store = open_store()
    store.put(example_entry(0), None)
    store.put(example_entry(1), None)
    generation = store.generation()
    kernel = example_kernel()
    store.put(example_entry(0, kernel), kernel)
    store.put(example_entry(0), None)
    assert store.generation() == open_store().generation() == generation


def check_trials_are_kept_in_order(open_store: OpenStore) -> None:
    key = example_entry().key
    evidence = {"status": "mismatch", "worst_error": math.inf}
    rows = tuple(
        TrialRow(number, tuple(range(number)), {"block": 2**number}, "mismatch", number / 3, evaluation=evidence)
        for number in range(5)
    )
    store = open_store()
    store.append_trials(key, rows[:2])
    open_store().append_trials(key, rows[2:])
    store.append_trials(key, ())
    assert store.trials(key) == open_store().trials(key) == rows
    assert store.trials(example_entry(1).key) == ()


def check_facts(open_store: OpenStore) -> None:
    store = open_store()
    store.remember("ceilings", "NVIDIA H200 / torch 2.11", {"bytes_per_s": 4.3e12, "worst": -math.inf})
    store.remember("ceilings", "../../elsewhere", [1, 2])
    store.remember("graph", "NVIDIA H200 / torch 2.11", False)
    reader = open_store()
    assert reader.recall("ceilings", "NVIDIA H200 / torch 2.11") == {"bytes_per_s": 4.3e12, "worst": -math.inf}
    assert reader.recall("ceilings", "../../elsewhere") == [1, 2]
    assert reader.recall("graph", "NVIDIA H200 / torch 2.11") is False
    store.remember("ceilings", "../../elsewhere", None)
    assert reader.recall("ceilings", "../../elsewhere") is None


def check_missing_kernel_is_typed(open_store: OpenStore) -> None:
    try:
        open_store().kernel(example_kernel(5).digest)
    except CorruptEntryError:
        return
    raise AssertionError("a kernel that is not in the store was returned")


def check_refuses_names_that_are_no_digests(open_store: OpenStore) -> None:
    store = open_store()
    calls: tuple[Callable[[], object], ...] = (
        lambda: store.get("../../etc/passwd"),
        lambda: store.kernel("a" * 63),
        lambda: store.trials("A" * 64),
        lambda: store.remember("../x", "key", 1),
    )
    for call in calls:
        try:
            call()
        except ValueError:
            continue
        raise AssertionError("a name that is no digest became a path")


STORE_CHECKS: tuple[Callable[[OpenStore], None], ...] = (
    check_empty,
    check_returns_what_was_put,
    check_keeps_baseline_verdicts,
    check_replaces,
    check_refuses_a_kernel_of_another_entry,
    check_generation_follows_choices,
    check_generation_ignores_the_rest,
    check_generation_is_of_the_content,
    check_trials_are_kept_in_order,
    check_facts,
    check_missing_kernel_is_typed,
    check_refuses_names_that_are_no_digests,
)
