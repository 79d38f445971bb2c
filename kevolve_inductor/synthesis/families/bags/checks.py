"""Checks of indices that are asserted together: no load is moved across an assertion, and threads meet at each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ...expression.expression import Expr
from ..row_printers import TritonRowPrinter

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
