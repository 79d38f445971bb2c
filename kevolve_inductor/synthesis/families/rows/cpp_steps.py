"""What a C++ sweep does with each tile of values: reduce it, select from it, or write it out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....exc import EmissionError
from ...expression import CppPrinter
from ...expression.cpp import CPP_STORAGE, CPP_TYPES, to_storage
from ..triton_tiles import next_power_of_2
from .cpp_reduce import reduce_step
from .cpp_tiles import Step, nothing, tile_for
from .cpp_types import ORDERS, code_of, is_wide, work_type
from .program import ColumnSum, Element, Reduce, Select, Store
from .program import Step as ProgramStep

if TYPE_CHECKING:
    from .cpp import RowBody

_MOST_RANKED = 16
_MOST_INSERTED = 64
_MOST_IN_RUNS = 16
_MOST_SORTED = 4096
_MOST_GROUPS = 128
_MOST_BUFFERED = 1 << 17


def step_for(body: RowBody, step: ProgramStep, axis: str, block: int) -> Step:
    """Raises ``EmissionError`` where the schedule does not fit."""
    if isinstance(step, ColumnSum):
        return _column_sum(body, step, axis)
    if isinstance(step, Store):
        return _store(body, step, axis, block)
    if isinstance(step, Reduce):
        return reduce_step(body, step, axis, block)
    if isinstance(step, Element):
        raise EmissionError("an element is no sweep")
    if step.count == 1:
        return _first(body, step, axis, block)
    if body.plan.lanes:
        return _in_lanes(body, step, axis, block)
    extent = body.program.axes[axis]
    if body.plan.row_select == "bound" and _groups(step) <= min(_MOST_GROUPS, extent // 4) and extent <= _MOST_BUFFERED:
        return _bound(body, step, axis)
    if body.plan.row_select != "split" and step.count < extent:
        return _filter(body, step, axis, block)
    return _whole_row(body, step, axis)


def _first(body: RowBody, select: Select, axis: str, block: int) -> Step:
    step = Step(select.value, nothing)
    kind = work_type(select.value.dtype)
    tile = tile_for(body, step, kind, axis, block)
    order, width = ORDERS[select.order], body.plan.width
    value, place = body.fresh("w"), body.fresh("p")
    step.declares.append(f"alignas(64) {kind} {value}[{width}];")
    step.declares.append(f"alignas(64) kv_place<{kind}>::type {place}[{width}];")
    rows = tile.rows(body, f"{tile.name}[n - 1]")
    at = "c0" if body.plan.lanes else f"c0 / {width}"
    step.folds.append(f"kv_first<{order}, {width}>({value}, {place}, {tile.name}, {rows}, {at});")
    best = body.fresh("w")
    if not body.plan.lanes:
        step.finish.append(f"const int {best} = kv_first_across<{order}, {width}>({value}, {place});")
    which = "l" if body.plan.lanes else best
    position = f"int64_t({place}[{which}])" + ("" if body.plan.lanes else f" * {width} + {best}")
    if select.values is not None:
        body.define_scalar(select.values.value[0], f"{CPP_TYPES[select.values.dtype]}({value}[{which}])")
    if select.indices is not None:
        body.define_scalar(select.indices.value[0], f"({position})")
    return step


def _define(body: RowBody, select: Select, code: str, packed: str) -> None:
    """The selection's elements, decoded from a tile of packed values wherever they are used."""
    assert select.out is not None
    if select.values is not None:
        kind = CPP_TYPES[select.values.dtype]
        body.define_element(select.values.value[0], select.out, f"{kind}({code}::value({packed}[{{at}}]))")
    if select.indices is not None:
        body.define_element(select.indices.value[0], select.out, f"{code}::position({packed}[{{at}}])")


def _code(body: RowBody, select: Select, axis: str, step: Step) -> str:
    name = body.fresh("code")
    step.declares.append(f"typedef {code_of(select, body.program.axes[axis])} {name};")
    return name


def _in_lanes(body: RowBody, select: Select, axis: str, block: int) -> Step:
    if body.plan.lane_select == "rank" and select.count <= _MOST_RANKED:
        return _rank(body, select, axis, block)
    if is_wide(select):
        raise EmissionError("64-bit values with their positions do not fit in lanes")
    # Inserting into a list as long as the row takes as many comparisons as there are pairs.
    if body.plan.lane_select == "insert" and select.count <= min(_MOST_INSERTED, body.program.axes[axis] - 1):
        return _insert(body, select, axis, block)
    if body.plan.lane_select == "runs" and select.count <= _MOST_IN_RUNS:
        return _runs(body, select, axis, block)
    return _network(body, select, axis)


def _rank(body: RowBody, select: Select, axis: str, block: int) -> Step:
    assert select.out is not None
    step = Step(select.value, nothing)
    kind = work_type(select.value.dtype)
    tile = tile_for(body, step, kind, axis, block)
    value, place = body.fresh("w"), body.fresh("p")
    step.declares.append(body.array(kind, value, select.count))
    step.declares.append(body.array(f"kv_place<{kind}>::type", place, select.count))
    step.folds.append(f"kv_rank<{ORDERS[select.order]}, {select.count}, L>({value}, {place}, {tile.name}, n, c0);")
    if select.values is not None:
        body.define_element(select.values.value[0], select.out, f"{CPP_TYPES[select.values.dtype]}({value}[{{at}}])")
    if select.indices is not None:
        body.define_element(select.indices.value[0], select.out, f"int64_t({place}[{{at}}])")
    return step


def _insert(body: RowBody, select: Select, axis: str, block: int) -> Step:
    step = Step(select.value, nothing)
    code = _code(body, select, axis, step)
    tile = tile_for(body, step, f"{code}::packed", axis, block, f"{code}::pack({{}}, {axis})")
    best = body.fresh("q")
    step.declares.append(body.array(f"{code}::packed", best, select.count))
    step.declares.append(f"for (int j = 0; j < {select.count} * L; ++j) {best}[j] = {code}::last;")
    step.folds.append(f"kv_insert<{select.count}, L>({best}, {tile.name}, n);")
    _define(body, select, code, best)
    return step


def _runs(body: RowBody, select: Select, axis: str, block: int) -> Step:
    step = Step(select.value, nothing)
    code = _code(body, select, axis, step)
    tile = tile_for(body, step, f"{code}::packed", axis, block, f"{code}::pack({{}}, {axis})")
    best = body.fresh("q")
    kept = next_power_of_2(select.count)
    step.declares.append(body.array(f"{code}::packed", best, kept))
    step.declares.append(f"for (int j = 0; j < {kept} * L; ++j) {best}[j] = {code}::last;")
    if body.program.axes[axis] % kept:
        end = f"(n + {kept} - 1) / {kept} * {kept} * L"
        step.folds.append(f"for (int64_t j = n * L; j < {end}; ++j) {tile.name}[j] = {code}::last;")
    step.folds.append(f"kv_keep_runs<{kept}, L>({best}, {tile.name}, n);")
    _define(body, select, code, best)
    return step


def _network(body: RowBody, select: Select, axis: str) -> Step:
    step = Step(select.value, nothing)
    extent = body.program.axes[axis]
    whole = max(16, next_power_of_2(extent))
    if whole > _MOST_SORTED:
        raise EmissionError(f"{extent} columns are too many to be sorted in lanes")
    code = _code(body, select, axis, step)
    tile = body.fresh("q")
    step.declares.append(body.array(f"{code}::packed", tile, whole))

    def put(body: RowBody, printer: CppPrinter) -> list[str]:
        return [f"{body.at(tile, axis)} = {code}::pack({body.value(printer, step.value)}, {axis});"]

    step.put = put
    step.finish.append(f"for (int j = {extent} * L; j < {whole} * L; ++j) {tile}[j] = {code}::last;")
    step.finish.append(f"kv_sort_tile<{whole}, L>({tile}, {extent});")
    _define(body, select, code, tile)
    return step


def _filter(body: RowBody, select: Select, axis: str, block: int) -> Step:
    step = Step(select.value, nothing)
    kind = work_type(select.value.dtype)
    code = _code(body, select, axis, step)
    tile = tile_for(body, step, kind, axis, block)
    best = body.fresh("q")
    step.declares.append(body.array(f"{code}::packed", best, select.count))
    step.declares.append(f"for (int j = 0; j < {select.count}; ++j) {best}[j] = {code}::last;")
    step.folds.append(f"kv_filter<{code}, {ORDERS[select.order]}>({best}, {select.count}, {tile.name}, n, c0);")
    _define(body, select, code, best)
    return step


def _groups(select: Select) -> int:
    """Groups whose best elements bound the last one wanted: at least twice as many as are wanted."""
    return max(32, 1 << (2 * select.count - 1).bit_length())


def _bound(body: RowBody, select: Select, axis: str) -> Step:
    step = Step(select.value, nothing)
    kind = work_type(select.value.dtype)
    code = _code(body, select, axis, step)
    best = body.fresh("q")
    step.declares.append(body.array(f"{code}::packed", best, select.count))
    step.declares.append(f"for (int j = 0; j < {select.count}; ++j) {best}[j] = {code}::last;")
    row = body.memory_of(select.value, kind, axis)
    if row is None:
        row = body.fresh("b")
        step.declares.append(body.array(kind, row, body.program.axes[axis]))
        step.put = lambda body, printer: [f"{row}[{axis}] = {body.value(printer, step.value)};"]
    groups = _groups(select)
    arguments = f"{best}, {select.count}, {row}, {body.program.axes[axis]}"
    step.finish.append(f"kv_bound<{code}, {ORDERS[select.order]}, {groups}>({arguments});")
    _define(body, select, code, best)
    return step


def _whole_row(body: RowBody, select: Select, axis: str) -> Step:
    """The row packed as a whole, then sorted, or split at the last element wanted and its front sorted."""
    step = Step(select.value, nothing)
    extent = body.program.axes[axis]
    code = _code(body, select, axis, step)
    tile = body.fresh("q")
    step.declares.append(body.array(f"{code}::packed", tile, extent))

    def put(body: RowBody, printer: CppPrinter) -> list[str]:
        return [f"{tile}[{axis}] = {code}::pack({body.value(printer, step.value)}, {axis});"]

    step.put = put
    if select.count < extent:
        step.finish.append(f"std::nth_element({tile}, {tile} + {select.count - 1}, {tile} + {extent});")
        step.finish.append(f"std::sort({tile}, {tile} + {select.count});")
    elif body.plan.row_sort == "radix":
        scratch = body.fresh("q")
        step.declares.append(body.array(f"{code}::packed", scratch, extent))
        step.finish.append(f"kv_radix({tile}, {scratch}, {extent}, {code}::low_bits, {code}::bits);")
    else:
        step.finish.append(f"std::sort({tile}, {tile} + {extent});")
    _define(body, select, code, tile)
    return step


def _column_sum(body: RowBody, one: ColumnSum, axis: str) -> Step:
    which = body.program.column_sums.index(one)

    def put(body: RowBody, printer: CppPrinter) -> list[str]:
        return [f"col{which}[{axis}] += {body.value(printer, one.value)};"]

    return Step(one.value, put)


def _store(body: RowBody, store: Store, axis: str, block: int) -> Step:
    step = Step(store.value, nothing)
    spec = body.program.outputs[store.output]
    if body.plan.lanes > 1 and body.is_transposed_store(store):
        tile = tile_for(body, step, CPP_TYPES[store.value.dtype], axis, block)
        step.folds += body.store_tile(store, tile.name, "c0", "n")
        return step

    target = body.streamed_to(store, axis)
    if target is not None:
        made = body.fresh("b")
        step.declares.append(body.array(CPP_STORAGE[spec.dtype], made, block))
        step.folds.append(f"kv_stream({target} + c0, {made}, n);")

    def put(body: RowBody, printer: CppPrinter) -> list[str]:
        value = to_storage(body.value(printer, store.value), spec.dtype)
        if target is not None:
            return [f"{made}[{axis} - c0] = {value};"]
        return [f"out{store.output}[{body.value(printer, store.offset)}] = {value};"]

    step.put = put
    return step
