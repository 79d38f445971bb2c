"""From the store to a bundle: only kernels that sanitizers, where there are any, have found nothing in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from .cache.bundle import Packed, write_bundle
from .cache.entry import Entry
from .cache.gc import WORKLOADS
from .cache.store import Store
from .evaluate.client import WorkerEvaluator
from .evaluate.evaluation import Crashed, Passed, Refused, from_json, to_json
from .evaluate.evaluator import Evaluator
from .evaluate.explain import explain
from .evaluate.sanitizers.sanitizers import Sanitized
from .exc import CorruptEntryError, PlatformError, WorkerError
from .graph.region import Region, Workload
from .kernel import Kernel
from .platforms import platform_for
from .platforms.platform import Target

MakeEvaluator = Callable[[str], AbstractContextManager[Evaluator]]


@dataclass(frozen=True)
class Withheld:
    """An entry that was not exported. ``faulty``: a sanitizer found something, and the store does not use it any more."""

    entry: Entry
    reason: str
    faulty: bool = False


@dataclass(frozen=True)
class Exported:
    """What stands in the file ``path``, whose SHA-256 is ``sha256``; no file is written where nothing could be exported."""

    path: Path
    sha256: str | None
    entries: tuple[Entry, ...]
    withheld: tuple[Withheld, ...]


def evaluators(store: Store) -> MakeEvaluator:
    """By a platform's name, what runs its sanitizers. Raises ``PlatformError`` for one that does not exist."""

    def make(name: str) -> WorkerEvaluator:
        return WorkerEvaluator(platform_for(name), store.build_folder() / "workers")

    return make


def export(store: Store, entries: Iterable[Entry], path: Path, make: MakeEvaluator) -> Exported:
    """Write the kernels of ``entries`` to ``path``.

    A kernel that was not run under its platform's sanitizers yet is run under them now, and the store remembers what they
    did, or why one was not run; one in which they find a fault counts as a baseline from now on.
    Raises ``StoreError`` where the file cannot be written.
    """
    packed: list[Packed] = []
    withheld: list[Withheld] = []
    with ExitStack() as stack:
        evaluator = cache(lambda name: stack.enter_context(make(name)))
        for entry in sorted(entries, key=lambda entry: entry.key):
            if entry.kernel is None:
                continue
            try:
                checked = _checked(store, entry, store.kernel(entry.kernel), evaluator)
            except (WorkerError, PlatformError, CorruptEntryError) as error:
                checked = Withheld(entry, f"could not be checked: {error}")
            if isinstance(checked, Withheld):
                withheld.append(checked)
            else:
                packed.append(checked)
    digest = write_bundle(path, packed) if packed else None
    return Exported(path, digest, tuple(one.entry for one in packed), tuple(withheld))


def _checked(store: Store, entry: Entry, kernel: Kernel, evaluator: Callable[[str], Evaluator]) -> Packed | Withheld:
    passed = from_json(entry.evaluation) if entry.evaluation is not None else None
    if not isinstance(passed, Passed):
        return Withheld(entry, "it has no evaluation that its kernel passed")
    if passed.sanitizers:
        return Packed(entry, kernel)
    known = store.recall(WORKLOADS, entry.key)
    if known is None:
        return Withheld(entry, "its sizes and ranges were not kept: search it again, then export it")
    said = _sanitized(entry, kernel, Workload.from_json(known), evaluator)
    if isinstance(said, Refused | Crashed):
        store.put(replace(entry, verdict="baseline", kernel=None, schedule=None, evaluation=to_json(said)), None)
        return Withheld(entry, explain(said), faulty=True)
    entry = replace(entry, evaluation=to_json(replace(passed, sanitizers=said)))
    store.put(entry, kernel)
    return Packed(entry, kernel)


def _sanitized(
    entry: Entry, kernel: Kernel, workload: Workload, evaluator: Callable[[str], Evaluator]
) -> dict[str, str] | Refused | Crashed:
    """The record of sanitizers that found nothing, or what one found."""
    made_for = entry.key_fields["target"]
    platform = platform_for(made_for["platform"])
    reason = platform.available()
    if reason is None and not _is_at_hand(platform.target(), made_for):
        reason = f"the kernel was made for {made_for['chip']}, which is not here"
    if reason is not None:
        return {"sanitizers": f"not run: {reason}"}
    judge = evaluator(platform.name)
    judge.open(Region.from_json(entry.region), workload)
    said = judge.sanitize(kernel)
    return (said.to_json() or {"sanitizers": "not run: there are none"}) if isinstance(said, Sanitized) else said


def _is_at_hand(target: Target, made_for: Mapping[str, Any]) -> bool:
    """Elsewhere a kernel may end on an instruction that this chip lacks, which says nothing against it."""
    return (target.chip, sorted(target.features)) == (made_for["chip"], sorted(made_for["features"]))
