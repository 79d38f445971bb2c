"""What this machine can do for a search."""

from __future__ import annotations

import platform as machine
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..cache.store import Store
from ..evaluate.isolation import Isolation, Level
from ..evaluate.job import WorkerSetup
from ..evaluate.process import WorkerSlot
from ..exc import KevolveError
from ..platforms import PLATFORMS
from ..platforms.platform import Platform
from ..settings import Settings

_GUARANTEES = {
    Level.NONE: "only limits of time and memory",
    Level.LIMITS: "limits and no privileges; network and files are the user's",
    Level.OFFLINE: "no network and no other processes; files are the user's",
    Level.CONFINED: "no network, no other processes, no files but what workers need",
}


def examine(settings: Settings) -> dict[str, Any]:
    """Versions, the store, and for each platform its target, measured ceilings and the isolation that its workers reach,
    or why it cannot be used."""
    return {
        "kevolve": __version__,
        "torch": str(torch.__version__),
        "python": machine.python_version(),
        "store": _store(settings),
        "platforms": {name: _platform(kind()) for name, kind in PLATFORMS.items()},
    }


def _store(settings: Settings) -> dict[str, Any]:
    try:
        store = Store.open(settings.store)
        return {"path": str(store.path), "persistent": store.persistent, "regions": sum(1 for _ in store.entries())}
    except KevolveError as error:
        return {"path": str(settings.store), "persistent": False, "error": str(error)}


def _platform(platform: Platform) -> dict[str, Any]:
    reason = platform.available()
    if reason is not None:
        return {"available": False, "reason": reason}
    try:
        return {
            "available": True,
            "target": platform.target().to_json(),
            "ceilings": asdict(platform.ceilings()),
            "isolation": _isolation(platform).to_json(),
        }
    except KevolveError as error:
        return {"available": False, "reason": str(error)}


def _isolation(platform: Platform) -> Isolation:
    """As a worker on this machine finds it; nothing of it is assumed from the kernel's version."""
    with tempfile.TemporaryDirectory(prefix="kevolve-doctor-") as folder:
        slot = WorkerSlot(WorkerSetup(platform.name, folder, 0, 0), Path(folder, "worker.log"))
        try:
            return slot.isolation()
        finally:
            slot.close()


def format_findings(findings: dict[str, Any]) -> str:
    store = findings["store"]
    kept = "" if store["persistent"] else f" (cannot be written: kernels are kept for this process only{_why(store)})"
    lines = [
        f"kevolve {findings['kevolve']}, torch {findings['torch']}, Python {findings['python']}",
        f"store      {store['path']}{kept}",
    ]
    for name, found in findings["platforms"].items():
        lines += _platform_lines(name, found)
    return "\n".join(lines)


def _why(store: dict[str, Any]) -> str:
    return f": {store['error']}" if "error" in store else ""


def _platform_lines(name: str, found: dict[str, Any]) -> list[str]:
    if not found["available"]:
        return [f"{name:10} not usable: {found['reason']}"]
    target, ceilings = found["target"], found["ceilings"]
    rates = ", ".join(f"{dtype} {rate / 1e12:.3g} TFLOP/s" for dtype, rate in ceilings["flops_per_s"].items())
    tools = ", ".join(f"{tool} {version}" for tool, version in target["toolchain"].items())
    return [
        f"{name:10} {target['chip']}: {target['units']} units, {target['threads'] or '–'} threads",
        f"{'':10} {ceilings['bytes_per_s'] / 1e9:.4g} GB/s, {rates}, launch {ceilings['launch_s'] * 1e6:.2g} µs",
        f"{'':10} {tools}",
        *_isolation_lines(found["isolation"]),
    ]


def _isolation_lines(found: dict[str, Any]) -> list[str]:
    reached = Isolation.from_json(found)
    lines = [f"{'':10} isolation of workers: {found['level']} ({_GUARANTEES[reached.level]})"]
    return [*lines, *(f"{'':10} missing: {reason}" for reason in reached.missing)]
