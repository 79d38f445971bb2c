"""Loads that are under way a turn of a loop before they are needed: their values go from one turn to the next.

Triton itself loads ahead only what ends in a product, and only if a thread's share is four bytes or more.
"""

from __future__ import annotations

from collections.abc import Iterable

from ...expression import expression as ex
from ...expression.access import replace_variables
from ...expression.expression import Expr
from .plan import SAMPLE
from .printing import Scope

# The names of coordinates in the first turn of a loop, and in the one after the turn at hand.
FIRST, NEXT = "_first", "_next"
ROWS = ("p_rows", "q_rows")


def direct_reads(value: Expr) -> Iterable[Expr]:
    """The reads of a value at places that do not depend on other reads."""
    reads = [part for part in ex.walk(value) if part.op == "read"]
    return [read for read in reads if sum(part.op == "read" for part in ex.walk(read)) == 1]


def load_ahead(read: Expr, loop: Scope, scope: Scope, masks: dict[str, str], height: int) -> None:
    """Loads ``read`` for the first turn before ``loop`` and then, in each, for the next one. ``scope`` lies within it."""
    before = loop.parent
    assert before is not None
    names = ex.variables(read)
    moved = sorted(
        names & (loop.moving if loop.is_unit else {name for name in names if name[1:] == f"_{_start(loop)}"})
    )
    turns = {}
    for suffix, home in ((FIRST, before), (NEXT, loop)):
        for name in moved:
            _declare(name, suffix, home, loop, masks, height)
        mapping = {name: ex.var(f"{name}{suffix}", None) for name in moved}
        turns[suffix] = home.printer.load(replace_variables(read, mapping))
    carried = f"ahead{len(loop.carried)}"
    loop.carried.append(carried)
    before.lines.append(f"{carried} = {turns[FIRST]}")
    loop.printer.loads(read, carried)
    loop.lines.append(f"{carried} = {turns[NEXT]}")
    if scope is not loop:
        scope.printer.adopt(read, loop.printer)


def _start(loop: Scope) -> str:
    assert loop.sweep is not None
    return loop.sweep[0]


def _declare(name: str, suffix: str, home: Scope, loop: Scope, masks: dict[str, str], height: int) -> None:
    """Declares the coordinate ``name`` of another turn; the turn after the last one loads nothing."""
    new = f"{name}{suffix}"
    if home.declares(new):
        return
    home.declared.add(new)
    conditions = []
    if name != SAMPLE:
        place = "[:, None]" if name[0] == "p" else "[None, :]"
        if loop.is_unit:
            home.lines.append(f"{new} = (start{suffix} + tl.arange(0, {height})){place}")
        else:
            start, _, block = loop.sweep or ("", 0, 0)
            lead = f"{start} + {block} + " if suffix == NEXT else ""
            home.lines.append(f"{new} = ({lead}tl.arange(0, {block})){place}")
        if name in masks:
            conditions.append(masks[name].replace(f"({name} <", f"({new} <"))
    if suffix == NEXT:
        conditions.append("more" if loop.is_unit else f"({_start(loop)} < {loop.sweep[1] - loop.sweep[2]})")  # type: ignore[index]
    if conditions:
        masks[new] = " & ".join(conditions)
