"""Row programs as C++.

Two ways to lay rows over vectors. *Lanes*: ``L`` rows at once, one in each lane; rows whose columns are contiguous are
transposed on the way in and out. *Scan*: one row at a time, its columns in the lanes. Either way a sweep over the
columns goes block by block: all values of the block into tiles, then each tile folded into what it is for.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from ....exc import EmissionError
from ....graph.dims import Dim
from ...expression import CPP_PRELUDE, CppPrinter, used_only
from ...expression import expression as ex
from ...expression.cpp import CPP_STORAGE, CPP_TYPES, to_storage
from ...expression.expression import Expr
from ...family import Schedule
from ..common import vector_pragma
from .address import slope, without
from .cpp_columns import CppColumns
from .cpp_entry import entry_of
from .cpp_plan import Plan
from .cpp_prelude import pieces_for
from .cpp_printer import RowPrinter, inline
from .cpp_steps import step_for
from .cpp_types import converter
from .precise import in_double
from .program import COLUMNS, ColumnSum, Element, Pass, Reduce, RowProgram, Select, Store, online_pairs, passes
from .program import Step as ProgramStep
from .reuse import reused
from .simplify import shortened, with_constant_quotients, with_exponentials_below, with_shares, without_maxima

# Elements of one input kept transposed for the whole row; beyond that every sweep transposes it block by block.
_WHOLE_TILE = 16384
_STACK_BYTES = 1 << 21
# Exponentials of a row that are kept until their maximum is known.
_MOST_BELOW = 1 << 17
# From here on reductions of a short axis go through tiles as well.
_LONG_AXIS = 32


def cpp_source(program: RowProgram, schedule: Schedule) -> str:
    """The kernel's text; its entry is ``kevolve_kernel``. Raises ``EmissionError``."""
    simplify = bool(schedule.get("simplify", True))
    program = with_exponentials_below(shortened(program) if simplify else program)
    if simplify:
        program = without_maxima(program)
    if not program.selects:
        program = with_shares(program)
    if schedule.get("terms") == "float64":
        program = in_double(program)
    plan = Plan.of(schedule, program)
    body = RowBody(with_constant_quotients(program, plan.block), plan)
    function = body.function()
    entry = entry_of(body.program, plan, body.rows, body.columns)
    text = "\n".join([*function, *entry, ""])
    return used_only(f"{vector_pragma(schedule)}{CPP_PRELUDE}{pieces_for(text)}\n{text}")


@dataclass(frozen=True)
class _BlockTile:
    load: Expr
    declared: str
    loaded: list[str]


class RowBody:
    """Prints the function that computes one tile of rows (or one row), then the loop over tiles."""

    def __init__(self, program: RowProgram, plan: Plan) -> None:
        self.program, self.plan = program, plan
        self.rows: tuple[tuple[str, Dim], ...] = program.rows or (("r0", 1),)
        self.inner = self.rows[-1][0]
        self.texts: dict[str, str] = {}
        self.cells: dict[Expr, Expr] = {}
        self.kept: dict[Expr, str] = {}
        self.keeps: dict[Expr, Expr] = {}
        self.tiles: dict[str, tuple[str, str]] = {}
        self.stack_bytes = 0
        self.count = 0
        self.joined = dict(online_pairs(program)) if plan.online else {}
        self.kept_below = self._used_again() if plan.keep else set()
        self.columns = CppColumns(program) if program.column_sums else None
        if self.columns and plan.lanes:
            raise EmissionError("sums over all rows need one row at a time")

    def _used_again(self) -> set[Expr]:
        """Exponentials that are computed for a sum while the maximum is not yet known and fit into a core's own cache."""
        sums = list(self.joined.values())
        if self.program.columns > _MOST_BELOW:
            return set()
        ends = (*self.program.statements, *self.program.column_sums, *self.program.stores)
        values = [_value(step) for step in ends if step not in sums]
        used = {part for value in values for part in ex.walk(value)}
        return {one.value for one in sums if one.value in used}

    def keep(self, expr: Expr, name: str, text: str) -> None:
        """From now on ``expr`` prints as ``text``."""
        self.keeps[expr] = ex.var(name, None, expr.dtype)
        self.texts[name] = text

    # --- names ---

    def fresh(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def array(self, kind: str, name: str, extent: int) -> str:
        """The declaration of a tile of ``extent`` positions."""
        size = {"double": 8, "int64_t": 8, "bool": 1}.get(kind, 16 if "packed" in kind else 4)
        self.stack_bytes += size * extent * max(1, self.plan.lanes)
        if self.stack_bytes > _STACK_BYTES:
            raise EmissionError(f"a row's tiles need {self.stack_bytes} bytes of stack")
        lanes = f" * {self.plan.width}" if self.plan.lanes else ""
        return f"alignas(64) {kind} {name}[{extent}{lanes}];"

    def at(self, name: str, position: str) -> str:
        return f"{name}[({position}) * L + l]" if self.plan.lanes else f"{name}[{position}]"

    def scalar(self, kind: str, name: str) -> str:
        """The declaration of a scalar of the row."""
        return f"alignas(64) {kind} {name}[L];" if self.plan.lanes else f"{kind} {name};"

    def scalar_at(self, name: str) -> str:
        return f"{name}[l]" if self.plan.lanes else name

    def define_scalar(self, name: str, text: str | None = None) -> None:
        """From now on the variable ``name`` prints as ``text``."""
        self.texts[name] = text or self.scalar_at(name)

    def define_element(self, name: str, axis: str, pattern: str) -> None:
        """Elements of a selection: ``pattern`` holds ``{at}`` where the tile's index goes."""
        index = f"{axis} * L + l" if self.plan.lanes else axis
        self.texts[name] = pattern.format(at=index)

    def printer(self) -> CppPrinter:
        printer = RowPrinter(self.program.flat_inputs)
        for name, extent in self.rows:
            lane = self.plan.lanes and name == self.inner
            printer.name(ex.var(name, extent), "(first + l)" if lane else name)
        return printer

    def value(self, printer: CppPrinter, expr: Expr) -> str:
        """``expr`` printed with everything known so far under its name."""
        expr = self.known(expr)
        for part in ex.walk(expr):
            if part.op == "var" and part.value[0] in self.texts:
                printer.name(part, self.texts[part.value[0]])
        return printer.value(expr)

    def known(self, expr: Expr) -> Expr:
        """``expr`` with what stands in tiles replaced."""
        loaded = ex.substitute(expr, lambda part: self.cells.get(part))
        return ex.substitute(loaded, lambda part: self.keeps.get(part))

    def tile_of(self, expr: Expr, kind: str) -> str | None:
        """The current block of a tile that holds exactly ``expr`` as C++ type ``kind``, if there is one."""
        known = self.known(expr)
        held, tile = self.tiles.get(str(known.value[0]), ("", "")) if known.op == "var" else ("", "")
        return tile if held == kind else None

    def memory_of(self, expr: Expr, kind: str, axis: str) -> str | None:
        """A pointer to position 0 of ``expr`` in an input, where one row of it lies there as it is computed with."""
        if self.plan.lanes or expr.op != "load" or CPP_STORAGE[self.program.inputs[expr.value].dtype] != kind:
            return None
        rest = without(expr.args[0], (axis,))
        simple = all(part.op in ("add", "mul", "var", "const", "size") for part in ex.walk(rest))
        if slope(expr.args[0], axis) != 1 or not simple or self.program.inputs[expr.value].dtype in ex.LOW_PRECISION:
            return None
        return f"(in{expr.value} + {inline(rest, CppPrinter(self.program.flat_inputs))})"

    def streamed_to(self, store: Store, axis: str) -> str | None:
        """Where one row of what is stored begins, if it lies in one piece and goes past the caches."""
        if not self.plan.streamed or slope(store.offset, axis) != 1:
            return None
        rest = without(store.offset, (axis,))
        if any(part.op not in ("add", "mul", "var", "const", "size") for part in ex.walk(rest)):
            return None
        return f"(out{store.output} + {inline(rest, CppPrinter(self.program.flat_inputs))})"

    # --- loops ---

    def over_lanes(self, lines: Sequence[str]) -> list[str]:
        if not self.plan.lanes:
            return ["{", *lines, "}"]
        return ["#pragma GCC ivdep", "for (int l = 0; l < L; ++l) {", *lines, "}"]

    def over(self, name: str, begin: str, end: str, lines: Sequence[str], sums: Sequence[str] = ()) -> list[str]:
        """Positions on an axis, then lanes; what runs innermost is what vectors hold."""
        head = f"for (int64_t {name} = {begin}; {name} < {end}; ++{name}) {{"
        if self.plan.lanes:
            return [head, *self.over_lanes(lines), "}"]
        if not sums:
            return ["#pragma GCC ivdep", head, *lines, "}"]
        flag = " reduction(|:bad)" if any("bad" in line for line in lines) else ""
        return [f"#pragma omp simd reduction(+:{', '.join(sums)}){flag}", head, *lines, "}"]

    # --- the function ---

    def function(self) -> list[str]:
        lines = ["int64_t bad = 0;"]
        steps = passes(self.program, self.joined.items())
        lines += self._load_tiles(steps)
        if self.plan.keep and self.program.columns * max(1, self.plan.lanes) <= _WHOLE_TILE:
            self.kept = reused([self._without_joined(step) for step in steps], self.cells)
        for step in steps:
            if step.sweep:
                lines += self._sweep(step.sweep, COLUMNS)
            for after in step.after:
                lines += self._after(after)
        head = "template <int L>\n" if self.plan.lanes else ""
        where = [f"const int64_t {name}" for name, _ in self.rows if not (self.plan.lanes and name == self.inner)]
        where += ["const int64_t first"] if self.plan.lanes else []
        return [
            f"{head}static inline int64_t kv_rows({', '.join([*self._parameters(), *where])}) {{",
            *lines,
            "return bad;",
            "}",
        ]

    def _without_joined(self, one: Pass) -> Pass:
        """Without sums of exponentials below a maximum that is not yet known."""
        later = set(self.joined.values())
        return replace(one, sweep=tuple(step for step in one.sweep if step not in later))

    def _parameters(self) -> list[str]:
        program = self.program
        parameters = [f"const {CPP_STORAGE[s.dtype]}* __restrict in{k}" for k, s in enumerate(program.inputs)]
        parameters += [f"{CPP_STORAGE[s.dtype]}* __restrict out{k}" for k, s in enumerate(program.outputs)]
        parameters += self.columns.parameters if self.columns else []
        return parameters + [f"const int64_t {name}" for name in program.symbols]

    def _load_tiles(self, steps: Sequence[Pass]) -> list[str]:
        """Whole rows transposed once, for inputs whose columns are contiguous and whose rows are not."""
        if self.plan.lanes < 2 or self.program.columns * self.plan.lanes > _WHOLE_TILE:
            return []
        lines = []
        for load in _loads(steps):
            if self._is_transposed(load):
                name = self.fresh("x")
                self.cells[load] = ex.var(name, None, load.dtype)
                self.texts[name] = self.at(name, COLUMNS)
                self.tiles[name] = CPP_TYPES[load.dtype], f"({name} + c0 * L)"
                lines += [self.array(CPP_TYPES[load.dtype], name, self.program.columns)]
                lines += self._load_tile(load, name, "0", str(self.program.columns))
        return lines

    def _is_transposed(self, load: Expr) -> bool:
        along, across = slope(load.args[0], COLUMNS), slope(load.args[0], self.inner)
        return along == 1 and across not in (None, 0, 1)

    def _load_tile(self, load: Expr, name: str, begin: str, count: str) -> list[str]:
        offset = load.args[0]
        base, step = self._base(offset, COLUMNS)
        spec = self.program.inputs[load.value]
        source = f"in{load.value} + ({base}) + {begin}"
        return [f"kv_load_tile<L, {converter(spec.dtype, load.dtype)}>({name}, {source}, {step}, {count});"]

    def _base(self, offset: Expr, axis: str) -> tuple[str, str]:
        """Offset of the tile's first row at position 0 of ``axis``, and from one row to the next."""
        step = slope(offset, self.inner)
        printer = CppPrinter(self.program.flat_inputs)
        rest = without(offset, (axis, self.inner))
        texts = [inline(rest, printer), f"first * int64_t({step})"]
        return " + ".join(texts), f"int64_t({step})"

    # --- sweeps ---

    def _sweep(self, steps: Sequence[ProgramStep], axis: str) -> list[str]:
        """One pass over an axis, block by block."""
        extent = self.program.axes[axis]
        block = min(self.plan.block, -(-extent // 64) * 64)
        before = self._invariants(steps, axis)
        tiles = self._block_tiles(steps, axis, block)
        keeps = self._keeps(steps, axis)
        printer = self.printer()
        printer.name(ex.var(axis, extent), axis)
        writes = [f"{self.at(name, axis)} = {self.value(printer, expr)};" for expr, name in keeps.items()]
        for expr, name in keeps.items():
            self.keeps[expr] = ex.var(name, None, expr.dtype)
            self.tiles[name] = CPP_TYPES[expr.dtype], f"({name} + c0{' * L' if self.plan.lanes else ''})"
        made = [step_for(self, step, axis, block) for step in steps]
        for expr in keeps:
            del self.keeps[expr]
        puts = [line for step in made for line in step.put(self, printer)]
        lines = [*before, *(line for step in made for line in step.declares), *(tile.declared for tile in tiles)]
        lines += [self.array(CPP_TYPES[expr.dtype], name, -(-extent // 64) * 64) for expr, name in keeps.items()]
        lines += [f"for (int64_t c0 = 0; c0 < {extent}; c0 += {block}) {{"]
        lines += [f"const int64_t n = std::min<int64_t>({block}, {extent} - c0);"]
        lines += [line for tile in tiles for line in tile.loaded]
        evaluated = [*printer.lines, *writes, *puts]
        sums = [name for step in made for name in step.sums]
        lines += self.over(axis, "c0", "c0 + n", evaluated, sums) if writes or puts else []
        lines += [line for step in made for line in step.folds]
        lines += ["}", *(line for step in made for line in step.finish)]
        for tile in tiles:
            del self.cells[tile.load]
        for expr, name in keeps.items():
            self.keeps[expr] = ex.var(name, None, expr.dtype)
            self.texts[name] = self.at(name, axis)
        return lines

    def _invariants(self, steps: Sequence[ProgramStep], axis: str) -> list[str]:
        """With rows in lanes a compiler does not see what is the same all along the axis: that is computed before."""
        lines: list[str] = []
        found: dict[Expr, None] = {}
        for step in steps if self.plan.lanes else ():
            found |= dict.fromkeys(_invariant_parts(_value(step), axis, self.texts.keys()))
        for expr in found:
            name, printer = self.fresh("h"), self.printer()
            text = self.value(printer, expr)
            put = f"{self.scalar_at(name)} = {text};"
            lines += [self.scalar(CPP_TYPES[expr.dtype], name), *self.over_lanes([*printer.lines, put])]
            self.cells[expr] = ex.var(name, None, expr.dtype)
            self.define_scalar(name)
        return lines

    def _block_tiles(self, steps: Sequence[ProgramStep], axis: str, block: int) -> list[_BlockTile]:
        """Inputs too large to be kept transposed: their blocks, transposed anew in every sweep."""
        if axis != COLUMNS or self.plan.lanes < 2:
            return []
        tiles = []
        for load in {part: None for step in steps for part in ex.loads(_value(step))}:
            if load not in self.cells and self._is_transposed(load):
                name = self.fresh("x")
                self.cells[load] = ex.var(name, None, load.dtype)
                self.texts[name] = self.at(name, f"{COLUMNS} - c0")
                self.tiles[name] = CPP_TYPES[load.dtype], name
                declared = self.array(CPP_TYPES[load.dtype], name, block)
                tiles.append(_BlockTile(load, declared, self._load_tile(load, name, "c0", "n")))
        return tiles

    def _keeps(self, steps: Sequence[ProgramStep], axis: str) -> dict[Expr, str]:
        """Values of this sweep that a later one needs again, with the names they are kept under."""
        if axis != COLUMNS:
            return {}
        later = set(self.joined.values())
        values = [_value(step) for step in steps if step not in later]
        present = {part for value in values for part in ex.walk(self.known(value))}
        return {expr: name for expr, name in self.kept.items() if expr in present and expr not in self.keeps}

    # --- short axes and scalars ---

    def _after(self, step: ProgramStep) -> list[str]:
        if isinstance(step, Element):
            held = self.texts[step.source.value[0]]
            axis = self.program.axis_of(step.source)
            index = f"{axis} * L + l" if self.plan.lanes else f"[{axis}]"
            fixed = f"{step.position} * L + l" if self.plan.lanes else f"[{step.position}]"
            self.texts[step.result.value[0]] = held.replace(index, fixed)
            return []
        if isinstance(step, Select) or (isinstance(step, Reduce) and self.program.axes[step.axis] >= _LONG_AXIS):
            return self._sweep([step], step.axis)
        if isinstance(step, ColumnSum):
            raise EmissionError("a sum by column of numbers of the row")
        return self._reduce_short(step) if isinstance(step, Reduce) else self._store_short(step)

    def _reduce_short(self, step: Reduce) -> list[str]:
        name, kind = step.result.value[0], CPP_TYPES[step.result.dtype]
        extent = self.program.axes[step.axis]
        printer = self.printer()
        printer.name(ex.var(step.axis, extent), step.axis)
        value = self.value(printer, step.value)
        self.define_scalar(name)
        target = self.texts[name]
        combine = {"sum": f"{target} += {value};", "amax": f"{target} = kv_max({target}, {value});",
                   "amin": f"{target} = kv_min({target}, {value});"}[step.op]  # fmt: skip
        first = f"{step.axis} == 0 ? {value} : "
        if step.op != "sum":
            combine = combine.replace("= ", f"= {first}", 1)
        start = self.over_lanes([f"{target} = 0;"])
        return [self.scalar(kind, name), *start, *self.over(step.axis, "0", str(extent), [*printer.lines, combine])]

    def _store_short(self, step: Store) -> list[str]:
        """Results per row; positions innermost where they are neighbours in memory, else rows."""
        printer = self.printer()
        spec = self.program.outputs[step.output]
        if step.axis is None:
            value = self.value(printer, step.value)
            put = f"out{step.output}[{self.value(printer, step.offset)}] = {to_storage(value, spec.dtype)};"
            return self.over_lanes([*printer.lines, put])
        extent = self.program.axes[step.axis]
        printer.name(ex.var(step.axis, extent), step.axis)
        if self.plan.lanes > 1 and extent >= 8 and self.is_transposed_store(step):
            return self._sweep([step], step.axis)
        value = self.value(printer, step.value)
        put = f"out{step.output}[{self.value(printer, step.offset)}] = {to_storage(value, spec.dtype)};"
        if self.plan.lanes and slope(step.offset, step.axis) == 1:
            loop = f"for (int64_t {step.axis} = 0; {step.axis} < {extent}; ++{step.axis}) {{"
            return ["for (int l = 0; l < L; ++l) {", loop, *printer.lines, put, "}", "}"]
        return self.over(step.axis, "0", str(extent), [*printer.lines, put])

    def is_transposed_store(self, step: Store) -> bool:
        assert step.axis is not None
        return slope(step.offset, step.axis) == 1 and slope(step.offset, self.inner) not in (None, 0, 1)

    def store_tile(self, step: Store, tile: str, begin: str, count: str) -> list[str]:
        assert step.axis is not None
        base, row_step = self._base(step.offset, step.axis)
        spec = self.program.outputs[step.output]
        target = f"out{step.output} + ({base}) + {begin}"
        return [f"kv_store_tile<L, {converter(spec.dtype, step.value.dtype)}>({target}, {tile}, {row_step}, {count});"]


def _loads(steps: Sequence[Pass]) -> list[Expr]:
    """Loads of the sweeps over the columns, in order."""
    return list({part: None for one in steps for step in one.sweep for part in ex.loads(_value(step))})


def _invariant_parts(expr: Expr, axis: str, known: Collection[str]) -> list[Expr]:
    """The largest computed parts of ``expr`` that are made of ``known`` scalars alone."""
    scalars, found = set(known), list[Expr]()
    seen, stack = {expr}, [expr]
    while stack:
        part = stack.pop()
        variables = ex.variables(part)
        fixed = bool(variables) and axis not in variables and variables <= scalars and not ex.loads(part)
        if fixed and part.op != "var" and part.dtype in ("float32", "float64"):
            found.append(part)
        else:
            fresh = dict.fromkeys(argument for argument in part.args if argument not in seen)
            seen.update(fresh)
            stack += fresh
    return found


def _value(step: ProgramStep) -> Expr:
    return step.source if isinstance(step, Element) else step.value
