"""Where this process keeps what it builds from kernels."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path

from ..settings import Settings

_chosen: Path | None = None


def use_build_folder(folder: Path | None) -> None:
    """From now on build in ``folder``, which is created on first use; ``None`` goes back to the environment's store."""
    global _chosen
    _chosen = folder


def build_folder() -> Path:
    """The chosen folder, else the build folder of the store that the environment names, else a private temporary one."""
    folder = _chosen or Settings.resolve(None, None)[0].store / "build"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return _temporary_folder()
    return folder if os.access(folder, os.W_OK) else _temporary_folder()


@cache
def _temporary_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="kevolve-build-"))
