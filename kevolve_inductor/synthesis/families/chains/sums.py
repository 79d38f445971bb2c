"""Sums of wide products, which one accumulator can hold: ``x (U h) + x (V g)`` is ``x (U h + V g)``.

A program computes wide values anew in every sweep. Summed by the matrix units, they need the registers of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ...expression import expression as ex
from ...expression.expression import Expr
from .plan import ChainPlan, Dot, Reduce, Step, Store, Tile
from .sweeps import is_wide


def summed(plan: ChainPlan) -> ChainPlan:
    """``plan`` with the wide products that are only added up computed one on top of the other."""
    return _Summer(plan).plan()


class _Summer:
    """Rewrites the values of one plan; ``joined`` are the new steps by the names of those they add up."""

    def __init__(self, plan: ChainPlan) -> None:
        self.old = plan
        self.wide = {step.name: step for step in plan.steps if isinstance(step, Dot) and is_wide(step)}
        self.order = {step.name: number for number, step in enumerate(plan.steps)}
        self.joined: dict[tuple[str, ...], Dot] = {}

    def plan(self) -> ChainPlan:
        if len(self.wide) < 2:
            return self.old
        steps: list[Step] = []
        for step in self.old.steps:
            new = self._step(step)
            # What a step reads stands in front of it.
            steps += [one for one in self.joined.values() if one not in steps]
            steps.append(new)
        stores = tuple(Store(self._tile(store.tile), store.offset, store.output) for store in self.old.stores)
        steps += [one for one in self.joined.values() if one not in steps]
        return replace(self.old, steps=tuple(_needed(steps, stores)), stores=stores)

    def _step(self, step: Step) -> Step:
        if isinstance(step, Dot):
            return replace(step, left=self._tile(step.left), right=self._tile(step.right))
        return replace(step, tile=self._tile(step.tile)) if isinstance(step, Reduce) else step

    def _tile(self, tile: Tile) -> Tile:
        done: dict[Expr, Expr] = {}
        for part in ex.walk(tile.value):
            args = tuple(done[argument] for argument in part.args)
            same = part if args == part.args else ex.make(part.op, part.dtype, args, part.value)
            done[part] = self._factored(same) if part.op == "add" and part.dtype == "float32" else same
        return replace(tile, value=done[tile.value])

    def _factored(self, total: Expr) -> Expr:
        """A sum in which what is multiplied with the same value is added up first."""
        terms = list(_terms(total))
        for number, term in enumerate(terms):
            for other, later in enumerate(terms[number + 1 :], number + 1):
                shared = self._shared(term, later)
                if shared is None:
                    continue
                factor, first, second = shared
                product = ex.make("mul", "float32", (factor, self._added(first, second)))
                rest = [one for place, one in enumerate(terms) if place not in (number, other)]
                return self._factored(_sum([product, *rest]))
        return total

    def _shared(self, first: Expr, second: Expr) -> tuple[Expr, Expr, Expr] | None:
        """The common factor of two products, and what it is multiplied with."""
        if first.op != "mul" or second.op != "mul":
            return None
        for place, factor in enumerate(first.args):
            if factor in second.args:
                others = first.args[1 - place], second.args[1 - second.args.index(factor)]
                if all(self._may_move(other, factor) for other in others):
                    return factor, *others
        return None

    def _may_move(self, total: Expr, factor: Expr) -> bool:
        """Is it a sum with one wide product that is not finite wherever the factor is not?

        Both ways to compute it then agree where values are infinite, too.
        """
        products = [term for term in _terms(total) if self._name(term) is not None]
        slots = {part.value[0] for part in ex.walk(factor) if part.op == "read"}
        return len(products) == 1 and all(slots and slots <= self._sources(str(self._name(one))) for one in products)

    def _sources(self, name: str) -> set[int]:
        """The inputs that the left operand of a product is made of."""
        step = self._dots()[name]
        read = {part.value[0] for part in ex.walk(step.left.value) if part.op == "read"}
        for other in step.left.names & self._dots().keys():
            read |= self._sources(other)
        return read

    def _dots(self) -> dict[str, Dot]:
        old = {step.name: step for step in self.old.steps if isinstance(step, Dot)}
        return old | {step.name: step for step in self.joined.values()}

    def _name(self, term: Expr) -> str | None:
        name = str(term.value[0]) if term.op == "var" else ""
        return name if name in self.wide or any(step.name == name for step in self.joined.values()) else None

    def _added(self, first: Expr, second: Expr) -> Expr:
        terms = [*_terms(first), *_terms(second)]
        names = [name for term in terms if (name := self._name(term)) is not None]
        rest = [term for term in terms if self._name(term) is None]
        return _sum([ex.var(self._on_top(*names), None, "float32"), *([_sum(rest)] if rest else [])])

    def _on_top(self, first: str, second: str) -> str:
        """The name of the sum of two products: the later one of those as written, begun with the other one."""
        parts = sorted({*self._parts(first), *self._parts(second)}, key=self.order.__getitem__)
        if len(parts) != len(self._parts(first)) + len(self._parts(second)):
            raise AssertionError("a product is added twice")
        below = parts[0]
        for number, name in enumerate(parts[1:], 2):
            key = tuple(parts[:number])
            if key not in self.joined:
                self.joined[key] = replace(self.wide[name], name="".join(key), onto=below)
            below = self.joined[key].name
        return below

    def _parts(self, name: str) -> tuple[str, ...]:
        return next((key for key, step in self.joined.items() if step.name == name), (name,))


def _terms(total: Expr) -> Iterator[Expr]:
    if total.op == "add" and total.dtype == "float32":
        for argument in total.args:
            yield from _terms(argument)
    else:
        yield total


def _sum(terms: list[Expr]) -> Expr:
    total = terms[0]
    for term in terms[1:]:
        total = ex.make("add", "float32", (total, term))
    return total


def _needed(steps: list[Step], stores: tuple[Store, ...]) -> list[Step]:
    """The steps that something reads."""
    names = {name for store in stores for name in store.tile.names}
    kept: list[Step] = []
    for step in reversed(steps):
        if step.name in names:
            kept.insert(0, step)
            names |= {name for tile in step.tiles for name in tile.names}
            names |= {step.onto} if isinstance(step, Dot) else set()
    return kept
