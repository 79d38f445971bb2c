"""Sums over all rows in C++: every part of the rows adds up its own, and the parts are added in order."""

from __future__ import annotations

from collections.abc import Sequence

from ....graph.dims import Dim, product
from ....graph.region import TensorSpec
from ....kernel import Workspace
from ...expression import CppPrinter
from ...expression import expression as ex
from ...expression.cpp import CPP_TYPES, to_storage
from .program import COLUMNS, RowProgram

# Parts do not depend on the number of threads, so neither do results.
_LEAST_PARTS, _MOST_PARTS = 64, 512
_ROWS_OF_PART = 1024
# So many rows are added up in float32, then in double: eager adds up in a tree, which loses as little.
_ROWS_AT_ONCE = 16
_BLOCK = 128


class CppColumns:
    """Prints what a program with sums over all rows needs besides the loop over rows.

    Workspace ``k`` holds column sum ``k`` of every part, ``[parts, columns]``; to the kernel it is one more output. Sums
    in float32 have another workspace each, behind all of these, for the rows at hand.
    """

    def __init__(self, program: RowProgram) -> None:
        self.program = program
        dtypes = [one.result.dtype for one in program.column_sums]
        self.near = [k for k, dtype in enumerate(dtypes) if dtype == "float32"]
        self.dtypes = ["float64" if k in self.near else dtype for k, dtype in enumerate(dtypes)]
        self.dtypes += ["float32" for _ in self.near]
        self.names = [f"out{len(program.outputs) + k}" for k in range(len(self.dtypes))]
        self.kinds = [CPP_TYPES[dtype] for dtype in self.dtypes]
        rows: Dim = product(tuple(extent for _, extent in program.rows))
        wanted = rows // _ROWS_OF_PART if isinstance(rows, int) else 0
        self.parts = min(max(wanted, _LEAST_PARTS), _MOST_PARTS)

    @property
    def workspaces(self) -> tuple[Workspace, ...]:
        numel = str(self.parts * self.program.columns)
        return tuple(Workspace(dtype, numel) for dtype in self.dtypes)

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec((1,), (1,), dtype, "cpu") for dtype in self.dtypes)

    @property
    def parameters(self) -> list[str]:
        """Of the function that computes one row: where it adds what it has."""
        return [f"{CPP_TYPES[one.result.dtype]}* __restrict col{k}" for k, one in enumerate(self.program.column_sums)]

    def rows(self, count: str, body: Sequence[str], after: Sequence[str]) -> list[str]:
        """The loop over all ``count`` rows, whose ``body`` sees its row as ``item``; ``after`` follows those of a part."""
        columns, sums = self.program.columns, len(self.program.column_sums)
        lines = ["#pragma omp parallel for reduction(|:failed) schedule(static)"]
        lines += [f"for (int64_t part = 0; part < {self.parts}; ++part) {{"]
        targets = [f"far{k}" if k in self.near else f"col{k}" for k in range(sums)]
        targets += [f"col{k}" for k in self.near]
        for target, name, kind in zip(targets, self.names, self.kinds, strict=True):
            lines.append(f"{kind}* __restrict {target} = {name} + part * {columns};")
        lines += [f"std::fill_n({targets[k]}, {columns}, {self.kinds[k]}(0));" for k in range(sums)]
        begin, end = (f"{count} * {at} / {self.parts}" for at in ("part", "(part + 1)"))
        lines += [
            f"const int64_t end = {end};",
            f"for (int64_t begin = {begin}; begin < end; begin += {_ROWS_AT_ONCE}) {{",
        ]
        lines += [f"std::fill_n(col{k}, {columns}, 0.0f);" for k in self.near]
        lines += [f"for (int64_t item = begin; item < std::min<int64_t>(begin + {_ROWS_AT_ONCE}, end); ++item) {{"]
        lines += [*body, "}"]
        lines += [f"for (int64_t i = 0; i < {columns}; ++i) far{k}[i] += col{k}[i];" for k in self.near]
        return [*lines, "}", *after, "}"]

    def totals(self) -> list[str]:
        """What follows when all rows are done."""
        program = self.program
        printer = CppPrinter(program.flat_inputs)
        lines = ["#pragma omp parallel for reduction(|:failed) schedule(static)"]
        lines += [f"for (int64_t c0 = 0; c0 < {program.columns}; c0 += {_BLOCK}) {{", "int64_t bad = 0;"]
        lines += [f"const int64_t n = std::min<int64_t>({_BLOCK}, {program.columns} - c0);"]
        for k, one in enumerate(program.column_sums):
            name, kind = self.names[k], self.kinds[k]
            lines += [f"alignas(64) {kind} sum{k}[{_BLOCK}] = {{}};"]
            lines += [f"for (int64_t part = 0; part < {self.parts}; ++part)"]
            lines += [f"for (int64_t i = 0; i < n; ++i) sum{k}[i] += {name}[part * {program.columns} + c0 + i];"]
            printer.name(one.result, f"{CPP_TYPES[one.result.dtype]}(sum{k}[{COLUMNS} - c0])")
        printer.name(ex.var(COLUMNS, program.columns), COLUMNS)
        puts = []
        for store in program.column_stores:
            value = to_storage(printer.value(store.value), program.outputs[store.output].dtype)
            puts.append(f"out{store.output}[{printer.value(store.offset)}] = {value};")
        loop = f"for (int64_t {COLUMNS} = c0; {COLUMNS} < c0 + n; ++{COLUMNS}) {{"
        return [*lines, loop, *printer.lines, *puts, "}", "failed |= bad;", "}"]
