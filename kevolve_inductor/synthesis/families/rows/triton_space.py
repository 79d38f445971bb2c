"""The tensors a Triton row program computes with: one shape per kind of value, with its masks and its printer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ...expression import TritonPrinter
from ...expression import expression as ex
from ...expression.expression import Expr
from ...expression.triton import TRITON_TYPES
from .program import COLUMNS, RowProgram


@dataclass(frozen=True)
class Tile:
    """``rows`` of a program; columns over ``lanes`` threads, each with ``depth`` vectors of ``vector`` neighbours.

    A row is ``pieces`` tiles next to each other, all of them held at once: their number need not be a power of two, and
    only the last one is masked. ``looped``: the tile is a block of the columns and the kernel walks over blocks;
    ``spread``: every block has a program of its own. Of a row that ``parts`` programs share each has ``span`` columns.
    """

    rows: int
    lanes: int
    depth: int
    vector: int
    looped: bool = False
    spread: bool = False
    pieces: int = 1
    parts: int = 1
    span: int = 0

    @property
    def columns(self) -> int:
        return self.lanes * self.depth * self.vector

    @property
    def run(self) -> int:
        """Columns at one depth."""
        return self.lanes * self.vector

    @property
    def per_thread(self) -> int:
        return self.depth * self.vector

    @property
    def shape(self) -> str:
        return f"[{self.rows}, {self.lanes}, {self.depth}, {self.vector}]"


@dataclass(frozen=True)
class Run:
    """The ``length`` neighbouring columns that threads hold at one depth; ``number`` is the text of which run it is."""

    number: str
    length: int

    def quotient(self, expr: Expr) -> str | None:
        """``column // n`` where whole runs share it: a tensor along the depth alone, and so are reads by it."""
        column, by = expr.args
        if column.op != "var" or column.value[0] != COLUMNS or by.op != "const" or by.value % self.length:
            return None
        return f"({self.number} // {by.value // self.length})"

    def is_shared(self, expr: Expr) -> bool:
        """Whether ``expr`` depends on columns by such quotients only."""
        if expr.op == "idiv" and self.quotient(expr) is not None:
            return True
        return expr.op != "var" or expr.value[0] != COLUMNS if not expr.args else all(map(self.is_shared, expr.args))


@dataclass
class Space:
    """Values at positions of one axis (``None``: one per row), as tensors of ``shape``.

    ``row_suffix`` makes a per-row tensor broadcast here; ``position`` is the axis variable's text; ``row_mask`` and
    ``axis_mask`` are texts, empty where everything is inside. ``held`` are loads that stand in variables, ``run`` the
    columns that threads hold at one depth, where all of them are inside. ``policy``: how long what is read of a row is
    to stay in a cache.
    """

    program: RowProgram
    axis: str | None
    shape: str
    row_suffix: str
    position: str
    row_mask: str
    axis_mask: str
    names: dict[str, str] = field(default_factory=dict)
    held: dict[Expr, str] = field(default_factory=dict)
    run: Run | None = None
    policy: str = ""

    def printer(self, prefix: str) -> SpacePrinter:
        return SpacePrinter(self, prefix)

    def mask(self, expr: Expr) -> str:
        """The mask of what depends on the variables of ``expr``; empty where nothing is outside."""
        parts = []
        if self.row_mask and self.program.is_row_dependent(expr):
            parts.append(self.row_mask)
        if self.axis_mask and self.program.axis_of(expr) is not None:
            parts.append(self.axis_mask)
        return " & ".join(f"({part})" for part in parts)

    @property
    def whole_mask(self) -> str:
        return " & ".join(f"({part})" for part in (self.row_mask, self.axis_mask) if part)

    def name(self, variable: str, text: str) -> None:
        self.names[variable] = text

    def spread(self, text: str, expr: Expr) -> str:
        """``text`` as a tensor of the full shape, or as it is where a number of the row is one."""
        if not self.shape:
            return text
        along = self.axis is None or self.program.axis_of(expr) is not None
        if expr.op == "const":
            return f"tl.full({self.shape}, {text}, {TRITON_TYPES[expr.dtype]})"
        along &= self.run is None or not self.run.is_shared(expr)
        whole = along and (not self.program.rows or self.program.is_row_dependent(expr))
        return text if whole else f"tl.broadcast_to({text}, {self.shape})"


class SpacePrinter(TritonPrinter):
    """Masks every load by what its address depends on."""

    def __init__(self, space: Space, prefix: str) -> None:
        super().__init__(space.program.flat_inputs, "", prefix)
        self.space = space

    def value(self, expr: Expr) -> str:
        for part in ex.walk(expr):
            if part.op == "var" and part.value[0] in self.space.names:
                self.name(part, self.space.names[part.value[0]])
        return super().value(expr)

    def specials(self) -> dict[str, Callable[[Expr, list[str]], str]]:
        own = {
            "load": self._masked_load,
            "check_index": self._masked_check,
            "idiv": self._quotient,
            # A number that is no column becomes one that none is.
            "as_column": lambda e, a: f"tl.where(({a[0]} >= 0) & ({a[0]} < {e.value}), {a[0]}, -1).to(tl.int32)",
            "exp_below": lambda _, a: f"kv_exp_below({a[0]})",
            "fast_truediv": lambda _, a: f"kv_fast_divide({a[0]}, {a[1]})",
        }
        return {**super().specials(), **own}

    def _quotient(self, expr: Expr, arguments: list[str]) -> str:
        shared = self.space.run.quotient(expr) if self.space.run is not None else None
        return shared or f"({arguments[0]} // {arguments[1]})"

    def _masked_load(self, expr: Expr, _: list[str]) -> str:
        text = self.space.held.get(expr) or self.raw(expr)
        stored = self.inputs[expr.value].dtype
        if stored == "bool":
            return f"({text} != 0)"
        return f"{text}.to({TRITON_TYPES[expr.dtype]})" if stored != expr.dtype else text

    def raw(self, load: Expr) -> str:
        """A load as it stands in memory."""
        mask = self.space.mask(load.args[0])
        guard = f", mask={mask}, other=0" if mask else ""
        if self.space.policy and self.space.program.is_row_dependent(load):
            guard += f", eviction_policy='{self.space.policy}'"
        return f"tl.load(in{load.value} + ({self.linear(load)}){guard})"

    def _masked_check(self, expr: Expr, arguments: list[str]) -> str:
        self.mask = self.space.mask(expr) or "tl.full([1], 1, tl.int1)"
        return self._check_index(expr, arguments)
