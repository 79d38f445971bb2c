"""Printers for emitters that go over rows: what is the same for a whole row is computed in front of its loop or tile."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..expression import expression as ex
from ..expression.expression import Expr
from ..expression.flat import FlatCppPrinter
from ..expression.printer import Printer
from .triton_tiles import TilePrinter


class _Level(Printer):
    """Prints for one level of nested loops."""

    def hoisted(self, expr: Expr, varies: Callable[[Expr], bool]) -> None:
        """Compute at this level those parts of ``expr`` that do not vary inside."""
        if not varies(expr):
            self.value(expr)
            return
        for part in ex.walk(expr):
            for argument in part.args if varies(part) else ():
                if not varies(argument):
                    self.value(argument)

    def taken(self) -> list[str]:
        """The statements so far, which will not be given again."""
        lines, self.lines = self.lines, []
        return lines


class CppRowPrinter(_Level, FlatCppPrinter):
    def within(self, prefix: str) -> CppRowPrinter:
        """A printer for a loop inside this level; it knows what stands outside."""
        inner = CppRowPrinter(prefix)
        inner._names = dict(self._names)
        return inner


class TritonRowPrinter(_Level, TilePrinter):
    def within(self, prefix: str, masks: Mapping[str, str]) -> TritonRowPrinter:
        """A printer for what is inside this level; it knows what stands outside."""
        inner = TritonRowPrinter(masks, {}, prefix)
        inner._names = dict(self._names)
        return inner
