"""Scopes of a Triton kernel: statements, the coordinates of tiles in them, and what was computed already."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace

from ...expression import expression as ex
from ...expression.expression import Expr
from ...expression.triton import TRITON_TYPES
from ..triton_tiles import EVICT_FIRST, TilePrinter
from .gelu import GELU_HELPERS, ONE_PLUS_ERF

CHAIN_HELPERS = (
    GELU_HELPERS
    + """
@triton.jit
def kv_positive(x):
    # 65535 is PropagateNan.ALL: one instruction in place of two, and none where the result is rounded to 16 bits.
    if x.dtype.is_fp32():
        return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan(65535))
    else:
        return tl.where(x < 0, 0, x).to(x.dtype)
"""
)


class ChainPrinter(TilePrinter):
    """Keeps what 16-bit loads give before it is widened, for products that take it as it is.

    What is read at places whose names begin with one of ``once`` is needed once: caches give it up first.
    """

    def __init__(self, masks: Mapping[str, str], prefix: str, once: tuple[str, ...] = ()) -> None:
        super().__init__(masks, {}, prefix)
        self.once = once
        self.raw: dict[Expr, str] = {}
        self.early: dict[Expr, str] = {}

    def inside(self, prefix: str) -> ChainPrinter:
        inner = ChainPrinter(self.masks, prefix, self.once)
        inner._names, inner.raw, inner.early = dict(self._names), dict(self.raw), dict(self.early)
        return inner

    def specials(self) -> dict[str, Callable[[Expr, list[str]], str]]:
        named = {"relu": "kv_positive", ONE_PLUS_ERF: "kv_one_plus_erf"}
        return {**super().specials(), **{op: _call_of(name) for op, name in named.items()}}

    def operand(self, expr: Expr, dtype: str) -> str:
        """``expr`` as ``dtype``, without a way through float32 where it is loaded as that."""
        name = self.value(expr)
        if expr in self.raw and expr.value[1] == dtype:
            return self.raw[expr]
        return name if dtype == expr.dtype else f"{name}.to({TRITON_TYPES[dtype]})"

    def adopt(self, expr: Expr, other: ChainPrinter) -> None:
        """Takes over what an enclosing scope has computed since this one was opened."""
        for part in ex.walk(expr):
            if part in other._names:
                self.name(part, other._names[part])
            if part in other.raw:
                self.raw[part] = other.raw[part]

    def has(self, expr: Expr) -> bool:
        return expr in self._names or expr in self.early

    def hint(self, read: Expr) -> str:
        is_moving = any(name.startswith(self.once) for name in ex.variables(read.args[0]))
        return EVICT_FIRST if is_moving else ""

    def load(self, read: Expr) -> str:
        """The text of a load, as it comes from memory."""
        stored = read.value[1]
        return super()._read(ex.make("read", stored, read.args, read.value), [self.value(part) for part in read.args])

    def load_early(self, read: Expr) -> None:
        """Loads what is needed later. It is widened, and brought to the threads that need it, only there."""
        text, name = self.load(read), f"{self._prefix}r{self._count}"
        self._count += 1
        self.lines.append(f"{name} = {text}")
        self.early[read] = name

    def loads(self, read: Expr, text: str) -> None:
        """``read`` is what ``text``, in the type that memory has, holds now."""
        name = f"{self._prefix}r{self._count}"
        self._count += 1
        self.lines.append(f"{name} = {text}")
        if read.value[1] == read.dtype:
            self.name(read, name)
            return
        self.raw[read] = name
        self.lines.append(f"{name}w = {name}.to({TRITON_TYPES[read.dtype]})")
        self.name(read, f"{name}w")

    def _read(self, expr: Expr, arguments: list[str]) -> str:
        stored, name = expr.value[1], self.early.get(expr)
        if name is not None:
            self.raw |= {expr: name} if stored in ex.LOW_PRECISION else {}
            return f"{name}.to({TRITON_TYPES[expr.dtype]})" if stored != expr.dtype else name
        if stored not in ex.LOW_PRECISION:
            return super()._read(expr, arguments)
        plain = super()._read(ex.make("read", stored, expr.args, expr.value), arguments)
        name = f"{self._prefix}r{self._count}"
        self._count += 1
        self.lines.append(f"{name} = {plain}")
        self.raw[expr] = name
        return f"{name}.to(tl.float32)"


def _call_of(helper: str) -> Callable[[Expr, list[str]], str]:
    return lambda _, arguments: f"{helper}({arguments[0]})"


@dataclass
class Scope:
    """Statements of one block of a kernel. ``sweep`` is the loop variable, extent and block of the sweep that it is.

    ``as_written``: regrouped products are computed in the order of the graph. ``done`` names what was computed here.
    It runs ``times`` times for each unit of work; ``results`` are elements of what it holds in registers and ``operands``
    bytes of what it loads for products, ``late_bytes`` those of what a sweep loads for other things; nothing is counted
    where ``times`` is 0. ``moving`` names what is another
    one for each unit; ``carried`` are variables whose values go from one turn of a loop to the next.
    """

    printer: ChainPrinter
    parent: Scope | None = None
    sweep: tuple[str, int, int] | None = None
    is_unit: bool = False
    as_written: bool = False
    done: set[str] = field(default_factory=set)
    declared: set[str] = field(default_factory=set)
    times: int = 1
    results: list[int] = field(default_factory=list)
    operands: dict[Expr, int] = field(default_factory=dict)
    late_bytes: int = 0
    moving: Set[str] = frozenset()
    carried: list[str] = field(default_factory=list)
    loaded: set[Expr] = field(default_factory=set)

    @property
    def lines(self) -> list[str]:
        return self.printer.lines

    @property
    def unit(self) -> Scope:
        """The scope of all that is done for one unit of work."""
        return self if self.is_unit or self.parent is None else self.parent.unit

    @property
    def top(self) -> Scope:
        return self if self.parent is None else self.parent.top

    def declares(self, name: str) -> bool:
        return name in self.declared or (self.parent is not None and self.parent.declares(name))

    def loop_of(self, names: Set[str]) -> Scope | None:
        """The innermost loop that coordinates called ``names`` change with."""
        own = {f"{lead}_{self.sweep[0]}" for lead in "pq"} if self.sweep is not None else set()
        if names & (own | (self.moving if self.is_unit else set())):
            return self
        return None if self.parent is None else self.parent.loop_of(names)

    def has_loaded(self, read: Expr) -> bool:
        return read in self.loaded or (self.parent is not None and self.parent.has_loaded(read))

    def nested(self, prefix: str) -> Scope:
        return replace(
            self, printer=self.printer.inside(prefix), parent=self, is_unit=False, done=set(self.done), declared=set(),
            results=[], operands={}, late_bytes=0, loaded=set(),
        )  # fmt: skip

    def looped(self, prefix: str, start: str, extent: int, block: int) -> Scope:
        """The body of a loop over blocks of an axis."""
        inner = self.nested(prefix)
        inner.sweep, inner.times = (start, extent, block), self.times * -(-extent // block)
        return inner

    def close(self, head: str) -> None:
        """Appends this scope, as a block under ``head``, to the enclosing one."""
        assert self.parent is not None
        self.parent.lines.append(head)
        self.parent.lines.extend(f"  {line}" for line in self.lines)
