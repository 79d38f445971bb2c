"""Reading a set of nodes as a chain: every product and reduction becomes a step, what lies between them expressions."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch.fx

from ....exc import UnsupportedError
from ....graph.dims import Dim, product
from ....graph.meta import dtype_name, shape_of, target_name, tensor_of
from ...expression import ExpressionBuilder, is_expressible, is_view
from ...expression import expression as ex
from ...expression.access import flatten, linear, offset_of
from ...expression.expression import Expr
from ...expression.views import broadcast, reshape_index
from .. import common
from ..products import Product
from ..rows.operators import is_reduction, reduction_of
from .flat import flat_step, flat_tile, folded
from .forms import BlockedError, Form, Frame, Index, along, form_of_view, rows_before, whole, widened
from .gelu import shortened
from .plan import COLUMN, POSITION, ROW, ChainPlan, Combine, Dot, Pool, Reduce, Step, Store, Tile, is_rowwise
from .regroup import regrouped
from .sums import summed

_COMBINED: dict[str, Combine] = {"sum": "sum", "mean": "sum", "amax": "maximum", "amin": "minimum"}
_DTYPES = ("float32", "bfloat16", "float16")
Value = Callable[[Index], Expr]
Result = TypeVar("Result")


class Reader:
    """Reads ``members`` (in graph order) as one chain; ``spare`` may be computed inside as well.

    ``pools`` are sums over an axis of values that are not part of it.

    Raises ``BlockedError`` with the first node that does not fit.
    """

    def __init__(self, frame: Frame, products: dict[torch.fx.Node, Product], pools: Collection[torch.fx.Node],
                 members: Sequence[torch.fx.Node], spare: Iterable[torch.fx.Node], device: str) -> None:  # fmt: skip
        self.frame, self.products, self.pools = frame, products, pools
        self.members = members
        self.inner = {node for one in products.values() for node in one.inner}
        self.builder = ExpressionBuilder(device, {*members, *spare}.__contains__)
        self.forms: dict[torch.fx.Node, Form] = {}
        self.steps: list[Step] = []
        self.nodes: dict[str, torch.fx.Node] = {}

    def plan(self, outputs: Sequence[torch.fx.Node]) -> ChainPlan:
        for node in self.members:
            self._blaming(node, self._read)
        stores = [self._blaming(node, partial(self._store, number)) for number, node in enumerate(outputs)]
        inputs = common.specs_of(self.builder.inputs)
        results = common.specs_of(outputs)
        steps = tuple(flat_step(step, inputs) for step in self.steps)
        stores = [Store(flat_tile(one.tile, inputs), flatten(one.offset, inputs), one.output) for one in stores]
        symbols = common.symbols_of((*inputs, *results))
        plan = ChainPlan(
            self.frame.batch, self.frame.rows, steps, tuple(stores), inputs, results, symbols, self.frame.seen
        )
        cheaper = regrouped(plan)
        found = shortened(summed(cheaper))
        return found if cheaper is plan else replace(found, written=shortened(summed(plan)))

    def _blaming(self, node: torch.fx.Node, read: Callable[[torch.fx.Node], Result]) -> Result:
        """``read(node)``, any failure of which is one of this node."""
        try:
            return read(node)
        except BlockedError:
            raise
        except UnsupportedError as error:
            raise BlockedError(node, error.message, error.code) from error

    def _read(self, node: torch.fx.Node) -> None:
        if node in self.products:
            self._product(self.products[node])
        elif node in self.pools:
            self._pool(node)
        elif node not in self.inner:
            self._member(node)

    # --- what is computed element by element ---

    def _member(self, node: torch.fx.Node) -> None:
        source = node.args[0] if node.args else None
        if is_reduction(node):
            self._reduction(node)
        elif target_name(node) == "getitem" and isinstance(source, torch.fx.Node) and is_reduction(source):
            # Bound with the reduction.
            return
        elif is_view(node) and isinstance(source, torch.fx.Node) and source in self.forms:
            form = form_of_view(node, self.forms[source])
            if form is None:
                raise BlockedError(node, f"{node} rearranges what a chain holds")
            self.forms[node] = form
        elif is_expressible(node):
            self.forms[node] = self._pointwise(node)
        else:
            raise BlockedError(node, f"{node} is neither a product nor a reduction nor pointwise")

    def _pointwise(self, node: torch.fx.Node) -> Form:
        sources = [source for source in node.all_input_nodes if source in self.forms]
        same = [source for source in sources if shape_of(source) == shape_of(node)]
        forms = [self.forms[source] for source in same] or [
            form for source in sources if (form := widened(node, source, self.forms[source])) is not None
        ]
        if not forms:
            raise BlockedError(node, f"{node} has not one element for each of what the chain holds")
        return forms[0]

    # --- products ---

    def _product(self, found: Product) -> None:
        node = found.node
        shapes = shape_of(node), shape_of(found.left), shape_of(found.right)
        rows, depth, columns = self._rows(node, shapes[1]), shapes[1][-1], shapes[2][-1]
        dtype = dtype_name(tensor_of(found.left).dtype)
        if not isinstance(depth, int) or not isinstance(columns, int):
            raise BlockedError(node, f"{node} has a dynamic width", "dynamic")
        if dtype not in _DTYPES or dtype != dtype_name(tensor_of(found.right).dtype):
            raise BlockedError(node, f"{node} multiplies {dtype}", "dtype")
        if rows in (0, 1) or depth in (0, 1) or not columns:
            raise BlockedError(node, f"{node} is no product of matrices", "size")
        name = self._name(node)
        self.steps.append(self._dot(name, found, shapes[1:], (rows, depth, columns), dtype))
        form = whole(self.frame, shapes[0], rows, columns)
        held = ex.var(name, None, "float32")

        def value(index: Index) -> Expr:
            total = self._scaled(held, found.alpha)
            if found.bias is not None:
                bias = self.builder.build(found.bias, broadcast(index, shape_of(found.bias), shape_of(node)))
                total = ex.make("add", "float32", (total, self._scaled(ex.cast(bias, "float32"), found.beta)))
            return ex.cast(total, dtype_name(tensor_of(node).dtype))

        self._bind(node, form, value)

    def _name(self, node: torch.fx.Node) -> str:
        """The name of the next step, which computes (part of) ``node``."""
        name = f"v{len(self.steps)}"
        self.nodes[name] = node
        return name

    def _scaled(self, value: Expr, by: float) -> Expr:
        return value if by == 1 else ex.make("mul", "float32", (value, ex.const(by, "float32")))

    def _rows(self, node: torch.fx.Node, left: tuple[Dim, ...]) -> Dim:
        """Rows of a product in each sample."""
        rows = self.frame.rows_of(left)
        if rows is None:
            raise BlockedError(node, f"{node} has other rows than the samples")
        return rows

    def _dot(self, name: str, found: Product, shapes: Sequence[tuple[Dim, ...]], sizes: tuple[Dim, int, int],
             dtype: str) -> Step:  # fmt: skip
        rows, depth, columns = sizes
        if columns == 1:
            # One column is a sum over rows, for which a product unit has fifteen columns too many.
            left = self.builder.build(found.left, self.frame.matrix(shapes[0], along(ROW, rows), along(COLUMN, depth)))
            right = self.builder.build(found.right, self.frame.shared(shapes[1], along(COLUMN, depth), ex.index(0)))
            factors = (ex.cast(left, "float32"), ex.cast(right, "float32"))
            return Reduce(name, "sum", Tile(ex.make("mul", "float32", factors), rows, depth), (1,))
        left_tile = self._operand(found.left, partial(self.frame.matrix, shapes[0]), rows, depth)
        right_tile = self._operand(found.right, partial(self.frame.shared, shapes[1]), depth, columns)
        return Dot(name, left_tile, right_tile, rows, depth, columns, dtype)

    def _operand(self, node: torch.fx.Node, index_of: Callable[[Expr, Expr], Index], rows: Dim, columns: Dim) -> Tile:
        """An operand as a tile that lies as its memory, or what is held of it, does."""
        tiles: list[Tile] = []
        blocked: BlockedError | None = None
        for turned in (False, True):
            row, column = (COLUMN, ROW) if turned else (ROW, COLUMN)
            try:
                value = self.builder.build(node, index_of(along(row, rows), along(column, columns)))
            except BlockedError as error:
                blocked = error
                continue
            sizes = (columns, rows) if turned else (rows, columns)
            tiles.append(Tile(value, *sizes, turned))
        if not tiles:
            assert blocked is not None
            raise blocked
        return min(tiles, key=self._scattering)

    def _scattering(self, tile: Tile) -> int:
        """How many loads of a tile have no neighbours side by side in its rows."""
        inputs = common.specs_of(self.builder.inputs)
        reads = [linear(offset_of(part)) for part in ex.walk(flatten(tile.value, inputs)) if part.op == "read"]
        return sum(COLUMN in at.coefficients and abs(at.of(COLUMN)) > abs(at.of(ROW)) > 0 for at in reads)

    # --- sums over an axis in front of the columns ---

    def _pool(self, node: torch.fx.Node) -> None:
        found = reduction_of(node)
        shape, (dim,) = shape_of(found.source), found.dims
        extent, (rows, _), columns = shape[dim], rows_before(found.source, dim), product(shape[dim + 1 :])
        if not isinstance(extent, int) or not isinstance(columns, int):
            raise BlockedError(node, f"{node} sums over an axis of dynamic size", "dynamic")
        if not (rows and columns and extent):
            raise BlockedError(node, f"{node} is empty", "size")
        if dtype_name(tensor_of(found.source).dtype) not in _DTYPES:
            raise BlockedError(node, f"{node} sums {tensor_of(found.source).dtype}", "dtype")
        before = reshape_index((along(ROW, rows),), (rows,), shape[:dim])
        after = reshape_index((along(COLUMN, columns),), (columns,), shape[dim + 1 :])
        value = self.builder.build(found.source, (*before, along(POSITION, extent), *after))
        name = self._name(node)
        self.steps.append(Pool(name, Tile(ex.cast(value, "float32"), rows, columns), extent))
        total = ex.var(name, None, "float32")
        total = ex.make("truediv", "float32", (total, ex.const(extent, "float32"))) if found.kind == "mean" else total
        result = ex.cast(total, dtype_name(tensor_of(node).dtype))
        kept = (ex.index(0),) if found.keeps else ()
        self._bind(node, Form((*before, *kept, *after), rows, columns), lambda _: result)

    # --- reductions ---

    def _reduction(self, node: torch.fx.Node) -> None:
        found = reduction_of(node)
        form = self.forms.get(found.source) or self._form_of_rows(found.source)
        if form is None or found.kind not in (*_COMBINED, "var_mean"):
            raise BlockedError(node, f"{node} reduces what the chain does not hold")
        axes = self._axes(node, form, found.dims)
        value = ex.cast(self.builder.build(found.source, form.index), "float32")
        rest = form.without(axes, found.dims, found.keeps)
        sizes = [form.rows, form.columns]
        count = math.prod(int(sizes[axis]) for axis in axes)
        if found.kind == "var_mean":
            self._var_mean(node, (value, form, axes), rest, count, found.correction)
            return
        total = self._reduced(node, _COMBINED[found.kind], value, form, axes)
        total = ex.make("truediv", "float32", (total, ex.const(count, "float32"))) if found.kind == "mean" else total
        result = ex.cast(total, dtype_name(tensor_of(node).dtype))
        self._bind(node, rest, lambda _: result)

    def _form_of_rows(self, source: torch.fx.Node) -> Form | None:
        """The form of a value that is loaded, if its rows are those of the samples."""
        shape = shape_of(source)
        rows = self.frame.rows_of(shape) if len(shape) in (2, 3) else None
        return None if rows is None else whole(self.frame, shape, rows, shape[-1])

    def _axes(self, node: torch.fx.Node, form: Form, dims: tuple[int, ...]) -> tuple[int, ...]:
        joined = {name for d in dims for name in ex.variables(form.index[d])}
        kept = {name for d, at in enumerate(form.index) if d not in dims for name in ex.variables(at)}
        if not joined or not joined <= {ROW, COLUMN} or joined & kept:
            raise BlockedError(node, f"{node} reduces over more than the rows and columns of a sample")
        if ROW in joined and (self.frame.batch is None or not isinstance(form.rows, int)):
            raise BlockedError(node, f"{node} reduces over all rows")
        return tuple(axis for axis, name in enumerate((ROW, COLUMN)) if name in joined)

    def _reduced(self, node: torch.fx.Node, combine: Combine, value: Expr, form: Form, axes: tuple[int, ...]) -> Expr:
        name = self._name(node)
        self.steps.append(Reduce(name, combine, Tile(value, form.rows, form.columns), axes))
        return ex.var(name, None, "float32")

    def _var_mean(self, node: torch.fx.Node, source: tuple[Expr, Form, tuple[int, ...]], rest: Form, count: int,
                  correction: float) -> None:  # fmt: skip
        """The mean first, then the mean of squared distances from it, as accurate as eager's own way."""
        value, form, axes = source
        size = ex.const(count, "float32")
        mean = ex.make("truediv", "float32", (self._reduced(node, "sum", value, form, axes), size))
        distance = ex.make("sub", "float32", (value, mean))
        squares = self._reduced(node, "sum", ex.make("mul", "float32", (distance, distance)), form, axes)
        degrees = ex.const(max(count - correction, 0), "float32")
        results = (ex.make("truediv", "float32", (squares, degrees)), mean)
        for user in node.users:
            result = ex.cast(results[int(user.args[1])], dtype_name(tensor_of(user).dtype))  # type: ignore[arg-type]
            self._bind(user, rest, lambda _, result=result: result)  # type: ignore[misc]

    # --- results ---

    def _bind(self, node: torch.fx.Node, form: Form, value: Value) -> None:
        def at(index: Index) -> Expr:
            if tuple(folded(at) for at in index) != form.index:
                raise BlockedError(node, f"elements of {node} are needed elsewhere than they are held")
            return value(form.index)

        self.forms[node] = form
        self.builder.bind(node, at)

    def _store(self, output: int, node: torch.fx.Node) -> Store:
        if node not in self.forms:
            raise BlockedError(node, f"{node} is needed as it is")
        if not tensor_of(node).is_floating_point():
            # Other roundings on the way may turn a comparison around.
            raise BlockedError(node, f"{node} is not a floating-point number")
        form = self.forms[node]
        value = self.builder.build(node, form.index)
        strides = common.specs_of([node])[0].stride
        offset = folded(ex.isum([ex.imul(at, ex.size(step)) for at, step in zip(form.index, strides, strict=True)]))
        return Store(Tile(value, form.rows, form.columns), offset, output)


def check_rows(plan: ChainPlan) -> None:
    """Raises ``UnsupportedError`` where rows of one large matrix, or of a dynamic number, are joined."""
    if plan.rowwise:
        return
    joined = next(step for step in plan.steps if not is_rowwise(step, plan.rows, plan.by_name))
    if plan.batch is None:
        raise UnsupportedError("structure", f"step {joined.name} joins rows of one matrix")
    if not all(
        isinstance(tile.rows, int) and isinstance(tile.columns, int) for step in plan.steps for tile in step.tiles
    ):
        raise UnsupportedError("dynamic", f"step {joined.name} joins rows of a dynamic number")
