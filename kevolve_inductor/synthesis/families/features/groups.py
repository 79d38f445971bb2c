"""Tasks of equal structure share one code body: what differs between them becomes a parameter, or an axis of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count

from ...expression import expression as ex
from ...expression.access import ACCESSES, replace
from ...expression.expression import Expr
from ...expression.loops import Store, Task, normalised
from ...family import Schedule

# Numbers that may differ between the tasks of a group; others are part of the structure.
_PARAMETER_DTYPES = ("int64", "int32", "float32")
# Elements that the programs of one period reach beyond a task's last one: what 32-bit positions have room for.
_LONGEST_WALK = 2**20


@dataclass(frozen=True)
class Parameter:
    """A number that differs between the tasks of a group: one value per task."""

    name: str
    dtype: str
    values: tuple[int | float, ...]
    is_count: bool = False

    @property
    def rise(self) -> tuple[int, int] | None:
        """Where values begin and what is added from task to task, if that is the same integer; no counts of borders."""
        start, step = self.values[0], self.values[1] - self.values[0]
        even = all(value == start + k * step for k, value in enumerate(self.values))
        if not even or self.is_count or not isinstance(start, int) or not isinstance(step, int):
            return None
        return start, step


@dataclass(frozen=True)
class Group:
    """``body`` is the common task: its accesses name pointer slots, its stores output slots, its free variables parameters.

    ``pointers[slot]`` and ``results[slot]`` give, task by task, the region's input and output. Where the number of
    borders of a search differs, a parameter's name stands in its place.
    """

    body: Task
    pointers: tuple[tuple[int, ...], ...]
    results: tuple[tuple[int, ...], ...]
    parameters: tuple[Parameter, ...]

    @property
    def size(self) -> int:
        return len(self.results[0])

    def largest(self, count: int | str) -> int:
        """The largest number of borders that ``count``, a number or a parameter's name, stands for."""
        if isinstance(count, int):
            return count
        return max(int(value) for p in self.parameters if p.name == count for value in p.values)


@dataclass(frozen=True)
class _Skeleton:
    """A task's structure as text, and what was taken out of it, in the order of the walk."""

    key: str
    pointers: tuple[int, ...]
    results: tuple[int, ...]
    constants: tuple[Expr, ...]
    counts: tuple[int, ...]


def _skeleton(task: Task) -> _Skeleton:
    numbers: dict[Expr, int] = {}
    pointers: dict[int, int] = {}
    lines: list[str] = [repr(task.axes)]
    constants: list[Expr] = []
    counts: list[int] = []
    for part in _parts(task):
        value = repr(part.value)
        if part.op == "shift" or (part.op == "const" and part.dtype in _PARAMETER_DTYPES):
            constants.append(part)
            value = "parameter"
        elif part.op in ACCESSES:
            slot = pointers.setdefault(part.value[0], len(pointers))
            value = repr((slot, *part.value[1:]))
            if part.op == "search":
                counts.append(part.value[2])
                value = repr((slot, part.value[1], *part.value[3:]))
        numbers[part] = len(numbers)
        lines.append(f"{part.op} {part.dtype} {value} {[numbers[a] for a in part.args]}")
    results: dict[int, int] = {}
    for store in task.stores:
        slot = results.setdefault(store.output, len(results))
        lines.append(f"store {slot} {numbers[store.value]} {numbers[store.offset]}")
    return _Skeleton("\n".join(lines), tuple(pointers), tuple(results), tuple(constants), tuple(counts))


def _parts(task: Task) -> Iterable[Expr]:
    seen: set[Expr] = set()
    for store in task.stores:
        yield from ex.walk(store.value, seen)
        yield from ex.walk(store.offset, seen)


def grouped(tasks: Sequence[Task], outputs: Sequence[str], share: bool = True) -> list[Group]:
    """``tasks`` by structure, in order of first appearance. ``outputs`` are the dtypes of the region's outputs.

    Without ``share`` every task is a group of its own, with its numbers written into the code.
    """
    found: dict[str, list[tuple[Task, _Skeleton]]] = {}
    for position, task in enumerate(map(_explicit, tasks)):
        skeleton = _skeleton(task)
        dtypes = [outputs[k] for k in skeleton.results]
        found.setdefault(f"{skeleton.key}\n{dtypes}{'' if share else position}", []).append((task, skeleton))
    return [_group([t for t, _ in members], [s for _, s in members]) for members in found.values()]


def _explicit(task: Task) -> Task:
    """``task`` with a ``shift`` in every offset: its constant, if only zero, as a part of its own.

    The first column is then built like all others, and equal constants of different meaning stay apart.
    """
    numbers = count()

    def shifted(offset: Expr) -> Expr:
        if offset.op == "const":
            return ex.make("shift", "int64", value=(next(numbers), offset.value))
        has_constant = offset.op == "add" and offset.args[1].op == "const"
        rest, constant = offset.args if has_constant else (offset, ex.index(0))
        return ex.make("add", "int64", (rest, ex.make("shift", "int64", value=(next(numbers), constant.value))))

    done: dict[Expr, Expr] = {}
    for part in _parts(task):
        args = tuple(done[argument] for argument in part.args)
        if part.op in ACCESSES:
            args = (*args[:-1], shifted(args[-1]))
        done[part] = part if args == part.args else ex.make(part.op, part.dtype, args, part.value)
    stores = tuple(Store(done[s.value], shifted(done[s.offset]), s.output) for s in task.stores)
    return Task(task.axes, stores)


def _group(tasks: list[Task], skeletons: list[_Skeleton]) -> Group:
    first, body = skeletons[0], tasks[0]
    names = (f"p{k}" for k in count())
    parameters: list[Parameter] = []
    variables: dict[Expr, Expr] = {}
    for position, constant in enumerate(first.constants):
        values = tuple(_number(skeleton.constants[position]) for skeleton in skeletons)
        if any(value != values[0] for value in values):
            parameters.append(Parameter(next(names), constant.dtype, values))
            variables[constant] = ex.var(parameters[-1].name, None, constant.dtype)
        elif constant.op == "shift":
            variables[constant] = ex.index(int(values[0]))
    counts: dict[Expr, str] = {}
    for position, search in enumerate(part for part in _parts(body) if part.op == "search"):
        borders = tuple(skeleton.counts[position] for skeleton in skeletons)
        if len(set(borders)) > 1:
            parameters.append(Parameter(next(names), "int32", borders, is_count=True))
            counts[search] = parameters[-1].name
    slots = {pointer: slot for slot, pointer in enumerate(first.pointers)}
    results = {output: slot for slot, output in enumerate(first.results)}

    def common(expr: Expr, is_offset: bool) -> Expr:
        return replace(_readdressed(expr, slots, counts), lambda part, _: variables.get(part), is_offset)

    stores = tuple(Store(common(s.value, False), common(s.offset, True), results[s.output]) for s in body.stores)
    return Group(
        Task(body.axes, stores),
        tuple(zip(*(skeleton.pointers for skeleton in skeletons), strict=True)),
        tuple(zip(*(skeleton.results for skeleton in skeletons), strict=True)),
        tuple(parameters),
    )


def _number(constant: Expr) -> int | float:
    value: int | float = constant.value[1] if constant.op == "shift" else constant.value
    return value


def _readdressed(expr: Expr, slots: dict[int, int], counts: dict[Expr, str]) -> Expr:
    """``expr`` with the inputs of its accesses renumbered, and parameters as the counts of some searches."""
    done: dict[Expr, Expr] = {}
    for part in ex.walk(expr):
        args = tuple(done[argument] for argument in part.args)
        value = part.value
        if part.op in ACCESSES:
            value = (slots[value[0]], *value[1:])
        if part in counts:
            value = (*value[:2], counts[part], *value[3:])
        same = args == part.args and value == part.value
        done[part] = part if same else ex.make(part.op, part.dtype, args, value)
    return done[expr]


def period_of(task: Task, schedule: Schedule) -> int | None:
    """Elements after which both a block and a column begin anew, if programs walk down the columns of ``task``.

    A walk in steps of that many elements stays in its columns. ``None`` where there are no columns, or where the walk would
    be so long that few programs have one.
    """
    if schedule.get("walk") != "columns" or len(task.axes) < 2 or not isinstance(task.axes[-1][1], int):
        return None
    period = math.lcm(int(schedule["block"]), task.axes[-1][1])
    return period if period * int(schedule["steps"]) <= _LONGEST_WALK else None


def is_interleaved(group: Group) -> bool:
    """Whether its tasks write between one another's elements."""
    return group.size > 1 and any(len(set(slot)) < group.size for slot in group.results)


def rolled(group: Group) -> Task | None:
    """The whole group as one task with an axis more, where the tasks differ in evenly rising integers only.

    So the columns of one tensor that are written as columns of another become one dense space. ``None`` where inputs,
    outputs or anything else differ.
    """
    steps: dict[str, Expr] = {}
    if group.size < 2 or any(len(set(slot)) > 1 for slot in (*group.pointers, *group.results)):
        return None
    position = ex.var("each", group.size)
    for parameter in group.parameters:
        if parameter.rise is None:
            return None
        start, step = parameter.rise
        steps[parameter.name] = ex.iadd(ex.imul(position, ex.index(step)), ex.index(start))

    def leaf(part: Expr, is_offset: bool) -> Expr | None:
        if part.op != "var" or part.value[0] not in steps:
            return None
        rising = steps[part.value[0]]
        return rising if is_offset else ex.cast(ex.make("as_value", "int64", (rising,)), part.dtype)

    inputs = {slot: numbers[0] for slot, numbers in enumerate(group.pointers)}

    def risen(expr: Expr, is_offset: bool) -> Expr:
        return replace(_readdressed(expr, inputs, {}), leaf, is_offset)

    stores = tuple(
        Store(risen(s.value, False), risen(s.offset, True), group.results[s.output][0]) for s in group.body.stores
    )
    return normalised(Task((*group.body.axes, ("each", group.size)), stores))
