"""What the texts of Triton kernels of scatters share whose programs take tiles of events, or of rows, by elements."""

from __future__ import annotations

from collections.abc import Sequence

from ...expression import TRITON_PRELUDE
from ...expression.remainder import TRITON_REMAINDER
from ...expression.triton import used_helpers
from ...family import Schedule
from ..bags.checks import BagPrinter
from ..triton_tiles import needs_64_bits
from .plan import ScatterPlan
from .tiles import elements_of


class TileText:
    """``given`` names what says of an event which row it is of, ``names`` all that a launch gets, workspaces last."""

    def __init__(self, plan: ScatterPlan, schedule: Schedule, *workspaces: str) -> None:
        self.plan, self.scatter, self.warps = plan, plan.scatter, int(schedule["num_warps"])
        self.elements = elements_of(self.scatter)
        self.is_wide = needs_64_bits((*plan.inputs, *plan.outputs))
        inputs = [f"in{k}" for k in range(len(plan.inputs))]
        self.given = [*inputs, *plan.symbols]
        self.names = [*inputs, "out0", *plan.symbols, *workspaces]

    @staticmethod
    def source(*functions: str) -> str:
        code = "\n\n".join(functions)
        return f"{used_helpers(TRITON_PRELUDE + TRITON_REMAINDER, code)}\n\n{code}\n"

    def function(self, name: str, lines: Sequence[str], names: Sequence[str] | None = None) -> str:
        return "\n    ".join([f"@triton.jit\ndef {name}({', '.join(names or self.names)}):", *lines])

    def row_of(self, event: str, function: str = "kevolve_row") -> str:
        return f"{function}({', '.join([event, *self.given])})"

    def printer(self, axis: str, mask: str, inner_mask: str = "place_mask", prefix: str = "t") -> BagPrinter:
        return BagPrinter({axis: mask, **{name: inner_mask for name, _ in self.scatter.inner}}, {}, prefix)
