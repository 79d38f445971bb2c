"""The store's folder: atomic writes, verified reads, and an overlay in memory where nothing can be written.

A sealed text is one JSON object ``{"body":…,"sha256":"…"}`` whose digest covers the body's characters as written, so
reading needs no second serialisation to verify it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import stat
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..exc import CorruptEntryError, StoreError

logger = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 30.0
QUARANTINE = "quarantine"

_HEAD, _MIDDLE, _TAIL = '{"body":', ',"sha256":"', '"}'
_DIGEST_LENGTH = 64
_NON_FINITE = "non-finite float"


def canonical(value: Any) -> str:
    """Canonical JSON text (sorted keys, no spaces). Non-finite floats are kept as ``{"non-finite float": "inf"}``."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return json.dumps(_without_non_finite(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse(text: str) -> Any:
    """Inverse of ``canonical``. Raises ``ValueError``."""
    # Called for every object, which takes as long as the rest.
    hook = _restore if _NON_FINITE in text else None
    return json.loads(text, object_hook=hook)


def seal(body: Any) -> str:
    text = canonical(body)
    return f"{_HEAD}{text}{_MIDDLE}{sha256(text.encode())}{_TAIL}"


def unseal(text: str) -> Any:
    """The body of a sealed text. Raises ``ValueError`` with the reason where it does not verify."""
    text = text.strip()
    end = len(text) - len(_MIDDLE) - _DIGEST_LENGTH - len(_TAIL)
    if not text.startswith(_HEAD) or text[end : end + len(_MIDDLE)] != _MIDDLE or not text.endswith(_TAIL):
        raise ValueError("not a sealed JSON object")
    body = text[len(_HEAD) : end]
    if sha256(body.encode()) != text[end + len(_MIDDLE) : -len(_TAIL)]:
        raise ValueError("content does not match its digest")
    return parse(body)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _without_non_finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_NON_FINITE: str(value)}
    if isinstance(value, dict):
        return {name: _without_non_finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_non_finite(item) for item in value]
    return value


def _restore(value: dict[str, Any]) -> Any:
    return float(value[_NON_FINITE]) if _NON_FINITE in value else value


@dataclass
class _Overlay:
    """What this process would have written. Every ``Folder`` of one path shares it: work outlives a compile."""

    texts: dict[str, str] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    removals: int = 0
    version: int = 0


_OVERLAYS: dict[Path, _Overlay] = {}
_WARNED: set[str] = set()
_PROCESS_LOCK = threading.Lock()


class Folder:
    """Files by relative name. Safe to use from several processes; a name's content is replaced as a whole.

    Where the folder cannot be written, names are kept in memory instead, on top of what can be read.
    """

    def __init__(self, root: Path) -> None:
        """Creates ``root``, for this user only, where it is missing.

        Raises ``StoreError`` where others could plant files in it.
        """
        self.root = root
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            _refuse_shared(root)
            reason = None if os.access(root, os.R_OK | os.W_OK | os.X_OK) else "no permission to write"
        except OSError as error:
            reason = error.strerror or str(error)
        self._lock = FileLock(root / ".lock", timeout=LOCK_TIMEOUT_S, mode=0o600)
        if reason is not None:
            self.warn(self._degrade(reason))

    @property
    def degraded(self) -> bool:
        """Whether writes go to memory only."""
        return self.root in _OVERLAYS

    def read(self, name: str) -> str | None:
        """Raises ``ValueError`` where the file is not UTF-8 text."""
        overlay = _OVERLAYS.get(self.root)
        if overlay is not None:
            if name in overlay.texts:
                return overlay.texts[name]
            if name in overlay.removed:
                return None
        try:
            return (self.root / name).read_text(encoding="utf-8")
        except OSError:
            return None

    def write(self, name: str, text: str) -> None:
        """Replace ``name`` atomically. Raises ``OSError`` where it cannot be written."""
        overlay = _OVERLAYS.get(self.root)
        if overlay is not None:
            overlay.texts[name] = text
            overlay.version += 1
            return
        path = self._path(name)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def append(self, name: str, text: str) -> None:
        """Add whole lines to ``name``. Call under ``locked``. Raises ``OSError``."""
        overlay = _OVERLAYS.get(self.root)
        if overlay is not None:
            overlay.texts[name] = (self.read(name) or "") + text
            overlay.version += 1
            return
        path = self._path(name)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                # A writer that was killed may have left half a line, which must not swallow the next one.
                file.seek(end - 1)
                text = text if file.read(1) == b"\n" else "\n" + text
            file.write(text.encode())

    def _path(self, name: str) -> Path:
        """Where ``name`` is to be written. Makes the folders on the way, for this user only."""
        path = self.root
        for part in name.split("/")[:-1]:
            path = path / part
            path.mkdir(mode=0o700, exist_ok=True)
        return self.root / name

    def names(self, folder: str, suffix: str) -> list[str]:
        """Every name below ``folder`` that ends in ``suffix``, sorted."""
        root = self.root / folder
        found = {path.relative_to(self.root).as_posix() for path in root.rglob(f"*{suffix}")}
        overlay = _OVERLAYS.get(self.root)
        if overlay is not None:
            found |= {name for name in overlay.texts if name.startswith(folder + "/") and name.endswith(suffix)}
            found -= overlay.removed - overlay.texts.keys()
        return sorted(found)

    def set_aside(self, name: str, reason: str) -> None:
        """Move a corrupt file to the quarantine, with one warning; afterwards it reads as missing. Never raises."""
        path = str(self.root / name)
        _warn_once(path, f"{CorruptEntryError(path, reason)}; set aside, it counts as missing")
        overlay = _OVERLAYS.get(self.root)
        if overlay is not None:
            overlay.texts.pop(name, None)
            overlay.removed.add(name)
            overlay.removals += 1
            overlay.version += 1
            return
        aside = self.root / QUARANTINE / f"{name.replace('/', '-')}.{time.time_ns()}"
        # Another process may have moved it first; a folder that cannot be written is noticed by the next write.
        with contextlib.suppress(OSError):
            aside.parent.mkdir(mode=0o700, exist_ok=True)
            os.replace(self.root / name, aside)

    def remove(self, names: Iterable[str]) -> None:
        """Delete files. One that is gone already does not matter. Raises ``OSError`` where one cannot be deleted."""
        for name in names:
            (self.root / name).unlink(missing_ok=True)

    def stamp(self, folder: str) -> list[tuple[str, int]]:
        """Changes whenever a file is added to, replaced in or removed from ``folder`` or a folder right below it.

        What is written to memory is not covered: its writer keeps the index itself.
        """
        root = self.root / folder
        overlay = _OVERLAYS.get(self.root)
        stamps = [("removals in memory", overlay.removals)] if overlay is not None else []
        with contextlib.suppress(OSError):
            stamps.append(("", root.stat().st_mtime_ns))
            with os.scandir(root) as shards:
                stamps += [(shard.name, shard.stat().st_mtime_ns) for shard in shards if shard.is_dir()]
        return sorted(stamps)

    def identity(self, name: str) -> tuple[int, ...]:
        """Changes whenever ``name`` is replaced, and with every write to memory."""
        overlay = _OVERLAYS.get(self.root)
        version = overlay.version if overlay is not None else 0
        try:
            status = (self.root / name).stat()
        except OSError:
            return (version,)
        return (version, status.st_mtime_ns, status.st_size, status.st_ino)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Exclusive among processes, re-entrant. Raises ``OSError`` (also on a lock held too long by another)."""
        if self.degraded:
            yield
            return
        with self._lock:
            yield

    def degrade(self, error: OSError) -> StoreError | None:
        """Go on in memory from here. The error to raise or to warn of, once: ``None`` where this was known before."""
        if self.degraded:
            return None
        return self._degrade(error.strerror or str(error))

    def _degrade(self, reason: str) -> StoreError:
        with _PROCESS_LOCK:
            _OVERLAYS.setdefault(self.root, _Overlay())
        return StoreError(
            f"the store {self.root} cannot be written ({reason}): what is learnt is kept for this process only"
        )

    def warn(self, problem: StoreError) -> None:
        _warn_once(str(self.root), str(problem))


def _refuse_shared(root: Path) -> None:
    status = root.stat()
    if status.st_uid != os.getuid():
        raise StoreError(
            f"the store {root} belongs to user id {status.st_uid}, not to you (user id {os.getuid()}): "
            "its kernels could be anyone's. Choose a folder of your own with the setting kevolve.store, "
            f"or take this one over: chown -R {os.getuid()} {root}"
        )
    if status.st_mode & stat.S_IWOTH:
        raise StoreError(
            f"everyone may write to the store {root}, so its kernels could be anyone's. "
            f"Make it your own: chmod 700 {root}"
        )


def _warn_once(about: str, message: str) -> None:
    with _PROCESS_LOCK:
        if about in _WARNED:
            return
        _WARNED.add(about)
    logger.warning(message)
