"""What this machine can do for a search."""

from __future__ import annotations

import platform as machine
from dataclasses import asdict
from typing import Any

import torch

from .. import __version__
from ..cache.store import Store
from ..exc import KevolveError
from ..platforms import PLATFORMS
from ..platforms.platform import Platform
from ..settings import Settings

# What stands between a candidate and the user's process, in the order in which it takes hold.
_ISOLATION = (
    "candidates run in a worker process with its own process group, a time limit and a scrubbed environment; "
    "sources pass a static gate first"
)


def examine(settings: Settings) -> dict[str, Any]:
    """Versions, the store, and for each platform its target and measured ceilings, or why it cannot be used."""
    return {
        "kevolve": __version__,
        "torch": str(torch.__version__),
        "python": machine.python_version(),
        "store": _store(settings),
        "isolation": _ISOLATION,
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
        }
    except KevolveError as error:
        return {"available": False, "reason": str(error)}


def format_findings(findings: dict[str, Any]) -> str:
    store = findings["store"]
    kept = "" if store["persistent"] else f" (cannot be written: kernels are kept for this process only{_why(store)})"
    lines = [
        f"kevolve {findings['kevolve']}, torch {findings['torch']}, Python {findings['python']}",
        f"store      {store['path']}{kept}",
        f"isolation  {findings['isolation']}",
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
    ]
