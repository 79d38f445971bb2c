"""What a store lets go of, and that nobody who is reading or writing loses anything."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kevolve_inductor.cache import Store, TrialRow
from kevolve_inductor.cache.gc import WORKLOADS
from kevolve_inductor.exc import StoreError
from kevolve_inductor.testing.stores import example_entry, example_kernel

DAY_S = 86400.0
ROW = TrialRow(0, (), {}, "passed", 1.0)


def aged(root: Path, days: float = 2.0) -> None:
    """Everything in the store was last touched ``days`` ago."""
    for path in root.rglob("*"):
        if path.is_file():
            then = time.time() - days * DAY_S
            os.utime(path, (then, then))


def filled(root: Path) -> Store:
    """Two entries, the first of which found another kernel before; and what was left behind by others."""
    store = Store.open(root)
    for number in (0, 1):
        kernel = example_kernel(number)
        store.put(example_entry(number, kernel, created=time.time()), kernel)
        store.append_trials(example_entry(number).key, [ROW])
        store.remember(WORKLOADS, example_entry(number).key, {})
    newer = example_kernel(7)
    store.put(example_entry(0, newer, created=time.time()), newer)
    store.append_trials(example_entry(5).key, [ROW])
    store.remember(WORKLOADS, example_entry(5).key, {})
    store.remember("undecided", example_entry(5).key, {"at": 0.0, "why": "noise"})
    store.remember("graph", "some graph", True)
    store.remember("ceilings", "here", 1.0)
    store.identity()
    for name in ("workers/cpp/aa/x.so", "cpp/bb/y.so", f"triton/cc/{newer.digest}.py", f"triton/cc/{'d' * 64}.py"):
        path = root / "build" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (root / "quarantine").mkdir()
    (root / "quarantine" / "entries-x.1").write_text("x")
    (root / "entries" / "half.tmp").write_text("x")
    return store


def test_what_no_entry_needs_goes_and_all_else_stays(store):
    target = filled(store)
    aged(store)
    identity = target.identity()
    before = {path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()}
    planned = target.collect(dry_run=True)
    assert {path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()} == before
    assert target.collect() == planned
    gone = before - {path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()}
    assert gone == {removal.name for removal in planned}
    old, stray = example_kernel(0).digest, example_entry(5).key
    assert {name for name in gone if not name.startswith("facts/")} == {
        f"objects/{old[:2]}/{old}.json", f"trials/{stray[:2]}/{stray}.jsonl", "entries/half.tmp", "quarantine/entries-x.1",
        "build/workers/cpp/aa/x.so", f"build/triton/cc/{'d' * 64}.py",
    }  # fmt: skip
    assert sorted(name.split("/")[1] for name in gone if name.startswith("facts/")) == ["undecided", WORKLOADS]
    again = Store.open(store)
    assert again.get(example_entry(0).key).kernel == example_kernel(7).digest
    assert again.get(example_entry(1).key) and again.trials(example_entry(1).key) == (ROW,)
    assert again.recall("graph", "some graph") and again.recall("ceilings", "here") and again.identity() == identity
    assert again.verify() == [] and again.collect() == ()


def test_what_was_just_written_or_read_is_let_be(store):
    """A search writes its trials before its entry, and a build is checked before it is loaded."""
    target = filled(store)
    assert [removal.name for removal in target.collect()] == []
    aged(store)
    read = store / "build" / "workers" / "cpp" / "aa" / "x.so"
    os.utime(read, (time.time(), time.time() - 2 * DAY_S))
    assert read.exists() and read.relative_to(store).as_posix() not in {r.name for r in target.collect()}
    assert read.exists()


def test_with_an_age_old_entries_go_with_all_that_is_theirs(store):
    target = filled(store)
    kernel = example_kernel(1)
    target.put(example_entry(1, kernel, created=time.time() - 30 * DAY_S), kernel)
    generation = target.generation()
    aged(store, 20.0)
    removals = {removal.name: removal.reason for removal in target.collect(10 * DAY_S)}
    key = example_entry(1).key
    assert removals[f"entries/{key[:2]}/{key}.json"] == "older than 10 days"
    assert (
        f"objects/{kernel.digest[:2]}/{kernel.digest}.json" in removals and f"trials/{key[:2]}/{key}.jsonl" in removals
    )
    assert removals["build/cpp/bb/y.so"] == "older than 10 days"
    again = Store.open(store)
    assert again.get(key) is None and again.get(example_entry(0).key) is not None
    assert again.recall("graph", "some graph") is None and again.recall("ceilings", "here") == 1.0
    assert again.generation() == target.generation() != generation


def test_an_entry_that_was_replaced_while_it_was_read_is_not_lost(store, monkeypatch):
    old, new = example_kernel(0), example_kernel(1)
    writer, reader = Store.open(store), Store.open(store)
    writer.put(example_entry(0, old), old)
    load = Store.kernel

    def late(self: Store, digest: str):
        if digest == old.digest:
            writer.put(example_entry(0, new), new)
            (store / "objects" / old.digest[:2] / f"{old.digest}.json").unlink(missing_ok=True)
        return load(self, digest)

    monkeypatch.setattr(Store, "kernel", late)
    assert reader.get(example_entry(0).key) == example_entry(0, new)
    assert not (store / "quarantine").exists()


def churn(root: Path, rounds: int) -> None:
    """Replace the kernel of one key again and again, with files that look old."""
    store = Store.open(root)
    for number in range(rounds):
        kernel = example_kernel(number)
        store.put(example_entry(0, kernel), kernel)
        aged(root / "objects")


def test_readers_and_writers_go_on_while_another_process_collects(store):
    churn(store, 1)
    process = multiprocessing.get_context("spawn").Process(target=churn, args=(store, 25))
    process.start()
    removed = reads = 0
    while process.is_alive():
        removed += len(Store.open(store).collect())
        assert Store.open(store).get(example_entry(0).key) is not None
        reads += 1
        time.sleep(0.05)
    process.join()
    assert process.exitcode == 0 and reads
    removed += len(Store.open(store).collect())
    assert removed == 24 and Store.open(store).verify() == []
    assert not (store / "quarantine").exists()


def test_a_link_out_of_the_store_is_not_followed(store, tmp_path):
    target = filled(store)
    outside = tmp_path / "mine.so"
    outside.write_text("x")
    (store / "build" / "workers" / "link.so").symlink_to(outside)
    aged(store)
    assert "build/workers/link.so" not in {removal.name for removal in target.collect()}
    assert outside.exists()


def test_a_store_in_memory_has_nothing_to_remove(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        Store.open(tmp_path / "file" / "store").collect()


def test_imported_entries_need_their_kernels_as_well(store):
    target, kernel = Store.open(store), example_kernel()
    target.put(replace(example_entry(0, kernel), source="team"), kernel)
    aged(store)
    assert target.collect() == ()
