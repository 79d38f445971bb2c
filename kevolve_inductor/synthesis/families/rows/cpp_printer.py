"""Expressions of row programs as C++."""

from __future__ import annotations

from collections.abc import Callable

from ....exc import EmissionError
from ...expression import CppPrinter
from ...expression.expression import Expr


class RowPrinter(CppPrinter):
    """Knows the operators that only row programs have."""

    def specials(self) -> dict[str, Callable[[Expr, list[str]], str]]:
        return {**super().specials(), "exp_below": lambda e, a: f"kv_exp_below({a[0]})"}


def inline(offset: Expr, printer: CppPrinter) -> str:
    """An address as one C++ expression: sums and products of row variables and sizes."""
    if offset.op in ("add", "mul"):
        sign = " + " if offset.op == "add" else " * "
        return "(" + sign.join(inline(argument, printer) for argument in offset.args) + ")"
    if offset.op not in ("var", "const", "size"):
        raise EmissionError("a tile whose address depends on the data")
    return printer.value(offset)
