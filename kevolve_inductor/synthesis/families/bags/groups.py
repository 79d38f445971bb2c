"""Bags of equal structure share one code body: their tables, indices and outputs, and some numbers, become parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ...expression import expression as ex
from ...expression.access import terms
from ...expression.expression import Expr
from ...expression.loops import Store
from .plan import Bag

# Gives the text or the value that stands for a number, from its position among the numbers of a bag and its value.
Choose = Callable[[int, int], int | str]


@dataclass(frozen=True)
class Parameter:
    """A number that differs between the bags of a group: one value per bag."""

    name: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """``body`` is the common bag: its reads name pointer slots, its stores output slots, its free variables parameters.

    ``pointers[slot]`` and ``results[slot]`` give, bag by bag, the region's input and output.
    """

    body: Bag
    pointers: tuple[tuple[int, ...], ...]
    results: tuple[tuple[int, ...], ...]
    parameters: tuple[Parameter, ...]

    @property
    def size(self) -> int:
        return len(self.results[0])

    @property
    def pointer_dtypes(self) -> tuple[str, ...]:
        """How the memory behind each pointer slot is typed."""
        found: dict[int, str] = {}

        def note(expr: Expr, _: bool) -> Expr:
            found.update(part.value for part in ex.walk(expr) if part.op == "read")
            return expr

        self.body.mapped(note)
        return tuple(found[slot] for slot in range(len(found)))


class _Abstraction:
    """A bag with slots for its tensors and with its numbers as ``choose`` gives them.

    Numbers are the constants in offsets of reads and stores, and the extents that indices are checked against.
    """

    def __init__(self, bag: Bag, choose: Choose) -> None:
        self.pointers: dict[int, int] = {}
        self.results: dict[int, int] = {}
        self.numbers: list[int] = []
        self._choose = choose
        self._done: dict[Expr, Expr] = {}
        mapped = bag.mapped(self._mapped)
        stores = tuple(replace(store, output=self._slot(self.results, store.output)) for store in mapped.stores)
        names = {fold.name: f"fold{k}" for k, fold in enumerate(mapped.folds)}
        self.body = _renamed(replace(mapped, stores=stores), names)

    def _slot(self, slots: dict[int, int], number: int) -> int:
        return slots.setdefault(number, len(slots))

    def _number(self, value: int) -> int | str:
        self.numbers.append(value)
        return self._choose(len(self.numbers) - 1, value)

    def _mapped(self, expr: Expr, is_offset: bool) -> Expr:
        for part in ex.walk(expr):
            if part not in self._done:
                self._done[part] = self._part(part)
        return self._shifted(self._done[expr]) if is_offset else self._done[expr]

    def _part(self, part: Expr) -> Expr:
        args, value = tuple(self._done[argument] for argument in part.args), part.value
        if part.op == "read":
            value = (self._slot(self.pointers, part.value[0]), part.value[1])
            args = (self._shifted(args[0]),)
        elif part.op in ("check_index", "within") and isinstance(part.value[0], int):
            value = (self._number(part.value[0]), *part.value[1:])
        return ex.make(part.op, part.dtype, args, value)

    def _shifted(self, offset: Expr) -> Expr:
        """``offset`` with its constant, if only zero, as a number: the first column is then built like all others."""
        summands = list(terms(offset))
        rest = ex.isum([term for term in summands if term.op != "const"])
        constant = sum(int(term.value) for term in summands if term.op == "const")
        number = self._number(constant)
        return ex.iadd(rest, ex.index(number) if isinstance(number, int) else ex.var(number))


def _renamed(bag: Bag, names: dict[str, str]) -> Bag:
    def new(part: Expr) -> Expr | None:
        known = part.op == "var" and part.value[0] in names
        return ex.var(names[part.value[0]], part.value[1], part.dtype) if known else None

    loops = tuple(
        replace(
            loop,
            folds=tuple(
                replace(fold, name=names[fold.name], body=ex.substitute(fold.body, new)) for fold in loop.folds
            ),
        )
        for loop in bag.loops
    )
    stores = tuple(Store(ex.substitute(s.value, new), s.offset, s.output) for s in bag.stores)
    return replace(bag, loops=loops, stores=stores)


def grouped(bags: Sequence[Bag], outputs: Sequence[str]) -> list[Group]:
    """``bags`` by structure, in order of first appearance. ``outputs`` are the dtypes of the region's outputs."""
    found: dict[tuple[object, ...], list[tuple[Bag, _Abstraction]]] = {}
    for bag in bags:
        abstract = _Abstraction(bag, lambda position, _: f"n{position}")
        key = (abstract.body, tuple(outputs[number] for number in abstract.results))
        found.setdefault(key, []).append((bag, abstract))
    return [_group([bag for bag, _ in members], [abstract for _, abstract in members]) for members in found.values()]


def _group(bags: Sequence[Bag], members: Sequence[_Abstraction]) -> Group:
    columns = list(zip(*(member.numbers for member in members), strict=True))
    names = {k: f"n{k}" for k, values in enumerate(columns) if len(set(values)) > 1}
    common = _Abstraction(bags[0], lambda position, value: names.get(position, value))
    return Group(
        common.body,
        tuple(zip(*(member.pointers for member in members), strict=True)),
        tuple(zip(*(member.results for member in members), strict=True)),
        tuple(Parameter(name, columns[position]) for position, name in names.items()),
    )
