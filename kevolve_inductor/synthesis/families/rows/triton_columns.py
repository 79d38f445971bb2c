"""Sums over all rows in Triton: persistent programs leave partial sums in workspaces, a second launch adds them up."""

from __future__ import annotations

from ....graph.dims import Dim
from ....kernel import Argument, Launch, Workspace
from ...expression.triton import TRITON_TYPES
from .program import COLUMNS, RowProgram
from .triton_space import Space

_FUNCTION = "column_totals"
# A tile of partial sums: enough columns for whole sectors of memory, few enough for a program on every unit.
_BLOCK = 32
_PARTS = 64


class ColumnTotals:
    """Prints the second launch of ``program``, whose first one is made of ``programs`` programs.

    Workspace ``k`` holds what every program has of column sum ``k``, ``[programs, columns]``.
    """

    def __init__(self, program: RowProgram, programs: Dim) -> None:
        self.program, self.programs = program, programs
        self.names = [f"part{k}" for k in range(len(program.column_sums))]

    @property
    def workspaces(self) -> tuple[Workspace, ...]:
        numel = f"({self.programs}) * {self.program.columns}"
        return tuple(Workspace(one.result.dtype, numel) for one in self.program.column_sums)

    def with_workspaces(self, arguments: tuple[Argument, ...]) -> tuple[Argument, ...]:
        """Of either launch: workspaces stand between outputs and sizes."""
        tensors = tuple(one for one in arguments if one.kind != "size")
        parts = tuple(Argument("workspace", k) for k in range(len(self.names)))
        return (*tensors, *parts, *(one for one in arguments if one.kind == "size"))

    def launch(self, arguments: tuple[Argument, ...]) -> Launch:
        blocks = -(-self.program.columns // _BLOCK)
        return Launch(_FUNCTION, arguments, (str(blocks),), num_warps=4, num_stages=1)

    def function(self) -> str:
        program = self.program
        names = [f"in{k}" for k in range(len(program.inputs))] + [f"out{k}" for k in range(len(program.outputs))]
        head = f"@triton.jit\ndef {_FUNCTION}({', '.join([*names, *self.names, *program.symbols])}):"
        mask = f"{COLUMNS} < {program.columns}" if program.columns % _BLOCK else ""
        lines = [f"{COLUMNS} = tl.program_id(0) * {_BLOCK} + tl.arange(0, {_BLOCK})"]
        for one, name in zip(program.column_sums, self.names, strict=True):
            lines += self._total(str(one.result.value[0]), name, TRITON_TYPES[one.result.dtype], mask)
        sums = {str(one.result.value[0]): str(one.result.value[0]) for one in program.column_sums}
        space = Space(program, COLUMNS, f"[{_BLOCK}]", "", COLUMNS, "", mask, {**sums, COLUMNS: COLUMNS})
        printer = space.printer("t")
        guard = f", mask={mask}" if mask else ""
        for store in program.column_stores:
            value, offset = space.spread(printer.value(store.value), store.value), printer.value(store.offset)
            lines += [*printer.lines, f"tl.store(out{store.output} + ({offset}), {value}{guard})"]
            printer.lines.clear()
        return "\n".join([head, *(f"    {line}" for line in lines)])

    def _total(self, result: str, part: str, kind: str, mask: str) -> list[str]:
        within = f"(which < {self.programs})" + (f" & ({mask})" if mask else "")
        return [
            f"total = tl.zeros([{_PARTS}, {_BLOCK}], {kind})",
            f"for start in range(0, {self.programs}, {_PARTS}):",
            f"    which = (start + tl.arange(0, {_PARTS}))[:, None]",
            f"    total += tl.load({part} + which * {self.program.columns} + {COLUMNS}, mask={within}, other=0)",
            f"{result} = tl.sum(total, 0)",
        ]
