"""Joins of running values in Triton: functions of two values, or of two pairs, and statements that call them."""

from __future__ import annotations

from collections.abc import Sequence

from ...expression.triton import TRITON_TYPES, literal
from ..triton_tiles import INT32
from .plan import ScanPlan, start_of

# Functions that join one value with another; pairs have joins of their own.
_JOINS = {"sum": "kv_join_sum", "product": "kv_join_product", "maximum": "kv_max", "minimum": "kv_min"}
# Joins of what stands earlier (a) and later (b). A reduction may also meet values out of order, so that of equal extremes
# the later place is found by its number.
HELPERS = """
@triton.jit
def kv_join_sum(a, b):
    return a + b

@triton.jit
def kv_join_product(a, b):
    return a * b

@triton.jit
def kv_seen_later(a, b, better, i, j):
    same = (a == b) | ((a != a) & (b != b))
    return (same & (j > i)) | ((a == a) & (better | (b != b)))

@triton.jit
def kv_join_maximum(a, i, b, j):
    later = kv_seen_later(a, b, b > a, i, j)
    return tl.where(later, b, a), tl.where(later, j, i)

@triton.jit
def kv_join_minimum(a, i, b, j):
    later = kv_seen_later(a, b, b < a, i, j)
    return tl.where(later, b, a), tl.where(later, j, i)

@triton.jit
def kv_level(x):
    return tl.where(tl.abs(x) < float("inf"), x, 0.0).to(x.dtype)

@triton.jit
def kv_join_logsumexp(a, x, b, y):
    # One of both is relative to the greater element already.
    decay = tl.exp(-tl.abs(kv_level(a) - kv_level(b)))
    first = a >= b
    return kv_max(a, b), tl.where(first, x, x * decay) + tl.where(first, y * decay, y)

@triton.jit
def kv_alone(x):
    # exp(x - x), as far as that is a number.
    return tl.where(tl.abs(x) < float("inf"), 1.0, tl.where(x < 0, 0.0, x)).to(x.dtype)
"""

# Names of the one or two tensors that make a running value.
State = tuple[str, ...]


class Joins:
    """How the running values of one plan are held and joined.

    A running value is one tensor; where places of extremes are asked for, or sums of exponentials, it is two: the value and
    its place (-1 where nothing was seen), the greatest element and the sum relative to it.
    """

    def __init__(self, plan: ScanPlan) -> None:
        self.is_tuple = plan.is_pair or plan.kind == "logsumexp"
        self.function = f"kv_join_{plan.kind}" if self.is_tuple else _JOINS[plan.kind]
        # Joined twice with the same value, an extreme stays what it is.
        self.is_exact = plan.kind in ("maximum", "minimum")
        length = plan.scan[1]
        place = "int32" if isinstance(length, int) and length < INT32 else "int64"
        second = plan.held if plan.kind == "logsumexp" else place
        self.dtypes = (plan.held, second) if self.is_tuple else (plan.held,)
        none = literal(start_of(plan.kind, plan.held), plan.held)
        self.nones = (none, "0.0" if plan.kind == "logsumexp" else "-1")[: len(self.dtypes)]

    def names(self, stem: str) -> State:
        return (stem, f"{stem}_second")[: len(self.dtypes)]

    def types(self) -> list[str]:
        return [TRITON_TYPES[dtype] for dtype in self.dtypes]

    def nothing(self, stem: str, shape: str) -> list[str]:
        """Statements for a value that joins with any other to give that one."""
        parts = zip(self.names(stem), self.nones, self.types(), strict=True)
        return [f"{name} = tl.full({shape}, {none}, {kind})" for name, none, kind in parts]

    def join(self, stem: str, earlier: str, later: str) -> str:
        arguments = ", ".join((*self.names(earlier), *self.names(later)))
        return f"{', '.join(self.names(stem))} = {self.function}({arguments})"

    def reduce(self, stem: str, source: str, axis: int) -> str:
        return f"{', '.join(self.names(stem))} = tl.reduce({self._packed(source)}, {axis}, {self.function}, keep_dims=True)"

    def scan(self, stem: str, source: str, axis: int) -> str:
        return f"{', '.join(self.names(stem))} = tl.associative_scan({self._packed(source)}, {axis}, {self.function})"

    def scan_both(self, before: str, running: str, nothing: str, source: str, axis: int) -> str:
        """Running values without and with each position's own; ``nothing`` is of the shape of ``source``."""
        names = ", ".join((*self.names(before), *self.names(running)))
        given = ", ".join((*self.names(nothing), *self.names(source)))
        return f"{names} = tl.associative_scan(({given}), {axis}, kv_join_both)"

    def both(self) -> str:
        """The join of what ``scan_both`` runs along: of values before and with the last position that each covers."""
        a, b, c, d = (self.names(stem) for stem in "abcd")
        lines = [self.join("x", "b", "c"), self.join("y", "b", "d")]
        lines.append(f"return {', '.join((*self.names('x'), *self.names('y')))}")
        head = f"@triton.jit\ndef kv_join_both({', '.join((*a, *b, *c, *d))}):"
        return "\n".join([head, *(f"    {line}" for line in lines)])

    def _packed(self, source: str) -> str:
        return f"({', '.join(self.names(source))})" if self.is_tuple else source


def assignments(names: Sequence[str], values: Sequence[str]) -> list[str]:
    return [f"{name} = {value}" for name, value in zip(names, values, strict=True)]
