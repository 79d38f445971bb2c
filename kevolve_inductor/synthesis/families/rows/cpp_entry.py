"""The function that a C++ row program is called by: its rows, or tiles of rows, shared among threads."""

from __future__ import annotations

from ....graph.dims import Dim, product
from ...expression.cpp import signature
from .cpp_columns import CppColumns
from .cpp_plan import Plan
from .program import RowProgram


def entry_of(
    program: RowProgram, plan: Plan, rows: tuple[tuple[str, Dim], ...], columns: CppColumns | None
) -> list[str]:
    outer, step = (rows[:-1], plan.lanes) if plan.lanes else (rows, 1)
    inner = rows[-1][1] if plan.lanes else 1
    total = product(tuple(extent for _, extent in outer))
    outputs = (*program.outputs, *(columns.specs if columns else ()))
    head = signature("kevolve_kernel", program.inputs, outputs, program.symbols)
    lines = [f"{head} {{", f"const int64_t inner = {inner}, tiles = std::max<int64_t>(inner / {step}, inner > 0);"]
    lines += [f"const int64_t count = int64_t({total}) * tiles;", "int64_t failed = 0;"]
    body = _item(program, plan, outer)
    streamed = ["kv_streamed();"] if plan.streamed else []
    if columns:
        lines += [*columns.rows("count", body, streamed), *columns.totals()]
    else:
        lines += [f"#pragma omp parallel reduction(|:failed) if(count >= {plan.parallel_from})", "{"]
        lines += [f"#pragma omp for schedule({plan.order}) nowait"]
        lines += ["for (int64_t item = 0; item < count; ++item) {", *body, "}", *streamed, "}"]
    return [*lines, "return failed != 0;", "}"]


def _item(program: RowProgram, plan: Plan, outer: tuple[tuple[str, Dim], ...]) -> list[str]:
    """The call for one row or one tile of rows; fewer rows than a tile has go one by one.

    What is left over is done with the last tile, as one more that ends where the rows do: some rows are computed twice.
    """
    names = [f"in{k}" for k in range(len(program.inputs))] + [f"out{k}" for k in range(len(program.outputs))]
    names += [f"col{k}" for k in range(len(program.column_sums))] + list(program.symbols)
    arguments = ", ".join([*names, *(name for name, _ in outer)])
    lines = []
    rest = "(item / tiles)" if plan.lanes else "item"
    for name, extent in reversed(outer):
        lines += [f"const int64_t {name} = {rest} % ({extent}), rest_{name} = {rest} / ({extent});"]
        rest = f"rest_{name}"
    if not plan.lanes:
        return [*lines, f"failed |= kv_rows({arguments});"]
    step = plan.lanes
    return [
        *lines,
        f"if (inner < {step}) {{",
        f"for (int64_t one = 0; one < inner; ++one) failed |= kv_rows<1>({arguments}, one);",
        "} else {",
        f"const int64_t tile = item % tiles, end = tile + 1 < tiles ? (tile + 1) * {step} : inner;",
        f"for (int64_t first = tile * {step}; first < end; first += {step})",
        f"failed |= kv_rows<{step}>({arguments}, std::min<int64_t>(first, inner - {step}));",
        "}",
    ]
