"""The gradient of pairs as Triton: a square of gradients per sample, multiplied with its rows on the matrix units.

- ``kevolve_links``: for each place of the square its first pair, and for each pair the next one of the same place. Pairs are the
  same for all samples, and mostly no two of them meet.
- ``kevolve_gradient``: programs walk over the samples. The square is gathered, pairs of one place in their order, so that sums
  are the same every time and nothing is written twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from ....exc import EmissionError
from ....kernel import Argument, Kernel, Launch, Workspace
from ....platforms.platform import Target
from ...expression import TRITON_PRELUDE
from ...expression import expression as ex
from ...expression.access import flatten
from ...expression.expression import Expr
from ...expression.remainder import TRITON_REMAINDER
from ...expression.triton import TRITON_TYPES, used_helpers
from ...family import Schedule, ScheduleSpace
from ..common import arguments_of, seeded
from ..triton_tiles import TilePrinter, cdiv, indented, needs_64_bits, next_power_of_2
from .structure import COLUMN, OTHER, PAIR, ROW, SAMPLE, Plan

# Pairs that one program links, and pairs that it compares them with at a time.
_LINKED, _COMPARED = 32, 64
_WARPS = 4


def triton_space(plan: Plan, target: Target) -> ScheduleSpace:
    tile, depth = _tile(plan), max(16, next_power_of_2(plan.width))
    single = plan.stored == "float32"
    chunk = min(depth, 64 if single else 128)
    warps = 8 if tile >= 128 else 4
    choices: dict[str, tuple[int | str | bool, ...]] = {
        "programs": tuple(target.units * each for each in (4, 8, 2, 16)),
        "chunk": (chunk, *(size for size in (128, 64, 32, 16) if size < depth and size != chunk)),
        "num_warps": (warps, *(count for count in (1, 2, 4, 8) if count != warps)),
        "stages": (2, 1, 3),
        "precision": ("tf32x3", "ieee") if single else ("ieee",),
    }
    units = target.units
    # What a thread holds of the squares, of the rows and of their products grows as warps get fewer.
    narrow: Schedule = {"num_warps": 2, "programs": 8 * units, "chunk": 32}
    return seeded(
        choices, narrow, {"programs": 8 * units}, {**narrow, "stages": 1}, {**narrow, "programs": 16 * units},
        {"num_warps": 1, "programs": 16 * units, "chunk": 16}, {"precision": "ieee", "chunk": 32},
        {"num_warps": 8, "programs": 2 * units},
    )  # fmt: skip


def emit_triton(plan: Plan, schedule: Schedule) -> Kernel:
    """Raises ``EmissionError`` where the schedule cannot hold the plan."""
    if _tile(plan) ** 2 > 128 * int(schedule["num_warps"]) * 32:
        raise EmissionError("the square does not fit into the registers of so few warps")
    text = _Text(plan, schedule)
    inputs = len(plan.inputs)
    arguments = arguments_of(plan.inputs, (plan.output,), plan.symbols)
    tensors, sizes = arguments[: inputs + 1], arguments[inputs + 1 :]
    given = (*tensors, Argument("workspace", 0), *sizes)
    launches = (
        Launch("kevolve_links", given, (str(cdiv(plan.pairs, _LINKED)),), num_warps=_WARPS),
        Launch("kevolve_gradient", given, (str(schedule["programs"]),), num_warps=int(schedule["num_warps"]),
               num_stages=int(schedule["stages"])),
    )  # fmt: skip
    space = Workspace("int32", str(text.tile**2 + plan.pairs), zeroed=True)
    return Kernel("triton", text.source(), launches, (space,))


def _tile(plan: Plan) -> int:
    return max(16, next_power_of_2(plan.rows))


class _Text:
    """``links`` begins with the first pair of each place, counted from one; then the next pair of each pair."""

    def __init__(self, plan: Plan, schedule: Schedule) -> None:
        self.plan = plan
        self.tile = _tile(plan)
        self.chunk = min(int(schedule["chunk"]), max(16, next_power_of_2(plan.width)))
        self.stages, self.precision = int(schedule["stages"]), str(schedule["precision"])
        self.names = [*(f"in{k}" for k in range(len(plan.inputs))), "out0", "links", *plan.symbols]
        self.wide = ".to(tl.int64)" if needs_64_bits((*plan.inputs, plan.output)) else ""

    def source(self) -> str:
        code = "\n\n".join(
            [self._function("kevolve_links", self._links()), self._function("kevolve_gradient", self._body())]
        )
        return f"{used_helpers(TRITON_PRELUDE + TRITON_REMAINDER, code)}\n\n{code}\n"

    def _function(self, name: str, lines: Sequence[str]) -> str:
        return "\n    ".join([f"@triton.jit\ndef {name}({', '.join(self.names)}):", *lines])

    def _printed(self, values: Sequence[Expr], masks: dict[str, str], prefix: str) -> tuple[list[str], list[str]]:
        """Statements, and the names of ``values`` then."""
        printer = TilePrinter(masks, {}, prefix)
        names = [printer.value(value) for value in values]
        return printer.lines, names

    def _places(self, pair: str, mask: str, prefix: str) -> list[str]:
        """``<prefix>place``: where each of the pairs belongs in the square."""
        left, right = self.plan.flat.left, self.plan.flat.right
        at = ex.var(f"{prefix}pair", self.plan.pairs)
        moved = [ex.substitute(side, lambda part: at if part.op == "var" and part.value[0] == PAIR else None)
                 for side in (left, right)]  # fmt: skip
        lines, (row, column) = self._printed(moved, {f"{prefix}pair": mask}, prefix)
        # Where assertions are compiled out, an index out of range must still not leave the square.
        inside = f"tl.minimum(tl.maximum({row} * {self.tile} + {column}, 0), {self.tile**2 - 1})"
        return [f"{prefix}pair = {pair}", *lines, f"{prefix}place = ({inside}).to(tl.int32)"]

    def _links(self) -> list[str]:
        pairs = self.plan.pairs
        return [
            f"own = tl.program_id(0) * {_LINKED} + tl.arange(0, {_LINKED})[:, None]",
            f"own_mask = own < {pairs}",
            *self._places("own", "own_mask", "p"),
            f"earlier = tl.zeros([{_LINKED}, 1], tl.int32)",
            f"following = tl.full([{_LINKED}, 1], {pairs}, tl.int32)",
            f"for start in tl.range(0, {pairs}, {_COMPARED}):",
            *indented([
                f"other = start + tl.arange(0, {_COMPARED})[None, :]",
                f"other_mask = other < {pairs}",
                *self._places("other", "other_mask", "q"),
                "same = (pplace == qplace) & other_mask",
                "earlier = tl.maximum(earlier, tl.max((same & (other < own)).to(tl.int32), axis=1, keep_dims=True))",
                f"after = tl.where(same & (other > own), other, {pairs})",
                "following = tl.minimum(following, tl.min(after, axis=1, keep_dims=True))",
            ]),
            f"link = tl.where(following < {pairs}, following + 1, 0)",
            f"tl.store(links + {self.tile**2} + own, link, mask=own_mask)",
            "tl.store(links + pplace, own + 1, mask=own_mask & (earlier == 0))",
        ]  # fmt: skip

    def _body(self) -> list[str]:
        squares = ("square", "turned")
        return [
            f"rows = tl.arange(0, {self.tile})",
            *(line for name in squares for line in self._first(name)),
            # How often pairs meet at most: the same for all samples.
            "deepest = 0",
            "rest = square_second",
            "while tl.max(tl.max(rest, axis=1), axis=0) > 0:",
            *indented([self._next(), "deepest += 1"]),
            f"for {SAMPLE} in tl.range(tl.program_id(0){self.wide}, {self.plan.batch}, tl.num_programs(0)):",
            *indented([*(line for name in squares for line in self._square(name)), *self._products()]),
        ]

    def _first(self, name: str) -> list[str]:
        """The first two pairs of each place. The transposed square is gathered as well: registers are turned no faster."""
        across, down = ("rows[:, None]", "rows[None, :]") if name == "square" else ("rows[None, :]", "rows[:, None]")
        first = f"{name}_first"
        return [
            f"{first} = tl.load(links + {across} * {self.tile} + {down})",
            f"{name}_second = tl.load(links + {self.tile**2 - 1} + {first}, mask={first} > 0, other=0)",
        ]

    def _square(self, name: str) -> list[str]:
        lines, values = self._gradient(f"{name}_first", f"{name}_g")
        more, added = self._gradient("rest", f"{name}_h")
        return [
            *lines,
            f"{name} = {values}",
            f"rest = {name}_second",
            "for _ in tl.range(0, deepest):",
            *indented([*more, f"{name} += {added}", self._next()]),
        ]

    def _next(self) -> str:
        """``rest`` becomes the pairs that meet those of ``rest`` next."""
        return f"rest = tl.load(links + {self.tile**2 - 1} + rest, mask=rest > 0, other=0)"

    def _gradient(self, chosen: str, prefix: str) -> tuple[list[str], str]:
        """Statements for the gradients of the pairs that ``chosen`` counts from one, and what they are: zero for none."""
        gradient = self.plan.flat.gradient
        at = ex.var(f"{prefix}pair", self.plan.pairs)
        value = ex.substitute(gradient, lambda part: at if part.op == "var" and part.value[0] == PAIR else None)
        lines, (name,) = self._printed([value], {f"{prefix}pair": f"({chosen} > 0)"}, prefix)
        return [f"{prefix}pair = {chosen} - 1", *lines], f"tl.where({chosen} > 0, {name}, 0.0)"

    def _products(self) -> list[str]:
        features, rest = self.plan.flat.features, self.plan.flat.rest
        stored = TRITON_TYPES[self.plan.stored]
        lines, (value,) = self._printed([features], {OTHER: "other_mask", COLUMN: "column_mask"}, "x")
        more, (added,) = self._printed([rest], {ROW: "other_mask", COLUMN: "column_mask"}, "s")
        offset_lines, (offset,) = self._printed([flatten(self.plan.offset, self.plan.inputs)], {}, "o")
        precision = f', input_precision="{self.precision}"' if self.plan.stored == "float32" else ""
        body = [
            f"{COLUMN} = (start + tl.arange(0, {self.chunk}))[None, :]",
            f"column_mask = {COLUMN} < {self.plan.width}",
            *lines,
            f"x = tl.where(other_mask & column_mask, {value}, 0.0).to({stored})",
            f"y = tl.dot(square, x{precision}) + tl.dot(turned, x{precision})",
            *([] if rest.op == "const" else [*more, f"y += {added}"]),
            *offset_lines,
            f"tl.store(out0 + {offset}, y, mask=other_mask & column_mask)",
        ]
        return [
            f"square = square.to({stored})",
            f"turned = turned.to({stored})",
            f"{OTHER} = rows[:, None]",
            f"{ROW} = {OTHER}",
            f"other_mask = {OTHER} < {self.plan.rows}",
            f"for start in tl.static_range(0, {self.plan.width}, {self.chunk}):",
            *indented(body),
        ]
