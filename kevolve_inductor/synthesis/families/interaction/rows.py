"""Triton statements that load the features of a sample (or of a group of samples) as one tile ``x``."""

from __future__ import annotations

from collections.abc import Iterator

from ....graph.region import ITEM_SIZES
from ...expression import TritonPrinter
from ...expression import expression as ex
from ...expression.expression import Expr
from ...expression.triton import TRITON_TYPES
from ..triton_tiles import EVICT_FIRST
from .pieces import Piece, free_parts, terms_of
from .structure import Plan

_INDEX_BITS = 31
# From this many stored pieces on, a row's address is selected and the tile loaded once, instead of one load per piece.
_SELECT_FROM = 3
_VECTOR_BYTES = 16


def needs_wide_offsets(plan: Plan) -> bool:
    """May an offset within a sample, or a stride, exceed 32 bits? The sample's own offset is always held in 64."""
    if plan.columns * plan.column_stride >> _INDEX_BITS:
        return True
    for value in [*(piece.value for piece in plan.rows), *(segment.value for segment in plan.segments)]:
        for load in ex.loads(value):
            spec = plan.inputs[load.value]
            if any(isinstance(stride, str) for stride in spec.stride):
                return True
            inner = [
                (size, stride)
                for at, size, stride in zip(load.args, spec.shape, spec.stride, strict=True)
                if ex.variables(at) & {"r", "d", "c"}
            ]
            if sum(int(size) * int(stride) for size, stride in inner if isinstance(size, int)) >> _INDEX_BITS:
                return True
    return False


class RowLoader:
    """``tile`` features by ``chunk`` of their width. Expects ``rows``, ``b``, ``live``; defines ``x`` and what it needs.

    With ``once`` the second-level cache gives up first what was loaded.
    """

    def __init__(self, plan: Plan, tile: int, chunk: int, group: int, exact: bool, once: bool) -> None:
        self.plan, self.shape = plan, plan.shape
        self.wide = ".to(tl.int64)" if needs_wide_offsets(plan) else ""
        self.tile, self.chunk, self.group, self.exact, self.once = tile, chunk, group, exact, once
        stored = [piece for piece in plan.rows if self._is_stored(piece)]
        self.selected = stored if len(stored) >= _SELECT_FROM else []

    def load(self, depth: str) -> Iterator[str]:
        lead = "None, None, " if self.group > 1 else "None, "
        start = "" if depth == "0" else f"{depth} + "
        yield f"d = ({start}tl.arange(0, {self.chunk}){self.wide})[{lead}:]"
        parts = [f"d < {self.shape.width}"] if self.shape.width % self.chunk else []
        yield f"inside = {parts[0] if parts else 'd >= 0'}"
        tiles = []
        if self.selected:
            yield from self._select()
            tiles.append(("x0", self._row_mask(self.selected)))
        for number, piece in enumerate(self.plan.rows, start=1):
            if piece in self.selected:
                continue
            yield from self._stored(number, piece) if self._is_stored(piece) else self._computed(number, piece)
            tiles.append((f"x{number}", self._row_mask([piece])))
        yield f"x = {tiles[0][0]}"
        for name, mask in tiles[1:]:
            yield f"x = tl.where({mask}, {name}, x)"

    def _row_mask(self, pieces: list[Piece]) -> str:
        """The rows of ``pieces``; true everywhere where they are all there are."""
        if sum(piece.count for piece in pieces) == self.tile:
            return ""
        if sum(piece.count for piece in pieces) == self.shape.features:
            return f"(rows < {self.shape.features})"
        return "(" + " | ".join(_span(piece) for piece in pieces) + ")"

    def _tile_mask(self, pieces: list[Piece]) -> str:
        parts = [part for part in (self._row_mask(pieces), "" if self.exact else "live") if part]
        if self.shape.width % self.chunk:
            parts.append("inside")
        return " & ".join(parts)

    # --- features that lie in memory as they are needed ---

    def _is_stored(self, piece: Piece) -> bool:
        value = piece.value
        if value.op != "load" or self.plan.inputs[value.value].dtype != self.shape.stored:
            return False
        return all(
            part.op in ("var", "const", "add", "mul", "sub", "size") for at in value.args for part in ex.walk(at)
        )

    def _split(self, piece: Piece) -> tuple[str, str, str]:
        """Offset of a stored piece: parts that depend on the sample, on the row, and on the depth."""
        printer = TritonPrinter(self.plan.inputs, "live")
        row = ex.var("r", piece.count)
        printer.name(row, "rows" if piece.start == 0 else f"(rows - {piece.start})")
        sums = {"b": ex.index(0), "r": ex.index(0), "d": ex.index(0)}
        for term in terms_of(printer.offset(piece.value)):
            names = ex.variables(term)
            kind = "d" if "d" in names else "r" if "r" in names else "b"
            sums[kind] = ex.iadd(sums[kind], term)
        sample, along, deep = (_inline(printer, sums[kind]) for kind in ("b", "r", "d"))
        return sample, along, deep

    def _stored(self, number: int, piece: Piece) -> Iterator[str]:
        sample, along, deep = self._split(piece)
        yield f"x{number} = {self._loaded(f'in{piece.value.value} + {sample} + ({along} + {deep})', [piece])}"

    def _loaded(self, address: str, pieces: list[Piece]) -> str:
        mask = self._tile_mask(pieces)
        policy = EVICT_FIRST if self.once else ""
        return f"tl.load({address}, mask={mask}, other=0{policy})" if mask else f"tl.load({address}{policy})"

    def _select(self) -> Iterator[str]:
        """One load for many tensors: the address of each row, of elements of which 16 bytes are known to be aligned."""
        size = ITEM_SIZES[self.shape.stored]
        yield "address = rows.to(tl.int64) * 0"
        aligned, deeps = True, set()
        for piece in self.selected:
            sample, along, deep = self._split(piece)
            deeps.add(deep)
            base = f"in{piece.value.value}.to(tl.int64) + ({sample} + {along}) * {size}"
            yield f"address = tl.where({_span(piece)}, {base}, address)"
            aligned &= self._keeps_alignment(piece, size)
        yield f"address = address.to(tl.pointer_type({TRITON_TYPES[self.shape.stored]}))"
        (deep,) = deeps
        if not aligned:
            yield f"x0 = {self._loaded(f'address + {deep}', self.selected)}"
            return
        used = sorted({piece.value.value for piece in self.selected})
        yield f"low = {' | '.join(f'in{k}.to(tl.int64)' for k in used)}"
        hint = ", ".join(["16"] * (3 if self.group > 1 else 2))
        yield f"if low % {_VECTOR_BYTES} == 0:"
        yield f"  x0 = {self._loaded(f'tl.multiple_of(address, [{hint}]) + {deep}', self.selected)}"
        yield "else:"
        yield f"  x0 = {self._loaded(f'address + {deep}', self.selected)}"

    def _keeps_alignment(self, piece: Piece, size: int) -> bool:
        """Does every row start at a multiple of 16 bytes from its tensor's start, with its elements side by side?"""
        printer = TritonPrinter(self.plan.inputs, "live")
        for term in terms_of(printer.offset(piece.value)):
            factor = int(term.args[1].value) if term.op == "mul" and term.args[1].op == "const" else 1
            factor = int(term.value) if term.op == "const" else factor
            if "d" in ex.variables(term) and factor != 1:
                return False
            if "d" not in ex.variables(term) and factor * size % _VECTOR_BYTES:
                return False
        return True

    # --- features that are computed: selected by ids, converted, scaled … ---

    def _computed(self, number: int, piece: Piece) -> Iterator[str]:
        yield f"r{number} = rows - {piece.start}"
        yield f"live{number} = {_span(piece)} & live"
        yield f"tile{number} = live{number} & inside"
        outer = TritonPrinter(self.plan.inputs, "live", prefix=f"x{number}_")
        outer.name(ex.var("r", piece.count), f"r{number}")
        for part in free_parts(piece.value, {"r", "d"}):
            outer.value(part)
        middle = outer.nested(f"live{number}")
        for part in free_parts(piece.value, {"d"}):
            middle.value(part)
        inner = middle.nested(f"tile{number}")
        result = inner.value(piece.value)
        yield from [*outer.lines, *middle.lines, *inner.lines]
        stored = TRITON_TYPES[self.shape.stored]
        yield f"x{number} = tl.where(tile{number}, {result}, 0).to({stored})"


def _span(piece: Piece) -> str:
    if piece.count == 1:
        return f"(rows == {piece.start})"
    return f"((rows >= {piece.start}) & (rows < {piece.start + piece.count}))"


def _inline(printer: TritonPrinter, value: Expr) -> str:
    """``value`` as one expression, without statements of its own."""
    if value.op in ("add", "sub", "mul"):
        sign = {"add": "+", "sub": "-", "mul": "*"}[value.op]
        return f"({_inline(printer, value.args[0])} {sign} {_inline(printer, value.args[1])})"
    return printer.value(value)
