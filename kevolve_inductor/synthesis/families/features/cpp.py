"""Tasks as C++: blocks of each task's elements, in stages that vectorise, spread over threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from ....graph.dims import product
from ....graph.region import TensorSpec
from ...expression import CPP_PRELUDE, used_only
from ...expression import expression as ex
from ...expression.access import offset_of
from ...expression.cpp import CPP_STORAGE, CPP_TYPES, from_storage, literal, signature, to_storage
from ...expression.expression import Expr
from ...expression.flat import FlatCppPrinter
from ...expression.loops import Axis
from ...expression.remainder import CPP_REMAINDER
from ...family import Schedule
from ..common import vector_pragma
from .groups import Group
from .searches import LANES, possible, search_helpers

# Borders that are not contiguous values of the search's own type are copied to the stack if they are no more than this.
_MOST_COPIED = 4096


@dataclass(frozen=True)
class _Blocks:
    """How a task is cut: axes before ``split`` one by one, ``rows`` of the axis at ``split``, those after it whole."""

    axes: tuple[Axis, ...]
    split: int
    rows: int

    @classmethod
    def of(cls, axes: tuple[Axis, ...], elements: int) -> _Blocks:
        split, inner = len(axes) - 1, 1
        while split > 0:
            extent = axes[split][1]
            if not isinstance(extent, int) or inner * extent > elements:
                break
            inner, split = inner * extent, split - 1
        return cls(axes, split, max(1, elements // inner))

    @property
    def inner(self) -> int:
        return int(product(tuple(extent for _, extent in self.axes[self.split + 1 :])))

    @property
    def elements(self) -> int:
        return -(-self.rows * self.inner // LANES) * LANES

    @property
    def outer_variables(self) -> set[str]:
        return {name for name, _ in self.axes[: self.split]}

    @property
    def along(self) -> str:
        """Number of blocks along the split axis, as C++."""
        return f"((int64_t({self.axes[self.split][1]}) + {self.rows - 1}) / {self.rows})"

    @property
    def count(self) -> str:
        return " * ".join([*(f"int64_t({extent})" for _, extent in self.axes[: self.split]), self.along])

    def opening(self) -> list[str]:
        """Coordinates of block ``block``."""
        name, extent = self.axes[self.split]
        lines = [f"const int64_t begin = (block % {self.along}) * {self.rows};"]
        lines += [f"const int64_t end = std::min<int64_t>(begin + {self.rows}, {extent});"]
        rest = f"block / {self.along}"
        for name, extent in reversed(self.axes[: self.split]):
            lines += [f"const int64_t {name} = ({rest}) % ({extent}), rest_{name} = ({rest}) / ({extent});"]
            rest = f"rest_{name}"
        return [*lines, f"const int64_t count = (end - begin) * {self.inner};"]

    def loops(self, body: list[str]) -> list[str]:
        name, _ = self.axes[self.split]
        heads = [f"for (int64_t {name} = begin; {name} < end; ++{name}) {{"]
        heads += [f"for (int64_t {n} = 0; {n} < {e}; ++{n}) {{" for n, e in self.axes[self.split + 1 :]]
        return [*heads[:-1], "#pragma GCC ivdep", heads[-1], *body, "}" * len(heads)]

    @property
    def position(self) -> str:
        """Position of the current element within the block."""
        text = f"({self.axes[self.split][0]} - begin)"
        for name, extent in self.axes[self.split + 1 :]:
            text = f"({text} * {extent} + {name})"
        return text


@dataclass(frozen=True)
class CppGroup:
    """A group with its function's text, the number of blocks of each of its tasks, and the helpers it needs."""

    group: Group
    name: str
    text: str
    blocks: str
    methods: frozenset[str]


def group_function(
    group: Group, name: str, outputs: Sequence[TensorSpec], symbols: Sequence[str], schedule: Schedule
) -> CppGroup:
    blocks = _Blocks.of(group.body.axes, int(schedule["block"]))
    methods: set[str] = set()
    lines = ["int64_t bad = 0;", *blocks.opening()]
    staged: dict[Expr, str] = {}
    for search in _searches(group):
        if _is_staged(search, blocks, group):
            lines += _stage(search, len(staged), staged, blocks, group, str(schedule.get("search", "lanes")), methods)
            staged[search] = f"int64_t(found{len(staged)}[{blocks.position}])"
    lines += _results(group, staged, blocks, outputs)
    head = f"static inline int64_t {name}({', '.join(_parameters(group, outputs, symbols))}) {{"
    text = "\n".join([head, *lines, "return bad;", "}"])
    return CppGroup(group, name, text, blocks.count, frozenset(methods))


def _searches(group: Group) -> list[Expr]:
    seen: set[Expr] = set()
    return [part for value in group.body.values for part in ex.walk(value, seen) if part.op == "search"]


def _is_staged(search: Expr, blocks: _Blocks, group: Group) -> bool:
    """One row of borders for a whole block: it is searched as a block; else element by element."""
    _, stored, count, _, step = search.value
    contiguous = step == 1 and stored == search.args[0].dtype
    uniform = ex.variables(offset_of(search)) - {p.name for p in group.parameters} <= blocks.outer_variables
    return uniform and (contiguous or group.largest(count) <= _MOST_COPIED)


def _stage(
    search: Expr, number: int, staged: dict[Expr, str], blocks: _Blocks, group: Group, method: str, methods: set[str]
) -> list[str]:
    slot, stored, count, right, step = search.value
    dtype = search.args[0].dtype
    kind = CPP_TYPES[dtype]
    if not possible(method, dtype, group.largest(count)):
        method = "lanes"
    methods.add(method)
    printer = FlatCppPrinter(f"s{number}_")
    value = _value(printer, search.args[0], staged)
    at = FlatCppPrinter(f"f{number}_")
    first = at.value(offset_of(search))
    lines = [f"alignas(64) {kind} value{number}[{blocks.elements}] = {{}};"]
    lines += [f"alignas(64) int32_t found{number}[{blocks.elements}];"]
    lines += blocks.loops([*printer.lines, f"value{number}[{blocks.position}] = {value};"]) + at.lines
    if step == 1 and stored == dtype:
        lines.append(f"const {kind}* borders{number} = a{slot} + {first};")
    else:
        border = from_storage(f"a{slot}[{first} + k * {step}]", stored)
        lines.append(f"{kind} borders{number}[{group.largest(count)}];")
        lines.append(f"for (int64_t k = 0; k < {count}; k++) borders{number}[k] = {border};")
    call = f"kv_search_{method}<{str(right).lower()}, {kind}>"
    lines.append(f"{call}(borders{number}, {count}, value{number}, found{number}, count);")
    return lines


def _value(printer: FlatCppPrinter, expr: Expr, staged: dict[Expr, str]) -> str:
    for search, text in staged.items():
        printer.name(search, text)
    return printer.value(expr)


def _results(group: Group, staged: dict[Expr, str], blocks: _Blocks, outputs: Sequence[TensorSpec]) -> list[str]:
    printer = FlatCppPrinter()
    stores = []
    for store in group.body.stores:
        stored = outputs[group.results[store.output][0]].dtype
        # What is stored is rounded in any case.
        rounded = store.value.op == "round" and store.value.value == stored and store.value not in staged
        value = _value(printer, store.value.args[0] if rounded else store.value, staged)
        stores.append(f"o{store.output}[{printer.value(store.offset)}] = {to_storage(value, stored)};")
    return blocks.loops([*printer.lines, *stores])


def _parameters(group: Group, outputs: Sequence[TensorSpec], symbols: Sequence[str]) -> list[str]:
    pointers = [f"const {kind}* __restrict a{slot}" for slot, kind in enumerate(_pointer_types(group))]
    results = [
        f"{CPP_STORAGE[outputs[numbers[0]].dtype]}* __restrict o{slot}" for slot, numbers in enumerate(group.results)
    ]
    parameters = [f"const {CPP_TYPES[p.dtype]} {p.name}" for p in group.parameters]
    return [*pointers, *results, *parameters, "const int64_t block", *(f"const int64_t {name}" for name in symbols)]


def _pointer_types(group: Group) -> list[str]:
    seen: set[Expr] = set()
    stored = {
        part.value[0]: part.value[1]
        for store in group.body.stores
        for expr in (store.value, store.offset)
        for part in ex.walk(expr, seen)
        if part.op in ("read", "search")
    }
    return [CPP_STORAGE[stored[slot]] for slot in range(len(stored))]


def source_of(
    groups: Sequence[Group],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    symbols: Sequence[str],
    schedule: Schedule,
) -> str:
    """The kernel's text. Groups whose tasks write between one another's elements go through the rows together."""
    made = [group_function(group, f"group{k}", outputs, symbols, schedule) for k, group in enumerate(groups)]
    bundles = _bundles(made)
    helpers = search_helpers({method for one in made for method in one.methods})
    entry = signature("kevolve_kernel", inputs, outputs, symbols)
    body = [line for one in made for line in _tables(one, outputs)]
    grain = int(schedule["grain"])
    counts = [_items(bundle, grain) for bundle in bundles]
    body += [f"const int64_t items{k} = {count};" for k, count in enumerate(counts)]
    ends = list(accumulate((f"items{k}" for k in range(len(bundles))), lambda a, b: f"{a} + {b}"))
    body += [f"const int64_t end{k} = {end};" for k, end in enumerate(ends)]
    body += [f"const int64_t items = end{len(bundles) - 1};", "int64_t failed = 0;"]
    body += [f"#pragma omp parallel for schedule({schedule['order']}) reduction(|:failed) if(items > 1)"]
    body += ["for (int64_t item = 0; item < items; ++item) {"]
    for k, bundle in enumerate(bundles):
        start = f"end{k - 1}" if k else "0"
        body += [f"{'else ' if k else ''}if (item < end{k}) {{", *_item(bundle, start, grain, symbols), "}"]
    body += ["}", "return failed != 0;"]
    text = [vector_pragma(schedule), CPP_PRELUDE, CPP_REMAINDER, helpers, *(one.text for one in made)]
    text += [f"{entry} {{", *body, "}", ""]
    return used_only("\n".join(text))


def _bundles(made: Sequence[CppGroup]) -> list[list[CppGroup]]:
    bundles: list[list[CppGroup]] = []
    for one in made:
        written = _written(one)
        partner = next(
            (b for b in bundles if b[0].blocks == one.blocks and any(written & _written(o) for o in b)), None
        )
        if partner is None:
            bundles.append([one])
        else:
            partner.append(one)
    return bundles


def _written(one: CppGroup) -> set[int]:
    return {number for slot in one.group.results for number in slot}


def _goes_together(bundle: Sequence[CppGroup]) -> bool:
    tasks = sum(one.group.size for one in bundle)
    return tasks > 1 and any(
        len(set(slot)) < one.group.size or len(bundle) > 1 for one in bundle for slot in one.group.results
    )


def _items(bundle: Sequence[CppGroup], grain: int) -> str:
    parts = f"(({bundle[0].blocks} + {grain - 1}) / {grain})"
    return parts if _goes_together(bundle) else f"{bundle[0].group.size} * {parts}"


def _tables(one: CppGroup, outputs: Sequence[TensorSpec]) -> list[str]:
    """What differs between the tasks of a group, in arrays by task."""
    if one.group.size == 1:
        return []
    lines = []
    for slot, (kind, numbers) in enumerate(zip(_pointer_types(one.group), one.group.pointers, strict=True)):
        names = ", ".join(f"in{number}" for number in numbers)
        lines.append(f"const {kind}* const {one.name}_a{slot}[] = {{{names}}};")
    for slot, numbers in enumerate(one.group.results):
        names = ", ".join(f"out{number}" for number in numbers)
        lines.append(f"{CPP_STORAGE[outputs[numbers[0]].dtype]}* const {one.name}_o{slot}[] = {{{names}}};")
    for parameter in one.group.parameters:
        values = ", ".join(literal(value, parameter.dtype) for value in parameter.values)
        lines.append(f"const {CPP_TYPES[parameter.dtype]} {one.name}_{parameter.name}[] = {{{values}}};")
    return lines


def _item(bundle: Sequence[CppGroup], start: str, grain: int, symbols: Sequence[str]) -> list[str]:
    together = _goes_together(bundle)
    lines = [f"const int64_t at = item - {start};", f"const int64_t blocks = {bundle[0].blocks};"]
    if not together:
        lines.append(f"const int64_t parts = (blocks + {grain - 1}) / {grain}, task = at / parts;")
    part = "at" if together else "at % parts"
    lines.append(f"const int64_t first = ({part}) * {grain}, last = std::min<int64_t>(first + {grain}, blocks);")
    lines.append("for (int64_t block = first; block < last; ++block) {")
    for one in bundle:
        call = f"failed |= {_call(one, symbols)};"
        loop = f"for (int64_t task = 0; task < {one.group.size}; ++task) " if together and one.group.size > 1 else ""
        lines.append(loop + call)
    return [*lines, "}"]


def _call(one: CppGroup, symbols: Sequence[str]) -> str:
    group = one.group
    if group.size == 1:
        arguments = [f"in{numbers[0]}" for numbers in group.pointers]
        arguments += [f"out{numbers[0]}" for numbers in group.results]
    else:
        arguments = [f"{one.name}_a{slot}[task]" for slot in range(len(group.pointers))]
        arguments += [f"{one.name}_o{slot}[task]" for slot in range(len(group.results))]
        arguments += [f"{one.name}_{parameter.name}[task]" for parameter in group.parameters]
    return f"{one.name}({', '.join([*arguments, 'block', *symbols])})"
