"""In which order a program computes a plan: what it holds, and what it computes anew, block by block, in each sweep.

A *wide* value has too many columns to be held. It is never written either: a sweep walks over blocks of its columns and
computes them from what is held and what is loaded. Products and reductions over wide values are summed up in a sweep;
a value that needs such sums belongs to the next one.
"""

from __future__ import annotations

from dataclasses import dataclass

from ....exc import UnsupportedError
from .plan import ChainPlan, Dot, Pool, Reduce, Regrouped, Step, Store, Tile

# Columns that a program can hold of a value: with 64 rows in float32, a quarter of the registers.
WIDEST_HELD = 256
# Of a tall product that is only stored, a block at a time is enough.
_WIDEST_STORED = 64
_MOST_SWEEPS = 6


class WideError(UnsupportedError):
    """``step`` neither can be held nor computed block by block."""

    def __init__(self, step: str, message: str) -> None:
        super().__init__("size", message)
        self.step = step


@dataclass(frozen=True)
class Sweep:
    """One walk over ``extent`` columns in which ``sums`` are summed up and ``stores`` written."""

    extent: int
    sums: tuple[Step, ...]
    stores: tuple[Store, ...]


@dataclass(frozen=True)
class Order:
    """``parts`` come one after another: steps that are computed at once and held, sweeps, and stores of what is held."""

    parts: tuple[Step | Sweep | Store, ...]

    @property
    def sweeps(self) -> tuple[Sweep, ...]:
        return tuple(part for part in self.parts if isinstance(part, Sweep))


def wide_columns(step: Step) -> int | None:
    """The columns of a wide value."""
    if isinstance(step, Regrouped) and step.is_tall and step.is_stored and step.columns > _WIDEST_STORED:
        return step.columns
    return step.columns if isinstance(step, Dot | Regrouped) and step.columns > WIDEST_HELD else None


def is_wide(step: Step) -> bool:
    return wide_columns(step) is not None


def is_wide_store(store: Store, plan: ChainPlan) -> bool:
    if any(is_wide(step) for step in plan.read_by(store)):
        return True
    return isinstance(store.tile.columns, int) and store.tile.columns > WIDEST_HELD


def swept(step: Step, plan: ChainPlan, block: int = WIDEST_HELD) -> int | None:
    """Columns over which ``step`` is summed up in a sweep of blocks of ``block``; ``None`` where it is computed at once.

    Raises ``WideError``.
    """
    if isinstance(step, Pool) and _columns(step) > WIDEST_HELD:
        raise WideError(step.name, f"{step.name} has {_columns(step)} columns")
    if isinstance(step, Regrouped | Pool):
        return None
    extent = step.depth if isinstance(step, Dot) else _columns(step)
    wide = any(is_wide(other) and other.name in tile.names for tile in step.tiles for other in plan.read_by(step))
    sliceable = all(_is_sliceable(tile, plan, extent) for tile in step.tiles)
    limit = block if plan.rowwise and not is_wide(step) else WIDEST_HELD
    if not wide and (extent <= limit or not sliceable):
        if extent > WIDEST_HELD and isinstance(step, Dot):
            raise WideError(step.name, f"{extent} columns of an operand of {step.name} are held at once")
        return None
    if not sliceable or is_wide(step) or (isinstance(step, Reduce) and 1 not in step.axes):
        raise WideError(step.name, f"{step.name} is as wide as what it is summed over")
    return extent


def _columns(step: Reduce | Pool) -> int:
    return step.tile.columns if isinstance(step.tile.columns, int) else 0


def _is_sliceable(tile: Tile, plan: ChainPlan, extent: int) -> bool:
    """Can blocks of the tile be computed from loads, from columns that are held, and from blocks of wide values?"""
    read = [step for step in plan.steps if step.name in tile.names and not isinstance(step, Reduce)]
    return all(wide_columns(step) == extent for step in read)


def order_of(plan: ChainPlan, block: int = WIDEST_HELD) -> Order:
    """Raises ``WideError``. ``block`` is the most columns of loaded operands that are taken at once."""
    extents = {step.name: swept(step, plan, block) for step in plan.steps}
    stages = _stages(plan, extents)
    last = max(stages.values(), default=0)
    parts: list[Step | Sweep | Store] = []
    waiting = [store for store in plan.stores if is_wide_store(store, plan)]
    for stage in range(last + 1):
        here = [step for step in plan.steps if stages[step.name] == stage and not is_wide(step)]
        sums = [step for step in here if extents[step.name] is not None]
        for extent in dict.fromkeys(extents[step.name] for step in sums):
            assert extent is not None
            ready = [one for one in waiting if one.tile.columns == extent and _stage(one, plan, stages) < stage]
            waiting = [one for one in waiting if one not in ready]
            parts.append(Sweep(extent, tuple(s for s in sums if extents[s.name] == extent), tuple(ready)))
        parts += [step for step in here if extents[step.name] is None]
    for columns in dict.fromkeys(store.tile.columns for store in waiting):
        assert isinstance(columns, int)
        parts.append(Sweep(columns, (), tuple(one for one in waiting if one.tile.columns == columns)))
    order = Order((*parts, *(store for store in plan.stores if not is_wide_store(store, plan))))
    if len(order.sweeps) > _MOST_SWEEPS:
        raise WideError(plan.steps[-1].name, f"{len(order.sweeps)} sweeps over wide values")
    return order


def _stages(plan: ChainPlan, extents: dict[str, int | None]) -> dict[str, int]:
    """After how many sweeps each step is known; of a wide value, what it is computed from."""
    stages: dict[str, int] = {}
    for step in plan.steps:
        before = max((stages[other.name] for other in plan.read_by(step)), default=0)
        stages[step.name] = before + (extents[step.name] is not None)
    return stages


def _stage(store: Store, plan: ChainPlan, stages: dict[str, int]) -> int:
    return max((stages[step.name] for step in plan.read_by(store)), default=0)
