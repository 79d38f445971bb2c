"""The C++ printer of flat expressions: slot ``k`` of a region, or of a group of tasks, is the pointer ``a<k>``."""

from __future__ import annotations

from collections.abc import Callable

from .cpp import CPP_TYPES, CppPrinter, from_storage
from .expression import Expr


class FlatCppPrinter(CppPrinter):
    """Prints reads and searches by slot: slot ``k`` is the pointer ``a<k>``."""

    def __init__(self, prefix: str = "t") -> None:
        super().__init__((), prefix)

    def specials(self) -> dict[str, Callable[[Expr, list[str]], str]]:
        return {**super().specials(), "read": self._read, "search": self._search, "quick_mod": self._remainder}

    def value(self, expr: Expr) -> str:
        """As the base class; what an expression named from outside was made of is not printed."""
        if expr not in self._names:
            for argument in expr.args:
                self.value(argument)
            self._names[expr] = self._print(expr)
        return self._names[expr]

    def _read(self, expr: Expr, arguments: list[str]) -> str:
        slot, stored = expr.value
        return from_storage(f"a{slot}[{arguments[0]}]", stored)

    def _search(self, expr: Expr, arguments: list[str]) -> str:
        slot, stored, count, right, step = expr.value
        kind = CPP_TYPES[expr.args[0].dtype]
        border = from_storage(f"a{slot}[{arguments[1]} + k * {step}]", stored)
        at = f"[&](int64_t k) {{ return {kind}({border}); }}"
        return f"kv_bucketize<{kind}>({count}, {arguments[0]}, {str(right).lower()}, {at})"

    def _remainder(self, expr: Expr, arguments: list[str]) -> str:
        return f"kv_mod{'_any' if expr.value == 'any' else ''}({arguments[0]}, {arguments[1]})"
