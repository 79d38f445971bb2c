"""What both printers share: every distinct expression becomes one statement, arguments first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from ...graph.region import TensorSpec
from . import expression as ex
from .expression import Expr
from .operators import OPERATORS


class Printer(ABC):
    """Prints expressions as statements appended to ``lines``.

    ``inputs`` are the specs of the region's inputs; input ``k`` is the parameter ``in<k>``. A ``var`` prints as its own
    name, which the surrounding code declares. ``nested()`` gives a printer for an inner block: it knows what is already
    computed, and what it computes itself stays inside.
    """

    def __init__(self, inputs: Sequence[TensorSpec], prefix: str = "t") -> None:
        self.inputs = inputs
        self.lines: list[str] = []
        self._names: dict[Expr, str] = {}
        self._prefix = prefix
        self._count = 0

    def value(self, expr: Expr) -> str:
        """The name (or literal) that holds ``expr`` after ``lines``."""
        for part in ex.walk(expr):
            if part not in self._names:
                self._names[part] = self._print(part)
        return self._names[expr]

    def name(self, expr: Expr, text: str) -> None:
        """Declare that the surrounding code already holds ``expr`` under ``text``."""
        self._names[expr] = text

    def linear(self, load: Expr) -> str:
        """Element offset of a load within its input, from its index and the input's strides."""
        return self.value(self.offset(load))

    def offset(self, load: Expr) -> Expr:
        strides = self.inputs[load.value].stride
        return ex.isum([ex.imul(at, ex.size(stride)) for at, stride in zip(load.args, strides, strict=True)])

    def _adopt(self, parent: Printer) -> None:
        self._names = dict(parent._names)
        self._prefix = parent._prefix + "_"

    def _print(self, expr: Expr) -> str:
        simple = self.leaf(expr)
        if simple is not None:
            return simple
        name = f"{self._prefix}{self._count}"
        self._count += 1
        self.assign(name, expr.dtype, self.text(expr))
        return name

    def text(self, expr: Expr) -> str:
        arguments = [self._names[argument] for argument in expr.args]
        special: Callable[[Expr, list[str]], str] | None = self.specials().get(expr.op)
        if special is not None:
            return special(expr, arguments)
        return self.template(expr.op).format(*arguments)

    @abstractmethod
    def leaf(self, expr: Expr) -> str | None:
        """Text of an expression that needs no statement, else ``None``."""

    @abstractmethod
    def assign(self, name: str, dtype: str, text: str) -> None:
        """Append the statement that computes ``name``."""

    @abstractmethod
    def template(self, op: str) -> str:
        """Spelling of a pointwise operator."""

    @abstractmethod
    def specials(self) -> dict[str, Callable[[Expr, list[str]], str]]:
        """Operators that need more than a template: loads, casts, index checks, searches."""


def operator_flops(expr: Expr) -> int:
    """Floating-point operations of one evaluation, counting each distinct subexpression once."""
    return sum(OPERATORS[e.op].flops for e in ex.walk(expr) if e.op in OPERATORS and e.dtype in ex.FLOATS)
