"""What Triton kernels of scatters ask of an event: the row that it belongs to."""

from __future__ import annotations

from collections.abc import Sequence

from ....graph.dims import Dim
from ..row_printers import TritonRowPrinter
from .plan import EVENT, Scatter

# Events and rows are numbered in 32 bits, with room for those of a block.
MOST_NUMBERED = 2**31 - 2**20


def row_function(scatter: Scatter, names: Sequence[str], name: str = "kevolve_row", *, checks: bool = True) -> str:
    """``name``: the row of each event, -1 where there is none. Launches behind one that ``checks`` need not again."""
    printer = TritonRowPrinter({EVENT: "event_mask"}, {})
    text = "0"
    for place, size in zip(scatter.places, scatter.rows, strict=True):
        text = f"({text} * {size} + {printer.value(place)})" if text != "0" else printer.value(place)
    mask = "event_mask" if scatter.condition is None else f"event_mask & {printer.value(scatter.condition)}"
    lines = [line for line in printer.lines if checks or not line.startswith("tl.device_assert(")]
    lines = [f"event_mask = {EVENT} < {scatter.events}", *lines, f"return tl.where({mask}, {text}, -1).to(tl.int32)"]
    return "\n    ".join([f"@triton.jit\ndef {name}({', '.join([EVENT, *names])}):", *lines])


def size_checks(*sizes: Dim) -> str:
    """Sizes that are not known now may be larger than what numbers them."""
    unknown = [f"({size} < {MOST_NUMBERED})" for size in sizes if not isinstance(size, int)]
    return f'    tl.device_assert({" & ".join(unknown)}, "too many events or rows")\n' if unknown else ""


def in_brackets(size: Dim) -> str:
    """A size as it may stand within a larger expression."""
    return str(size) if isinstance(size, int) or size.isidentifier() else f"({size})"
