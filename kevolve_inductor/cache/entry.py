"""What the store holds, as values: one entry per cache key, one row per trial."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

Verdict = Literal["kernel", "baseline"]

# Raise when an entry's fields change: other versions of the package may share the store and must not touch it then.
ENTRY_SCHEMA = 1
# Of entries that came from elsewhere: versions that do not know of sources leave them alone.
SOURCED_SCHEMA = 2

# The source of what this store's own searches found.
LOCAL = "local"

_DIGEST = re.compile(r"[0-9a-f]{64}")


class OtherSchemaError(ValueError):
    """Written by another version of this package: not corrupt, but not ours to read."""


def require_digest(text: str, what: str) -> str:
    """``text``, if it is 64 hexadecimal digits. Digests become file names, so nothing else may pass."""
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        raise ValueError(f"{what} {text!r} is not a SHA-256 digest")
    return text


@dataclass(frozen=True)
class Entry:
    """What is known for one cache key.

    ``verdict`` ``"kernel"``: the kernel with digest ``kernel`` is to be used, ``schedule`` made it and ``evaluation``
    (see ``evaluate.evaluation``) is its evidence. ``"baseline"``: ``trials`` trials found no kernel that beats the
    baseline; ``kernel`` is ``None`` and ``evaluation`` that of the best trial, if there was one. ``created`` is in
    seconds since the epoch. ``title`` is for people. ``source`` says who found it (see ``cache.trust``).
    """

    key: str
    verdict: Verdict
    kernel: str | None
    evaluation: dict[str, Any] | None
    region: dict[str, Any]
    key_fields: dict[str, Any]
    trials: int
    search_s: float
    family: str
    schedule: dict[str, int | str | bool] | None
    title: str
    created: float
    source: str = LOCAL

    def __post_init__(self) -> None:
        require_digest(self.key, "cache key")
        if self.verdict not in get_args(Verdict):
            raise ValueError(f"verdict {self.verdict!r} is not one of {get_args(Verdict)}")
        if (self.verdict == "kernel") != (self.kernel is not None):
            raise ValueError(f"verdict {self.verdict!r} does not go with kernel {self.kernel!r}")
        if self.kernel is not None:
            require_digest(self.kernel, "kernel")

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self)
        if self.source == LOCAL:
            del fields["source"]
        return {"schema": ENTRY_SCHEMA if self.source == LOCAL else SOURCED_SCHEMA, **fields}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Entry:
        """Raises ``KeyError``, ``ValueError`` or ``TypeError`` on anything but what ``to_json`` wrote."""
        if data["schema"] != (SOURCED_SCHEMA if "source" in data else ENTRY_SCHEMA):
            raise OtherSchemaError(f"schema {data['schema']!r}, where this version reads {ENTRY_SCHEMA}")
        return cls(**{name: value for name, value in data.items() if name != "schema"})


@dataclass(frozen=True)
class TrialRow:
    """One trial. ``id`` and ``parents`` number the candidates of one search; ``run`` counts the searches of a key.

    ``score`` is the fitness the searcher was told (0 on any failure), ``status`` the evaluation's. ``kernel`` and
    ``evaluation`` are kept where known, so that a search can be learnt from later.
    """

    id: int
    parents: tuple[int, ...]
    schedule: dict[str, int | str | bool]
    status: str
    score: float
    origin: str = "draft"
    memory: str = "clean"
    run: int = 0
    kernel: str | None = None
    evaluation: dict[str, Any] | None = field(default=None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrialRow:
        """Raises ``KeyError``, ``ValueError`` or ``TypeError`` on anything but what ``to_json`` wrote."""
        return cls(**{**data, "parents": tuple(data["parents"])})
