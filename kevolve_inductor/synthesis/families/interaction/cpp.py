"""The C++ kernel: features in, products by one of the tilings, rows out; samples in parallel."""

from __future__ import annotations

from collections.abc import Iterator

from ....graph.region import TensorSpec
from ....kernel import Argument, Kernel, Launch
from ...expression import CPP_PRELUDE, CppPrinter, used_only
from ...expression import expression as ex
from ...expression.cpp import CPP_STORAGE, signature, to_storage
from ...expression.expression import Expr
from ...family import Schedule
from ..common import symbols_of
from .pairs import KnownPairs, LoadedPairs
from .pieces import Piece, free_parts, terms_of
from .structure import Plan, Segment
from .tiles import TILINGS, Lanes, Tiling, Wanted
from .vectors import Vectors

_FUNCTION = "kevolve_kernel"


def emit_cpp(plan: Plan, schedule: Schedule) -> Kernel:
    symbols = symbols_of([*plan.inputs, plan.output])
    source = _Writer(plan, schedule).source(symbols)
    arguments = [Argument("input", k) for k in range(len(plan.inputs))] + [Argument("output", 0)]
    arguments += [Argument("size", k) for k in range(len(symbols))]
    return Kernel("cpp", source, (Launch(_FUNCTION, tuple(arguments)),))


def wanted_of(plan: Plan) -> Wanted:
    """Which products are computed: those known to be used, else one of each pair."""
    wanted: dict[int, set[int]] = {}
    for segment in plan.segments:
        if isinstance(segment.pairs, KnownPairs):
            for run in segment.pairs.runs:
                wanted.setdefault(run.row, set()).update(range(run.first, run.first + run.count))
        elif segment.pairs is not None:
            for i in range(plan.shape.features):
                wanted.setdefault(i, set()).update(range(i + 1))
    return {i: frozenset(others) for i, others in wanted.items()}


class _Writer:
    def __init__(self, plan: Plan, schedule: Schedule) -> None:
        self.plan, self.shape = plan, plan.shape
        algorithm, _, tile = str(schedule["tile"]).partition(" ")
        rows, _, columns = tile.partition("x")
        self.vectors = Vectors(plan.shape.held, int(schedule["vector_bytes"]))
        kind = TILINGS[algorithm]
        self.tiling: Tiling = kind(self.vectors, self.shape.features, self.shape.width, int(rows), int(columns))
        self.block = self.vectors.lanes if isinstance(self.tiling, Lanes) else 1
        self.wanted = wanted_of(plan)
        self.in_place = bool(schedule["in_place"])
        self.grain = int(schedule["grain"])

    def source(self, symbols: tuple[str, ...]) -> str:
        lines = [CPP_PRELUDE, self.vectors.prelude(), *self.tiling.functions(self.wanted)]
        lines.append(signature(_FUNCTION, self.plan.inputs, [self.plan.output], symbols) + " {")
        lines += [f"  const int64_t batch = {self.shape.batch};", "  int64_t bad = 0;", "  if (batch == 0) return 0;"]
        lines += _indented(self._tables(), 1)
        # Forking threads costs more than a few samples.
        work = self.shape.features * self.shape.width
        lines.append(f"#pragma omp parallel reduction(| : bad) if (batch * {work} >= {self.grain})")
        lines += ["  {", *_indented(self._scratch(), 2), "#pragma omp for schedule(static)"]
        lines.append(f"    for (int64_t first = 0; first < batch; first += {self.block}) {{")
        lines += _indented(self._sample() if self.block == 1 else self._samples(), 3)
        lines += ["    }", "  }", "  return bad != 0;", "}"]
        return used_only("\n".join(lines))

    # --- what is prepared once ---

    def _tables(self) -> Iterator[str]:
        for number, segment in enumerate(self.plan.segments):
            if isinstance(segment.pairs, KnownPairs) and not self._copies_runs(segment):
                places = [
                    run.row * self.tiling.stride + run.first + k for run in segment.pairs.runs for k in range(run.count)
                ]
                yield f"static const int32_t place{number}[] = {{{', '.join(map(str, places))}}};"
            elif isinstance(segment.pairs, KnownPairs):
                runs = [
                    f"{{{r.column}, {r.row * self.tiling.stride + r.first}, {r.count}}}" for r in segment.pairs.runs
                ]
                yield f"static const int32_t runs{number}[][3] = {{{', '.join(runs)}}};"
            elif segment.pairs is not None:
                yield from self._loaded_places(number, segment.pairs)
        if any(isinstance(segment.pairs, LoadedPairs) for segment in self.plan.segments):
            yield "if (bad) return 1;"

    def _loaded_places(self, number: int, pairs: LoadedPairs) -> Iterator[str]:
        printer = CppPrinter(self.plan.inputs)
        left, right = printer.value(pairs.left), printer.value(pairs.right)
        yield f"int32_t place{number}[{pairs.count}];"
        yield f"for (int64_t c = 0; c < {pairs.count}; c++) {{"
        yield from _indented(printer.lines, 1)
        # Only one of each pair of products is computed: the one whose first feature is the later one.
        low, high = f"std::min<int64_t>({left}, {right})", f"std::max<int64_t>({left}, {right})"
        yield f"  place{number}[c] = int32_t({high} * {self.tiling.stride} + {low});"
        yield "}"

    def _scratch(self) -> Iterator[str]:
        t, lanes = self.vectors.scalar, self.vectors.lanes
        yield f"alignas(64) {t} zs[{self.tiling.products_size + lanes}];"
        if self.tiling.scratch:
            yield self.tiling.scratch
        widest = max(segment.count for segment in self.plan.segments)
        yield f"alignas(64) {t} products[{widest + 2 * lanes}];"
        yield f"const {t}* rows[{self.tiling.reach * self.block}];"
        copied = sum(piece.count for piece in self.plan.rows if not self._reads_in_place(piece))
        if copied:
            size = copied * self.block * self.tiling.depth
            yield f"alignas(64) {t} xs[{size}];"
            if self.tiling.depth != self.shape.width:
                yield f"for (int64_t k = 0; k < {size}; k++) xs[k] = 0;"

    # --- one sample, or one block of samples, at a time ---

    def _sample(self) -> Iterator[str]:
        yield "const int64_t b = first;"
        yield from self._features("rows", "xs", 1)
        features, reach = self.shape.features, self.tiling.reach
        if reach > features:
            yield f"for (int64_t k = {features}; k < {reach}; k++) rows[k] = rows[{features - 1}];"
        yield from self.tiling.body(self.wanted)
        yield from self._output()

    def _samples(self) -> Iterator[str]:
        lanes = self.block
        yield f"for (int64_t s = 0; s < {lanes}; s++) {{"
        # Lanes beyond the batch repeat its last sample; their results are not written.
        yield "  const int64_t b = std::min(first + s, batch - 1);"
        yield from _indented(self._features("(rows + s)", "(xs + s * XS)", lanes), 1)
        yield "}"
        yield from self.tiling.body(self.wanted)
        yield f"for (int64_t s = 0; s < {lanes} && first + s < batch; s++) {{"
        yield "  const int64_t b = first + s;"
        yield from _indented(self._output(), 1)
        yield "}"

    def _features(self, rows: str, xs: str, step: int) -> Iterator[str]:
        """Fill ``rows``: pointers into the inputs where values can be used as they are, else to converted copies."""
        copied = sum(piece.count for piece in self.plan.rows if not self._reads_in_place(piece))
        xs = xs.replace("XS", str(copied * self.tiling.depth))
        place = 0
        for piece in self.plan.rows:
            printer = CppPrinter(self.plan.inputs)
            yield f"for (int64_t r = 0; r < {piece.count}; r++) {{"
            if self._reads_in_place(piece):
                at = printer.linear(_at_depth(piece.value, 0))
                yield from _indented(printer.lines, 1)
                yield f"  {rows}[({piece.start} + r) * {step}] = in{piece.value.value} + ({at});"
            else:
                yield f"  {self.vectors.scalar}* x = {xs} + ({place} + r) * {self.tiling.depth};"
                yield from _indented(self._loop("d", self.shape.width, piece.value, "x[d] = {0};", printer), 1)
                yield f"  {rows}[({piece.start} + r) * {step}] = x;"
                place += piece.count
            yield "}"

    def _reads_in_place(self, piece: Piece) -> bool:
        if not self.in_place or self.tiling.depth != self.shape.width:
            return False
        return is_plain_row(piece.value, self.plan.inputs, self.shape.held)

    def _loop(self, variable: str, count: int, value: Expr, store: str, printer: CppPrinter) -> Iterator[str]:
        """A vectorisable loop that stores ``value``; what does not depend on ``variable`` is computed before it."""
        for part in free_parts(value, {variable, "z"}):
            printer.value(part)
        before = len(printer.lines)
        inner = printer.nested()
        result = inner.value(value)
        yield from printer.lines[:before]
        if not any(part.op == "check_index" and variable in ex.variables(part) for part in ex.walk(value)):
            yield "#pragma omp simd"
        yield f"for (int64_t {variable} = 0; {variable} < {count}; {variable}++) {{"
        yield from _indented(inner.lines, 1)
        yield "  " + store.format(result)
        yield "}"

    # --- the output's row ---

    def _output(self) -> Iterator[str]:
        dtype, step = self.plan.output.dtype, self.plan.column_stride
        yield f"{CPP_STORAGE[dtype]}* to = out0 + b * {self.plan.row_stride};"
        for number, segment in enumerate(self.plan.segments):
            target = f"to[(c + {segment.start}) * {step}]"
            if segment.pairs is not None:
                if self._copies_runs(segment):
                    yield from self._copy_runs(number, segment)
                    if self._is_direct(segment):
                        continue
                else:
                    yield from self._gather(number, segment)
            printer = CppPrinter(self.plan.inputs)
            z = ex.var("z", None, self.shape.held)
            printer.name(z, "products[c]")
            store = f"{target} = {to_storage('{0}', dtype)};"
            yield "{"
            yield from _indented(self._loop("c", segment.count, segment.value, store, printer), 1)
            yield "}"

    def _copies_runs(self, segment: Segment) -> bool:
        """Runs of products lie side by side, except where lanes are samples."""
        return isinstance(segment.pairs, KnownPairs) and self.block == 1

    def _is_direct(self, segment: Segment) -> bool:
        """Are the products written as they are?"""
        same = segment.value.op == "var" and self.plan.output.dtype == self.shape.held
        return same and self.plan.column_stride == 1

    def _copy_runs(self, number: int, segment: Segment) -> Iterator[str]:
        """Whole registers at a time: what is written too far is overwritten by the next run, except at the end."""
        assert isinstance(segment.pairs, KnownPairs)
        lanes, direct = self.vectors.lanes, self._is_direct(segment)
        room = self.plan.columns - segment.start if direct else segment.count + lanes
        runs = segment.pairs.runs
        whole = sum(run.column + -(-run.count // lanes) * lanes <= room for run in runs)
        to = f"(to + {segment.start})" if direct else "products"
        yield f"for (int64_t k = 0; k < {whole}; k++)"
        yield f"  for (int64_t c = 0; c < runs{number}[k][2]; c += {lanes})"
        yield f"    store({to} + runs{number}[k][0] + c, load(zs + runs{number}[k][1] + c));"
        yield f"for (int64_t k = {whole}; k < {len(runs)}; k++)"
        yield f"  for (int64_t c = 0; c < runs{number}[k][2]; c++)"
        yield f"    {to}[runs{number}[k][0] + c] = zs[runs{number}[k][1] + c];"

    def _gather(self, number: int, segment: Segment) -> Iterator[str]:
        index = f"place{number}[c]" + (f" * {self.block} + s" if self.block > 1 else "")
        yield f"for (int64_t c = 0; c < {segment.count}; c++) products[c] = zs[{index}];"


def is_plain_row(value: Expr, inputs: tuple[TensorSpec, ...], held: str) -> bool:
    """Is a feature a contiguous run of an input, in the dtype that products are summed in?"""
    if value.op != "load" or inputs[value.value].dtype != held:
        return False
    spec = inputs[value.value]
    deep = [(at, stride) for at, stride in zip(value.args, spec.stride, strict=True) if "d" in ex.variables(at)]
    if len(deep) != 1 or deep[0][1] != 1:
        return False
    (at, _) = deep[0]
    terms = terms_of(at)
    return [term.op for term in terms if "d" in ex.variables(term)] == ["var"]


def _at_depth(value: Expr, depth: int) -> Expr:
    def placed(part: Expr) -> Expr | None:
        return ex.index(depth) if part.op == "var" and part.value[0] == "d" else None

    return ex.substitute(value, placed)


def _indented(lines: Iterator[str] | list[str], depth: int) -> Iterator[str]:
    for line in lines:
        yield line if line.startswith("#") else "  " * depth + line
