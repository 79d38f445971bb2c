"""Bags as Triton: a program pools tiles of bags of one table, positions and bags side by side where rows are short.

What hides the latency of random rows is their number in flight: the indices of several steps are read first, then checked
by one assertion (no load is moved across one), then all of their rows are read, which are added last and in pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ....graph.dims import Dim, product
from ....kernel import Argument, Kernel, Launch
from ...expression import TRITON_PRELUDE
from ...expression import expression as ex
from ...expression.expression import Expr
from ...expression.remainder import TRITON_REMAINDER
from ...expression.triton import TRITON_TYPES, literal, used_helpers
from ...family import Schedule
from ..triton_tiles import INT32, cdiv, coordinates, indented, needs_64_bits
from .checks import COMBINED, BagPrinter, checked, in_pairs
from .groups import Group, Parameter
from .plan import POSITION, BagsPlan, Fold, Loop, extents, gathers
from .tiles import steps_of, tile_of


def kernel_of(
    groups: Sequence[Group], plan: BagsPlan, arguments: tuple[Argument, ...], schedule: Schedule, usual: int
) -> Kernel:
    """``usual`` is the length of bags where that varies."""
    wide = needs_64_bits((*plan.inputs, *plan.outputs))
    texts = [_Text(group, f"bags{k}", plan.symbols, wide, schedule, usual) for k, group in enumerate(groups)]
    counts = [_scaled(text.group.size, text.programs) for text in texts]
    body = ["pid = tl.program_id(0)"]
    body += [f"end{k} = {f'end{k - 1} + ' if k else ''}{_in_kernel(count)}" for k, count in enumerate(counts)]
    for k, text in enumerate(texts):
        body.append(f"{'elif' if k else 'if'} pid < end{k}:")
        body += indented(text.call(f"(pid - {f'end{k - 1}' if k else '0'})"))
    names = [f"in{k}" for k in range(len(plan.inputs))] + [f"out{k}" for k in range(len(plan.outputs))]
    entry = f"@triton.jit\ndef kevolve_kernel({', '.join([*names, *plan.symbols])}):"
    code = "\n\n".join([*(text.function() for text in texts), "\n".join([entry, *indented(body)])])
    launch = Launch(
        "kevolve_kernel",
        arguments,
        grid=(" + ".join(str(count) for count in counts),),
        num_warps=int(schedule["num_warps"]),
    )
    return Kernel("triton", f"{used_helpers(TRITON_PRELUDE + TRITON_REMAINDER, code)}\n\n{code}\n", (launch,))


def _scaled(size: int, programs: Dim) -> Dim:
    return size * programs if isinstance(programs, int) else f"{size} * {programs}"


def _in_kernel(dim: Dim) -> str:
    return str(dim).replace("cdiv(", "tl.cdiv(")


@dataclass(frozen=True)
class _Steps:
    """Steps of a loop that are in flight together: what was printed of them, and of each its printer and its mask."""

    lines: list[str]
    printers: list[BagPrinter]
    masks: list[str]


class _Text:
    """The function of one group for some of one of its bags, and how a program finds them."""

    def __init__(
        self, group: Group, name: str, symbols: Sequence[str], wide: bool, schedule: Schedule, usual: int
    ) -> None:
        self.group, self.bag, self.name = group, group.body, name
        self.symbols, self.wide, self.schedule, self.usual = symbols, wide, schedule, usual
        self.tile = tile_of(self.bag, schedule)
        self.count = product(extents(self.bag.axes))
        self.elements = int(product(extents(self.bag.inner)))
        # Bags that one program takes, tile after tile.
        self.own = self.tile.bags * int(schedule["bags"])
        blocks, self.parts = cdiv(self.count, self.own), -(-self.elements // self.tile.columns)
        self.programs: Dim = blocks * self.parts if isinstance(blocks, int) else f"{blocks} * {self.parts}"
        # Rows that end where the tile does are not masked, nor bags.
        self.is_ragged = bool(self.elements % self.tile.columns)
        self.masks = {name: "place_mask" for name, _ in self.bag.inner} if self.is_ragged else {}
        whole = isinstance(self.count, int) and self.count % self.tile.bags == 0
        self.is_partial = self.tile.bags > 1 and not whole
        if self.is_partial:
            self.masks |= {name: "bag_mask" for name, _ in self.bag.axes}

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
        columns, wide = self.tile.columns, ".to(tl.int64)" if self.wide else ""
        printer = BagPrinter(self.masks, {}, "b")
        body = [*coordinates("bag", self.bag.axes), *self._fails(printer)]
        begun = self._begun(printer)
        body += begun.lines if begun else []
        for number, loop in enumerate(self.bag.loops):
            body += self._loop(loop, number, printer, begun)
            for fold in loop.folds:
                for knows in (printer, *(begun.printers if begun else ())):
                    knows.name(ex.var(fold.name, None, fold.held), fold.name)
        body += self._stores(printer)
        lines = [
            f"place = (part % {self.parts}) * {columns} + {self._range(columns, 2)}",
            f"place_mask = place < {self.elements}",
            *coordinates("place", self.bag.inner),
            f"first = (part // {self.parts}){wide} * {self.own}",
            *self._over_bags(body),
        ]
        head = f"@triton.jit\ndef {self.name}({', '.join([*self._slots(), 'part', *self.symbols])}):"
        loops = enumerate(self.bag.loops) if self.tile.positions > 1 else ()
        return "\n\n".join([*(self._joining(loop, k) for k, loop in loops), "\n".join([head, *indented(lines)])])

    def _over_bags(self, body: Sequence[str]) -> list[str]:
        count = self.tile.bags
        start = "first" if self.own == count else "start"
        one = [f"bag = {start}" + (f" + {self._range(count, 1)}" if count > 1 else "")]
        one += [f"bag_mask = bag < {self.count}"] if self.is_partial else []
        if self.own == count:
            return [*one, *body]
        last = f"tl.minimum(first + {self.own}, {self.count})"
        return [f"for start in range(first, {last}, {count}):", *indented([*one, *body])]

    def _range(self, count: int, axis: int) -> str:
        """Numbers along an axis of the tile, which is a plain row where there is but one bag and position."""
        spread = ", ".join(":" if axis == k else "None" for k in range(3))
        return f"tl.arange(0, {count})" + ("" if self.tile.is_row else f"[{spread}]")

    def _fails(self, printer: BagPrinter) -> list[str]:
        texts = [f"({printer.value(fail)} == 0)" for fail in self.bag.fails]
        return [
            *printer.taken(),
            *([f'tl.device_assert({" & ".join(texts)}, "offsets out of order")'] if texts else []),
        ]

    def _begun(self, outer: BagPrinter) -> _Steps | None:
        """The last of several loops as far as it waits for none of the others: its rows are on their way meanwhile."""
        *before, last = self.bag.loops or (None,)
        if last is None or not before or not all(map(self._is_straight, self.bag.loops)):
            return None
        steps = self._steps(last, len(before), "0", self._in_flight(last), str(last.span.length), outer)
        found = {fold.name for fold in self.bag.folds}
        reads = [read for fold in last.folds for read in gathers(fold.body) if self.bag.is_row(read)]
        reads = [read for read in dict.fromkeys(reads) if found.isdisjoint(ex.variables(read))]
        # What else positions read other loops read as well, which is the same read only if no assertion is between them.
        places = {part: None for read in reads for part in ex.walk(read) if not self.bag.is_row(part)}
        steps.lines.extend(checked(places, steps.printers))
        for printer in steps.printers:
            for read in reads:
                printer.value(read)
            steps.lines.extend(printer.taken())
        return steps

    def _in_flight(self, loop: Loop) -> int:
        return steps_of(loop, self.tile, self.schedule, self.usual)

    def _is_straight(self, loop: Loop) -> bool:
        """Whether all positions are in flight together."""
        return loop.span.length is not None and loop.span.length <= self._in_flight(loop) * self.tile.positions

    def _loop(self, loop: Loop, number: int, outer: BagPrinter, begun: _Steps | None) -> list[str]:
        for fold in loop.folds:
            outer.hoisted(fold.body, lambda part: POSITION in ex.variables(part) or self.bag.is_row(part))
        lines = [*outer.taken(), *(f"{fold.name} = {self._neutral(fold)}" for fold in loop.folds)]
        steps, length = self._in_flight(loop), loop.span.length
        taken = steps * self.tile.positions
        if self._is_straight(loop):
            if begun and number == len(self.bag.loops) - 1:
                opened = replace(begun, lines=[])
            else:
                opened = self._steps(loop, number, "0", steps, str(length), outer)
            return [*lines, *self._folded(loop, opened), *self._joined(loop, number)]
        start, low, high = f"start{number}", "0", str(length)
        if length is None:
            low, high = f"low{number}", f"high{number}"
            ends = [outer.value(ex.cast(end, "int64")) for end in (loop.span.low, loop.span.high)]
            lines += [*outer.taken(), f"{low} = {ends[0]}", f"{high} = {ends[1]}"]
        bound = None if length is not None and length % taken == 0 else high
        if length is None and self.tile.bags > 1:
            lines.append(f"for {start} in range(0, tl.max({high} - {low}), {taken}):")
            start = f"{low} + {start}"
        else:
            lines.append(f"for {start} in range({low}, {high}, {taken}):")
        inside = self._folded(loop, self._steps(loop, number, start, steps, bound, outer))
        return [*lines, *indented(inside), *self._joined(loop, number)]

    def _neutral(self, fold: Fold) -> str:
        width = self.tile.columns if self.bag.is_row(fold.body) or self.tile.positions > 1 else 1
        shape = [width] if self.tile.is_row else [self.tile.positions, self.tile.bags, width]
        return f"tl.full({shape}, {literal(fold.neutral, fold.held)}, {TRITON_TYPES[fold.held]})"

    def _joined(self, loop: Loop, number: int) -> list[str]:
        """Over the positions that lie side by side.

        All folds in one reduction, and all as wide as rows: they are then held as rows are loaded. By itself Triton gives
        one number a bag to threads that gather all of its positions once more.
        """
        if self.tile.positions == 1:
            return []
        names = ", ".join(fold.name for fold in loop.folds)
        given = f"({names})" if len(loop.folds) > 1 else names
        lines = [f"{names} = tl.reduce({given}, 0, {self.name}_joined{number}, keep_dims=True)"]
        # What positions of a later loop need is one number again, so that they compute with one.
        needed = {name for later in self.bag.loops[number + 1 :] for f in later.folds for name in ex.variables(f.body)}
        numbers = [fold.name for fold in loop.folds if fold.name in needed and not self.bag.is_row(fold.body)]
        return lines + [f"{name} = tl.max({name}, 2, keep_dims=True)" for name in numbers]

    def _joining(self, loop: Loop, number: int) -> str:
        left, right = ([f"{side}{k}" for k in range(len(loop.folds))] for side in "ab")
        pairs = zip(loop.folds, left, right, strict=True)
        combined = ", ".join(COMBINED[fold.combine].format(*pair) for fold, *pair in pairs)
        return f"@triton.jit\ndef {self.name}_joined{number}({', '.join(left + right)}):\n    return {combined}"

    def _steps(self, loop: Loop, number: int, start: str, count: int, high: str | None, outer: BagPrinter) -> _Steps:
        """``count`` steps from position ``start`` on, while below ``high``."""
        lines: list[str] = []
        printers: list[BagPrinter] = []
        masks: list[str] = []
        side = self.tile.positions
        for step in range(count):
            name = f"{POSITION}{step}"
            lines.append(f"{name} = {start} + {step * side}" + (f" + {self._range(side, 0)}" if side > 1 else ""))
            is_whole = high is None or (start == "0" and (step + 1) * side <= int(high))
            masks.append("" if is_whole else f"{name}_mask")
            if not is_whole:
                lines.append(f"{name}_mask = {name} < {high}")
            # No two loops share names: Triton would carry a value from one to the next.
            prefix = f"s{number}_{step}_" if number else f"s{step}_"
            printers.append(outer.within(prefix, self.masks | ({} if is_whole else {POSITION: f"{name}_mask"})))
            for variable in {part for fold in loop.folds for part in ex.walk(fold.body) if _is_position(part)}:
                printers[-1].name(variable, name)
        return _Steps(lines, printers, masks)

    def _folded(self, loop: Loop, steps: _Steps) -> list[str]:
        """All indices of ``steps``, all rows, then the folds."""
        lines = [*steps.lines, *self._indices(loop, steps.printers)]
        values = [[printer.value(fold.body) for printer in steps.printers] for fold in loop.folds]
        lines += [line for printer in steps.printers for line in printer.taken()]
        for fold, given in zip(loop.folds, values, strict=True):
            texts = [_kept(fold, value, mask) for value, mask in zip(given, steps.masks, strict=True)]
            lines.append(f"{fold.name} = {COMBINED[fold.combine].format(fold.name, in_pairs(fold.combine, texts))}")
        return lines

    def _indices(self, loop: Loop, printers: Sequence[BagPrinter]) -> list[str]:
        """What is the same along a row."""
        parts = {part: None for fold in loop.folds for part in ex.walk(fold.body) if not self.bag.is_row(part)}
        return checked(parts, printers)

    def _stores(self, printer: BagPrinter) -> list[str]:
        lines: list[str] = []
        for store in self.bag.stores:
            value, offset = printer.value(store.value), printer.value(store.offset)
            used = ["place_mask"] * self.is_ragged + ["bag_mask"] * self.is_partial
            if not self.bag.is_row(store.offset):
                # What is one number for a bag is stored once.
                offset += " + place * 0"
                used += ["(place == 0)"] * (self.elements > 1)
            if not ex.variables(store.value):
                value += " + place * 0"
            mask = f", mask={' & '.join(used)}" if used else ""
            lines += [*printer.taken(), f"tl.store(out{store.output} + {offset}, {value}{mask})"]
        return lines


def _is_position(part: Expr) -> bool:
    return part.op == "var" and part.value[0] == POSITION


def _kept(fold: Fold, value: str, mask: str) -> str:
    if not mask:
        return value
    return f"tl.where({mask}, {value}, {literal(fold.neutral, fold.held)}).to({TRITON_TYPES[fold.held]})"


def _number(parameter: Parameter, task: int) -> str:
    """A typed number; those that fit are 32 bits wide, since they are added to 32-bit positions."""
    narrow = all(-INT32 <= value < INT32 for value in parameter.values)
    return f"tl.full([], {parameter.values[task]}, {'tl.int32' if narrow else 'tl.int64'})"
