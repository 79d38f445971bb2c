"""Operators whose arguments do not map one to one onto an expression's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.fx

from ...exc import UnsupportedError
from ...graph.dims import Dim
from ...graph.meta import dim_of, dtype_name, shape_of, tensor_of
from . import expression as ex
from .expression import Expr
from .views import Index, broadcast


class Builds(Protocol):
    """What a rule needs of the builder that applies it."""

    inputs: list[torch.fx.Node]

    def build(self, node: torch.fx.Node, index: Index) -> Expr: ...

    def load(self, node: torch.fx.Node, index: Index) -> Expr: ...

    def address(self, node: torch.fx.Node, index: Index) -> Expr: ...

    def input_index(self, node: torch.fx.Node) -> int: ...

    def operand(self, argument: Any, node: torch.fx.Node, index: Index, dtype: str) -> Expr: ...


Rule = Callable[[Builds, torch.fx.Node, Index], Expr]


def _argument(node: torch.fx.Node, position: int, name: str, default: Any = None) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def _held(node: torch.fx.Node) -> str:
    name = dtype_name(tensor_of(node).dtype)
    return "float32" if name in ex.LOW_PRECISION else name


def _node(argument: Any) -> torch.fx.Node:
    if not isinstance(argument, torch.fx.Node):
        raise UnsupportedError("structure", f"{argument!r} is not a tensor argument")
    return argument


def _operands(b: Builds, node: torch.fx.Node, index: Index, *args: Any) -> list[Expr]:
    held = _held(node)
    return [ex.cast(b.operand(argument, node, index, held), held) for argument in args]


def _fma(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
    # Fused or not is the compiler's choice, as it is for a product and a sum.
    left, right, more = _operands(b, node, index, *node.args[:3])
    return ex.make("add", left.dtype, (ex.make("mul", left.dtype, (left, right)), more))


def _add_product(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
    """``base + value * left * right`` (or ``left / right``), rounded once as eager does."""
    base, left, right = _operands(b, node, index, *node.args[:3])
    op = "mul" if "addcmul" in str(node.target) else "truediv"
    scale: Any = node.kwargs.get("value", 1)
    if scale != 1:
        left = ex.make("mul", left.dtype, (ex.const(scale, left.dtype), left))
    return ex.make("add", base.dtype, (base, ex.make(op, left.dtype, (left, right))))


def _add(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
    left, right = _operands(b, node, index, node.args[0], node.args[1])
    alpha = _argument(node, 2, "alpha", 1)
    if alpha != 1:
        right = ex.make("mul", right.dtype, (right, ex.const(alpha, right.dtype)))
    name = str(node.target)
    if name == "aten.rsub.Scalar":
        # rsub(self, other, alpha) is other - alpha * self
        left, right = _operands(b, node, index, node.args[1], node.args[0])
        right = ex.make("mul", right.dtype, (right, ex.const(alpha, right.dtype))) if alpha != 1 else right
    op = "add" if name.startswith("aten.add") else "sub"
    if left.dtype == "bool" and op == "add":
        op = "logical_or"
    return ex.make(op, left.dtype, (left, right))


def _where(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
    condition = ex.cast(b.operand(node.args[0], node, index, "bool"), "bool")
    yes, no = _operands(b, node, index, node.args[1], node.args[2])
    return ex.make("where", yes.dtype, (condition, yes, no))


def _masked_fill(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
    condition = ex.cast(b.operand(node.args[1], node, index, "bool"), "bool")
    old, new = _operands(b, node, index, node.args[0], node.args[2])
    return ex.make("where", old.dtype, (condition, new, old))


def _clamp(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
    (value,) = _operands(b, node, index, node.args[0])
    name = str(node.target)
    low = _argument(node, 1, "min") if name != "aten.clamp_max.default" else None
    high = _argument(node, 2, "max") if name != "aten.clamp_max.default" else _argument(node, 1, "max")
    for bound, op in ((low, "maximum"), (high, "minimum")):
        if bound is not None:
            value = ex.make(op, value.dtype, (value, *_operands(b, node, index, bound)))
    return value


def _pow(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
    (value,) = _operands(b, node, index, node.args[0])
    exponent = 2 if str(node.target) == "aten.square.default" else node.args[1]
    if exponent == 1:
        return value
    if exponent == 2:
        return ex.make("mul", value.dtype, (value, value))
    if exponent == 3:
        return ex.make("mul", value.dtype, (ex.make("mul", value.dtype, (value, value)), value))
    if exponent == 0.5 and value.dtype in ex.FLOATS:
        return ex.make("sqrt", value.dtype, (value,))
    if value.dtype not in ex.FLOATS or not isinstance(exponent, (int, float)):
        raise UnsupportedError("dtype", f"{node}: power {exponent} of {value.dtype}")
    return ex.make("pow", value.dtype, (value, ex.const(exponent, value.dtype)))


def _div_mode(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
    mode = _argument(node, 2, "rounding_mode")
    left, right = _operands(b, node, index, node.args[0], node.args[1])
    op = {None: "truediv", "floor": "floordiv", "trunc": "truncdiv"}[mode]
    return divide(op, left, right)


def divide(op: str, left: Expr, right: Expr) -> Expr:
    """Integer division by zero raises in eager on the CPU; divisors that may be zero are checked."""
    if left.dtype not in ex.FLOATS and not (right.op == "const" and right.value != 0):
        right = ex.make("check_divisor", right.dtype, (right,))
    return ex.make(op, left.dtype, (left, right))


def _integer_divide(op: str) -> Rule:
    def rule(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
        left, right = _operands(b, node, index, node.args[0], node.args[1])
        return divide(op, left, right)

    return rule


def _convert(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
    return b.build(_node(node.args[0]), index)


def _full(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
    name = str(node.target)
    if name.startswith(("aten.zeros", "aten.ones")):
        return ex.const(int(name.startswith("aten.ones")), _held(node))
    value = node.args[0] if name == "aten.scalar_tensor.default" else node.args[1]
    if isinstance(value, (bool, int, float)):
        return ex.const(value, _held(node))
    return ex.cast(ex.size(dim_of(value)), _held(node))


def _iota(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
    if str(node.target) == "prims.iota.default":
        start, step = node.kwargs.get("start", 0), node.kwargs.get("step", 1)
    elif str(node.target) == "aten.arange.default":
        start, step = 0, 1
    else:
        start, step = node.args[0], _argument(node, 2, "step", 1)
    if not isinstance(step, int) or isinstance(start, float):
        raise UnsupportedError("dtype", f"{node}: iota of floats")
    position = ex.iadd(ex.imul(index[0], ex.index(step)), ex.size(dim_of(start)))
    return ex.cast(ex.make("as_value", "int64", (position,)), _held(node))


def _cat(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
    """Nested selects over the parts; every part's own index is clamped into it, so that all may be evaluated.

    Parts that the index cannot reach are left out.
    """
    dim = int(_argument(node, 1, "dim", 0)) % len(index)
    placed = _reachable(_placed(node.args[0], dim), index[dim])
    result: Expr | None = None
    for part, start, size in reversed(placed):
        if len(placed) == 1:
            inside = ex.iadd(index[dim], ex.index(-start))
        else:
            at = index[dim] if start == 0 else ex.make("sub", "int64", (index[dim], ex.index(start)))
            inside = ex.make("within", "int64", (at,), (size,))
        value = ex.cast(b.build(part, index[:dim] + (inside,) + index[dim + 1 :]), _held(node))
        if result is None:
            result = value
        else:
            before = ex.make("lt", "bool", (index[dim], ex.index(start + size)))
            result = ex.make("where", value.dtype, (before, value, result))
    assert result is not None
    return result


_Placed = tuple[torch.fx.Node, int, int]


def _placed(parts: Any, dim: int) -> list[_Placed]:
    """Each part with its start and size along ``dim``; empty tensors of one dimension are no parts."""
    placed, start = [], 0
    for part in parts:
        value = tensor_of(part)
        if value.dim() == 1 and value.shape[0] == 0:
            continue
        size = dim_of(value.shape[dim])
        if not isinstance(size, int):
            raise UnsupportedError("dynamic", "concatenation along a dynamic axis")
        placed.append((part, start, size))
        start += size
    return placed


def _reachable(placed: list[_Placed], at: Expr) -> list[_Placed]:
    low, end = ex.lower_bound(at), ex.upper_bound(at)
    if low is None or not isinstance(end, int):
        return placed
    return [one for one in placed if one[1] < end and low < one[1] + one[2]] or placed


def _pad(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
    source = _node(node.args[0])
    padding: Any = node.args[1]
    shape, held = shape_of(source), _held(node)
    inside = ex.const(True, "bool")
    mapped = list(index)
    for position in range(len(padding) // 2):
        dim = len(shape) - 1 - position
        before, extent = padding[2 * position], shape[dim]
        at = ex.make("sub", "int64", (index[dim], ex.index(before))) if before else index[dim]
        for op, limit in (("ge", ex.index(0)), ("lt", ex.size(extent))):
            inside = ex.make("logical_and", "bool", (inside, ex.make(op, "bool", (at, limit))))
        mapped[dim] = ex.make("within", "int64", (at,), (extent,))
    value = ex.cast(b.build(source, tuple(mapped)), held)
    return ex.make("where", held, (inside, value, ex.const(_argument(node, 2, "value", 0), held)))


def checked(at: Expr, extent: Dim, wrap: bool) -> Expr:
    """``at`` as a position in an axis; out of range fails the kernel as eager would fail."""
    counted = at.args[0] if at.op == "as_value" else at
    if counted.op == "var" and ex.upper_bound(counted) == extent:
        return counted
    return ex.make("check_index", "int64", (ex.cast(at, "int64"),), (extent, wrap))


def _index(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
    """Advanced indexing. Indexed axes stand where the first one stood if adjacent, in front otherwise."""
    source = _node(node.args[0])
    indices: Any = list(node.args[1]) + [None] * (len(shape_of(source)) - len(node.args[1]))  # type: ignore[arg-type]
    used = [d for d, i in enumerate(indices) if i is not None]
    if any(tensor_of(indices[d]).dtype == torch.bool for d in used):
        raise UnsupportedError("dynamic", f"{node}: boolean mask")
    shapes = [shape_of(indices[d]) for d in used]
    rank = max(map(len, shapes))
    adjacent = used == list(range(used[0], used[-1] + 1))
    place = used[0] if adjacent else 0
    picked, rest = index[place : place + rank], iter(index[:place] + index[place + rank :])
    onto = shape_of(node)[place : place + rank]
    mapped: list[Expr] = []
    for dim, positions in enumerate(indices):
        if positions is None:
            mapped.append(next(rest))
        else:
            at = b.build(positions, broadcast(picked, shape_of(positions), onto))
            mapped.append(checked(at, shape_of(source)[dim], wrap=True))
    return b.build(source, tuple(mapped))


def _gather(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
    source, dim, positions = _node(node.args[0]), int(node.args[1]), _node(node.args[2])  # type: ignore[arg-type]
    dim %= len(index)
    at = checked(b.build(positions, index), shape_of(source)[dim], wrap=False)
    return b.build(source, index[:dim] + (at,) + index[dim + 1 :])


def _embedding(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
    weight, positions = _node(node.args[0]), _node(node.args[1])
    at = checked(b.build(positions, index[:-1]), shape_of(weight)[0], wrap=False)
    return b.build(weight, (at, index[-1]))


def _index_select(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
    source, dim, positions = _node(node.args[0]), int(node.args[1]), _node(node.args[2])  # type: ignore[arg-type]
    dim %= len(index)
    at = checked(b.build(positions, (index[dim],)), shape_of(source)[dim], wrap=False)
    return b.build(source, index[:dim] + (at,) + index[dim + 1 :])


def _bucketize(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
    """``bucketize(values, borders)`` and ``searchsorted(borders, values)``, with one row of borders or one per row of values."""
    first, second = _node(node.args[0]), _node(node.args[1])
    values, borders = (first, second) if "bucketize" in str(node.target) else (second, first)
    right = bool(node.kwargs.get("right", False)) or node.kwargs.get("side") == "right"
    shape = shape_of(borders)
    if not isinstance(shape[-1], int) or node.kwargs.get("sorter") is not None:
        raise UnsupportedError("structure", f"{node}: borders are not of a static number, or not in order")
    if shape[-1] == 0:
        return ex.index(0)
    held = dtype_name(torch.promote_types(tensor_of(values).dtype, tensor_of(borders).dtype))
    held = "float32" if held in ex.LOW_PRECISION else held
    row = index[:-1] if len(shape) > 1 else ()
    start = b.address(borders, (*row, ex.index(0)))
    second_border = b.address(borders, (*row, ex.index(min(1, shape[-1] - 1))))
    strides = tensor_of(b.inputs[start.value]).stride()
    offset = ex.isum([ex.imul(at, ex.size(dim_of(s))) for at, s in zip(start.args, strides, strict=True)])
    step = _step(start, second_border, strides)
    value = ex.cast(b.build(values, index), held)
    return ex.make("bucketize", "int64", (value, offset), (start.value, shape[-1], right, step))


def _step(start: Expr, following: Expr, strides: Sequence[Any]) -> int:
    """Elements from one border to the next in memory."""
    step = 0
    for low, high, stride in zip(start.args, following.args, strides, strict=True):
        distance = ex.distance(low, high)
        if distance is None or (distance and not isinstance(stride, int)):
            raise UnsupportedError("layout", "borders are not evenly spaced in memory")
        step += distance * stride if distance else 0
    return step


def _silu(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
    (value,) = _operands(b, node, index, node.args[0])
    return ex.make("mul", value.dtype, (value, ex.make("sigmoid", value.dtype, (value,))))


def _leaky_relu(b: Builds, node: torch.fx.Node, index: Index) -> Expr:
    (value,) = _operands(b, node, index, node.args[0])
    slope = ex.const(_argument(node, 1, "negative_slope", 0.01), value.dtype)
    positive = ex.make("gt", "bool", (value, ex.const(0, value.dtype)))
    return ex.make("where", value.dtype, (positive, value, ex.make("mul", value.dtype, (value, slope))))


RULES: dict[str, Rule] = {
    "aten.add.Tensor": _add, "aten.add.Scalar": _add, "aten.sub.Tensor": _add, "aten.sub.Scalar": _add,
    "aten.rsub.Scalar": _add, "prims.fma.default": _fma,
    "aten.addcmul.default": _add_product, "aten.addcdiv.default": _add_product,
    "aten.where.self": _where, "aten.masked_fill.Scalar": _masked_fill,
    "aten.clamp.default": _clamp, "aten.clamp_min.default": _clamp, "aten.clamp_max.default": _clamp,
    "aten.clamp.Tensor": _clamp,
    "aten.pow.Tensor_Scalar": _pow, "aten.square.default": _pow,
    "aten.div.Tensor_mode": _div_mode, "aten.div.Scalar_mode": _div_mode,
    "aten.floor_divide.default": _integer_divide("floordiv"), "aten.floor_divide.Scalar": _integer_divide("floordiv"),
    "aten.remainder.Tensor": _integer_divide("mod"), "aten.remainder.Scalar": _integer_divide("mod"),
    "aten.fmod.Tensor": _integer_divide("fmod"), "aten.fmod.Scalar": _integer_divide("fmod"),
    "aten._to_copy.default": _convert, "prims.convert_element_type.default": _convert,
    "aten.full.default": _full, "aten.full_like.default": _full, "aten.zeros.default": _full,
    "aten.ones.default": _full, "aten.scalar_tensor.default": _full,
    "aten.zeros_like.default": _full, "aten.ones_like.default": _full,
    "prims.iota.default": _iota, "aten.arange.default": _iota, "aten.arange.start": _iota,
    "aten.arange.start_step": _iota,
    "aten.cat.default": _cat, "aten.constant_pad_nd.default": _pad,
    "aten.index.Tensor": _index, "aten._unsafe_index.Tensor": _index, "aten.gather.default": _gather,
    "aten.embedding.default": _embedding, "aten.index_select.default": _index_select,
    "aten.bucketize.Tensor": _bucketize, "aten.searchsorted.Tensor": _bucketize,
    "aten.silu.default": _silu, "aten.leaky_relu.default": _leaky_relu,
}  # fmt: skip
