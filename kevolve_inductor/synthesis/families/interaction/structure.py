"""Reading the structure: batched products of the rows of one value with each other, and what becomes of them.

The products are found as a batched matrix product of two views of one value, or as the sum of an elementwise product of
two views or row selections of it. From there the reading goes down, through views, selections, pointwise operators and
concatenations, to the last value that can be written directly; and up, to where the rows are really stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
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
from ..products import unpadded
from .pairs import Constants, KnownPairs, LoadedPairs, Pairs, evaluated, is_known, runs_of, table
from .pieces import Piece, cut, moved

# What one thread of a CPU keeps of one sample: features, their transpose and their products.
LARGEST_FEATURES, LARGEST_SAMPLE = 256, 1 << 16
_LARGEST_ROW = 1 << 16
_MOST_RUNS_PER_FEATURE = 4
_GATHERS = {"aten.index.Tensor", "aten._unsafe_index.Tensor", "aten.index_select.default"}
_FLOATS = ("float32", "float64", "bfloat16", "float16")
_MATRIX_PRODUCT = "aten.bmm.default"


@dataclass(frozen=True)
class Segment:
    """Columns of the output. ``value`` holds at most one ``product`` (of what ``pairs`` says), over batch and column."""

    start: int
    count: int
    value: Expr
    pairs: Pairs | None


@dataclass(frozen=True)
class Shape:
    """``stored`` is the dtype of the features, ``held`` the one that products are summed in."""

    batch: Dim
    features: int
    width: int
    stored: str
    held: str


@dataclass(frozen=True)
class Plan:
    """``rows`` are the features (over ``b``, ``r``, ``d``); ``segments`` (over ``b``, ``c``) make up the output's rows.

    Element ``c`` of the output's row ``b`` stands at ``b * row_stride + c * column_stride``.
    """

    shape: Shape
    rows: tuple[Piece, ...]
    segments: tuple[Segment, ...]
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    row_stride: Dim
    column_stride: int

    @property
    def columns(self) -> int:
        return sum(segment.count for segment in self.segments)

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
    """``node`` sums the products of two values that both view, or select rows of, ``source``.

    ``inner`` are the nodes that multiply and sum (the last one multiplies ``operands``, which may have been padded for
    it), ``path`` those between ``source`` and them.
    """

    node: torch.fx.Node
    source: torch.fx.Node
    operands: tuple[torch.fx.Node, torch.fx.Node]
    inner: tuple[torch.fx.Node, ...]
    path: tuple[torch.fx.Node, ...]

    @property
    def is_matrix(self) -> bool:
        return target_name(self.inner[-1]) == _MATRIX_PRODUCT

    @property
    def summed(self) -> int:
        """The axis of the elementwise product that is summed over. Raises ``UnsupportedError`` where that is not one."""
        rank = len(shape_of(self.inner[-1]))
        dims: Any = self.node.args[1]
        if len(dims) != 1 or rank < 3 or dims[0] % rank == 0:
            raise UnsupportedError("structure", f"{self.node} sums over {dims}")
        return int(dims[0] % rank)

    @property
    def width(self) -> Dim:
        if self.is_matrix:
            return shape_of(self.operands[0])[2]
        return shape_of(self.inner[-1])[self.summed]


def find_products(graph: torch.fx.Graph) -> Iterator[Products]:
    """Every value that may be the products of one value's rows; cheap, no expression is built."""
    for node in graph.nodes:
        name = target_name(node)
        if not _is_tensor(node):
            continue
        if name == _MATRIX_PRODUCT:
            result, operands, inner = unpadded(node, *node.args[:2])
        elif name == "aten.sum.dim_IntList" and _is_product(node.args[0]):
            result, operands, inner = node, node.args[0].args[:2], (node, node.args[0])
        else:
            continue
        paths = [tuple(_path(operand, selections=name != _MATRIX_PRODUCT)) for operand in operands]
        if paths[0][-1] is paths[1][-1] and tensor_of(node).is_floating_point():
            yield Products(result, paths[0][-1], operands, inner, (*paths[0][:-1], *paths[1][:-1]))


def _is_product(value: Any) -> bool:
    """A product of two different tensors (a square is a norm, no interaction)."""
    if not isinstance(value, torch.fx.Node) or target_name(value) != "aten.mul.Tensor":
        return False
    left, right = value.args[:2]
    return isinstance(left, torch.fx.Node) and isinstance(right, torch.fx.Node) and left is not right


def _path(node: Any, selections: bool) -> Iterator[torch.fx.Node]:
    """Views of a value (and selections of its rows, the same for the whole batch), then the value itself."""
    while (is_view(node) and target_name(node) != "getitem") or (selections and _selects_rows(node)):
        yield node
        node = node.args[0]
    yield node


def _selects_rows(node: torch.fx.Node) -> bool:
    name: str = target_name(node)
    if name == "aten.index_select.default":
        return bool(node.args[1] != 0)
    return name in _GATHERS and node.args[1][0] is None  # type: ignore[index]


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


def is_interaction(products: Products, chain: tuple[torch.fx.Node, ...]) -> bool:
    """Does what is made of the products do more than a matrix product alone?"""
    names = [target_name(node) for node in chain]
    return not products.is_matrix or any(name in _GATHERS or name == "aten.cat.default" for name in names)


class Reader:
    """Builds the expressions of one region that ends in ``chain[-1]``. Raises ``UnsupportedError``."""

    def __init__(self, graph: torch.fx.Graph, products: Products, chain: tuple[torch.fx.Node, ...], device: str,
                 constants: Constants, fold: bool) -> None:  # fmt: skip
        self.graph, self.products, self.root, self.constants = graph, products, chain[-1], constants
        core = {*products.inner, *chain}
        self.inside = absorbable(graph, core) | core
        self.device = device
        self.builder = ExpressionBuilder(device, self._inline)
        self.tables: dict[torch.fx.Node, np.ndarray] = {}
        for node in _positions((*chain, *products.path)):
            if node in constants and fold:
                self.tables[node] = constants.value(node)
            elif node in constants:
                self.inside.discard(node)
        self._bind_tables(self.builder)

    def _inline(self, node: torch.fx.Node) -> bool:
        devices = {source.meta["val"].device.type for source in node.all_input_nodes if _is_tensor(source)}
        return node in self.inside and devices <= {self.device}

    def _bind_tables(self, builder: ExpressionBuilder) -> None:
        for node, values in self.tables.items():
            builder.bind(node, partial(table, values))

    def read(self) -> Reading:
        batch, width = shape_of(self.products.node)[0], self.products.width
        stored = dtype_name(tensor_of(self.products.source).dtype)
        if stored not in _FLOATS:
            raise UnsupportedError("dtype", f"features of {stored}")
        held = "float64" if stored == "float64" else "float32"
        b = ex.var("b", batch)
        left, right, row_at = self._operands(b, held)
        features = _features(left, right)
        if not isinstance(width, int) or features is None:
            raise UnsupportedError("dynamic", f"{self.products.source} has a dynamic number or width of features")
        if not 2 <= features <= LARGEST_FEATURES or width < 1 or features * width > LARGEST_SAMPLE:
            raise UnsupportedError("size", f"{features} features of {width} values")
        shape = Shape(batch, features, width, stored, held)
        rows = tuple(self._rows(row_at, features))
        return self._finish(shape, rows, tuple(self._segments(b, left, right, shape)))

    # --- the operands: source[... row ..., d] for two rows ---

    def _operands(self, b: Expr, held: str) -> tuple[Expr, Expr, tuple[Expr, ...]]:
        """Row expressions of both operands over ``u0, u1, …``, and the source's index over ``b``, ``row`` and ``d``."""
        node, source = self.products.node, self.products.source
        builder = ExpressionBuilder(self.device, self._inline)
        builder.inputs, builder.inlined = self.builder.inputs, self.builder.inlined
        self._bind_tables(builder)
        builder.bind(source, lambda index: ex.make("source", held, index))
        one, two = (_unrounded(value) for value in self._operand_values(builder, b, held))
        if one.op != "source" or two.op != "source":
            raise UnsupportedError("structure", f"the operands of {node} are not rows of {source}")
        left, right, row = _row_of(one, two), _row_of(two, one), ex.var("row")
        index = tuple(moved(at, left, row) for at in one.args)
        if index != tuple(moved(at, right, row) for at in two.args):
            raise UnsupportedError("structure", f"the operands of {node} are different values of {source}")
        if not {name for at in index for name in ex.variables(at)} <= {"b", "row", "d"}:
            raise UnsupportedError("structure", f"{node} depends on more than two rows of {source}")
        return left, right, index

    def _operand_values(self, builder: ExpressionBuilder, b: Expr, held: str) -> tuple[Expr, Expr]:
        d, shape = ex.var("d", self.products.width), shape_of(self.products.node)
        left, right = self.products.operands
        if self.products.is_matrix:
            i, j = ex.var("u0", shape[1]), ex.var("u1", shape[2])
            return builder.build(left, (b, i, d)), builder.build(right, (b, d, j))
        multiplied, summed = self.products.inner[-1], self.products.summed
        full = shape_of(multiplied)
        free = iter(range(len(full)))
        index = (b, *(d if axis == summed else ex.var(f"u{next(free)}", full[axis]) for axis in range(1, len(full))))
        return builder.operand(left, multiplied, index, held), builder.operand(right, multiplied, index, held)

    def _rows(self, row_at: tuple[Expr, ...], features: int) -> Iterator[Piece]:
        source, row = self.products.source, ex.var("row")

        def build(at: Expr) -> Expr:
            return self.builder.build(source, tuple(moved(part, row, at) for part in row_at))

        for piece in cut("r", features, build):
            if not ex.variables(piece.value) <= {"b", "r", "d"}:
                raise UnsupportedError("structure", f"{source} is not made of rows")
            yield piece

    # --- the output: columns of dense values and of products ---

    def _segments(self, b: Expr, left: Expr, right: Expr, sizes: Shape) -> Iterator[Segment]:
        node, shape = self.products.node, shape_of(self.root)
        axes = self._free_axes()

        def product_at(index: tuple[Expr, ...]) -> Expr:
            at = {f"u{k}": index[axis] for k, axis in enumerate(axes)}
            pair = [_placed(side, at) for side in (left, right)]
            return ex.cast(ex.make("product", sizes.held, (index[0], *pair)), dtype_name(tensor_of(node).dtype))

        self.builder.bind(node, product_at)
        columns = product(shape[1:])
        if not isinstance(columns, int) or columns > _LARGEST_ROW:
            raise UnsupportedError("size", f"rows of {columns} values")

        def build(at: Expr) -> Expr:
            return self.builder.build(self.root, (b, *_unravelled(at, shape[1:])))

        for piece in cut("c", columns, build):
            yield self._segment(b, piece, sizes.features)

    def _free_axes(self) -> list[int]:
        """Axes of the products that stand for ``u0, u1, …``: a summed axis may have been kept with size 1."""
        node = self.products.node
        axes = list(range(1, len(shape_of(node))))
        if not self.products.is_matrix and len(node.args) > 2 and node.args[2]:
            axes.remove(self.products.summed)
        return axes

    def _segment(self, b: Expr, piece: Piece, features: int) -> Segment:
        found = [part for part in ex.walk(piece.value) if part.op == "product"]
        if not found:
            return Segment(piece.start, piece.count, piece.value, None)
        if len(found) > 1 or found[0].args[0] is not b:
            raise UnsupportedError("structure", f"an element of {self.root} is made of several products")
        _, left, right = found[0].args
        value = ex.substitute(piece.value, lambda part: ex.var("z", None, part.dtype) if part is found[0] else None)
        return Segment(piece.start, piece.count, value, _pairs(left, right, piece.count, features))

    def _finish(self, shape: Shape, rows: tuple[Piece, ...], segments: tuple[Segment, ...]) -> Reading:
        inputs, (output,) = specs_of(self.builder.inputs), specs_of([self.root])
        if not any(segment.pairs for segment in segments):
            raise UnsupportedError("structure", "no product is used")
        values = [*(piece.value for piece in rows), *(segment.value for segment in segments)]
        if any(part.op == "table" for value in values for part in ex.walk(value)):
            raise UnsupportedError("structure", "known positions select something else than pairs")
        folded = {one for node in self.tables for one in self.constants.closure(node)}
        nodes = {*self.builder.inlined, *self.products.inner, *folded, self.root}
        check_acyclic(self.builder.inputs, [self.root])
        plan = Plan(
            shape,
            tuple(replace(piece, value=_plain(piece.value, inputs)) for piece in rows),
            tuple(replace(segment, value=_plain(segment.value, inputs)) for segment in segments),
            inputs,
            output,
            *_strides(output),
        )
        return Reading(in_graph_order(self.graph, nodes), tuple(self.builder.inputs), self.root, plan)


def _pairs(left: Expr, right: Expr, count: int, features: int) -> Pairs:
    if not ex.variables(left) | ex.variables(right) <= {"c"}:
        raise UnsupportedError("structure", "every sample has pairs of its own")
    if not (is_known(left) and is_known(right)):
        if any(part.op == "table" for side in (left, right) for part in ex.walk(side)):
            raise UnsupportedError("structure", "pairs are partly known")
        return LoadedPairs(left, right, count)
    column = {"c": np.arange(count)}
    try:
        one, two = (np.broadcast_to(evaluated(side, column), (count,)) for side in (left, right))
    except IndexError as error:
        raise UnsupportedError("structure", f"a pair is out of range: {error}") from error
    runs = runs_of(one, two, most=_MOST_RUNS_PER_FEATURE * features)
    if runs is None:
        raise UnsupportedError("structure", "pairs follow no order")
    return KnownPairs(runs)


def _is_tensor(node: torch.fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _positions(nodes: Iterable[torch.fx.Node]) -> list[torch.fx.Node]:
    """Index tensors that ``nodes`` select with."""
    found: list[torch.fx.Node] = []
    for node in nodes:
        name = target_name(node)
        used: Any = [node.args[2]] if name == "aten.index_select.default" else node.args[1] if name in _GATHERS else []
        found.extend(at for at in used if isinstance(at, torch.fx.Node) and at not in found)
    return found


def _features(left: Expr, right: Expr) -> int | None:
    """How many rows the operands' row expressions can name."""
    extents = [side.value[1] if side.op == "var" else side.value[0] for side in (left, right)]
    return max(extents) if all(isinstance(extent, int) for extent in extents) else None


def _placed(side: Expr, at: Mapping[str, Expr]) -> Expr:
    for part in [part for part in ex.walk(side) if part.op == "var"]:
        side = moved(side, part, at[part.value[0]])
    return side


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
    """Strides of batch and of flattened column. Raises ``UnsupportedError`` where columns are not evenly spaced."""
    step = expected = 0
    for size, stride in zip(reversed(output.shape[1:]), reversed(output.stride[1:]), strict=True):
        if size == 1:
            continue
        if not isinstance(stride, int) or not isinstance(size, int) or (step and stride != expected):
            raise UnsupportedError("layout", "the output's columns are not evenly spaced")
        step = step or stride
        expected = stride * size
    return output.stride[0], step or 1


def _plain(value: Expr, inputs: tuple[TensorSpec, ...]) -> Expr:
    """``value`` without roundings of what is stored in that precision already."""

    def unrounded(part: Expr) -> Expr | None:
        rounds_load = part.op == "round" and part.args[0].op == "load"
        return part.args[0] if rounds_load and inputs[part.args[0].value].dtype == part.value else None

    return ex.substitute(value, unrounded)
