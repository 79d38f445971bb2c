"""Finding jagged pieces of a graph, and reading each value that leaves one as a task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.fx

from ....exc import UnsupportedError
from ....graph.dims import Dim, product
from ....graph.meta import dtype_name, shape_of, spec_of, target_name, tensor_of
from ...expression import ExpressionBuilder, is_constant, is_expressible, is_pointwise, is_view
from ...expression import expression as ex
from ...expression.expression import Expr
from ..common import elements
from .plan import ACCUMULATOR, MOST_ACCUMULATORS, POSITION, ROW, Combine, Dense, JaggedTask, Reduce, Span
from .scatter import Placed, Scatter, Segments, read_segments
from .windows import moves_in_step

_READS = ("aten.index.Tensor", "aten._unsafe_index.Tensor", "aten.index_select.default", "aten.embedding.default")
_PADS = ("aten._jagged_to_padded_dense_forward.default",)
_ADDS = ("aten.index_add.default", "aten.scatter_add.default")
_SEGMENTS = ("aten.segment_reduce.default",)
_POOLS: dict[str, Combine] = {"aten.sum.dim_IntList": "add", "aten.mean.dim": "add", "aten.amax.default": "maximum",
                              "aten.amin.default": "minimum"}  # fmt: skip
_LONGEST_RECOMPUTED = 12


def is_tensor(node: Any) -> bool:
    return isinstance(node, torch.fx.Node) and isinstance(node.meta.get("val"), torch.Tensor)


def is_summing(node: torch.fx.Node) -> bool:
    """Does this add (or otherwise combine) events by rows?"""
    if target_name(node) == "aten.index_put.default":
        return len(node.args) > 3 and bool(node.args[3])
    return target_name(node) in _ADDS + _SEGMENTS


class Scan:
    """What the graph's nodes depend on, as far as this family looks."""

    def __init__(self, graph: torch.fx.Graph, device: str) -> None:
        self.graph, self.device = graph, device
        self.counted: set[torch.fx.Node] = set()
        self.varying: set[torch.fx.Node] = set()
        for node in graph.nodes:
            sources = node.all_input_nodes
            if node.op in ("placeholder", "get_attr") or any(source in self.varying for source in sources):
                self.varying.add(node)
            is_count = is_constant(node) and target_name(node).startswith(("prims.iota", "aten.arange"))
            if is_count or ((is_pointwise(node) or is_view(node)) and any(s in self.counted for s in sources)):
                self.counted.add(node)

    def is_core(self, node: torch.fx.Node) -> bool:
        name = target_name(node)
        if not is_tensor(node) or tensor_of(node).device.type != self.device:
            return False
        if name in _READS:
            indices = [i for i in self._indices(node) if i is not None]
            return len(indices) == 1 and indices[0] in self.counted and indices[0] in self.varying
        return name == "aten.index_put.default" or name in _PADS or is_summing(node)

    def _indices(self, node: torch.fx.Node) -> list[Any]:
        if target_name(node).startswith(("aten.index.", "aten._unsafe")):
            return list(node.args[1])  # type: ignore[arg-type]
        return [node.args[1 if "embedding" in target_name(node) else 2]]


def pieces(scan: Scan, pools: bool) -> Iterator[list[torch.fx.Node]]:
    """Each core with what is computed pointwise from it; connected ones together. With ``pools``, past reductions too."""
    home: dict[torch.fx.Node, list[torch.fx.Node]] = {}
    for node in scan.graph.nodes:
        if not is_tensor(node):
            continue
        sources = [source for source in node.all_input_nodes if source in home]
        if scan.is_core(node):
            home[node] = [node]
        elif not sources or not _continues(node, sources, pools):
            continue
        else:
            home[node] = home[sources[0]]
            home[node].append(node)
        for source in sources:
            if home[source] is not home[node] and _continues(node, [source], pools):
                merged = home[source] + [n for n in home[node] if n not in home[source]]
                home.update(dict.fromkeys(merged, merged))
    seen: set[int] = set()
    for piece in home.values():
        if id(piece) not in seen:
            seen.add(id(piece))
            yield _without_trailing_views(scan.graph, piece)


def _continues(node: torch.fx.Node, sources: list[torch.fx.Node], pools: bool) -> bool:
    if is_view(node):
        return target_name(node) != "aten.expand.default" and is_expressible(node)
    if target_name(node) in _POOLS:
        return pools
    grown = max(elements(source) for source in sources)
    return is_pointwise(node) and target_name(node) != "aten.cat.default" and elements(node) <= grown


def _without_trailing_views(graph: torch.fx.Graph, piece: list[torch.fx.Node]) -> list[torch.fx.Node]:
    kept = dict.fromkeys(node for node in graph.nodes if node in set(piece))
    for node in reversed(list(kept)):
        if is_view(node) and not _cuts_off(node) and not any(user in kept for user in node.users):
            del kept[node]
    return list(kept)


def _cuts_off(node: torch.fx.Node) -> bool:
    """A slice: what it leaves out need not be computed."""
    return elements(node) < elements(node.args[0])  # type: ignore[arg-type]


def inlinable(scan: Scan, piece: Iterable[torch.fx.Node], others: set[torch.fx.Node]) -> set[torch.fx.Node]:
    """``piece`` and what is computed again inside: index arithmetic, views, and what only the region needs."""
    inside = set(piece)
    steps = dict.fromkeys(inside, 0)
    for node in reversed(scan.graph.nodes):
        users = [user for user in node.users if user in inside]
        if node in inside or node in others or not users or not is_tensor(node) or not is_expressible(node):
            continue
        own = int(not (is_view(node) or is_constant(node)))
        steps[node] = own + max(steps[user] for user in users)
        alone = len(users) == len(node.users)
        cheap = is_pointwise(node) and (alone or steps[node] <= _LONGEST_RECOMPUTED)
        if not own or cheap or (alone and _looks_up_rows(node)):
            inside.add(node)
    return inside


def _looks_up_rows(node: torch.fx.Node) -> bool:
    """Reads one integer for each index, as the start of an event's row."""
    if target_name(node) not in _READS or tensor_of(node).is_floating_point():
        return False
    indices = [other for other in node.all_input_nodes if other is not node.args[0]]
    return len(indices) == 1 and shape_of(indices[0]) == shape_of(node)


@dataclass
class Reader:
    """Reads the values that leave one piece as tasks. ``used`` are nodes of the region that the builder did not inline."""

    builder: ExpressionBuilder
    piece: list[torch.fx.Node]
    used: dict[torch.fx.Node, None] = field(default_factory=dict)
    _fails: list[Expr] = field(default_factory=list)

    def __post_init__(self) -> None:
        for node in self.piece:
            name = target_name(node)
            if name == "aten.index_put.default" and not is_summing(node):
                self._bind_scatter(node)
            elif name in _PADS:
                self._use(node)
                self.builder.bind(node, lambda index, pad=node: self._padded(pad, index))  # type: ignore[misc]

    def task(self, node: torch.fx.Node, output: int) -> JaggedTask:
        reduction = self._reduction_of(node)
        task = self._dense(node, output) if reduction is None else self._reduced(node, reduction, output)
        inner = product(tuple(extent for _, extent in task.inner))
        if not isinstance(inner, int):
            raise UnsupportedError("dynamic", f"{node} holds {inner} elements at each position")
        if reduction is not None and inner > MOST_ACCUMULATORS:
            raise UnsupportedError("size", f"{inner} sums per row do not fit on the stack")
        return task

    def _use(self, *nodes: torch.fx.Node) -> None:
        self.used.update(dict.fromkeys(nodes))

    def _bind_scatter(self, node: torch.fx.Node) -> None:
        scatter = Scatter(self.builder, node)
        self._use(node, *scatter.used)

        def value(index: tuple[Expr, ...]) -> Expr:
            placed: Placed = scatter.at(index)
            self._fails += placed.fails
            return placed.value

        self.builder.bind(node, value)

    def _padded(self, node: torch.fx.Node, index: tuple[Expr, ...]) -> Expr:
        """``_jagged_to_padded_dense_forward(values, [offsets], [length], padding)``."""
        values, offsets, lengths = node.args[:3]
        if not isinstance(values, torch.fx.Node) or len(offsets) != 1 or len(lengths) != 1:  # type: ignore[arg-type]
            raise UnsupportedError("structure", f"{node} has several jagged dimensions")
        padding: Any = node.args[3] if len(node.args) > 3 else node.kwargs.get("padding_value", 0.0)
        bounds = [self.builder.build(offsets[0], (at,)) for at in (index[0], ex.iadd(index[0], ex.index(1)))]  # type: ignore[index,arg-type]
        start, end = (ex.cast(bound, "int64") for bound in bounds)
        event = ex.iadd(start, ex.make("as_value", "int64", (index[1],)))
        inside = ex.make("lt", "bool", (event, end))
        at = ex.make("within", "int64", (event,), (shape_of(values)[0],))
        value = self.builder.build(values, (at, *index[2 : len(shape_of(values)) + 1]))
        return ex.make("where", value.dtype, (inside, value, ex.const(padding, value.dtype)))

    def _reduction_of(self, node: torch.fx.Node) -> torch.fx.Node | None:
        """The one reduction that ``node`` is computed from, within the piece."""
        found: set[torch.fx.Node] = set()
        stack, seen = [node], {node}
        while stack:
            current = stack.pop()
            if target_name(current) in _POOLS or is_summing(current):
                found.add(current)
                continue
            for source in current.all_input_nodes:
                if source in self.piece and source not in seen:
                    seen.add(source)
                    stack.append(source)
        if len(found) > 1:
            raise UnsupportedError("structure", f"{node} is computed from several reductions")
        return found.pop() if found else None

    # --- one element per position ---

    def _dense(self, node: torch.fx.Node, output: int) -> Dense:
        names = self._axes_of(node)
        shape, strides = shape_of(node), spec_of(tensor_of(node)).stride
        index = tuple(_variable(name, size) for name, size in zip(names, shape, strict=True))
        value = self.builder.build(node, index)
        length = shape[names.index(POSITION)]
        offset = ex.isum([ex.imul(at, ex.size(step)) for at, step in zip(index, strides, strict=True)])
        if not isinstance(length, int):
            raise UnsupportedError("dynamic", f"{node} has rows of dynamic length")
        axes = dict(zip(names, shape, strict=True))
        inner = tuple((name, size) for name, size in axes.items() if name not in (ROW, POSITION) and size != 1)
        return Dense((ROW, axes[ROW]), length, inner, value, offset, output, self._row_fails())

    def _row_fails(self) -> tuple[Expr, ...]:
        """Those seen so far that are about a row of the final variables, not about one that was only tried."""
        return tuple(fail for fail in dict.fromkeys(self._fails) if ex.variables(fail) <= {ROW})

    def _axes_of(self, node: torch.fx.Node) -> list[str]:
        """A role for every dimension of ``node``: the row, the position within it, and the rest."""
        shape = shape_of(node)
        value = self.builder.build(node, tuple(ex.var(f"x{d}", size) for d, size in enumerate(shape)))
        for part in ex.walk(value):
            if part.op in ("check_index", "within"):
                roles = _roles(part.args[0])
                if roles is not None:
                    row, position = roles
                    return [{row: ROW, position: POSITION}.get(f"x{d}", f"y{d}") for d in range(len(shape))]
        raise UnsupportedError("structure", f"{node} does not run along the rows of a jagged tensor")

    # --- one element per row ---

    def _reduced(self, node: torch.fx.Node, reduction: torch.fx.Node, output: int) -> Reduce:
        if is_summing(reduction):
            task = self._segments(reduction, output)
        else:
            task = self._pooled(reduction, output)
        self._use(reduction)
        names = [name for name, _ in (task.rows, *task.inner)]
        shape = shape_of(node)
        held = dtype_name(tensor_of(reduction).dtype)
        result = ex.var(ACCUMULATOR, None, task.held)
        if target_name(reduction) == "aten.mean.dim":
            result = ex.make("truediv", task.held, (result, ex.const(task.length or 0, task.held)))
        elif _options(reduction).get("reduce") == "mean":
            result = _mean(task, result, _options(reduction).get("initial"))
        result = ex.cast(result, held)
        expected = tuple(_variable(ROW if d == 0 else f"y{d}", size) for d, size in enumerate(shape_of(reduction)))

        def bound(index: tuple[Expr, ...]) -> Expr:
            if tuple(index) != expected:
                raise UnsupportedError("structure", f"{reduction} is used in another order")
            return result

        self.builder.bind(reduction, bound)
        if len(shape) != len(expected):
            raise UnsupportedError("structure", f"{node} is a reshaped {reduction}")
        index = tuple(_variable(ROW if d == 0 else f"y{d}", size) for d, size in enumerate(shape))
        strides = spec_of(tensor_of(node)).stride
        offset = ex.isum([ex.imul(at, ex.size(step)) for at, step in zip(index, strides, strict=True)])
        assert set(names) >= ex.variables(offset)
        return replace(task, value=self.builder.build(node, index), offset=offset)

    def _pooled(self, node: torch.fx.Node, output: int) -> Reduce:
        operand: Any = node.args[0]
        names = self._axes_of(operand)
        shape = shape_of(operand)
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", [])
        if [int(d) % len(shape) for d in dims] != [names.index(POSITION)] or names[0] != ROW:  # type: ignore[union-attr,arg-type]
            raise UnsupportedError("structure", f"{node} does not reduce along the positions of rows")
        if bool(node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)):
            raise UnsupportedError("structure", f"{node} keeps the reduced axis")
        length = shape[names.index(POSITION)]
        if not isinstance(length, int):
            raise UnsupportedError("dynamic", f"{node} pools rows of dynamic length")
        kept = [d for d in range(len(shape)) if names[d] != POSITION]
        renamed = {d: (ROW if d == 0 else f"y{position}") for position, d in enumerate(kept)}
        index = tuple(_variable(renamed.get(d, POSITION), size) for d, size in enumerate(shape))
        held, combine = _held(node), _POOLS[target_name(node)]
        body = ex.cast(self.builder.build(operand, index), held)
        inner = tuple((renamed[d], shape[d]) for d in kept[1:] if shape[d] != 1)
        return Reduce((ROW, shape[0]), length, inner, (Span(ex.index(0), ex.index(length)),), body, combine, held,
                        _start_of(combine, held), self._row_fails(), body, body, output)  # fmt: skip

    def _segments(self, node: torch.fx.Node, output: int) -> Reduce:
        if target_name(node) in _SEGMENTS:
            return self._segment_reduce(node, output)
        segments: Segments = read_segments(self.builder, node)
        self._use(*segments.used)
        held = _held(node)
        fill = self.builder.build(segments.fill, tuple(ex.index(0) for _ in shape_of(node)))
        if fill.op != "const":
            raise UnsupportedError("structure", f"{node} adds to values that are not all the same")
        row = _variable(ROW, segments.rows)
        return self._events(
            node, segments.values, segments.spans(row), "add", fill.value, segments.fails(), held, output
        )

    def _segment_reduce(self, node: torch.fx.Node, output: int) -> Reduce:
        """``segment_reduce(data, "sum" | "mean" | "max" | "min", offsets=…)`` along the first axis."""
        options = _options(node)
        offsets, values, how = options.get("offsets"), options["data"], str(options["reduce"])
        combine: Combine | None = {"sum": "add", "mean": "add", "max": "maximum", "min": "minimum"}.get(how)  # type: ignore[assignment]
        if not isinstance(offsets, torch.fx.Node) or combine is None or options.get("axis", 0) != 0:
            raise UnsupportedError(
                "structure", f"{node} is no sum, mean, maximum or minimum by offsets along the first axis"
            )
        if not isinstance(values, torch.fx.Node) or len(shape_of(offsets)) != 1:
            raise UnsupportedError("structure", f"{node} has several rows of offsets")
        held = _held(node)
        initial: Any = options.get("initial")
        row, events = _variable(ROW, shape_of(node)[0]), ex.size(shape_of(values)[0])
        first, last = (ex.cast(self.builder.build(offsets, (at,)), "int64") for at in (row, ex.iadd(row, ex.index(1))))
        bad = [ex.make("lt", "bool", (first, ex.index(0))), ex.make("gt", "bool", (last, events)),
               ex.make("lt", "bool", (last, first))]  # fmt: skip
        start = _start_of(combine, held) if initial is None else initial
        return self._events(node, values, (Span(first, last),), combine, start, tuple(bad), held, output)

    def _events(
        self, node: torch.fx.Node, values: torch.fx.Node, spans: tuple[Span, ...], combine: Combine, start: float | int,
        fails: tuple[Expr, ...], held: str, output: int,
    ) -> Reduce:  # fmt: skip
        shape = shape_of(node)
        inner = tuple((f"y{d}", size) for d, size in enumerate(shape) if d > 0 and size != 1)
        at = ex.make("within", "int64", (ex.var(POSITION, shape_of(values)[0]),), (shape_of(values)[0],))
        index = (at, *(_variable(f"y{d}", size) for d, size in enumerate(shape) if d > 0))
        body = ex.cast(self.builder.build(values, index), held)
        return Reduce((ROW, shape[0]), None, inner, spans, body, combine, held, start, fails, body, body, output)


def _options(node: torch.fx.Node) -> dict[str, Any]:
    """Arguments of ``segment_reduce`` by name; nothing for another operator."""
    if target_name(node) not in _SEGMENTS:
        return {}
    names = ("data", "reduce", "lengths", "indices", "offsets", "axis", "unsafe", "initial")
    return dict(zip(names, node.args, strict=False)) | node.kwargs


def _mean(task: Reduce, total: Expr, initial: float | None) -> Expr:
    """Of an empty segment NaN, or the initial value."""
    count = ex.make("sub", "int64", (task.spans[0].high, task.spans[0].low))
    filled = ex.make("gt", "bool", (count, ex.index(0)))
    share = ex.make("truediv", task.held, (total, ex.cast(count, task.held)))
    empty = ex.const(math.nan if initial is None else initial, task.held)
    return ex.make("where", task.held, (filled, share, empty))


def _variable(name: str, size: Dim) -> Expr:
    return ex.index(0) if size == 1 and name not in (ROW, POSITION) else ex.var(name, size)


def _roles(index: Expr) -> tuple[str, str] | None:
    """Names of the row and the position variable of an index that starts from data and moves with the position."""
    if index.op == "where":
        return _roles(index.args[1]) or _roles(index.args[2])
    of_rows = {name for part in ex.walk(index) if part.op == "load" for name in ex.variables(part)}
    moving = [name for name in sorted(ex.variables(index) - of_rows) if moves_in_step(index, name)]
    if len(of_rows) == 1 and len(moving) == 1:
        return of_rows.pop(), moving[0]
    return _roles(index.args[0]) if index.op in ("cast", "as_value", "minimum", "maximum") else None


def _held(node: torch.fx.Node) -> str:
    """The type sums are kept in."""
    name = dtype_name(tensor_of(node).dtype)
    return "float32" if name in ex.LOW_PRECISION else name


def _start_of(combine: Combine, held: str) -> float | int:
    if combine == "add":
        return 0
    if held in ex.FLOATS:
        return float("-inf") if combine == "maximum" else float("inf")
    limits = torch.iinfo(getattr(torch, held))
    return int(limits.min if combine == "maximum" else limits.max)
