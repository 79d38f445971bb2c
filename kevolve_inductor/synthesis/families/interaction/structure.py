"""Reading the structure: batched products of the rows of one value with each other, and what becomes of them.

The products are found as a batched matrix product of two views of one value, or as the sum of an elementwise product of
two views or row selections of it. From there the reading goes down, through views, selections, pointwise operators and
concatenations, to the last value that can be written directly; and up, to where the rows are really stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.fx

from ....exc import UnsupportedError
from ....graph.dims import Dim, product
from ....graph.meta import dtype_name, shape_of, target_name, tensor_of
from ....graph.region import TensorSpec
from ...expression import ExpressionBuilder, is_expressible, is_pointwise, is_view
from ...expression import expression as ex
from ...expression.expression import Expr
from ..common import absorbable, check_acyclic, in_graph_order, specs_of
from .pairs import Constants, KnownPairs, LoadedPairs, Pairs, evaluated, is_known, runs_of, table
from .pieces import Piece, cut, moved

LARGEST_FEATURES, LARGEST_SAMPLE = 256, 1 << 18
_LARGEST_ROW = 1 << 16
_GATHERS = {"aten.index.Tensor": 0, "aten._unsafe_index.Tensor": 0, "aten.index_select.default": 0}
_FLOATS = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True)
class Segment:
    """Columns of the output. ``value`` holds at most one ``product`` (of what ``pairs`` says), over batch and column."""

    start: int
    count: int
    value: Expr
    pairs: Pairs | None


@dataclass(frozen=True)
class Plan:
    """``rows`` are the features (variables ``b``, ``r``, ``d``); ``segments`` (``b``, ``c``) make up the output's rows.

    ``stored`` is the dtype of the features and ``held`` the one that products are summed in. ``address`` is the output's
    element offset for (``b``, ``c``).
    """

    batch: Dim
    features: int
    width: int
    stored: str
    held: str
    rows: tuple[Piece, ...]
    segments: tuple[Segment, ...]
    columns: int
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    row_stride: Dim
    column_stride: int

    @property
    def pair_count(self) -> int:
        return sum(segment.count for segment in self.segments if segment.pairs is not None)


@dataclass(frozen=True)
class Reading:
    nodes: tuple[torch.fx.Node, ...]
    inputs: tuple[torch.fx.Node, ...]
    root: torch.fx.Node
    plan: Plan


@dataclass(frozen=True)
class Products:
    """``node`` is the sum over ``depth`` of the product of ``left`` and ``right``, both views or selections of ``source``.

    ``dim`` is the axis of the operands that is summed over; it is dropped from (or of size 1 in) the result.
    """

    node: torch.fx.Node
    source: torch.fx.Node
    inner: tuple[torch.fx.Node, ...]


def find_products(graph: torch.fx.Graph) -> Iterator[Products]:
    """Every value that may be the products of one value's rows; cheap, no expression is built."""
    for node in graph.nodes:
        name = target_name(node)
        if name == "aten.bmm.default":
            operands, inner = node.args[:2], (node,)
        elif name == "aten.sum.dim_IntList" and _is_product(node.args[0]):
            operands, inner = node.args[0].args[:2], (node, node.args[0])
        else:
            continue
        sources = {_origin(operand) for operand in operands}
        if len(sources) == 1 and tensor_of(node).is_floating_point():
            yield Products(node, sources.pop(), inner)


def _is_product(value: Any) -> bool:
    """A product of two different tensors (a square is a norm, no interaction)."""
    if not isinstance(value, torch.fx.Node) or target_name(value) != "aten.mul.Tensor":
        return False
    left, right = value.args[:2]
    return isinstance(left, torch.fx.Node) and isinstance(right, torch.fx.Node) and left is not right


def _origin(node: torch.fx.Node) -> torch.fx.Node:
    while is_view(node) or target_name(node) in _GATHERS:
        source = node.args[0]
        assert isinstance(source, torch.fx.Node)
        node = source
    return node


def chain_of(products: Products) -> tuple[torch.fx.Node, ...]:
    """The products and the values made of them one after another, as far as nothing else needs them."""
    chain = [products.node]
    while len(chain[-1].users) == 1:
        (user,) = chain[-1].users
        if not _continues(user, chain[-1]):
            break
        chain.append(user)
    return tuple(chain)


def _continues(user: torch.fx.Node, value: torch.fx.Node) -> bool:
    if not is_expressible(user) or not isinstance(user.meta.get("val"), torch.Tensor):
        return False
    name, shape, before = target_name(user), shape_of(user), shape_of(value)
    if len(shape) < 2 or shape[0] != before[0] or any(not isinstance(size, int) for size in shape[1:]):
        return False
    if name in _GATHERS:
        return user.args[0] is value
    if name == "aten.cat.default" or not is_view(user):
        return is_pointwise(user) and (shape == before or name == "aten.cat.default")
    return product(shape[1:]) == product(before[1:])


def gathers(chain: tuple[torch.fx.Node, ...]) -> bool:
    """Do the values made of the products do what a matrix product alone does not?"""
    first = () if target_name(chain[0]) == "aten.bmm.default" else chain[:1]
    named = (target_name(node) for node in chain)
    return bool(first) or any(name in _GATHERS or name == "aten.cat.default" for name in named)


class Reader:
    """Builds the expressions of one region that ends in ``chain[-1]``. Raises ``UnsupportedError``."""

    def __init__(self, graph: torch.fx.Graph, products: Products, chain: tuple[torch.fx.Node, ...], device: str,
                 constants: Constants, fold: bool) -> None:  # fmt: skip
        self.graph, self.products, self.root, self.constants = graph, products, chain[-1], constants
        core = {*products.inner, *chain}
        self.inside = absorbable(graph, core) | core
        self.folded: list[torch.fx.Node] = []
        self.device = device
        self.builder = ExpressionBuilder(device, self._inline)
        self.positions = _positions(self.inside)
        if fold:
            for node in self.positions & constants:
                self._bind_table(node)
        else:
            self.inside -= {node for node in self.positions if node in constants}

    def _inline(self, node: torch.fx.Node) -> bool:
        devices = {source.meta["val"].device.type for source in node.all_input_nodes if _is_tensor(source)}
        return node in self.inside and devices <= {self.device}

    def _bind_table(self, node: torch.fx.Node) -> None:
        values = self.constants.value(node)
        self.folded.extend(self.constants.closure(node))
        self.builder.bind(node, lambda index: table(values, index))

    def read(self) -> Reading:
        batch = shape_of(self.products.node)[0]
        b = ex.var("b", batch)
        left, right, row_at = self._operands(b)
        features, width = self._sizes(row_at)
        stored = dtype_name(tensor_of(self.products.source).dtype)
        rows = tuple(self._rows(b, row_at, features, width))
        held = "float64" if stored == "float64" else "float32"
        segments = tuple(self._segments(b, left, right, held))
        return self._finish(batch, features, width, stored, held, rows, segments)

    # --- the operands: source[... row ..., d] for two rows ---

    def _operands(self, b: Expr) -> tuple[Expr, Expr, tuple[Expr, ...]]:
        """Row expressions of both operands over ``u0, u1, …``, and the source's index over ``b``, ``row`` and ``d``."""
        node, source = self.products.node, self.products.source
        inner = ExpressionBuilder(self.device, self._inline)
        inner.inputs, inner.inlined = self.builder.inputs, self.builder.inlined
        inner._bound.update(self.builder._bound)
        inner.bind(source, lambda index: ex.make("source", "float32", index))
        one, two = (_unrounded(value) for value in self._operand_values(inner, b))
        if one.op != "source" or two.op != "source":
            raise UnsupportedError("structure", f"the operands of {node} are not rows of {source}")
        left, right = _row_of(one, two), _row_of(two, one)
        row = ex.var("row")
        index = tuple(moved(at, left, row) for at in one.args)
        if index != tuple(moved(at, right, row) for at in two.args):
            raise UnsupportedError("structure", f"the operands of {node} are different values of {source}")
        if not {name for at in index for name in ex.variables(at)} <= {"b", "row", "d"}:
            raise UnsupportedError("structure", f"{node} depends on more than two rows of {source}")
        return left, right, index

    def _operand_values(self, inner: ExpressionBuilder, b: Expr) -> tuple[Expr, Expr]:
        node = self.products.node
        shape = shape_of(node)
        if target_name(node) == "aten.bmm.default":
            left, right = node.args[:2]
            d = ex.var("d", shape_of(left)[2])  # type: ignore[arg-type]
            i, j = ex.var("u0", shape[1]), ex.var("u1", shape[2])
            return inner.build(left, (b, i, d)), inner.build(right, (b, d, j))  # type: ignore[arg-type]
        multiplied: Any = node.args[0]
        full = shape_of(multiplied)
        dims: Any = node.args[1]
        if len(dims) != 1 or len(full) < 3 or dims[0] % len(full) == 0:
            raise UnsupportedError("structure", f"{node} sums over {dims}")
        dim = dims[0] % len(full)
        axes = [axis for axis in range(1, len(full)) if axis != dim]
        at = {axis: ex.var(f"u{k}", full[axis]) for k, axis in enumerate(axes)}
        index = (b, *(at[axis] if axis in at else ex.var("d", full[axis]) for axis in range(1, len(full))))
        left, right = (inner.operand(operand, multiplied, index, "float32") for operand in multiplied.args[:2])
        return left, right

    def _sizes(self, row_at: tuple[Expr, ...]) -> tuple[int, int]:
        """How many features there are, and of which width."""
        shape = shape_of(self.products.source)
        row, d = ex.var("row"), self._depth()
        extent = next((size for at, size in zip(row_at, shape, strict=True) if row in set(ex.walk(at))), 0)
        width = d.value[1]
        if not isinstance(extent, int) or not isinstance(width, int):
            raise UnsupportedError("dynamic", f"{self.products.source} has a dynamic number or width of features")
        at = next(at for at in row_at if row in set(ex.walk(at)))
        features = extent if at is row else extent // max(width, 1)
        if not 2 <= features <= LARGEST_FEATURES or not 1 <= width or features * width > LARGEST_SAMPLE:
            raise UnsupportedError("size", f"{features} features of {width} values")
        return features, width

    def _depth(self) -> Expr:
        node = self.products.node
        if target_name(node) == "aten.bmm.default":
            return ex.var("d", shape_of(node.args[0])[2])  # type: ignore[arg-type]
        full = shape_of(node.args[0])  # type: ignore[arg-type]
        return ex.var("d", full[node.args[1][0] % len(full)])  # type: ignore[index,operator]

    def _rows(self, b: Expr, row_at: tuple[Expr, ...], features: int, width: int) -> Iterator[Piece]:
        source, row = self.products.source, ex.var("row")

        def build(at: Expr) -> Expr:
            return self.builder.build(source, tuple(moved(part, row, at) for part in row_at))

        for piece in cut("r", features, build):
            if not ex.variables(piece.value) <= {"b", "r", "d"}:
                raise UnsupportedError("structure", f"{source} is not made of rows")
            yield piece

    # --- the output: columns of dense values and of products ---

    def _segments(self, b: Expr, left: Expr, right: Expr, held: str) -> Iterator[Segment]:
        node, shape = self.products.node, shape_of(self.root)
        axes = _kept_axes(node)
        variables = {name: part for side in (left, right) for part in ex.walk(side) if part.op == "var"
                     for name in (part.value[0],)}  # fmt: skip

        def value_of(index: tuple[Expr, ...]) -> Expr:
            pair = []
            for side in (left, right):
                for k, axis in enumerate(axes):
                    if f"u{k}" in variables:
                        side = moved(side, variables[f"u{k}"], index[axis])
                pair.append(side)
            return ex.cast(ex.make("product", held, (index[0], *pair)), dtype_name(tensor_of(node).dtype))

        self.builder.bind(node, value_of)
        columns = product(shape[1:])
        if not isinstance(columns, int) or columns > _LARGEST_ROW:
            raise UnsupportedError("size", f"rows of {columns} values")

        def build(at: Expr) -> Expr:
            return self.builder.build(self.root, (b, *_unravelled(at, shape[1:])))

        for piece in cut("c", columns, build):
            yield self._segment(b, piece)

    def _segment(self, b: Expr, piece: Piece) -> Segment:
        found = [part for part in ex.walk(piece.value) if part.op == "product"]
        if not found:
            return Segment(piece.start, piece.count, piece.value, None)
        if len(found) > 1 or found[0].args[0] is not b:
            raise UnsupportedError("structure", f"an element of {self.root} is made of several products")
        _, left, right = found[0].args
        value = ex.substitute(piece.value, lambda part: ex.var("z", None, part.dtype) if part is found[0] else None)
        return Segment(piece.start, piece.count, value, self._pairs(left, right, piece.count))

    def _pairs(self, left: Expr, right: Expr, count: int) -> Pairs:
        if ex.variables(left) | ex.variables(right) <= {"c"} and not (is_known(left, {"c"}) and is_known(right, {"c"})):
            if "table" in {part.op for side in (left, right) for part in ex.walk(side)}:
                raise UnsupportedError("structure", "pairs are partly known")
            return LoadedPairs(left, right, count)
        if not (is_known(left, {"c"}) and is_known(right, {"c"})):
            raise UnsupportedError("structure", "every sample has pairs of its own")
        column = {"c": np.arange(count)}
        one, two = (np.broadcast_to(evaluated(side, column), (count,)) for side in (left, right))
        runs = runs_of(one, two, most=4 * LARGEST_FEATURES)
        if runs is None:
            raise UnsupportedError("structure", "pairs follow no order")
        return KnownPairs(runs)

    def _finish(self, batch: Dim, features: int, width: int, stored: str, held: str, rows: tuple[Piece, ...],
                segments: tuple[Segment, ...]) -> Reading:  # fmt: skip
        inputs = specs_of(self.builder.inputs)
        if stored not in _FLOATS:
            raise UnsupportedError("dtype", f"features of {stored}")
        if not any(segment.pairs for segment in segments):
            raise UnsupportedError("structure", "no product is used")
        (output,) = specs_of([self.root])
        row_stride, column_stride = _strides(output)
        nodes = {*self.builder.inlined, *self.products.inner, *self.folded, self.root}
        check_acyclic(self.builder.inputs, [self.root])
        plan = Plan(
            batch, features, width, stored, held, tuple(_simple(rows, inputs)), segments,
            sum(segment.count for segment in segments), inputs, output, row_stride, column_stride,
        )  # fmt: skip
        return Reading(in_graph_order(self.graph, nodes), tuple(self.builder.inputs), self.root, plan)


def _is_tensor(node: torch.fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _positions(nodes: set[torch.fx.Node]) -> "set[torch.fx.Node]":
    """Index tensors that ``nodes`` select with."""
    found: set[torch.fx.Node] = set()
    for node in nodes:
        name = target_name(node)
        if name == "aten.index_select.default":
            found.add(node.args[2])  # type: ignore[arg-type]
        elif name in _GATHERS:
            found.update(at for at in node.args[1] if isinstance(at, torch.fx.Node))  # type: ignore[union-attr]
    return found


def _kept_axes(node: torch.fx.Node) -> list[int]:
    """Axes of the products' own shape that stand for ``u0, u1, …``."""
    axes = list(range(1, len(shape_of(node))))
    if target_name(node) != "aten.bmm.default" and len(node.args) > 2 and node.args[2]:
        dim = node.args[1][0] % len(shape_of(node))  # type: ignore[index,operator]
        axes.remove(dim)
    return axes


def _unrounded(value: Expr) -> Expr:
    return value.args[0] if value.op == "round" else value


def _row_of(one: Expr, other: Expr) -> Expr:
    """What ``one`` indexes with and ``other`` does not: a position looked up, else a variable of its own."""
    mine, theirs = set(ex.walk(one)), set(ex.walk(other))
    for kinds in (("check_index",), ("var",)):
        found = [part for part in mine - theirs if part.op in kinds]
        if len(found) == 1:
            return found[0]
        if found:
            break
    raise UnsupportedError("structure", "the products are not those of one row with another")


def _unravelled(at: Expr, shape: tuple[Dim, ...]) -> tuple[Expr, ...]:
    index: list[Expr] = []
    for size in reversed(shape[1:]):
        at, rest = ex.idivmod(at, size)
        index.append(rest)
    return (at, *reversed(index))


def _strides(output: TensorSpec) -> tuple[Dim, int]:
    """Strides of batch and of flattened column. Raises where the columns are not evenly spaced."""
    expected: Dim = output.stride[-1]
    if not isinstance(expected, int):
        raise UnsupportedError("layout", "the output's columns have a dynamic stride")
    step = expected
    for size, stride in reversed(list(zip(output.shape[1:], output.stride[1:], strict=True))):
        if size != 1 and stride != expected:
            raise UnsupportedError("layout", "the output's columns are not evenly spaced")
        assert isinstance(size, int)
        expected = expected * size
    return output.stride[0], step


def _simple(rows: tuple[Piece, ...], inputs: tuple[TensorSpec, ...]) -> Iterator[Piece]:
    """Rows without roundings of what is stored in that precision already."""

    def plain(part: Expr) -> Expr | None:
        if part.op == "round" and part.args[0].op == "load" and inputs[part.args[0].value].dtype == part.value:
            return part.args[0]
        return None

    for piece in rows:
        yield Piece(piece.start, piece.count, ex.substitute(piece.value, plain))
