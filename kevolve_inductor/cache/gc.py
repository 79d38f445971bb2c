"""What a store can do without: kernels, trials, facts and built files that no entry needs, and whatever is too old.

Nothing that was written or read within the last hour goes, so that a process in the middle of a search or a compile does
not lose what it has just looked at; built files can be made again, and are looked at more rarely.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..kernel import digest_of
from .entry import Entry
from .folder import QUARANTINE, Folder

_GRACE_S = 3600.0
_DAY_S = 86400.0
BUILD = "build"
WORKLOADS = "workload"
# Small, and what other facts and compiled graphs refer to.
_KEPT_KINDS = ("identity", "ceilings")
_NO_ENTRY = "no entry needs it"


@dataclass(frozen=True)
class Removal:
    """A file of the store, by its name within it, and why it goes."""

    name: str
    size_bytes: int
    reason: str


@dataclass(frozen=True)
class _Age:
    """What was written and last read before these moments counts as old."""

    now: float
    limit_s: float | None

    def reason(self, path: Path, unneeded: str | None, grace_s: float = _GRACE_S) -> str | None:
        """Why ``path`` goes: ``unneeded`` where that is given and it is not in use, else that it is older than the limit."""
        try:
            status = path.stat()
        except OSError:
            return None
        idle_s = self.now - max(status.st_mtime, status.st_atime)
        if unneeded is not None and idle_s > grace_s:
            return unneeded
        return self.expired(status.st_mtime) if idle_s > _GRACE_S else None

    def expired(self, written: float) -> str | None:
        if self.limit_s is None or self.now - written <= self.limit_s:
            return None
        return f"older than {self.limit_s / _DAY_S:g} days"


def stale_records(folder: Folder, entries: Iterable[Entry], limit_s: float | None, now: float) -> Iterator[Removal]:
    """What can go of entries, kernels, trials and facts. Call under the folder's lock."""
    age = _Age(now, limit_s)
    keys: set[str] = set()
    kernels: set[str | None] = set()
    for entry in entries:
        reason = age.expired(entry.created)
        if reason is not None:
            yield from _removal(folder, f"entries/{entry.key[:2]}/{entry.key}.json", reason)
            continue
        keys.add(entry.key)
        kernels.add(entry.kernel)
    yield from _unless(folder, folder.names("objects", ".json"), kernels, age)
    yield from _unless(folder, folder.names("trials", ".jsonl"), keys, age)
    facts = {digest_of(key) for key in keys}
    for name in folder.names("facts", ".json"):
        kind = PurePosixPath(name).parts[1]
        unneeded = _NO_ENTRY if kind == WORKLOADS and _stem(name) not in facts else None
        if kind == "undecided":
            unneeded = "out of date"
        if kind not in _KEPT_KINDS and (kind != WORKLOADS or unneeded is not None):
            yield from _removal(folder, name, age.reason(folder.root / name, unneeded))


def stale_files(folder: Folder, kernels: set[str | None], limit_s: float | None, now: float) -> Iterator[Removal]:
    """What can go of built files, of what was set aside, and of what interrupted writers left; ``kernels`` are needed."""
    age = _Age(now, limit_s)
    for name in folder.names(QUARANTINE, ""):
        yield from _removal(folder, name, age.reason(folder.root / name, "set aside, it did not verify", _DAY_S))
    for part in ("objects", "entries", "trials", "facts"):
        for name in folder.names(part, ".tmp"):
            yield from _removal(folder, name, age.reason(folder.root / name, "left by an interrupted writer", _DAY_S))
    for name in folder.names(BUILD, ""):
        parts = PurePosixPath(name).parts
        unneeded, grace_s = None, _GRACE_S
        if parts[1] == "workers":
            unneeded, grace_s = "built for candidates", _DAY_S
        elif parts[1] == "triton" and _stem(name) not in kernels:
            unneeded = _NO_ENTRY
        yield from _removal(folder, name, age.reason(folder.root / name, unneeded, grace_s))


def _unless(folder: Folder, names: Iterable[str], needed: set[str] | set[str | None], age: _Age) -> Iterator[Removal]:
    for name in names:
        if _stem(name) not in needed:
            yield from _removal(folder, name, age.reason(folder.root / name, _NO_ENTRY))


def _removal(folder: Folder, name: str, reason: str | None) -> Iterator[Removal]:
    path = folder.root / name
    if reason is not None and path.is_file() and not path.is_symlink():
        yield Removal(name, os.stat(path).st_size, reason)


def _stem(name: str) -> str:
    return PurePosixPath(name).stem
