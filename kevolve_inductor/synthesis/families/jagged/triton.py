"""Jagged tasks as Triton: tiles of rows × positions (or events) × inner elements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ....exc import EmissionError
from ....graph.dims import product
from ....kernel import Argument, Kernel, Launch
from ...expression import TRITON_PRELUDE
from ...expression import expression as ex
from ...expression.expression import Expr
from ...expression.remainder import TRITON_REMAINDER, Method
from ...expression.triton import TRITON_TYPES, literal, used_helpers
from ...family import Schedule
from ..bags.checks import COMBINED, BagPrinter, checked, in_pairs
from ..triton_tiles import TilePrinter, cdiv, coordinates, indented, needs_64_bits, next_power_of_2
from .cpp import respelled
from .plan import ACCUMULATOR, POSITION, ROW, Dense, JaggedPlan, JaggedTask, Reduce

_LIBRARY = TRITON_PRELUDE + TRITON_REMAINDER


def launches_of(plan: JaggedPlan, arguments: tuple[Argument, ...], schedule: Schedule) -> Kernel:
    """One launch per task."""
    method: Method = schedule.get("remainder", "native")  # type: ignore[assignment]
    functions, launches = [], []
    for number, task in enumerate(plan.tasks):
        name = f"kevolve_kernel{number}"
        tile = _tile(task, schedule)
        spelled = respelled(task, method)
        functions.append(
            _dense(name, spelled, plan, tile)
            if isinstance(spelled, Dense)
            else _reduce(name, spelled, plan, tile, int(schedule["steps"]))
        )
        launches.append(
            Launch(
                name,
                arguments,
                grid=_grid(task, tile),
                constants=tuple(tile.items()),
                num_warps=int(schedule["num_warps"]),
            )
        )
    code = "\n\n".join(functions)
    return Kernel("triton", f"{used_helpers(_LIBRARY, code)}\n\n{code}\n", tuple(launches))


def _inner(task: JaggedTask) -> int:
    """Elements at one position."""
    inner = product(tuple(extent for _, extent in task.inner))
    if not isinstance(inner, int):
        raise EmissionError("an inner axis of dynamic size")
    return inner


def _tile(task: JaggedTask, schedule: Schedule) -> dict[str, int]:
    columns = min(int(schedule["columns"]), next_power_of_2(_inner(task)))
    if isinstance(task, Dense):
        positions = min(int(schedule["positions"]), next_power_of_2(task.length))
        rows = max(1, int(schedule["tile"]) // (columns * positions))
        return {"ROWS": rows, "COLUMNS": columns, "POSITIONS": positions}
    events = int(schedule["events"])
    return {"ROWS": max(1, int(schedule["tile"]) // (columns * events)), "COLUMNS": columns, "EVENTS": events}


def _grid(task: JaggedTask, tile: Mapping[str, int]) -> tuple[str, ...]:
    blocks = [cdiv(task.rows[1], tile["ROWS"]), cdiv(_inner(task), tile["COLUMNS"])]
    if isinstance(task, Dense):
        return tuple(map(str, (*blocks, cdiv(task.length, tile["POSITIONS"]))))
    return (str(blocks[0]) if blocks[1] == 1 else f"({blocks[0]}) * {blocks[1]}",)


def _programs(task: Reduce, tile: Mapping[str, int]) -> tuple[str, str]:
    """Numbers of a program's rows and of its columns. Parts of the same rows follow one another: they share cache lines."""
    parts = cdiv(_inner(task), tile["COLUMNS"])
    return (
        ("tl.program_id(0)", "0") if parts == 1 else (f"(tl.program_id(0) // {parts})", f"tl.program_id(0) % {parts}")
    )


def _head(name: str, plan: JaggedPlan, constants: Sequence[str]) -> str:
    names = [f"in{k}" for k in range(len(plan.inputs))] + [f"out{k}" for k in range(len(plan.outputs))]
    parameters = [*names, *plan.symbols, *(f"{constant}: tl.constexpr" for constant in constants)]
    return f"@triton.jit\ndef {name}({', '.join(parameters)}):"


def _axis(name: str, program: str, block: str, place: str, wide: bool) -> str:
    start = f"{program}.to(tl.int64) * {block}" if wide else f"{program} * {block}"
    return f"{name} = ({start} + tl.arange(0, {block}))[{place}]"


def _fails(printer: TilePrinter, fails: Sequence[Expr], masked: bool = True) -> list[str]:
    lines = []
    for fail in fails:
        text = f"({printer.value(fail)} == 0)" + (" | ~row_mask" if masked else "")
        lines += [*printer.lines, f'tl.device_assert({text}, "index out of range")']
        printer.lines.clear()
    return lines


# --- one element per position ---


def _dense(name: str, task: Dense, plan: JaggedPlan, tile: Mapping[str, int]) -> str:
    wide = needs_64_bits((*plan.inputs, *plan.outputs))
    lines = [
        _axis(ROW, "tl.program_id(0)", "ROWS", ":, None, None", wide),
        _axis("place", "tl.program_id(1)", "COLUMNS", "None, None, :", False),
        _axis(POSITION, "tl.program_id(2)", "POSITIONS", "None, :, None", False),
        *coordinates("place", task.inner),
    ]
    needed = {}
    bounds = (("row_mask", ROW, task.rows[1], "ROWS"), ("at_mask", POSITION, task.length, "POSITIONS"),
              ("place_mask", "place", _inner(task), "COLUMNS"))  # fmt: skip
    for mask, variable, extent, block in bounds:
        # Tiles that end where the tensor does are not masked: every mask costs a comparison per element.
        if not isinstance(extent, int) or extent % tile[block]:
            needed[mask] = f"{variable} < {extent}"
    lines += [f"{mask} = {text}" for mask, text in needed.items()]
    masks = {variable: mask for variable, mask in _masks(task).items() if mask in needed}
    printer = TilePrinter(masks, guards_of(task.value))
    lines += _fails(printer, task.fails, "row_mask" in needed)
    value, offset = printer.value(task.value), printer.value(task.offset)
    shape = "" if task.inner else f" + {_NO_INNER}"
    guard = f", mask={' & '.join(needed)}" if needed else ""
    lines += [*printer.lines, f"tl.store(out{task.output} + {offset}{shape}, {value}{guard})"]
    return "\n".join([_head(name, plan, ("ROWS", "COLUMNS", "POSITIONS")), *indented(lines)])


# Gives an offset that does not depend on inner elements the shape of the tile.
_NO_INNER = "place * 0"


def _masks(task: JaggedTask) -> dict[str, str]:
    return {ROW: "row_mask", POSITION: "at_mask", **{axis: "place_mask" for axis, _ in task.inner}}


def guards_of(value: Expr) -> dict[Expr, tuple[Expr, bool]]:
    """Reads that only one side of an outermost selection needs, with its condition and whether it must hold."""
    found: dict[Expr, tuple[Expr, bool]] = {}
    for part in ex.walk(value):
        if part.op != "where":
            continue
        condition = part.args[0]
        for side, holds in ((1, True), (2, False)):
            hole = ex.const(0, part.dtype)
            kept = [hole if position == side else argument for position, argument in enumerate(part.args)]
            without = ex.substitute(value, _hole(part, ex.make("where", part.dtype, tuple(kept))))
            needed = {other for other in ex.walk(without) if other.op == "read"}
            own = [other for other in ex.walk(part.args[side]) if other.op == "read" and other not in needed]
            found.update({read: (condition, holds) for read in own if read not in ex.walk(condition)})
    return found


def _hole(part: Expr, kept: Expr) -> Callable[[Expr], Expr | None]:
    return lambda other: kept if other is part else None


# --- one element per row ---


def _reduce(name: str, task: Reduce, plan: JaggedPlan, tile: Mapping[str, int], steps: int) -> str:
    """``steps`` times the tile's positions of a row are in flight together."""
    own, part = _programs(task, tile)
    wide = needs_64_bits((*plan.inputs, *plan.outputs))
    kind = TRITON_TYPES[task.held]
    neutral = literal(_neutral(task), task.held)
    lines = [
        _axis(ROW, own, "ROWS", ":, None, None", wide),
        _axis("place", part, "COLUMNS", "None, None, :", False),
        f"row_mask = {ROW} < {task.rows[1]}",
        f"place_mask = place < {_inner(task)}",
        *coordinates("place", task.inner),
        f"total = tl.full([ROWS, EVENTS, COLUMNS], {neutral}, {kind})",
    ]
    outer = BagPrinter(_masks(task), {}, "r")
    lines += _fails(outer, task.fails)
    outer.hoisted(task.body, lambda part: POSITION in ex.variables(part))
    for number, span in enumerate(task.spans):
        bounds = [outer.value(ex.cast(bound, "int64")) for bound in (span.low, span.high)]
        lines += [*outer.taken(), *_span(task, number, bounds, outer, tile["EVENTS"], steps)]
    combined = "tl.sum(total, axis=1)" if task.combine == "add" else f"tl.reduce(total, 1, {_HELPERS[task.combine]})"
    lines.append(f"combined = {combined}")
    lines += _result(task, (own, part), wide, _masks(task))
    return "\n".join([_head(name, plan, ("ROWS", "COLUMNS", "EVENTS")), *indented(lines)])


_HELPERS = {"maximum": "kv_max", "minimum": "kv_min"}


def _neutral(task: Reduce) -> float | int:
    if task.combine == "add":
        return 0
    return task.empty


def _span(
    task: Reduce, number: int, bounds: Sequence[str], outer: BagPrinter, events: int, steps: int
) -> list[str]:  # fmt: skip
    """A loop over the positions between ``bounds``."""
    low, high = task.spans[number].low, task.spans[number].high
    if low.op == high.op == "const":
        # The same for all rows. What rows and columns outside of the tensors give is not stored.
        length = int(high.value) - int(low.value)
        lines = [f"low{number}, high{number} = {bounds[0]}, {bounds[1]}"]
        most, is_masked = f"{length}", bool(length % (events * steps))
    else:
        most, is_masked = f"longest{number}", True
        lines = [
            f"low{number} = {bounds[0]} + tl.zeros([ROWS, 1, 1], tl.int64)",
            f"high{number} = tl.where(row_mask, {bounds[1]}, low{number})",
            f"{most} = tl.max(tl.reshape(high{number} - low{number}, [ROWS]), axis=0)",
        ]
    stride, body = events * steps, _steps(task, number, outer, steps, is_masked)
    block = stride * _BLOCK
    if task.combine != "add" or not task.held.startswith("float") or most.isdecimal() and int(most) <= block:
        return [*lines, f"for start in range(0, {most}, {stride}):", *indented(body)]
    return [
        *lines,
        f"for block in range(0, {most}, {block}):",
        "    sum_before = total",
        f"    total = tl.zeros([ROWS, EVENTS, COLUMNS], {TRITON_TYPES[task.held]})",
        f"    for start in range(block, tl.minimum(block + {block}, {most}), {stride}):",
        *indented(body, "        "),
        "    total += sum_before",
    ]


# A float sum's error grows with the number of additions that an element goes through: rounds are summed in blocks.
_BLOCK = 16


def _steps(task: Reduce, number: int, outer: BagPrinter, steps: int, is_masked: bool) -> list[str]:
    """Indices of all steps are checked before any value is read: no load is moved across an assertion."""
    neutral = literal(_neutral(task), task.held)
    lines, printers = [], []
    for step in range(steps):
        at, mask = f"{POSITION}{step}", f"at_mask{step}"
        ahead = f" + EVENTS * {step}" if step else ""
        lines.append(f"{at} = (low{number} + start{ahead} + tl.arange(0, EVENTS)[None, :, None]).to(tl.int64)")
        masks = {variable: text for variable, text in _masks(task).items() if variable != POSITION}
        if is_masked:
            lines.append(f"{mask} = {at} < high{number}")
            masks[POSITION] = mask
        printer = outer.within(f"b{number}_{step}_", masks)
        for variable in {part for part in ex.walk(task.body) if part.op == "var" and part.value[0] == POSITION}:
            printer.name(variable, at)
        printer.guards = guards_of(task.body)
        printers.append(printer)
    axes = {name for name, _ in task.inner}
    lines += checked(
        {part: None for part in ex.walk(task.body) if axes.isdisjoint(ex.variables(part))}, printers
    )  # fmt: skip
    values = [printer.value(task.body) for printer in printers]
    lines += [line for printer in printers for line in printer.taken()]
    if is_masked:
        values = [f"tl.where(at_mask{step}, {value}, {neutral})" for step, value in enumerate(values)]
    joined = in_pairs(task.combine, [f"{value}.to({TRITON_TYPES[task.held]})" for value in values])
    return [*lines, f"total = {COMBINED[task.combine].format('total', joined)}"]


def _result(task: Reduce, programs: tuple[str, str], wide: bool, masks: Mapping[str, str]) -> list[str]:
    lines = []
    if task.combine == "add" and task.empty != 0:
        lines.append(f"combined += {literal(task.empty, task.held)}")
    lines += [
        _axis(ROW, programs[0], "ROWS", ":, None", wide),
        _axis("place", programs[1], "COLUMNS", "None, :", False),
        f"row_mask = {ROW} < {task.rows[1]}",
        f"place_mask = place < {_inner(task)}",
        *coordinates("place", task.inner),
    ]
    printer = TilePrinter(masks, {}, "e")
    printer.name(ex.var(ACCUMULATOR, None, task.held), "combined")
    value, offset = printer.value(task.value), printer.value(task.offset)
    shape = "" if task.inner else f" + {_NO_INNER}"
    return [
        *lines,
        *printer.lines,
        f"tl.store(out{task.output} + {offset}{shape}, {value}, mask=row_mask & place_mask)",
    ]
