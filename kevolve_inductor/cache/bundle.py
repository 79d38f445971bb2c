"""One file that carries kernels from one store to another: an uncompressed tar of JSON texts.

manifest.json            the format's version, and the SHA-256 of every other member by name
entries/<key>.json       an entry, as the store keeps it, without its source
kernels/<sha256>.json    a kernel; the name is the SHA-256 of the content

Equal content gives equal bytes. Nothing is unpacked: members are read into memory, within limits, and all of them are
checked before anything is put into a store. A digest says that a file is whole, not who wrote it; so what comes from a
bundle has a source that whoever imports it gives it, and runs only where that is trusted.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..evaluate.build import gate
from ..evaluate.evaluation import Passed, from_json
from ..exc import BundleError, StoreError
from ..graph.region import Region
from ..kernel import Kernel, digest_of
from .entry import LOCAL, Entry
from .folder import canonical, parse, sha256
from .store import Store

BUNDLE_SCHEMA = 1
MOST_MEMBERS = 20_000
# Of a member; the largest kernels have some ten thousand characters, regions of whole graphs some hundred thousand.
MOST_BYTES = 4 * 2**20

_MANIFEST = "manifest.json"
_MOST_TITLE = 300
# What reading a well-formed but foreign JSON value can raise.
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Packed:
    """An entry whose verdict is a kernel, with that kernel."""

    entry: Entry
    kernel: Kernel

    def __post_init__(self) -> None:
        if self.entry.kernel != self.kernel.digest:
            raise ValueError(f"entry {self.entry.key} is for kernel {self.entry.kernel}, not {self.kernel.digest}")


@dataclass(frozen=True)
class Imported:
    """Keys of a bundle by what became of them: ``kept`` are those for which the store has a verdict of its own."""

    source: str
    added: tuple[str, ...]
    replaced: tuple[str, ...]
    kept: tuple[str, ...]


def write_bundle(path: Path, packed: Iterable[Packed]) -> str:
    """Replace ``path`` in one step; returns the SHA-256 of the file. Raises ``StoreError`` where it cannot be written."""
    data = pack(packed)
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error
    return sha256(data)


def pack(packed: Iterable[Packed]) -> bytes:
    members: dict[str, bytes] = {}
    for one in packed:
        entry = replace(one.entry, source=LOCAL)
        members[f"entries/{entry.key}.json"] = canonical(entry.to_json()).encode()
        members[f"kernels/{one.kernel.digest}.json"] = canonical(one.kernel.to_json()).encode()
    digests = {name: sha256(content) for name, content in members.items()}
    manifest = canonical({"bundle": BUNDLE_SCHEMA, "members": digests}).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in ((_MANIFEST, manifest), *sorted(members.items())):
            # Whose file it is and when it was written are left at nobody and never.
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o600
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def read_bundle(path: Path) -> tuple[tuple[Packed, ...], str]:
    """What a bundle holds, every part of it checked, and the SHA-256 of the file. Raises ``BundleError``."""
    try:
        if path.stat().st_size > MOST_MEMBERS * MOST_BYTES:
            raise BundleError(str(path), "larger than any bundle")
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(str(path), error.strerror or str(error)) from error
    members = _members(data, path)
    manifest = _parsed(_MANIFEST, members.pop(_MANIFEST, b""))
    if not isinstance(manifest, dict) or manifest.get("bundle") != BUNDLE_SCHEMA:
        version = manifest.get("bundle") if isinstance(manifest, dict) else None
        raise BundleError(_MANIFEST, f"bundle version {version!r}, where this version reads {BUNDLE_SCHEMA}")
    if manifest.get("members") != {name: sha256(content) for name, content in members.items()}:
        raise BundleError(_MANIFEST, "the digests are not those of the members: the file was damaged or changed")
    kernels = {name: _kernel(name, content) for name, content in members.items() if name.startswith("kernels/")}
    packed = tuple(_packed(name, members[name], kernels) for name in sorted(members.keys() - kernels.keys()))
    unused = kernels.keys() - {f"kernels/{one.kernel.digest}.json" for one in packed}
    if unused:
        raise BundleError(min(unused), "no entry is for this kernel")
    return packed, sha256(data)


def import_bundle(store: Store, path: Path, source: str | None = None) -> Imported:
    """Put what ``path`` holds into ``store`` under ``source``, by default a name made from the file's digest.

    What the store's own searches found stays; what was imported before is replaced. Raises ``BundleError``, before anything
    is put, where any part does not verify, and ``StoreError`` where the store cannot be written.
    """
    packed, digest = read_bundle(path)
    source = source or f"bundle-{digest[:12]}"
    outcomes: dict[str, list[str]] = {"added": [], "replaced": [], "kept": []}
    for one in packed:
        known = store.get(one.entry.key)
        if known is not None and known.source == LOCAL:
            outcomes["kept"].append(one.entry.key)
            continue
        store.put(replace(one.entry, source=source), one.kernel)
        outcomes["added" if known is None else "replaced"].append(one.entry.key)
    return Imported(source, **{name: tuple(keys) for name, keys in outcomes.items()})


def _members(data: bytes, path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                _check_member(member, found)
                content = tar.extractfile(member)
                assert content is not None
                found[member.name] = content.read()
    except (tarfile.TarError, OSError, EOFError, *_MALFORMED) as error:
        raise BundleError(str(path), f"not a bundle ({error})") from error
    return found


def _check_member(member: tarfile.TarInfo, found: dict[str, bytes]) -> None:
    folder, _, file = member.name.rpartition("/")
    stem = file.removesuffix(".json")
    named = folder in ("entries", "kernels") and len(stem) == 64 and set(stem) <= set("0123456789abcdef")
    if not member.isreg() or member.issparse() or not (member.name == _MANIFEST or (named and file != stem)):
        raise BundleError(repr(member.name), "no bundle has a member of that name or kind")
    if member.name in found:
        raise BundleError(member.name, "there twice")
    if member.size > MOST_BYTES:
        raise BundleError(member.name, f"{member.size} bytes, where {MOST_BYTES} are allowed")
    if len(found) >= MOST_MEMBERS:
        raise BundleError(member.name, f"one of more than {MOST_MEMBERS} members")


def _parsed(name: str, content: bytes) -> Any:
    try:
        return parse(content.decode())
    except _MALFORMED as error:
        raise BundleError(name, f"not JSON: {error}") from error


def _kernel(name: str, content: bytes) -> Kernel:
    value = _parsed(name, content)
    try:
        kernel = Kernel.from_json(value)
        digest = kernel.digest
    except _MALFORMED as error:
        raise BundleError(name, f"not a kernel: {error}") from error
    if name != f"kernels/{digest}.json":
        raise BundleError(name, "content does not match its digest")
    if not _is_printable(kernel.source):
        raise BundleError(name, "its source holds characters that are not plain text")
    refusal = gate(kernel)
    if refusal is not None:
        raise BundleError(name, f"refused: {refusal.message}")
    return kernel


def _packed(name: str, content: bytes, kernels: dict[str, Kernel]) -> Packed:
    value = _parsed(name, content)
    try:
        entry = Entry.from_json(value)
        if name != f"entries/{entry.key}.json":
            raise ValueError(f"an entry for another cache key, {entry.key}")
        _check_entry(entry)
        if canonical(entry.to_json()).encode() != content:
            raise ValueError("not in the form in which entries are exported")
        return Packed(entry, kernels[f"kernels/{entry.kernel}.json"])
    except _MALFORMED as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError | TypeError) else str(error)
        raise BundleError(name, reason) from error


def _check_entry(entry: Entry) -> None:
    """Raises what is wrong with an entry that somebody else wrote: its parts must belong together, and be printable."""
    if entry.source != LOCAL:
        raise ValueError("it names its own source")
    if digest_of(entry.key_fields) != entry.key:
        raise ValueError("its key is not that of its key's fields")
    if Region.from_json(entry.region).digest != entry.key_fields["region"]:
        raise ValueError("its key is for another region")
    passed = from_json(entry.evaluation) if entry.evaluation is not None else None
    if not isinstance(passed, Passed) or not passed.complete or not passed.baselines_us:
        raise ValueError("it has no evaluation that its kernel passed")
    if (
        not _is_printable([entry.title, entry.family, entry.evaluation, entry.schedule])
        or len(entry.title) > _MOST_TITLE
    ):
        raise ValueError("it holds texts that are not plain")
    numbers = (entry.trials, entry.search_s, entry.created, passed.latency_us, passed.speedup, passed.speedup_low)
    if not all(_is_number(number) for number in (*numbers, *passed.baselines_us.values())):
        raise ValueError("its numbers are none")
    if not all(isinstance(choice, int | str | bool) for choice in (entry.schedule or {}).values()):
        raise ValueError("its schedule holds more than numbers and words")


def _is_printable(value: Any) -> bool:
    """No text in it moves a terminal's cursor."""
    if isinstance(value, dict):
        return all(_is_printable(part) for part in (*value.keys(), *value.values()))
    if isinstance(value, list):
        return all(map(_is_printable, value))
    return not isinstance(value, str) or all(line.isprintable() for line in value.replace("\t", " ").split("\n"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0
