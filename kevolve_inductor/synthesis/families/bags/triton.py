"""Bags as Triton: a program pools some bags of one table, one after another, a row over the lanes of its warps.

What hides the latency of random rows is their number in flight: the indices of several positions are read first, as plain
numbers, then all of their rows, which are added last. In a tile of positions every thread would read every index.
"""

from __future__ import annotations

from collections.abc import Sequence

from ....graph.dims import Dim, product
from ....kernel import Argument, Kernel, Launch
from ...expression import TRITON_PRELUDE
from ...expression import expression as ex
from ...expression.remainder import TRITON_REMAINDER
from ...expression.triton import TRITON_TYPES, literal, used_helpers
from ...family import Schedule
from ..row_printers import TritonRowPrinter
from ..triton_tiles import INT32, cdiv, coordinates, needs_64_bits
from .groups import Group, Parameter
from .plan import POSITION, Bag, BagsPlan, Fold, Loop, extents

# Elements of a row that one program takes at most.
_WIDEST = 1024
_COMBINED = {"add": "{0} + {1}", "maximum": "kv_max({0}, {1})", "minimum": "kv_min({0}, {1})"}


def kernel_of(groups: Sequence[Group], plan: BagsPlan, arguments: tuple[Argument, ...], schedule: Schedule) -> Kernel:
    wide = needs_64_bits((*plan.inputs, *plan.outputs))
    texts = [_Text(group, f"bags{k}", plan.symbols, wide, schedule) for k, group in enumerate(groups)]
    counts = [_scaled(text.group.size, text.programs) for text in texts]
    body = ["pid = tl.program_id(0)"]
    body += [f"end{k} = {f'end{k - 1} + ' if k else ''}{_in_kernel(count)}" for k, count in enumerate(counts)]
    for k, text in enumerate(texts):
        body.append(f"{'elif' if k else 'if'} pid < end{k}:")
        body += _indented(text.call(f"(pid - {f'end{k - 1}' if k else '0'})"))
    names = [f"in{k}" for k in range(len(plan.inputs))] + [f"out{k}" for k in range(len(plan.outputs))]
    entry = f"@triton.jit\ndef kevolve_kernel({', '.join([*names, *plan.symbols])}):"
    code = "\n\n".join([*(text.function() for text in texts), "\n".join([entry, *_indented(body)])])
    launch = Launch(
        "kevolve_kernel",
        arguments,
        grid=(" + ".join(str(count) for count in counts),),
        num_warps=int(schedule["num_warps"]),
    )
    return Kernel("triton", f"{used_helpers(TRITON_PRELUDE + TRITON_REMAINDER, code)}\n\n{code}\n", (launch,))


def columns_of(bag: Bag) -> int:
    """Elements of a row that one program takes."""
    return min(_WIDEST, 1 << (int(product(extents(bag.inner))) - 1).bit_length())


def _scaled(size: int, programs: Dim) -> Dim:
    return size * programs if isinstance(programs, int) else f"{size} * {programs}"


def _in_kernel(dim: Dim) -> str:
    return str(dim).replace("cdiv(", "tl.cdiv(")


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]


class _Text:
    """The function of one group for some of one of its bags, and how a program finds them."""

    def __init__(self, group: Group, name: str, symbols: Sequence[str], wide: bool, schedule: Schedule) -> None:
        self.group, self.bag, self.name = group, group.body, name
        self.symbols, self.wide, self.schedule = symbols, wide, schedule
        self.steps, self.positions = int(schedule["bags"]), int(schedule["positions"])
        self.count = product(extents(self.bag.axes))
        self.elements = int(product(extents(self.bag.inner)))
        self.columns = columns_of(self.bag)
        blocks, parts = cdiv(self.count, self.steps), -(-self.elements // self.columns)
        self.programs: Dim = blocks * parts if isinstance(blocks, int) else f"{blocks} * {parts}"
        # Rows that end where the tile does are not masked.
        is_ragged = bool(self.elements % self.columns)
        self.masks = {name: "place_mask" for name, _ in self.bag.inner} if is_ragged else {}

    # --- which bag ---

    def call(self, at: str) -> list[str]:
        """Find the bag of program ``at`` among those of the group, and its pointers and numbers."""
        size, common = self.group.size, self.symbols
        values = [self._values(task) for task in range(size)]
        if size == 1:
            return [f"{self.name}({', '.join([*values[0], at, *common])})"]
        task, part = f"{self.name}_task", f"{self.name}_part"
        programs = _in_kernel(self.programs)
        if self.schedule["order"] == "tables":
            lines = [f"{task} = {at} // ({programs})", f"{part} = {at} % ({programs})"]
        else:
            lines = [f"{task} = {at} % {size}", f"{part} = {at} // {size}"]
        if self.schedule["dispatch"] == "calls":
            return lines + _tree(task, [[f"{self.name}({', '.join([*row, part, *common])})"] for row in values])
        names = [f"{self.name}_{slot}" for slot in self._slots()]
        for name, column in zip(names, zip(*values, strict=True), strict=True):
            lines.append(f"{name} = {column[0]}")
            if len(set(column)) > 1:
                lines += [f"{name} = tl.where({task} == {k}, {column[k]}, {name})" for k in range(1, size)]
        return [*lines, f"{self.name}({', '.join([*names, part, *common])})"]

    def _slots(self) -> list[str]:
        names = [f"in{slot}" for slot in range(len(self.group.pointers))]
        names += [f"out{slot}" for slot in range(len(self.group.results))]
        return names + [parameter.name for parameter in self.group.parameters]

    def _values(self, task: int) -> list[str]:
        values = [f"in{numbers[task]}" for numbers in self.group.pointers]
        values += [f"out{numbers[task]}" for numbers in self.group.results]
        return values + [_number(parameter, task) for parameter in self.group.parameters]

    # --- the function ---

    def function(self) -> str:
        block, parts = self.columns, -(-self.elements // self.columns)
        printer = TritonRowPrinter(self.masks, {}, "b")
        body = [*coordinates("bag", self.bag.axes), *self._fails(printer)]
        for number, loop in enumerate(self.bag.loops):
            body += self._loop(loop, number, printer)
        body += self._stores(printer)
        wide = ".to(tl.int64)" if self.wide else ""
        lines = [
            f"place = (part % {parts}) * {block} + tl.arange(0, {block})",
            f"place_mask = place < {self.elements}",
            *coordinates("place", self.bag.inner),
            f"first = (part // {parts}){wide} * {self.steps}",
            f"for bag in range(first, tl.minimum(first + {self.steps}, {self.count})):",
            *_indented(body),
        ]
        parameters = [*self._slots(), "part", *self.symbols]
        return "\n".join([f"@triton.jit\ndef {self.name}({', '.join(parameters)}):", *_indented(lines)])

    def _fails(self, printer: TritonRowPrinter) -> list[str]:
        texts = [f"{printer.value(fail)} == 0" for fail in self.bag.fails]
        return [*printer.taken(), *(f'tl.device_assert({text}, "offsets out of order")' for text in texts)]

    def _loop(self, loop: Loop, number: int, outer: TritonRowPrinter) -> list[str]:
        for fold in loop.folds:
            outer.hoisted(fold.body, lambda part: POSITION in ex.variables(part) or self.bag.is_row(part))
        lines = [*outer.taken(), *(f"{fold.name} = {self._neutral(fold)}" for fold in loop.folds)]
        length = loop.span.length
        if length is not None and length <= self.positions:
            return lines + self._positions(loop, "0", length, None, outer)
        low, high = (outer.value(ex.cast(end, "int64")) for end in (loop.span.low, loop.span.high))
        lines += [*outer.taken(), f"low{number} = {low}", f"high{number} = {high}"]
        lines.append(f"for start{number} in range(low{number}, high{number}, {self.positions}):")
        is_whole = length is not None and length % self.positions == 0
        bound = None if is_whole else f"high{number}"
        return lines + _indented(self._positions(loop, f"start{number}", self.positions, bound, outer))

    def _neutral(self, fold: Fold) -> str:
        width = self.columns if self.bag.is_row(fold.body) else 1
        return f"tl.full([{width}], {literal(fold.neutral, fold.held)}, {TRITON_TYPES[fold.held]})"

    def _positions(self, loop: Loop, start: str, count: int, high: str | None, outer: TritonRowPrinter) -> list[str]:
        """``count`` positions from ``start`` on, while below ``high``: all indices, all rows, then the folds."""
        before: list[str] = []
        rows: list[str] = []
        after: list[str] = []
        for step in range(count):
            name = f"{POSITION}{step}"
            before.append(f"{name} = {start} + {step}")
            mask = f"{name}_mask" if high is not None else ""
            if mask:
                before.append(f"{mask} = {name} < {high}")
            printer = outer.within(f"s{step}_", {**self.masks, POSITION: mask} if mask else self.masks)
            for fold in loop.folds:
                for variable in (part for part in ex.walk(fold.body) if part.op == "var" and part.value[0] == POSITION):
                    printer.name(variable, name)
                printer.hoisted(fold.body, self.bag.is_row)
            before += printer.taken()
            for fold in loop.folds:
                value = printer.value(fold.body)
                rows += printer.taken()
                if mask:
                    neutral = literal(fold.neutral, fold.held)
                    value = f"tl.where({mask}, {value}, {neutral}).to({TRITON_TYPES[fold.held]})"
                after.append(f"{fold.name} = {_COMBINED[fold.combine].format(fold.name, value)}")
        return [*before, *rows, *after]

    def _stores(self, printer: TritonRowPrinter) -> list[str]:
        for fold in self.bag.folds:
            printer.name(ex.var(fold.name, None, fold.held), fold.name)
        lines: list[str] = []
        for store in self.bag.stores:
            value, offset = printer.value(store.value), printer.value(store.offset)
            # An offset that is the same for all elements is given the shape of a row.
            place = f"out{store.output} + {offset}{'' if self.bag.is_row(store.offset) else ' + place * 0'}"
            mask = ", mask=place_mask" if self.elements % self.columns else ""
            lines += [*printer.taken(), f"tl.store({place}, {value}{mask})"]
        return lines


def _number(parameter: Parameter, task: int) -> str:
    """A typed number; those that fit are 32 bits wide, since they are added to 32-bit positions."""
    narrow = all(-INT32 <= value < INT32 for value in parameter.values)
    return f"tl.full([], {parameter.values[task]}, {'tl.int32' if narrow else 'tl.int64'})"


def _tree(task: str, leaves: Sequence[Sequence[str]], low: int = 0) -> list[str]:
    """Branches that halve the choices, so that a program takes as many as their number has digits."""
    if len(leaves) == 1:
        return list(leaves[0])
    half = len(leaves) // 2
    left, right = _tree(task, leaves[:half], low), _tree(task, leaves[half:], low + half)
    return [f"if {task} < {low + half}:", *_indented(left), "else:", *_indented(right)]
