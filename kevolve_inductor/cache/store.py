"""The store: kernels, verdicts, trials and facts on disk, for ever, verified on every read.

objects/<2>/<sha256>.json    kernels; the name is the SHA-256 of the content
entries/<2>/<key>.json       one record per cache key
trials/<2>/<key>.jsonl       every trial of every search for a key, only ever added to
facts/<kind>/<sha256>.json   small facts: measured ceilings, verdicts on whole graphs
index.json                   a summary, rebuilt from the entries at need
quarantine/                  what did not verify
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from ..exc import CorruptEntryError, StoreError
from ..kernel import Kernel, digest_of
from . import index as index_file
from .entry import Entry, OtherSchemaError, TrialRow, require_digest
from .folder import Folder, canonical, parse, seal, sha256, unseal
from .gc import BUILD, Removal, stale_files, stale_records
from .index import Index

logger = logging.getLogger(__name__)

# Facts of these kinds change which kernels run, so they count in the generation; all others do not.
DECIDING_KINDS = ("graph",)

# What reading a well-formed but foreign JSON value can raise.
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)

Value = TypeVar("Value")


class Store:
    """Keep one per folder and process; open it with ``Store.open``. Usable from several threads and processes.

    Nothing is raised for what cannot be read: a corrupt file is set aside with one warning and counts as missing.
    Where nothing can be written, the store goes on in memory: the same calls work for the rest of this process.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._kernels: dict[str, Kernel] = {}
        self._index: tuple[Any, Index] | None = None
        self._private: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def open(cls, path: Path | str) -> Store:
        """The store in ``path``, which is created where missing.

        Raises ``StoreError`` where the folder belongs to another user or everyone may write to it.
        """
        return cls(Folder(Path(path).expanduser().absolute()))

    @property
    def path(self) -> Path:
        return self._folder.root

    @property
    def persistent(self) -> bool:
        """Whether what is put here outlives the process."""
        return not self._folder.degraded

    def build_folder(self) -> Path:
        """Where compiled code is kept: inside the store, or in a private temporary folder where that is not writable."""
        if self.persistent:
            return self.path / BUILD
        if self._private is None:
            self._private = tempfile.TemporaryDirectory(prefix="kevolve-build-")
        return Path(self._private.name)

    def get(self, key: str) -> Entry | None:
        """What is known for a cache key's digest, its kernel verified too. ``None`` is a miss."""
        entry = self._entry_at(_entry_name(key))
        if entry is None or entry.kernel is None:
            return entry
        try:
            self.kernel(entry.kernel)
        except CorruptEntryError as error:
            if self._entry_at(_entry_name(key)) != entry:
                # Replaced or removed since it was read, and its kernel with it.
                return self.get(key)
            # The entry goes as well: were it kept, the generation would not change although the choice does.
            self._folder.set_aside(_entry_name(key), f"its kernel cannot be used: {error.reason}")
            return None
        return entry

    def put(self, entry: Entry, kernel: Kernel | None) -> None:
        """Remember ``entry`` (replacing what was known for its key) and its kernel, which is ``None`` for a baseline.

        Raises ``ValueError`` where the two do not belong together, and ``StoreError`` the first time the folder proves
        unwritable: the entry is then kept in memory, as all later ones are, without further errors.
        """
        if entry.kernel != (kernel.digest if kernel is not None else None):
            raise ValueError(f"entry {entry.key} is for kernel {entry.kernel}, which is not the one given")
        self._write(lambda: self._put(entry, kernel), raising=True)

    def kernel(self, digest: str) -> Kernel:
        """Raises ``CorruptEntryError`` where it is missing or did not verify (it is then set aside)."""
        known = self._kernels.get(digest)
        if known is not None:
            return known
        name = _object_name(digest)
        kernel = self._verified(name, lambda text: _kernel(text, digest))
        if kernel is None:
            raise CorruptEntryError(str(self.path / name), "missing, or did not verify")
        self._kernels[digest] = kernel
        return kernel

    def entries(self) -> Iterator[Entry]:
        """Every entry that verifies, by cache key. Kernels are not read."""
        for name in self._folder.names("entries", ".json"):
            entry = self._entry_at(name)
            if entry is not None:
                yield entry

    def append_trials(self, key: str, rows: Iterable[TrialRow]) -> None:
        """Add rows to a key's trials. Where that cannot be written they are kept in memory, with one warning."""
        text = "".join(seal(row.to_json()) + "\n" for row in rows)
        if text:
            self._write(lambda: self._folder.append(_trials_name(key), text), raising=False)

    def trials(self, key: str) -> tuple[TrialRow, ...]:
        """Every trial of a key, oldest first. Rows that do not verify (a writer was killed) are left out."""
        rows = (_row(line) for line in self._lines(_trials_name(key)))
        return tuple(row for row in rows if isinstance(row, TrialRow))

    def remember(self, kind: str, key: str, value: Any) -> None:
        """Keep a small JSON value under ``kind`` (an identifier) and any ``key``. Kept in memory where unwritable."""
        name, body = _fact_name(kind, key), {"kind": kind, "key": key, "value": value}
        self._write(lambda: self._put_fact(name, body), raising=False)

    def recall(self, kind: str, key: str) -> Any:
        """The value remembered last, or ``None``."""
        body = self._verified(_fact_name(kind, key), lambda text: _fact(text, kind, key))
        return None if body is None else body["value"]

    def index(self) -> Index:
        """Every entry in short. Read from the index file while that is current."""
        stamp = self._stamp()
        identity = (self._folder.identity(index_file.INDEX), stamp)
        if self._index is not None and self._index[0] == identity:
            return self._index[1]
        index = index_file.load(self._folder, stamp)
        self._index = (identity, index) if index is not None else self._rebuild()
        return self._index[1]

    def generation(self) -> str:
        """Digest of every choice this store makes: equal in any process, different after any choice has changed."""
        return self.index().generation

    def identity(self) -> str:
        """A random name of this store, kept with it: a new or emptied store is not mistaken for an earlier one."""
        known = self.recall("identity", "store")
        if known is None:
            self.remember("identity", "store", uuid4().hex)
            known = self.recall("identity", "store")
        return str(known)

    def renew_generation(self) -> None:
        """Make the generation differ from all before, although no choice changed: what was compiled is not final."""
        self.remember("graph", "undecided", uuid4().hex)

    def verify(self) -> list[CorruptEntryError]:
        """Read everything, change nothing, and say what would not be used and why."""
        checks: tuple[tuple[str, str, Callable[[str, str], object]], ...] = (
            ("objects", ".json", lambda name, text: _content(text, _stem(name))),
            ("entries", ".json", lambda name, text: self._check_entry(_entry(text, _stem(name)))),
            ("facts", ".json", lambda name, text: _check_fact(name, unseal(text))),
        )
        found: list[CorruptEntryError] = []
        for folder, suffix, check in checks:
            for name in self._folder.names(folder, suffix):
                reason = self._reason(name, check)
                if reason is not None:
                    found.append(CorruptEntryError(str(self.path / name), reason))
        for name in self._folder.names("trials", ".jsonl"):
            for number, line in enumerate(self._lines(name), start=1):
                row = _row(line)
                if isinstance(row, str):
                    found.append(CorruptEntryError(str(self.path / name), f"line {number}: {row}"))
        return found

    def collect(self, older_than_s: float | None = None, dry_run: bool = False) -> tuple[Removal, ...]:
        """Remove what no entry needs and, with ``older_than_s``, what is older; with ``dry_run`` only say what that is.

        Other processes may go on reading and writing. Raises ``StoreError`` where the store cannot be written.
        """
        if not self.persistent:
            raise StoreError(f"the store {self.path} cannot be written, so nothing can be removed from it")
        now = time.time()
        try:
            with self._folder.locked():
                entries = list(self.entries())
                removals = [*stale_records(self._folder, entries, older_than_s, now)]
                if not dry_run:
                    self._folder.remove(removal.name for removal in removals)
            gone = {removal.name for removal in removals}
            kernels = {entry.kernel for entry in entries if _entry_name(entry.key) not in gone}
            files = [*stale_files(self._folder, kernels, older_than_s, now)]
            if not dry_run:
                self._folder.remove(removal.name for removal in files)
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror or error}") from error
        self._kernels.clear()
        return (*removals, *files)

    def _entry_at(self, name: str) -> Entry | None:
        return self._verified(name, lambda text: _entry(text, _stem(name)))

    def _reason(self, name: str, check: Callable[[str, str], object]) -> str | None:
        try:
            text = self._folder.read(name)
            if text is not None:
                check(name, text)
        except OtherSchemaError:
            return None
        except _MALFORMED as error:
            return _said(error)
        return None

    def _check_entry(self, entry: Entry) -> None:
        if entry.kernel is None:
            return
        text = self._folder.read(_object_name(entry.kernel))
        if text is None:
            raise ValueError(f"its kernel {entry.kernel} is missing")
        _kernel(text, entry.kernel)

    def _verified(self, name: str, read: Callable[[str], Value]) -> Value | None:
        try:
            text = self._folder.read(name)
            return None if text is None else read(text)
        except OtherSchemaError:
            return None
        except _MALFORMED as error:
            self._folder.set_aside(name, _said(error))
            return None

    def _lines(self, name: str) -> list[str]:
        try:
            text = self._folder.read(name) or ""
        except ValueError as error:
            self._folder.set_aside(name, _said(error))
            return []
        return [line for line in text.split("\n") if line]

    def _write(self, write: Callable[[], None], raising: bool) -> None:
        try:
            with self._folder.locked():
                write()
        except OSError as error:
            problem: StoreError | None = self._folder.degrade(error)
            write()
            if problem is None:
                return
            if raising:
                raise problem from error
            self._folder.warn(problem)

    def _put(self, entry: Entry, kernel: Kernel | None) -> None:
        index = self.index()
        if kernel is not None:
            name = _object_name(kernel.digest)
            self._folder.write(name, canonical(kernel.to_json()))
        self._folder.write(_entry_name(entry.key), seal(entry.to_json()))
        self._save(index.with_entry(entry))

    def _put_fact(self, name: str, body: dict[str, Any]) -> None:
        if body["kind"] not in DECIDING_KINDS:
            self._folder.write(name, seal(body))
            return
        index = self.index()
        self._folder.write(name, seal(body))
        self._save(index.with_fact(name, sha256(canonical(body).encode())))

    def _save(self, index: Index) -> tuple[Any, Index]:
        stamp = self._stamp()
        index_file.save(self._folder, index, stamp)
        self._index = (self._folder.identity(index_file.INDEX), stamp), index
        return self._index

    def _rebuild(self) -> tuple[Any, Index]:
        """From the files, under the lock, so that no entry is written meanwhile; saved where that is possible."""
        try:
            with self._folder.locked():
                return self._save(self._from_files())
        except OSError as error:
            logger.debug("the index of %s is not saved: %s", self.path, error)
            # Identity first: what is written while the files are read makes this index stale, as it should.
            identity = (self._folder.identity(index_file.INDEX), self._stamp())
            return identity, self._from_files()

    def _from_files(self) -> Index:
        facts: dict[str, str] = {}
        for kind in DECIDING_KINDS:
            for name in self._folder.names(f"facts/{kind}", ".json"):
                body = self._verified(name, unseal)
                if body is not None:
                    facts[name] = sha256(canonical(body).encode())
        return Index.of(self.entries(), facts)

    def _stamp(self) -> list[Any]:
        # As lists, because this is compared with what was read back from JSON.
        folders = ("entries", *(f"facts/{kind}" for kind in DECIDING_KINDS))
        return [[folder, [list(stamp) for stamp in self._folder.stamp(folder)]] for folder in folders]


def _entry_name(key: str) -> str:
    return f"entries/{require_digest(key, 'cache key')[:2]}/{key}.json"


def _object_name(digest: str) -> str:
    return f"objects/{require_digest(digest, 'kernel')[:2]}/{digest}.json"


def _trials_name(key: str) -> str:
    return f"trials/{require_digest(key, 'cache key')[:2]}/{key}.jsonl"


def _fact_name(kind: str, key: str) -> str:
    if not kind.isidentifier():
        raise ValueError(f"the kind of a fact is an identifier, not {kind!r}")
    return f"facts/{kind}/{digest_of(key)}.json"


def _stem(name: str) -> str:
    return Path(name).stem


def _entry(text: str, key: str) -> Entry:
    entry = Entry.from_json(unseal(text))
    if entry.key != key:
        raise ValueError(f"an entry for another cache key, {entry.key}")
    return entry


def _content(text: str, digest: str) -> Any:
    if sha256(text.encode()) != digest:
        raise ValueError("content does not match its digest")
    return parse(text)


def _kernel(text: str, digest: str) -> Kernel:
    return Kernel.from_json(_content(text, digest))


def _fact(text: str, kind: str, key: str) -> dict[str, Any]:
    body: dict[str, Any] = unseal(text)
    if (body["kind"], body["key"]) != (kind, key):
        raise ValueError("a fact about something else")
    return body


def _check_fact(name: str, body: dict[str, Any]) -> None:
    if _fact_name(body["kind"], body["key"]) != name:
        raise ValueError("a fact about something else")


def _row(line: str) -> TrialRow | str:
    """The row of one line, or why there is none."""
    try:
        return TrialRow.from_json(unseal(line))
    except _MALFORMED as error:
        return _said(error)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if isinstance(error, KeyError | TypeError) else str(error)
