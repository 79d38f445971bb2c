"""A summary of the store in one small file, so that its generation is known without reading every entry.

The entries are the truth: the index carries a stamp of their folders and is rebuilt from them where it is missing,
corrupt or older than they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from ..kernel import digest_of
from . import entry as values
from .entry import Entry
from .folder import Folder, seal, unseal

INDEX = "index.json"
INDEX_SCHEMA = 1


@dataclass(frozen=True)
class IndexRow:
    """One entry in short: enough for a listing and for the generation."""

    verdict: str
    kernel: str | None
    title: str
    source: str = values.LOCAL

    @classmethod
    def of(cls, entry: Entry) -> IndexRow:
        return cls(entry.verdict, entry.kernel, entry.title, entry.source)


@dataclass(frozen=True)
class Index:
    """``rows`` by cache key; ``facts`` maps the names of the facts that decide which kernels run to their digests."""

    rows: Mapping[str, IndexRow]
    facts: Mapping[str, str]

    @cached_property
    def generation(self) -> str:
        """Digest of every choice the store makes. Titles and dates are not choices; whether a source is trusted may be."""
        choices = {key: [row.verdict, row.kernel, row.source] for key, row in self.rows.items()}
        return digest_of({"entries": choices, "facts": dict(self.facts)})

    def with_entry(self, entry: Entry) -> Index:
        return Index({**self.rows, entry.key: IndexRow.of(entry)}, self.facts)

    def with_fact(self, name: str, digest: str) -> Index:
        return Index(self.rows, {**self.facts, name: digest})

    @classmethod
    def of(cls, entries: Iterable[Entry], facts: Mapping[str, str]) -> Index:
        return cls({entry.key: IndexRow.of(entry) for entry in entries}, facts)


def load(folder: Folder, stamp: Any) -> Index | None:
    """The index as written; ``None`` where it is missing, does not verify, or is of folders unlike ``stamp``."""
    try:
        text = folder.read(INDEX)
        if text is None:
            return None
        body = unseal(text)
        if body["schema"] != _schema() or body["stamp"] != stamp:
            return None
        return Index({key: IndexRow(**row) for key, row in body["rows"].items()}, body["facts"])
    except (ValueError, TypeError, KeyError):
        return None


def save(folder: Folder, index: Index, stamp: Any) -> None:
    """Raises ``OSError`` where it cannot be written."""
    rows = {key: asdict(row) for key, row in index.rows.items()}
    folder.write(INDEX, seal({"schema": _schema(), "stamp": stamp, "rows": rows, "facts": dict(index.facts)}))


def _schema() -> list[int]:
    # With the entries' own: another version's index lists entries that this one does not read.
    return [INDEX_SCHEMA, values.ENTRY_SCHEMA, values.SOURCED_SCHEMA]
