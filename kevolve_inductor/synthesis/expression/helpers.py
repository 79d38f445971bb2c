"""Leaving out the helpers that a C++ kernel does not use: what is not there need not be compiled, checked or read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

_WORD = re.compile(r"[A-Za-z_]\w*")
_HELPER = re.compile(r"\s*(?:template\s*<[^{};]*?>\s*)?(?:static\s+(?:inline\s+)?|struct\s)", re.DOTALL)
_STRUCT = re.compile(r"(?:template\s*<.*?>\s*)?struct\s+(\w+)", re.DOTALL)
_FUNCTION = re.compile(r"(\w+)\s*\(")


def used_only(source: str) -> str:
    """``source`` without the functions and structs at its top level that nothing else in it names.

    Overloads and specialisations stand and fall together. Relies on what emitters write: a definition starts in a line
    of its own and its last line ends in ``}`` or ``;``.
    """
    units = list(_units(source))
    names = [_name(unit) for unit in units]
    defined: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        if name is not None:
            defined.setdefault(name, []).append(position)
    kept = {position for position, name in enumerate(names) if name is None}
    open_units = list(kept)
    while open_units:
        for word in set(_WORD.findall(units[open_units.pop()])) & defined.keys():
            fresh = [position for position in defined.pop(word) if position not in kept]
            kept.update(fresh)
            open_units += fresh
    return "\n".join(unit for position, unit in enumerate(units) if position in kept) + "\n"


def _units(source: str) -> Iterator[str]:
    """Directives, and definitions with the comments above them."""
    lines: list[str] = []
    depth = 0
    for line in source.split("\n"):
        if not lines and not line.strip():
            continue
        lines.append(line)
        code = line.split("//")[0].rstrip()
        depth += code.count("{") - code.count("}")
        if depth == 0 and (code.startswith("#include") or code.endswith(("}", ";"))):
            yield "\n".join(lines)
            lines = []
    if lines:
        yield "\n".join(lines)


@lru_cache(maxsize=1024)
def _name(unit: str) -> str | None:
    """What a helper is called; ``None`` for what has to stay."""
    code = "\n".join(line for line in unit.split("\n") if not line.startswith(("//", "#")))
    if not _HELPER.match(code):
        return None
    struct = _STRUCT.match(code)
    found = struct or _FUNCTION.search(re.sub(r"__attribute__\(\(.*?\)\)", "", code))
    return found[1] if found else None
