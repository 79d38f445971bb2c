"""The gradient of pairs as C++: samples in parallel, each a square of gradients times its rows, in registers."""

from __future__ import annotations

from ....kernel import Argument, Kernel, Launch, Workspace
from ....platforms.platform import Target
from ...expression import CPP_PRELUDE, used_only
from ...expression.cpp import CPP_STORAGE, signature, to_storage
from ...family import Schedule, ScheduleSpace
from ..common import seeded
from ..interaction.vectors import Vectors
from ..row_printers import CppRowPrinter
from .structure import COLUMN, OTHER, PAIR, ROW, SAMPLE, Plan

_LINE_BYTES = 64


def cpp_space(plan: Plan, target: Target) -> ScheduleSpace:
    wide = min(max(4 * target.warp_size, 16), _LINE_BYTES)
    choices: dict[str, tuple[int | str | bool, ...]] = {
        "vector_bytes": tuple(dict.fromkeys((wide, max(wide // 2, 16)))),
        # Rows and vectors of the result that stay in registers.
        "rows": (4, 6, 2, 8),
        "vectors": (2, 4, 1),
        "order": ("static", "dynamic"),
    }
    return seeded(choices, {"rows": 6}, {"vectors": 4}, {"rows": 2, "vectors": 4}, {"rows": 8})


def emit_cpp(plan: Plan, schedule: Schedule) -> Kernel:
    inputs, sizes = len(plan.inputs), len(plan.symbols)
    arguments = [Argument("input", k) for k in range(inputs)] + [Argument("output", 0), Argument("workspace", 0)]
    arguments += [Argument("size", k) for k in range(sizes)]
    space = Workspace("int32", str(plan.pairs))
    return Kernel("cpp", _Writer(plan, schedule).source(), (Launch("kevolve_kernel", tuple(arguments)),), (space,))


class _Writer:
    def __init__(self, plan: Plan, schedule: Schedule) -> None:
        self.plan, self.order = plan, str(schedule["order"])
        self.vectors = Vectors(plan.held, int(schedule["vector_bytes"]))
        self.rows, self.count = int(schedule["rows"]), int(schedule["vectors"])
        self.block = self.count * self.vectors.lanes
        self.depth = -(-plan.width // self.block) * self.block
        # Rows of zeros fill up the last block of rows.
        self.high = -(-plan.rows // self.rows) * self.rows

    def source(self) -> str:
        plan, t = self.plan, self.vectors.scalar
        parameters = [f"const {CPP_STORAGE[spec.dtype]}* __restrict a{k}" for k, spec in enumerate(plan.inputs)]
        parameters += [f"{CPP_STORAGE[plan.output.dtype]}* __restrict out", "const int32_t* __restrict places"]
        parameters += [f"const int64_t {name}" for name in (SAMPLE, *plan.symbols)]
        head = signature("kevolve_kernel", plan.inputs, [plan.output], plan.symbols)
        head = head.replace("__restrict out0", "__restrict out0, int32_t* __restrict places")
        given = [*(f"in{k}" for k in range(len(plan.inputs))), "out0", "places", SAMPLE, *plan.symbols]
        lines = [
            CPP_PRELUDE,
            self.vectors.prelude(),
            f"static inline int64_t placed({', '.join([*parameters[: len(plan.inputs)], 'int32_t* __restrict places'])}) {{",
            *self._placed(),
            "}",
            f"static inline int64_t sample({', '.join(parameters)}) {{",
            "int64_t bad = 0;",
            f"alignas({_LINE_BYTES}) {t} square[{self.high * plan.rows}];",
            f"alignas({_LINE_BYTES}) {t} turned[{self.high * plan.rows}];",
            f"alignas({_LINE_BYTES}) {t} x[{plan.rows * self.depth}];",
            f"alignas({_LINE_BYTES}) {t} y[{self.rows * self.depth}];",
            *self._filled(),
            *self._multiplied(),
            "return bad;",
            "}",
            f"{head} {{",
            f"if (placed({', '.join([*(f'in{k}' for k in range(len(plan.inputs))), 'places'])})) return 1;",
            "int64_t failed = 0;",
            f"#pragma omp parallel for schedule({self.order}) reduction(|:failed)",
            f"for (int64_t {SAMPLE} = 0; {SAMPLE} < int64_t({plan.batch}); ++{SAMPLE})",
            f"failed |= sample({', '.join(given)});",
            "return failed != 0;",
            "}",
        ]
        return used_only("\n".join([*lines, ""]))

    def _placed(self) -> list[str]:
        """Where each pair belongs in the square, once for all samples."""
        left, right = self.plan.flat.left, self.plan.flat.right
        printer = CppRowPrinter("p")
        row, column = printer.value(left), printer.value(right)
        return [
            "int64_t bad = 0;",
            f"for (int64_t {PAIR} = 0; {PAIR} < {self.plan.pairs}; ++{PAIR}) {{",
            *printer.lines,
            f"places[{PAIR}] = int32_t({row} * {self.plan.rows} + {column});",
            "}",
            "return bad;",
        ]

    def _filled(self) -> list[str]:
        gradient, features = self.plan.flat.gradient, self.plan.flat.features
        rows, width = self.plan.rows, self.plan.width
        pair, feature = CppRowPrinter("g"), CppRowPrinter("f")
        value, element = pair.value(gradient), feature.value(features)
        rest = [f"for (int64_t {COLUMN} = {width}; {COLUMN} < {self.depth}; ++{COLUMN}) "
                f"x[{OTHER} * {self.depth} + {COLUMN}] = 0;"] if self.depth > width else []  # fmt: skip
        return [
            f"for (int64_t k = 0; k < {self.high * rows}; ++k) square[k] = 0;",
            f"for (int64_t {PAIR} = 0; {PAIR} < {self.plan.pairs}; ++{PAIR}) {{",
            *pair.lines,
            f"square[places[{PAIR}]] += {value};",
            "}",
            f"for (int64_t r = 0; r < {self.high}; ++r)",
            f"for (int64_t k = 0; k < {rows}; ++k) turned[r * {rows} + k] = r < {rows} ? square[k * {rows} + r] : 0;",
            f"for (int64_t {OTHER} = 0; {OTHER} < {rows}; ++{OTHER}) {{",
            f"for (int64_t {COLUMN} = 0; {COLUMN} < {width}; ++{COLUMN}) {{",
            *feature.lines,
            f"x[{OTHER} * {self.depth} + {COLUMN}] = {element};",
            "}",
            *rest,
            "}",
        ]

    def _multiplied(self) -> list[str]:
        plan, lanes = self.plan, self.vectors.lanes
        printer = CppRowPrinter("o")
        offset, rest = printer.value(plan.offset), printer.value(plan.flat.rest)
        result = f"y[({ROW} - top) * {self.depth} + {COLUMN}] + {rest}"
        tiles = [(row, column) for row in range(self.rows) for column in range(self.count)]
        return [
            f"for (int64_t top = 0; top < {plan.rows}; top += {self.rows}) {{",
            f"for (int64_t start = 0; start < {self.depth}; start += {self.block}) {{",
            *(f"V s{row}_{column} = {{}};" for row, column in tiles),
            f"for (int64_t {OTHER} = 0; {OTHER} < {plan.rows}; ++{OTHER}) {{",
            *(f"const V x{c} = load(x + {OTHER} * {self.depth} + start + {c * lanes});" for c in range(self.count)),
            *(line for row in range(self.rows) for line in self._updated(row)),
            "}",
            *(f"store(y + {row * self.depth} + start + {column * lanes}, s{row}_{column});" for row, column in tiles),
            "}",
            f"for (int64_t {ROW} = top; {ROW} < std::min<int64_t>(top + {self.rows}, {plan.rows}); ++{ROW})",
            f"for (int64_t {COLUMN} = 0; {COLUMN} < {plan.width}; ++{COLUMN}) {{",
            *printer.lines,
            f"out[{offset}] = {to_storage(result, plan.output.dtype)};",
            "}",
            "}",
        ]

    def _updated(self, row: int) -> list[str]:
        at = f"[(top + {row}) * {self.plan.rows} + {OTHER}]"
        sums = [f"s{row}_{c} += g{row} * x{c}; s{row}_{c} += t{row} * x{c};" for c in range(self.count)]
        return [f"const {self.vectors.scalar} g{row} = square{at}, t{row} = turned{at};", *sums]
