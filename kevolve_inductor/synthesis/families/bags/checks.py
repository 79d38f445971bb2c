"""Steps that gather rows: their indices are checked together, since no load is moved across an assertion and threads meet at
each, and their values are combined as a tree."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from ...expression.expression import Expr
from ..row_printers import TritonRowPrinter

COMBINED = {"add": "{0} + {1}", "maximum": "kv_max({0}, {1})", "minimum": "kv_min({0}, {1})"}
_BEFORE, _AFTER = "tl.device_assert(", ', "index out of range")'


class BagPrinter(TritonRowPrinter):
    """Asserts what it checks at once, or collects it for ``asserted`` where it ``collects``."""

    def __init__(self, masks: Mapping[str, str], guards: Mapping[Expr, tuple[Expr, bool]], prefix: str = "t") -> None:
        super().__init__(masks, guards, prefix)
        self.collects = False
        self._collected: list[str] = []

    def within(self, prefix: str, masks: Mapping[str, str]) -> BagPrinter:
        inner = BagPrinter(masks, {}, prefix)
        inner._names = dict(self._names)
        return inner

    def _check_index(self, expr: Expr, arguments: list[str]) -> str:
        name = super()._check_index(expr, arguments)
        if self.collects:
            self._collected.append(self.lines.pop().removeprefix(_BEFORE).removesuffix(_AFTER))
        return name

    @staticmethod
    def asserted(printers: Sequence[BagPrinter]) -> list[str]:
        """One assertion of what ``printers`` have collected."""
        conditions = [f"({condition})" for printer in printers for condition in printer._collected]
        for printer in printers:
            printer._collected.clear()
        return [f"{_BEFORE}{' & '.join(conditions)}{_AFTER}"] if conditions else []


def depths_of(parts: Iterable[Expr]) -> dict[Expr, int]:
    """How many checks, one inside another, each of ``parts`` needs; arguments stand before what takes them."""
    depths: dict[Expr, int] = {}
    for part in parts:
        depths[part] = max((depths[argument] for argument in part.args), default=0) + (part.op == "check_index")
    return depths


def checked(parts: Collection[Expr], printers: Sequence[BagPrinter]) -> list[str]:
    """Lines for ``parts`` in every step. Indices that other indices are looked up by are checked before those."""
    depths = depths_of(parts)
    lines: list[str] = []
    for depth in range(max(depths.values(), default=0) + 1):
        for printer in printers:
            printer.collects = True
            for part in parts:
                if depths[part] - (part.op == "check_index") <= depth:
                    printer.value(part)
            lines += printer.taken()
            printer.collects = False
        lines += BagPrinter.asserted(printers)
    return lines


def in_pairs(combine: str, texts: list[str]) -> str:
    """Combined as a tree, so that errors of sums do not add up and no addition waits for all before it."""
    while len(texts) > 1:
        pairs = zip(texts[::2], texts[1::2], strict=False)
        joined = [f"({COMBINED[combine].format(*pair)})" for pair in pairs]
        texts = joined + texts[len(texts) // 2 * 2 :]
    return texts[0]
