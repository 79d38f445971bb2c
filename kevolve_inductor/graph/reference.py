"""The meaning of a region: as an eager FX module, and evaluated twice for the judge, in fp64 and in its own precision."""

from __future__ import annotations

import ast
import importlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.fx

from .dims import Dim, evaluate
from .region import Region, RegionNode
from .selection import Chosen, Selection, SelectionFault, is_selection, outputs_of_selections, select

_MEMORY_FORMATS = {
    "contiguous_format": torch.contiguous_format,
    "preserve_format": torch.preserve_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
}
_LAYOUTS = {"strided": torch.strided}
# Values that are only moved, compared or counted: what eager gives is exact, so a kernel must give the same bits.
EXACT_TARGETS = frozenset(
    "view reshape _unsafe_view permute transpose t slice select expand unsqueeze squeeze clone alias cat stack gather index "
    "_unsafe_index index_select embedding where masked_fill constant_pad_nd full full_like zeros_like ones_like arange "
    "scalar_tensor sort topk max min amax amin argmax argmin maximum minimum clamp clamp_min clamp_max relu neg abs eq ne "
    "lt le gt ge isnan isinf logical_not logical_and logical_or bitwise_and bitwise_or bitwise_not bitwise_xor split "
    "split_with_sizes unbind repeat flip roll copy lift_fresh_copy bucketize searchsorted sign floor ceil trunc "
    "as_strided diagonal triu tril detach unfold zeros ones any all squeeze_copy".split()
)
BITCASTS = frozenset({"aten.view.dtype"})

_VAR_MEAN = "aten.var_mean.correction"

Leaf = Callable[[str, Any], Any]


@dataclass(frozen=True)
class Reference:
    """``exact`` are the outputs in fp64, ``eager`` in the region's own precision, both under the same selections.

    ``bitwise`` says for each output whether it holds only moved, compared or integer values. ``faults`` are selections
    of the candidate that are not valid ones; there eager's own was used.
    """

    exact: tuple[torch.Tensor, ...]
    eager: tuple[torch.Tensor, ...]
    bitwise: tuple[bool, ...]
    faults: tuple[SelectionFault, ...]


def resolve_target(target: str) -> Callable[..., Any]:
    """The operator of a node. Raises ``ValueError`` for a name that is not a registered operator."""
    if target == "getitem":
        return operator.getitem
    if target.startswith("prims."):
        # Inductor's own operators exist once this module has been imported.
        importlib.import_module("torch._inductor.inductor_prims")
    namespace, _, rest = target.partition(".")
    name, _, overload = rest.partition(".")
    try:
        packet = getattr(getattr(torch.ops, namespace), name)
        resolved: Callable[..., Any] = getattr(packet, overload)
    except AttributeError as error:
        raise ValueError(f"unknown operator {target!r}") from error
    if not overload or not isinstance(resolved, torch._ops.OpOverload):
        raise ValueError(f"{target!r} is not one overload of an operator")
    return resolved


def decode(value: Any, leaf: Leaf) -> Any:
    """A region's JSON argument as a Python one. ``leaf(kind, content)`` gives nodes, dims, dtypes and devices."""
    if isinstance(value, list | tuple):
        return [decode(entry, leaf) for entry in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind in ("node", "dim", "dtype", "device"):
        return leaf(kind, content)
    if kind == "float":
        return float(content)
    if kind == "memory_format":
        return _MEMORY_FORMATS[content.removeprefix("torch.")]
    if kind == "layout":
        return _LAYOUTS[content.removeprefix("torch.")]
    raise ValueError(f"unknown argument kind {kind!r}")


def dtype_of(name: str) -> torch.dtype:
    """Raises ``ValueError`` for a name that is not a dtype."""
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"unknown dtype {name!r}")
    return dtype


def device_of(name: str, override: str | torch.device | None) -> torch.device:
    return torch.device(name if override is None else override)


# The region as a module


def to_graph_module(
    region: Region, device: str | torch.device | None = None, symbols: Mapping[str, int] | None = None
) -> torch.fx.GraphModule:
    """The region in eager: inputs by position in, a tuple of the outputs out.

    Nodes carry the region's own names (``i0``, ``n3``). Symbols are read from the inputs, so that the module is right for
    every size, or are the constants given as ``symbols``. ``device`` moves tensors that the region creates.
    """
    builder = _ModuleBuilder(region, device, symbols)
    for position, node in enumerate(region.nodes):
        builder.add(f"n{position}", node)
    builder.graph.output(tuple(builder.values[name] for name in region.outputs))
    builder.graph.lint()
    return torch.fx.GraphModule({}, builder.graph)


class _ModuleBuilder:
    def __init__(self, region: Region, device: str | torch.device | None, symbols: Mapping[str, int] | None) -> None:
        self.graph = torch.fx.Graph()
        self.device = device
        self.constants = symbols
        self.values: dict[str, torch.fx.Node] = {}
        for position in range(len(region.inputs)):
            self.values[f"i{position}"] = self.graph.placeholder(f"i{position}")
        self.symbols: dict[str, torch.fx.Node] = {}
        if symbols is None:
            self.symbols = {
                name: self.graph.call_function(torch.ops.aten.sym_size.int, (self.values[f"i{index}"], dim))
                for name, index, dim in region.symbols
            }

    def add(self, name: str, node: RegionNode) -> None:
        args = tuple(decode(list(node.args), self.leaf))
        kwargs = {key: decode(value, self.leaf) for key, value in node.kwargs.items()}
        added = self.graph.create_node("call_function", resolve_target(node.target), args, kwargs, name=name)
        if added.name != name:
            raise ValueError(f"the name {name!r} is taken in the graph")
        self.values[name] = added

    def leaf(self, kind: str, content: Any) -> Any:
        if kind == "node":
            return self.values[content]
        if kind == "dim":
            return self.size(content)
        if kind == "dtype":
            return dtype_of(content)
        return device_of(content, self.device)

    def size(self, dim: Dim) -> Any:
        if isinstance(dim, int) or self.constants is not None:
            return evaluate(dim, self.constants or {})
        return self._size(ast.parse(dim, mode="eval").body)

    def _size(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=int() as value):
                return value
            case ast.Name(id=name) if name in self.symbols:
                return self.symbols[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _SIZE_OPERATORS:
                return self.graph.call_function(_SIZE_OPERATORS[type(op)], (self._size(left), self._size(right)))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.graph.call_function(operator.neg, (self._size(operand),))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _SIZE_FUNCTIONS:
                return self.graph.call_function(_SIZE_FUNCTIONS[name], tuple(self._size(arg) for arg in args))
        raise ValueError(f"not a size expression: {ast.unparse(node)}")


def _cdiv(numerator: Any, denominator: Any) -> Any:
    return -(-numerator // denominator)


_SIZE_OPERATORS: Mapping[type[ast.operator], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
_SIZE_FUNCTIONS: Mapping[str, Callable[..., Any]] = {"cdiv": _cdiv, "min": torch.sym_min, "max": torch.sym_max}


# The region for the judge


def evaluate_fp64(
    region: Region, inputs: Sequence[torch.Tensor], chosen: Mapping[int, torch.Tensor] | None = None
) -> Reference:
    """Run the region in fp64 (and in its own precision beside it).

    Floating inputs are upcast and every dtype that the region names becomes float64 where it is a floating one;
    integers stay what they are. ``chosen`` holds, by output position, what a candidate returned: where such an output
    is the index result of a selection (top-k, sort, arg-max ...), the candidate's indices are checked against the
    fp64 scores and, if valid, used from there on, so that ties and near-ties are judged fairly. All other selections
    follow eager. Raises what eager raises, e.g. ``IndexError``.
    """
    return _Interpreter(region, inputs, chosen or {}).run()


def evaluate_with_other_means(
    region: Region, inputs: Sequence[torch.Tensor], chosen: Mapping[int, torch.Tensor] | None = None
) -> tuple[tuple[torch.Tensor, ...], ...]:
    """The outputs in fp64 for each thing that infinities may make of a mean beside its variance; none without such a mean.

    Eager keeps a running mean (B. P. Welford, 1962): an infinity makes it infinite, and any number after that NaN, as
    inf - inf. What is left depends on the order in which eager goes, while a sum that is divided in the end is infinite in
    any. Hence two evaluations, with infinity first and then NaN for each row whose numbers that are not finite are
    infinities of one sign. Other rows are eager's, and so is every variance, which is NaN in any order.
    """
    if not any(node.target == _VAR_MEAN for node in region.nodes):
        return ()
    return tuple(
        _Interpreter(region, inputs, chosen or {}, {_VAR_MEAN: partial(_var_mean, is_lost=is_lost)}).exact_outputs()
        for is_lost in (False, True)
    )


def is_entwined(region: Region) -> bool:
    """Whether fp64 and the region's own precision have to be evaluated side by side: selections go by both, and a value's
    bits are eager's. Else one is done before the other begins, which takes less memory."""
    return any(is_selection(node.target) or node.target in BITCASTS for node in region.nodes)


class _Interpreter:
    """``in_exact``, by target: what to call in an operator's place in fp64."""

    def __init__(
        self,
        region: Region,
        inputs: Sequence[torch.Tensor],
        chosen: Mapping[int, torch.Tensor],
        in_exact: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        self.region = region
        self.in_exact = in_exact or {}
        self.symbols = {name: int(inputs[index].shape[dim]) for name, index, dim in region.symbols}
        self.inputs = {f"i{k}": tensor for k, tensor in enumerate(inputs)}
        self.eager: dict[str, Any] = {}
        self.exact: dict[str, Any] = {}
        self.bitwise: dict[str, bool] = dict.fromkeys(self.inputs, True)
        self.device = inputs[0].device if inputs else None
        self.chosen = {
            node: Chosen(output, chosen[output])
            for node, output in outputs_of_selections(region).items()
            if output in chosen
        }
        self.faults: list[SelectionFault] = []

    @torch.no_grad()
    def run(self) -> Reference:
        if is_entwined(self.region):
            self._go_through(eager=True, exact=True)
        else:
            self._go_through(eager=True, exact=False)
            self._go_through(eager=False, exact=True)
        names = self.region.outputs
        return Reference(
            tuple(self.exact[name] for name in names),
            tuple(self.eager[name] for name in names),
            tuple(self.bitwise[name] for name in names),
            tuple(self.faults),
        )

    @torch.no_grad()
    def exact_outputs(self) -> tuple[torch.Tensor, ...]:
        self._go_through(eager=is_entwined(self.region), exact=True)
        return tuple(self.exact[name] for name in self.region.outputs)

    def _go_through(self, eager: bool, exact: bool) -> None:
        if eager:
            self.eager |= self.inputs
        if exact:
            self.exact |= {name: widened(tensor) for name, tensor in self.inputs.items()}
        last_use = last_uses(self.region)
        for position, node in enumerate(self.region.nodes):
            name = f"n{position}"
            if eager:
                self._own(name, node)
            if exact:
                self._widened(name, node)
            for old in last_use.get(position, ()):
                self.eager.pop(old, None)
                self.exact.pop(old, None)

    def _own(self, name: str, node: RegionNode) -> None:
        self.bitwise[name] = self._is_bitwise(node, list(references(node)))
        self.eager[name] = self._call(node, self.eager, widen=False)

    def _widened(self, name: str, node: RegionNode) -> None:
        if is_selection(node.target):
            self._select(name, node, exact_operand=self.bitwise[next(references(node))])
        elif node.target in BITCASTS:
            self.exact[name] = widened(self.eager[name])
        else:
            with default_dtype(torch.float64):
                self.exact[name] = widened(self._call(node, self.exact, widen=True))

    def _call(self, node: RegionNode, values: Mapping[str, Any], widen: bool) -> Any:
        instead = self.in_exact.get(node.target) if widen else None
        return call_node(node, values, self.symbols, self.device, widen, instead)

    def _select(self, name: str, node: RegionNode, exact_operand: bool) -> None:
        source = next(references(node))
        selection = Selection.of(node, self.eager[source], self.exact[source], exact_operand)
        result = select(selection, self.eager[name], self.chosen.get(name))
        self.eager[name], self.exact[name] = result.eager, result.exact
        if result.fault is not None:
            self.faults.append(result.fault)

    def _is_bitwise(self, node: RegionNode, operands: Sequence[str]) -> bool:
        if not all(self.bitwise[operand] for operand in operands):
            return False
        if node.target == "getitem" or node.target.split(".")[1] in EXACT_TARGETS:
            return True
        return not any(dtype_of(spec.dtype).is_floating_point for spec in node.specs)


def _var_mean(
    operand: torch.Tensor,
    dim: list[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
    is_lost: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``aten.var_mean.correction``, but for the mean of infinities of one sign: that infinity, or NaN if it is lost."""
    variance, mean = torch.ops.aten.var_mean.correction(operand, dim, correction=correction, keepdim=keepdim)
    infinity = torch.ops.aten.sum.dim_IntList(operand.masked_fill(operand.isfinite(), 0.0), dim, keepdim)
    # A row's only number is its mean in any order.
    is_lost &= operand.numel() > mean.numel()
    return variance, torch.where(infinity.isinf(), float("nan") if is_lost else infinity, mean)


def call_node(
    node: RegionNode,
    values: Mapping[str, Any],
    symbols: dict[str, int],
    device: torch.device | None,
    widen: bool,
    instead: Callable[..., Any] | None = None,
) -> Any:
    """The operator's result for ``values`` by name; with ``widen``, floating dtypes that the node names become float64.

    ``instead`` is called in the operator's place.
    """

    def leaf(kind: str, content: Any) -> Any:
        if kind == "node":
            return values[content]
        if kind == "dim":
            return evaluate(content, symbols)
        if kind == "dtype":
            dtype = dtype_of(content)
            return torch.float64 if widen and dtype.is_floating_point else dtype
        return device_of(content, device)

    args = decode(list(node.args), leaf)
    kwargs = {key: decode(value, leaf) for key, value in node.kwargs.items()}
    return (instead or resolve_target(node.target))(*args, **kwargs)


def references(node: RegionNode) -> Iterator[str]:
    """Names of the values a node reads, in the order of its arguments."""
    stack: list[Any] = [*node.args, *node.kwargs.values()][::-1]
    while stack:
        value = stack.pop()
        if isinstance(value, list | tuple):
            stack.extend(reversed(value))
        elif isinstance(value, dict) and "node" in value:
            yield value["node"]


def last_uses(region: Region) -> dict[int, list[str]]:
    last: dict[str, int] = {}
    for position, node in enumerate(region.nodes):
        last |= dict.fromkeys(references(node), position)
        last.setdefault(f"n{position}", position)
    uses: dict[int, list[str]] = {}
    for name, position in last.items():
        if name not in region.outputs:
            uses.setdefault(position, []).append(name)
    return uses


def widened(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, list | tuple):
        return tuple(widened(entry) for entry in value)
    return value


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    # Operators that turn integers into floats (a quotient, a mean) take the default dtype.
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
