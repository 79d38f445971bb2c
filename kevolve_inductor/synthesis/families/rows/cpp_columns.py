"""Sums over all rows in C++: every part of the rows adds up its own, and the parts are added in order."""

from __future__ import annotations

from collections.abc import Sequence

from ....graph.dims import Dim, product
from ....graph.region import TensorSpec
from ....kernel import Argument, Workspace
from ...expression import CppPrinter
from ...expression import expression as ex
from ...expression.cpp import CPP_TYPES, to_storage
from .program import COLUMNS, RowProgram

# Parts do not depend on the number of threads, so neither do results. A part is short enough for sums in float32.
_LEAST_PARTS, _MOST_PARTS = 64, 512
_ROWS_OF_PART = 1024
_BLOCK = 128


class CppColumns:
    """Prints what a program with sums over all rows needs besides the loop over rows.

    Workspace ``k`` holds column sum ``k`` of every part, ``[parts, columns]``; to the kernel it is one more output.
    """

    def __init__(self, program: RowProgram) -> None:
        self.program = program
        self.names = [f"out{len(program.outputs) + k}" for k in range(len(program.column_sums))]
        self.kinds = [CPP_TYPES[one.result.dtype] for one in program.column_sums]
        rows: Dim = product(tuple(extent for _, extent in program.rows))
        wanted = rows // _ROWS_OF_PART if isinstance(rows, int) else 0
        self.parts = min(max(wanted, _LEAST_PARTS), _MOST_PARTS)

    @property
    def workspaces(self) -> tuple[Workspace, ...]:
        numel = str(self.parts * self.program.columns)
        return tuple(Workspace(one.result.dtype, numel) for one in self.program.column_sums)

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec((1,), (1,), one.result.dtype, "cpu") for one in self.program.column_sums)

    @property
    def parameters(self) -> list[str]:
        """Of the function that computes one row: the sums of the part it belongs to."""
        return [f"{kind}* __restrict a{k}" for k, kind in enumerate(self.kinds)]

    def with_workspaces(self, arguments: tuple[Argument, ...]) -> tuple[Argument, ...]:
        tensors = tuple(one for one in arguments if one.kind != "size")
        parts = tuple(Argument("workspace", k) for k in range(len(self.names)))
        return (*tensors, *parts, *(one for one in arguments if one.kind == "size"))

    def rows(self, count: str, body: Sequence[str]) -> list[str]:
        """The loop over all ``count`` rows, whose ``body`` sees its row as ``item``."""
        columns = self.program.columns
        lines = ["#pragma omp parallel for reduction(|:failed) schedule(static)"]
        lines += [f"for (int64_t part = 0; part < {self.parts}; ++part) {{"]
        for k, (name, kind) in enumerate(zip(self.names, self.kinds, strict=True)):
            lines += [f"{kind}* __restrict a{k} = {name} + part * {columns};"]
            lines += [f"std::fill_n(a{k}, {columns}, {kind}(0));"]
        begin, end = (f"{count} * {at} / {self.parts}" for at in ("part", "(part + 1)"))
        return [*lines, f"for (int64_t item = {begin}; item < {end}; ++item) {{", *body, "}", "}"]

    def totals(self) -> list[str]:
        """What follows when all rows are done."""
        program = self.program
        printer = CppPrinter(program.flat_inputs)
        lines = ["#pragma omp parallel for reduction(|:failed) schedule(static)"]
        lines += [f"for (int64_t c0 = 0; c0 < {program.columns}; c0 += {_BLOCK}) {{", "int64_t bad = 0;"]
        lines += [f"const int64_t n = std::min<int64_t>({_BLOCK}, {program.columns} - c0);"]
        for k, (one, name, kind) in enumerate(zip(program.column_sums, self.names, self.kinds, strict=True)):
            lines += [f"alignas(64) {kind} sum{k}[{_BLOCK}] = {{}};"]
            lines += [f"for (int64_t part = 0; part < {self.parts}; ++part)"]
            lines += [f"for (int64_t i = 0; i < n; ++i) sum{k}[i] += {name}[part * {program.columns} + c0 + i];"]
            printer.name(one.result, f"sum{k}[{COLUMNS} - c0]")
        printer.name(ex.var(COLUMNS, program.columns), COLUMNS)
        puts = []
        for store in program.column_stores:
            value = to_storage(printer.value(store.value), program.outputs[store.output].dtype)
            puts.append(f"out{store.output}[{printer.value(store.offset)}] = {value};")
        loop = f"for (int64_t {COLUMNS} = c0; {COLUMNS} < c0 + n; ++{COLUMNS}) {{"
        return [*lines, loop, *printer.lines, *puts, "}", "failed |= bad;", "}"]
