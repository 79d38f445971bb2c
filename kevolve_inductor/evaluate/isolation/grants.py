"""What a confined worker may read and write.

Landlock only grants: nothing can be taken out of a folder again. So reading is granted folder by folder to what workers
need, and a home folder never as a whole, however Python came to be installed in it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from ... import settings

_SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/proc", "/sys", "/nix/store", "/gnu/store",
    "/run/opengl-driver", "/run/current-system", "/var/lib/nvidia",
)  # fmt: skip
# Of /etc what the loader, the compilers and the C library look at; it also holds passwords' hashes and private keys.
_CONFIGURATION = tuple(
    f"/etc/{name}"
    for name in "ld.so.cache ld.so.conf ld.so.conf.d ld.so.preload alternatives passwd group nsswitch.conf localtime "
    "host.conf os-release nvidia OpenCL cuda".split()
)
# Character devices, and the shared memory of semaphores, thread libraries and GPU drivers.
_DEVICES = ("null", "zero", "full", "random", "urandom", "shm", "kfd", "dri")
_DEVICE_PATTERNS = ("nvidia*",)
# NVIDIA's driver names its threads and asks for its capabilities by opening files for writing, and gives up where it may not.
_OF_DRIVERS = ("/proc/driver/nvidia",)
_OF_THE_PROCESS = "/proc/self"
# Found without being imported; some installations map single packages to folders that are on no path.
_PACKAGES = ("torch", "triton", "numpy", "sympy", "filelock", "kevolve_inductor")


def readable() -> tuple[Path, ...]:
    """Read in the worker itself, whose environment names the toolchains."""
    python = [*sys.path, sys.prefix, sys.base_prefix, sys.exec_prefix]
    folders = [Path(name) for name in python if Path(name).is_absolute()]
    folders += [*_package_folders(), *settings.tool_folders()]
    private = Path(os.path.realpath(os.path.expanduser("~")))
    granted = (folder for folder in _distinct(folders) if not private.is_relative_to(folder))
    return (*map(Path, _SYSTEM), *map(Path, _CONFIGURATION), *granted)


def writable(folder: Path) -> tuple[Path, ...]:
    """The build folder, the working folder, the workers' temporary folder and compilers' caches, and devices.

    Of the process file system only this process's own part, and only where there is a driver that needs it.
    """
    devices = [Path("/dev", name) for name in _DEVICES]
    devices += [path for pattern in _DEVICE_PATTERNS for path in Path("/dev").glob(pattern)]
    drivers = [Path(name) for name in _OF_DRIVERS if Path(name).exists()]
    own = [Path(_OF_THE_PROCESS)] if drivers else []
    return (folder, Path.cwd(), Path(tempfile.gettempdir()), *settings.cache_folders(), *devices, *drivers, *own)


def _package_folders() -> Iterable[Path]:
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None:
            yield from (Path(place) for place in spec.submodule_search_locations or ())


def _distinct(folders: Iterable[Path]) -> Iterable[Path]:
    """Resolved: a link's target is what is granted."""
    return dict.fromkeys(Path(os.path.realpath(folder)) for folder in folders if os.path.exists(folder))
