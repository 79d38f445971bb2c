"""Scans as Triton: one launch that goes along whole lines, or two where lines are cut into parts."""

from __future__ import annotations

from ....exc import EmissionError
from ....kernel import Argument, Kernel, Launch, Workspace
from ...expression import TRITON_PRELUDE
from ...expression.remainder import TRITON_REMAINDER
from ...expression.triton import used_helpers
from ...family import Schedule
from ..triton_tiles import cdiv
from .plan import ScanPlan
from .triton_columns import ColumnText
from .triton_joins import HELPERS
from .triton_rows import RowText
from .triton_text import ScanText

_WARP, _MOST_WARPS = 32, 32


def kernel_of(plan: ScanPlan, arguments: tuple[Argument, ...], schedule: Schedule) -> Kernel:
    """Raises ``EmissionError`` where a tile has more threads than a program may have, or fewer than it is to have."""
    parts = int(schedule["parts"])
    text: ScanText
    if plan.task.lane is None:
        lines, warps, block = int(schedule["lines"]), int(schedule["num_warps"]), int(schedule["block"])
        steps = int(schedule.get("steps", 0))
        if steps and block * lines < steps * warps * _WARP:
            raise EmissionError(f"{warps} warps have more threads than {lines} times {block // steps} pieces")
        text = ColumnText(plan, lines, block // steps, steps, parts) if steps else RowText(plan, lines, block, parts)
    else:
        lines, pieces = int(schedule["lanes"]), int(schedule["pieces"])
        warps = max(1, lines * pieces // (int(schedule["vector"]) * _WARP))
        text = ColumnText(plan, lines, pieces, int(schedule["steps"]), parts)
    if warps > _MOST_WARPS:
        raise EmissionError(f"{warps} warps of a program")
    return _assembled(text, arguments, lines, warps)


def _assembled(text: ScanText, arguments: tuple[Argument, ...], lines: int, warps: int) -> Kernel:
    blocks = cdiv(text.count, lines)
    grid = (f"({blocks}) * {text.parts}" if text.parts > 1 else str(blocks),)
    given = (*arguments, *(Argument("workspace", k) for k in range(len(text.totals))))
    names = ["kevolve_kernel"] if text.parts == 1 else ["kevolve_totals", "kevolve_kernel"]
    functions = [text.function(name, only_totals=name == "kevolve_totals") for name in names]
    launches = tuple(Launch(name, given, grid=grid, num_warps=warps) for name in names)
    workspaces = (
        tuple(Workspace(dtype, f"({text.count}) * {text.parts}") for dtype in text.joins.dtypes) if text.totals else ()
    )
    code = "\n\n".join(functions)
    if "kv_join_both" in code:
        code = f"{text.joins.both()}\n\n{code}"
    helpers = used_helpers(TRITON_PRELUDE + TRITON_REMAINDER + HELPERS, code)
    return Kernel("triton", f"{helpers}\n\n{code}\n", launches, workspaces)
