"""Reading the structure: ``(G + Gᵀ) X``, with ``G`` zero but for the pairs that a gradient is given for.

Of ``Z = X Xᵀ`` an interaction takes ``Z[:, i, j]``. Its gradient writes what comes in into zeros (``index_put``, adding up what
meets), and multiplies these with the rows once as they are and once transposed. What else is added to the sum of both, such as
the gradient of features that are used beside the products, is added with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.fx

from ....exc import UnsupportedError
from ....graph.dims import Dim
from ....graph.meta import dtype_name, hint_of, shape_of, spec_of, target_name, tensor_of
from ....graph.region import TensorSpec
from ...expression import ExpressionBuilder, is_view
from ...expression import expression as ex
from ...expression.access import flatten
from ...expression.expression import Expr
from ...expression.rules import checked
from ...expression.views import broadcast, reshape_index
from ..common import absorbable, check_acyclic, in_graph_order, specs_of, symbols_of

# Variables of expressions: the sample, the row of the result, the row it is multiplied with, the column, the pair.
SAMPLE, ROW, OTHER, COLUMN, PAIR = "b", "r", "j", "d", "k"
LARGEST_ROWS, LARGEST_SAMPLE = 128, 1 << 16
_MOST_PAIRS = 1 << 15
_PRODUCT = "aten.bmm.default"
_SCALES = ("aten.mul.Tensor", "aten.mul.Scalar", "aten.div.Tensor", "aten.div.Scalar")
_FLOATS = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True)
class Plan:
    """``gradient`` is that of pair ``k`` of sample ``b``, which is of rows ``left`` and ``right``; ``features`` are row ``j``.

    ``stored`` is the dtype of the rows, ``held`` the one that products are summed in. Element ``(r, d)`` of the result's
    sample ``b`` stands at ``offset``; ``rest`` is what is added to it beside the products.
    """

    batch: Dim
    rows: int
    width: int
    pairs: int
    stored: str
    held: str
    gradient: Expr
    left: Expr
    right: Expr
    features: Expr
    rest: Expr
    offset: Expr
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    symbols: tuple[str, ...]

    @cached_property
    def flat(self) -> Plan:
        """The same, addressed by element."""
        gradient, left, right, features, rest = (
            flatten(part, self.inputs) for part in (self.gradient, self.left, self.right, self.features, self.rest)
        )
        return replace(self, gradient=gradient, left=left, right=right, features=features, rest=rest)


@dataclass(frozen=True)
class Reading:
    nodes: tuple[torch.fx.Node, ...]
    inputs: tuple[torch.fx.Node, ...]
    root: torch.fx.Node
    plan: Plan
    samples: int


@dataclass(frozen=True)
class Product:
    """``node`` is a term of a sum: views of the batched product ``matmul`` of views of ``square`` and of ``source``.

    ``inner`` are all nodes between the sum and these two; ``scales`` those that multiply the square with a number.
    """

    node: torch.fx.Node
    matmul: torch.fx.Node
    square: torch.fx.Node
    source: torch.fx.Node
    inner: frozenset[torch.fx.Node]
    scales: frozenset[torch.fx.Node]


@dataclass(frozen=True)
class Sum:
    """``node`` adds two products of the same square and source, and ``others``; ``added`` are the additions."""

    node: torch.fx.Node
    products: tuple[Product, Product]
    others: tuple[torch.fx.Node, ...]
    added: frozenset[torch.fx.Node]

    @property
    def square(self) -> torch.fx.Node:
        return self.products[0].square

    @property
    def source(self) -> torch.fx.Node:
        return self.products[0].source

    @property
    def inner(self) -> frozenset[torch.fx.Node]:
        return self.products[0].inner | self.products[1].inner | self.added - {self.node}


def find_sums(graph: torch.fx.Graph) -> Iterator[Sum]:
    """Every sum that may be such a gradient, with as many terms as it has; cheap, no expression is built."""
    seen: set[torch.fx.Node] = set()
    for node in reversed(graph.nodes):
        if node in seen or not _is_sum(node):
            continue
        added: set[torch.fx.Node] = set()
        terms = list(_terms(node, added))
        products = {term: product for term in terms if (product := _product(term)) is not None}
        pair = tuple(products.values())
        if len(pair) == 2 and (pair[0].square, pair[0].source) == (pair[1].square, pair[1].source):
            seen |= added
            others = tuple(term for term in terms if term not in products)
            yield Sum(node, (pair[0], pair[1]), others, frozenset(added))


def _is_sum(node: torch.fx.Node) -> bool:
    """Whether ``node`` adds two tensors of its own shape."""
    if target_name(node) != "aten.add.Tensor" or node.kwargs or len(shape_of(node)) != 3:
        return False
    return all(isinstance(term, torch.fx.Node) and shape_of(term) == shape_of(node) for term in node.args)


def _terms(node: torch.fx.Node, added: set[torch.fx.Node]) -> Iterator[torch.fx.Node]:
    """What ``node`` adds up, with what sums of its own that nobody else needs add up."""
    added.add(node)
    for term in node.all_input_nodes:
        if _is_sum(term) and len(term.users) == 1:
            yield from _terms(term, added)
        else:
            yield term


def _product(term: torch.fx.Node) -> Product | None:
    above = list(_path(term))
    matmul = above[-1]
    if target_name(matmul) != _PRODUCT:
        return None
    paths = [list(_path(operand, _SCALES)) for operand in matmul.args[:2]]
    inner = {*above, *(node for path in paths for node in path[:-1])}
    for (*_, square), (*_, source) in (paths, paths[::-1]):
        if target_name(square) == "aten.index_put.default" and target_name(source) != "aten.index_put.default":
            scales = frozenset(node for node in inner if target_name(node) in _SCALES)
            return Product(term, matmul, square, source, frozenset(inner | {square}), scales)
    return None


def _path(node: Any, others: Sequence[str] = ()) -> Iterator[Any]:
    """``node``, what it is a view of (or what ``others`` make of a number and it), and so on."""
    while isinstance(node, torch.fx.Node):
        is_scale = target_name(node) in others and not isinstance(node.args[1], torch.fx.Node)
        if not is_scale and (not is_view(node) or target_name(node) == "getitem"):
            break
        yield node
        node = node.args[0]
    yield node


def read(graph: torch.fx.Graph, found: Sum, device: str) -> Reading:
    """Raises ``UnsupportedError``."""
    core = {found.node, *found.inner}
    if found.products[0].scales != found.products[1].scales:
        raise UnsupportedError("structure", f"{found.node} scales one of both products")
    if any(user not in core for node in core - {found.node} for user in node.users if not is_view(node)):
        raise UnsupportedError("structure", f"what {found.node} adds up is needed elsewhere as well")
    batch, rows, width = shape_of(found.node)
    pairs, positions, values = _put(found.square)
    if not all(isinstance(size, int) for size in (rows, width, pairs)):
        raise UnsupportedError("dynamic", f"{found.source} has a dynamic number or width of rows")
    if not 2 <= int(rows) <= LARGEST_ROWS or int(rows) * int(width) > LARGEST_SAMPLE or int(pairs) > _MOST_PAIRS:
        raise UnsupportedError("size", f"{pairs} pairs of {rows} rows of {width} values")
    stored, output = dtype_name(tensor_of(found.source).dtype), spec_of(tensor_of(found.node))
    if stored not in _FLOATS or output.dtype != stored:
        raise UnsupportedError("dtype", f"rows of {stored}, gradients of {output.dtype}")
    held = "float64" if stored == "float64" else "float32"
    inside = absorbable(graph, core) | core
    builder = ExpressionBuilder(device, lambda node: node in inside)
    b, r, d = ex.var(SAMPLE, batch), ex.var(ROW, rows), ex.var(COLUMN, width)
    source_at = _source_index(found, device, inside, (b, r, d), held)
    for node in found.inner:
        builder.inlined[node] = None
    builder.inlined[found.node] = None
    k = ex.var(PAIR, pairs)
    left, right = _pair(builder, found.square, positions, k, int(rows))
    gradient = ex.cast(builder.build(values, broadcast((b, k), shape_of(values), (batch, pairs))), held)
    for scale in sorted(found.products[0].scales, key=lambda node: node.name):
        op = "mul" if "mul" in target_name(scale) else "truediv"
        gradient = ex.make(op, held, (gradient, ex.const(scale.args[1], held)))  # type: ignore[arg-type]
    features = ex.cast(builder.build(found.source, source_at), held)
    rest = ex.const(0, held)
    for other in found.others:
        rest = ex.make("add", held, (rest, ex.cast(builder.build(other, (b, r, d)), held)))
    base = found.square.args[0]
    if builder.build(base, tuple(ex.index(0) for _ in shape_of(base))) is not ex.const(0, held):  # type: ignore[arg-type]
        raise UnsupportedError("structure", f"{found.square} does not write into zeros")
    check_acyclic(builder.inputs, (found.node,))
    inputs = specs_of(builder.inputs)
    offset = ex.isum([ex.imul(at, ex.size(step)) for at, step in zip((b, r, d), output.stride, strict=True)])
    plan = Plan(
        batch, int(rows), int(width), int(pairs), stored, held, gradient, left, right, features, rest, offset, inputs,
        output, symbols_of((*inputs, output)),
    )  # fmt: skip
    nodes = in_graph_order(graph, builder.inlined)
    return Reading(nodes, tuple(builder.inputs), found.node, plan, hint_of(tensor_of(found.node).shape[0]))


def _put(square: torch.fx.Node) -> tuple[Dim, tuple[torch.fx.Node, ...], torch.fx.Node]:
    """How many pairs there are, what names them (two numbers of rows, or one place in the square), and their values."""
    base, indices, values = square.args[:3]
    places: Sequence[Any] = [index for index in indices if index is not None]  # type: ignore[union-attr]
    rank = len(shape_of(base))  # type: ignore[arg-type]
    accumulates = len(square.args) > 3 and bool(square.args[3])
    if not accumulates or indices[0] is not None or len(places) != rank - 1 or rank not in (2, 3):  # type: ignore[index]
        raise UnsupportedError("structure", f"{square} does not add gradients of pairs")
    shapes = {shape_of(place) for place in places}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 1 or any(tensor_of(p).dtype.itemsize < 4 for p in places):
        raise UnsupportedError("structure", f"{square} does not name pairs one by one")
    return shape[0], tuple(places), values  # type: ignore[return-value]


def _pair(
    builder: ExpressionBuilder, square: torch.fx.Node, positions: Sequence[torch.fx.Node], k: Expr, rows: int
) -> tuple[Expr, Expr]:
    """Both rows of pair ``k``; out of range fails the kernel as eager would fail."""
    extents = shape_of(square)[1:]
    found = [checked(builder.build(at, (k,)), size, wrap=True) for at, size in zip(positions, extents, strict=True)]
    if len(found) == 1:
        row, column = ex.idivmod(found[0], rows)
        return row, column
    return found[0], found[1]


def _source_index(
    found: Sum, device: str, inside: set[torch.fx.Node], at: tuple[Expr, Expr, Expr], held: str
) -> tuple[Expr, ...]:
    """The index into the source of what row ``r`` of the result is multiplied with: of row ``j`` at column ``d``.

    Raises ``UnsupportedError`` unless the sum is of ``G[b, r, j] X[b, j, d]`` and ``G[b, j, r] X[b, j, d]``.
    """
    b, r, d = at
    batch, rows, _ = shape_of(found.node)
    j = ex.var(OTHER, rows)
    outer = ExpressionBuilder(device, lambda node: node in inside)
    inner = ExpressionBuilder(device, lambda node: node in inside)
    for product in found.products:
        outer.bind(product.matmul, lambda index, node=product.matmul: _factors(inner, node, index, j))  # type: ignore[misc]
        for scale in product.scales:
            inner.bind(scale, lambda index, node=scale.args[0]: inner.build(node, index))  # type: ignore[misc]
    inner.bind(found.square, lambda index: ex.make("square", held, index))
    inner.bind(found.source, lambda index: ex.make("source", held, index))
    terms = [_unrounded(outer.build(product.node, at)) for product in found.products]
    if any(term.op != "mul" for term in terms):
        raise UnsupportedError("structure", f"{found.node} does not add two products as they are")
    squares = {next((part.args for part in term.args if part.op == "square"), ()) for term in terms}
    sources = {next((part.args for part in term.args if part.op == "source"), ()) for term in terms}
    to = shape_of(found.square)
    wanted = {reshape_index((b, *pair), (batch, rows, rows), to) for pair in ((r, j), (j, r))}
    if squares != wanted or len(sources) != 1:
        raise UnsupportedError("structure", f"{found.node} is not the gradient of products of rows with each other")
    (index,) = sources
    if not {name for one in index for name in ex.variables(one)} <= {SAMPLE, OTHER, COLUMN}:
        raise UnsupportedError("structure", f"{found.node} multiplies different rows")
    return index


def _factors(builder: ExpressionBuilder, product: torch.fx.Node, index: tuple[Expr, ...], j: Expr) -> Expr:
    left, right = product.args[:2]
    b, i, o = index
    factors = builder.build(left, (b, i, j)), builder.build(right, (b, j, o))  # type: ignore[arg-type]
    held = "float64" if dtype_name(tensor_of(product).dtype) == "float64" else "float32"
    return ex.make("mul", held, (_unrounded(factors[0]), _unrounded(factors[1])))


def _unrounded(value: Expr) -> Expr:
    return value.args[0] if value.op == "round" else value
