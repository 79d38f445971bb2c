"""Operators that some library or the user defines: which modules a process has to import before it knows them."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterable

from torch._library.custom_ops import OPDEFS

from .region import Region

logger = logging.getLogger(__name__)

# Torch and Inductor define these wherever they are loaded.
_OWN = frozenset({"getitem", "aten", "prims", "inductor", "inductor_prims", "_operator", "math"})


def modules_of(graph: Region) -> tuple[str, ...]:
    """Modules that define operators of ``graph``: those of ``torch.library.custom_op``, else the package that is called as
    the operator's namespace. What a script defines (``__main__``) no other process can import."""
    found = (_module_of(node.target) for node in graph.nodes)
    return tuple(dict.fromkeys(name for name in found if name is not None and name != "__main__"))


def import_all(modules: Iterable[str]) -> None:
    """A module that cannot be imported is left out: whoever asks for its operators is told that they are unknown."""
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - another library's import may raise anything
            logger.debug("%s: %s", name, error)


def _module_of(target: str) -> str | None:
    namespace, _, rest = target.partition(".")
    if namespace in _OWN:
        return None
    name, _, overload = rest.partition(".")
    for defined in (f"{namespace}::{name}.{overload}", f"{namespace}::{name}"):
        if defined in OPDEFS:
            return str(OPDEFS[defined]._init_fn.__module__)
    return namespace if namespace in sys.modules else None
