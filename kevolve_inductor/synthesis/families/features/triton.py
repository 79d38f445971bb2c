"""Tasks as Triton: one launch whose programs find their group, their task, and their block.

Tasks that write between one another's elements, as columns of one tensor do, can be done by one program *across*: blocks
are then tensors ``[tasks, rows]``, so that memory is read and written in the order in which it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ....graph.dims import Dim
from ....graph.region import TensorSpec
from ....kernel import Argument, Kernel, Launch
from ...expression import TritonPrinter
from ...expression import expression as ex
from ...expression.expression import Expr
from ...expression.loops import Axis
from ...expression.remainder import INVERSE, TRITON_REMAINDER, triton_inverse, triton_remainder
from ...expression.triton import TRITON_PRELUDE, TRITON_TYPES, literal, used_helpers
from ...family import Schedule
from ..triton_tiles import INT32, cdiv, indented, needs_64_bits, next_power_of_2
from .groups import Group, Parameter, is_interleaved, period_of

_SEARCHES = """
@triton.jit
def kv_below(border, value, right: tl.constexpr):
    if right:
        return ~(border > value)
    else:
        return ~(border >= value)

@triton.jit
def kv_search_binary(borders, step, count, halvings: tl.constexpr, uneven: tl.constexpr, value, right: tl.constexpr):
    low = tl.zeros(value.shape, tl.int32)
    length = count
    for _ in tl.static_range(halvings):
        half = length >> 1
        at = low + half - 1
        if uneven:
            at = tl.maximum(at, 0)
        border = tl.load(borders + at * step).to(value.dtype)
        low += tl.where(kv_below(border, value, right), half, 0)
        length -= half
    last = tl.load(borders + low * step).to(value.dtype)
    return (low + kv_below(last, value, right).to(tl.int32)).to(tl.int64)

@triton.jit
def kv_search_count(borders, step, count, value, right: tl.constexpr):
    found = tl.zeros(value.shape, tl.int32)
    for k in range(count):
        border = tl.load(borders + k * step).to(value.dtype)
        found += kv_below(border, value, right).to(tl.int32)
    return found.to(tl.int64)

@triton.jit
def kv_search_pivots(borders, step, count, halvings: tl.constexpr, value, right: tl.constexpr):
    # Sixteen ranges by comparing with every border between them, then a binary search of one range.
    width = (count + 15) // 16
    low = tl.zeros(value.shape, tl.int32)
    for k in tl.static_range(1, 16):
        at = k * width - 1
        border = tl.load(borders + tl.minimum(at, count - 1) * step).to(value.dtype)
        low += tl.where(kv_below(border, value, right) & (at < count), width, 0)
    length = width
    for _ in tl.static_range(halvings):
        half = (length + 1) >> 1
        at = low + half - 1
        border = tl.load(borders + tl.minimum(tl.maximum(at, 0), count - 1) * step).to(value.dtype)
        low += tl.where(kv_below(border, value, right) & (at < count) & (half > 0), half, 0)
        length -= half
    return low.to(tl.int64)

@triton.jit
def kv_search_across(borders, step, count, halvings: tl.constexpr, uneven: tl.constexpr, value, right: tl.constexpr):
    # Values of one task stand next to each other: so the threads of a warp search the same borders.
    size: tl.constexpr = value.shape[0] * value.shape[1]
    at = tl.reshape(tl.broadcast_to(borders, value.shape), [size])
    own = tl.reshape(value, [size])
    if uneven:
        many = tl.reshape(tl.broadcast_to(count, value.shape), [size])
        found = kv_search_binary(at, step, many, halvings, uneven, own, right)
    else:
        found = kv_search_binary(at, step, count, halvings, uneven, own, right)
    return tl.reshape(found.to(tl.int32), value.shape).to(tl.int64)
"""
_LIBRARY = TRITON_PRELUDE + _SEARCHES + TRITON_REMAINDER

# Tasks that one program runs one after another where it does not look its one task up. With fewer the way to them costs
# as much as with one, with more too few programs are left to hide what each waits for.
_CHUNK = 4
# Of each of these every thread selects its pointers among all.
_MOST_ACROSS = 64


class FlatTritonPrinter(TritonPrinter):
    """Prints reads and searches by slot: slot ``k`` is the pointer ``a<k>``. ``search`` names the method."""

    def __init__(self, group: Group, search: str, across: int) -> None:
        super().__init__((), "mask")
        self.group, self.search, self.across = group, search, across
        # Across tasks even their numbers are a tensor, which has more elements than there are tasks.
        self._uniform = set() if across else {p.name for p in group.parameters}

    def specials(self) -> dict[str, Callable[[Expr, list[str]], str]]:
        return {**super().specials(), "read": self._read, "search": self._search, "quick_mod": triton_remainder,
                INVERSE: triton_inverse}  # fmt: skip

    def _read(self, expr: Expr, arguments: list[str]) -> str:
        slot, stored = expr.value
        is_tile = not ex.variables(expr.args[0]) <= self._uniform
        text = f"tl.load(a{slot} + {arguments[0]}{f', mask={self.mask}, other=0' if is_tile else ''})"
        if stored == "bool":
            return f"({text} != 0)"
        return text if stored == expr.dtype else f"{text}.to({TRITON_TYPES[expr.dtype]})"

    def _search(self, expr: Expr, arguments: list[str]) -> str:
        slot, _, count, right, step = expr.value
        value, first = arguments
        largest = self.group.largest(count)
        borders = f"a{slot} + {first}, {step}, {count}"
        uneven = isinstance(count, str)
        if self.search == "count" and not (self.across and uneven):
            return f"kv_search_count({borders}, {value}, {right})"
        if self.search == "pivots" and largest > 16 and not self.across:
            return f"kv_search_pivots({borders}, {(-(-largest // 16)).bit_length()}, {value}, {right})"
        name = "across" if self.across else "binary"
        return f"kv_search_{name}({borders}, {(largest - 1).bit_length()}, {uneven}, {value}, {right})"


def launch_of(
    groups: Sequence[Group],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    symbols: Sequence[str],
    arguments: tuple[Argument, ...],
    schedule: Schedule,
) -> Kernel:
    wide = needs_64_bits((*inputs, *outputs))
    functions = [_group_function(group, f"group{k}", wide, symbols, schedule) for k, group in enumerate(groups)]
    per_task = [_programs(group, schedule) for group in groups]
    counts = [
        _scaled(-(-group.size // _tasks_per_program(group, schedule)), programs)
        for group, programs in zip(groups, per_task, strict=True)
    ]
    names = [f"in{k}" for k in range(len(inputs))] + [f"out{k}" for k in range(len(outputs))] + list(symbols)
    body = ["pid = tl.program_id(0)"]
    body += [f"end{k} = {f'end{k - 1} + ' if k else ''}{_in_kernel(count)}" for k, count in enumerate(counts)]
    for k, (group, programs) in enumerate(zip(groups, per_task, strict=True)):
        body.append(f"{'elif' if k else 'if'} pid < end{k}:")
        start = f"end{k - 1}" if k else "0"
        body += indented(_call(group, f"group{k}", f"pid - {start}", _in_kernel(programs), symbols, schedule))
    head = f"def kevolve_kernel({', '.join([*names, 'BLOCK: tl.constexpr', 'STEPS: tl.constexpr'])}):"
    code = "\n\n".join([*functions, "\n".join(["@triton.jit", head, *indented(body)])])
    source = f"{used_helpers(_LIBRARY, code)}\n\n{code}\n"
    launch = Launch(
        "kevolve_kernel",
        arguments,
        grid=(" + ".join(str(count) for count in counts),),
        constants=(("BLOCK", int(schedule["block"])), ("STEPS", int(schedule["steps"]))),
        num_warps=int(schedule["num_warps"]),
    )
    return Kernel("triton", source, (launch,))


def _scaled(size: int, programs: Dim) -> Dim:
    return size * programs if isinstance(programs, int) else f"{size} * {programs}"


def _in_kernel(dim: Dim) -> str:
    return str(dim).replace("cdiv(", "tl.cdiv(")


def _across(group: Group, schedule: Schedule) -> int:
    """Into how many places its tasks are filled where they are done across; 0 where each has programs of its own."""
    wanted = schedule.get("order") == "across" and schedule.get("walk") != "columns"
    fits = group.size <= _MOST_ACROSS and is_interleaved(group)
    return next_power_of_2(group.size) if wanted and fits else 0


def _rows(across: int, schedule: Schedule) -> int:
    """Elements of each task in a block across ``across`` of them."""
    return max(1, int(schedule["block"]) // across)


def _programs(group: Group, schedule: Schedule) -> Dim:
    """How many programs a task of the group takes."""
    block, steps = int(schedule["block"]), int(schedule["steps"])
    across = _across(group, schedule)
    if across:
        return cdiv(group.body.numel, _rows(across, schedule) * steps)
    period = period_of(group.body, schedule)
    if period is None:
        return cdiv(group.body.numel, block * steps)
    return _scaled(period // block, cdiv(group.body.numel, period * steps))


def _group_function(group: Group, name: str, wide: bool, symbols: Sequence[str], schedule: Schedule) -> str:
    """The body of every task of a group, for one run of blocks.

    What is the same for all blocks of a run is computed once, ahead of them: what no axis enters into and, on a walk down
    columns, what only the last axis does.
    """
    across = _across(group, schedule)
    period = None if across else period_of(group.body, schedule)
    numel, part = group.body.numel, f"part{'.to(tl.int64)' if wide else ''}"
    printer = FlatTritonPrinter(group, str(schedule.get("search", "binary")), across)
    fixed = {p.name for p in group.parameters}
    everywhere = "tl.full([BLOCK], True, tl.int1)"
    if period is None:
        length, size, places = int(schedule["block"]), "BLOCK", "tl.arange(0, BLOCK)"
        if across:
            length = _rows(across, schedule)
            size, places = str(length), f"tl.arange(0, {length})[None, :]"
            everywhere = f"tl.arange(0, {across})[:, None] < {group.size}"
        body = [f"first = {part} * STEPS * {size}"]
        ahead = _ahead(printer, group, fixed, everywhere)
        here = [f"at = first + step * {size} + {places}", *_coordinates(group.body.axes, "at")]
        whole = isinstance(numel, int) and numel % (length * int(schedule["steps"])) == 0
    else:
        (column, extent), blocks = group.body.axes[-1], period // int(schedule["block"])
        body = [
            f"first = {part} // {blocks} * {period} * STEPS + {part} % {blocks} * BLOCK + tl.arange(0, BLOCK)",
            f"{column} = first % {extent}",
            f"first_row = first // {extent}",
        ]
        ahead = _ahead(printer, group, fixed | {column}, everywhere)
        here = [f"at = first + step * {period}", f"row = first_row + step * {period // int(extent)}"]
        here += _coordinates(group.body.axes[:-1], "row")
        whole = isinstance(numel, int) and numel % (period * int(schedule["steps"])) == 0
    stores = []
    for store in group.body.stores:
        value, offset = printer.value(store.value), printer.value(store.offset)
        stores.append(f"tl.store(o{store.output} + {offset}, {value}, mask=mask)")
    # Of a mask that is all true the compiler leaves nothing.
    mask = everywhere if whole else f"(at < {numel}) & ({everywhere})" if across else f"at < {numel}"
    body += [*ahead, "for step in range(STEPS):", *indented([*here, f"mask = {mask}", *printer.lines, *stores])]
    parameters = [*_slots(group), "part", *symbols, "BLOCK: tl.constexpr", "STEPS: tl.constexpr"]
    return "\n".join(["@triton.jit", f"def {name}({', '.join(parameters)}):", *indented(body)])


def _ahead(printer: FlatTritonPrinter, group: Group, fixed: set[str], everywhere: str) -> list[str]:
    """Statements for whatever depends on no other variables than ``fixed``. All that they read is there for every block."""
    printer.mask = "everywhere"
    for store in group.body.stores:
        for expr in (store.value, store.offset):
            for part in ex.walk(expr):
                if part.args and ex.variables(part) <= fixed:
                    printer.value(part)
    lines, printer.lines, printer.mask = printer.lines, [], "mask"
    return [f"everywhere = {everywhere}", *lines] if lines else []


def _slots(group: Group) -> list[str]:
    names = [f"a{slot}" for slot in range(len(group.pointers))] + [f"o{slot}" for slot in range(len(group.results))]
    return names + [parameter.name for parameter in group.parameters]


def _coordinates(axes: Sequence[Axis], rest: str) -> list[str]:
    lines = []
    for name, extent in reversed(axes[1:]):
        lines += [f"{name} = {rest} % {extent}", f"rest_{name} = {rest} // {extent}"]
        rest = f"rest_{name}"
    return [*lines, f"{axes[0][0]} = {rest}"]


def _call(group: Group, name: str, at: str, programs: str, symbols: Sequence[str], schedule: Schedule) -> list[str]:
    """Find the task of program ``at`` of the group, and its pointers and numbers; then run its blocks.

    In chunks there is nothing to look up: every task has a call of its own, which knows its pointers and numbers.
    """
    common = [*symbols, "BLOCK", "STEPS"]
    values = [_values(group, task) for task in range(group.size)]
    if group.size == 1:
        return [f"{name}({', '.join([*values[0], at, *common])})"]
    names, task, part = [f"{name}_{slot}" for slot in _slots(group)], f"{name}_task", f"{name}_part"
    each = _tasks_per_program(group, schedule)
    choices = -(-group.size // each)
    across = _across(group, schedule)
    if across:
        lines = [f"{part} = {at}", f"{task} = tl.arange(0, {across})[:, None]"]
        lines += _selected(task, names, values, {f"{name}_{p.name}": p for p in group.parameters})
        return [*lines, f"{name}({', '.join([*names, part, *common])})"]
    if schedule.get("order", "tasks") == "tasks":
        lines = [f"{task} = ({at}) // ({programs})", f"{part} = ({at}) % ({programs})"]
    else:
        lines = [f"{task} = ({at}) % {choices}", f"{part} = ({at}) // {choices}"]
    if each > 1:
        calls = [f"{name}({', '.join([*row, part, *common])})" for row in values]
        return lines + _tree(task, [calls[start : start + each] for start in range(0, len(calls), each)])
    if schedule.get("dispatch") == "tree":
        lines += _tree(task, [[f"{n} = {value}" for n, value in zip(names, row, strict=True)] for row in values])
    else:
        lines += _selected(task, names, values, {})
    return [*lines, f"{name}({', '.join([*names, part, *common])})"]


def _tasks_per_program(group: Group, schedule: Schedule) -> int:
    if _across(group, schedule):
        return group.size
    return min(_CHUNK, group.size) if schedule.get("dispatch") == "chunks" else 1


def _values(group: Group, task: int) -> list[str]:
    pointers = [f"in{numbers[task]}" for numbers in group.pointers] + [
        f"out{numbers[task]}" for numbers in group.results
    ]
    return pointers + [_number(parameter, task) for parameter in group.parameters]


def _number(parameter: Parameter, task: int) -> str:
    """A typed number. Indices that fit are 32 bits wide, since they are added to 32-bit positions."""
    narrow = parameter.dtype == "int64" and all(-INT32 <= value < INT32 for value in parameter.values)
    kind = "int32" if narrow else parameter.dtype
    return f"tl.full([], {literal(parameter.values[task], kind)}, {TRITON_TYPES[kind]})"


def _tree(task: str, leaves: Sequence[Sequence[str]], low: int = 0) -> list[str]:
    """Branches that halve the choices, so that a program takes as many as their number has digits."""
    if len(leaves) == 1:
        return list(leaves[0])
    half = len(leaves) // 2
    left, right = _tree(task, leaves[:half], low), _tree(task, leaves[half:], low + half)
    return [f"if {task} < {low + half}:", *indented(left), "else:", *indented(right)]


def _selected(
    task: str, names: Sequence[str], values: Sequence[Sequence[str]], numbers: Mapping[str, Parameter]
) -> list[str]:
    """No branches: every value is selected out of all tasks'. Of ``numbers`` those that rise evenly are computed, and so
    known to be neighbours; beyond the last task they go on to rise, where the others are the first task's."""
    lines = []
    for position, name in enumerate(names):
        column = [row[position] for row in values]
        rise = numbers[name].rise if name in numbers else None
        if rise is not None and all(-INT32 <= start < INT32 for start in numbers[name].values):
            lines.append(f"{name} = {task} * {rise[1]} + {rise[0]}")
            continue
        lines.append(f"{name} = {column[0]}")
        if len(set(column)) > 1:
            lines += [f"{name} = tl.where({task} == {k}, {column[k]}, {name})" for k in range(1, len(column))]
    return lines
