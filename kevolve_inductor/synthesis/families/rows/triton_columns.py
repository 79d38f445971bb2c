"""Sums over all rows in Triton: persistent programs leave partial sums in workspaces, a second launch adds them up."""

from __future__ import annotations

from ....graph.dims import Dim
from ....kernel import Argument, Launch, Workspace
from ...expression.triton import TRITON_TYPES
from ..triton_tiles import next_power_of_2
from .program import COLUMNS, RowProgram
from .triton_space import Space

_FUNCTION = "column_totals"
# A tile of partial sums: enough columns for whole sectors of memory, few enough for a program or two on every unit.
_BLOCK = 16
# All programs' sums are read at once, as far as registers hold them: one after another each would take as long as all.
_MOST_PARTS = 512
_THREADS = 512


class ColumnTotals:
    """Prints the second launch of ``program``, whose first one is made of ``programs`` programs.

    Workspace ``k`` holds what every program has of column sum ``k``, ``[programs, columns]``.
    """

    def __init__(self, program: RowProgram, programs: Dim) -> None:
        self.program, self.programs = program, programs
        self.names = [f"part{k}" for k in range(len(program.column_sums))]
        most = next_power_of_2(programs) if isinstance(programs, int) else _MOST_PARTS
        self.parts = min(_MOST_PARTS, most)

    @property
    def workspaces(self) -> tuple[Workspace, ...]:
        numel = f"({self.programs}) * {self.program.columns}"
        return tuple(Workspace(one.result.dtype, numel) for one in self.program.column_sums)

    def launch(self, arguments: tuple[Argument, ...]) -> Launch:
        blocks = -(-self.program.columns // _BLOCK)
        warps = max(1, min(_THREADS, self.parts * _BLOCK // 4) // 32)
        return Launch(_FUNCTION, arguments, (str(blocks),), num_warps=warps, num_stages=1)

    def function(self) -> str:
        program = self.program
        names = [f"in{k}" for k in range(len(program.inputs))] + [f"out{k}" for k in range(len(program.outputs))]
        head = f"@triton.jit\ndef {_FUNCTION}({', '.join([*names, *self.names, *program.symbols])}):"
        mask = f"{COLUMNS} < {program.columns}" if program.columns % _BLOCK else ""
        lines = [f"{COLUMNS} = tl.program_id(0) * {_BLOCK} + tl.arange(0, {_BLOCK})"]
        lines += self._totals(mask)
        sums = {str(one.result.value[0]): str(one.result.value[0]) for one in program.column_sums}
        space = Space(program, COLUMNS, f"[{_BLOCK}]", "", COLUMNS, "", mask, {**sums, COLUMNS: COLUMNS})
        printer = space.printer("t")
        guard = f", mask={mask}" if mask else ""
        for store in program.column_stores:
            value, offset = space.spread(printer.value(store.value), store.value), printer.value(store.offset)
            lines += [*printer.lines, f"tl.store(out{store.output} + ({offset}), {value}{guard})"]
            printer.lines.clear()
        return "\n".join([head, *(f"    {line}" for line in lines)])

    def _totals(self, mask: str) -> list[str]:
        """All sums are read before the first is added up, for which threads wait for each other."""
        kinds = [TRITON_TYPES[one.result.dtype] for one in self.program.column_sums]
        results = [one.result.value[0] for one in self.program.column_sums]
        within = f"(which < {self.programs})" + (f" & ({mask})" if mask else "")
        names = [f"total{k}" for k in range(len(self.names))]
        reads = [
            f"tl.load({part} + which * {self.program.columns} + {COLUMNS}, mask={within}, other=0)"
            for part in self.names
        ]
        if isinstance(self.programs, int) and self.programs <= self.parts:
            lines = [f"which = tl.arange(0, {self.parts})[:, None]"]
            lines += [f"{name} = {read}" for name, read in zip(names, reads, strict=True)]
        else:
            lines = [
                f"{name} = tl.zeros([{self.parts}, {_BLOCK}], {kind})" for name, kind in zip(names, kinds, strict=True)
            ]
            lines += [f"for start in range(0, {self.programs}, {self.parts}):"]
            lines += [f"    which = (start + tl.arange(0, {self.parts}))[:, None]"]
            lines += [f"    {name} += {read}" for name, read in zip(names, reads, strict=True)]
        return [*lines, *(f"{result} = tl.sum({name}, 0)" for result, name in zip(results, names, strict=True))]
