"""FX nodes as a :class:`Region`: the same piece of two graphs becomes the same value, whatever its names.

Symbols are renamed ``s0, s1, …`` in order of first appearance as a plain size over the inputs (input by input, axis by
axis); sizes are read back from there. Integers that a graph computes from sizes (``sym_size``, arithmetic on them) are
no nodes of the region: wherever one is used, its value stands as ``{"dim": "2*s0"}``.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.fx
from torch.utils import _pytree as pytree

from ..exc import UnsupportedError
from ..kernel import Argument, Kernel, Launch
from .dims import Dim
from .meta import dim_of, dtype_name, shape_of, spec_of, tensor_of
from .region import Region, RegionNode, TensorSpec

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
# They return nothing and state what the guards already ensure.
_ASSERTIONS = {"aten._assert_scalar.default", "aten.sym_constrain_range.default",
               "aten.sym_constrain_range_for_size.default", "aten._assert_tensor_metadata.default"}  # fmt: skip


@dataclass(frozen=True)
class Captured:
    """``symbol_names`` maps the graph's own symbols (``"s77"``) to the region's (``"s0"``), ``node_names`` its nodes' names
    to the region's (``"i0"``, ``"n3"``)."""

    region: Region
    symbol_names: dict[str, str]
    node_names: dict[str, str]


def capture(nodes: Sequence[torch.fx.Node], inputs: Sequence[torch.fx.Node],
            outputs: Sequence[torch.fx.Node]) -> Captured:  # fmt: skip
    """``nodes`` (in graph order) as a region that reads ``inputs`` and gives ``outputs``, in the order given.

    Raises ``UnsupportedError``: ``"dynamic"`` where a symbol is not a plain size of an input, ``"mutation"`` where a
    node writes to an argument, ``"structure"`` where a node has an argument or result that is not data.
    """
    for node in nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            raise UnsupportedError("mutation", f"{node} writes to its argument")
    return _capture(nodes, inputs, outputs)


def capture_graph(graph: torch.fx.Graph) -> Captured:
    """The whole graph: ``graph_inputs`` are its inputs, used or not, the flattened tensor outputs its outputs.

    Outputs that are ``None`` or sizes are left out. A graph may write to its inputs (``copy_`` into a buffer); whoever
    runs the region must then give it copies. Raises as :func:`capture` does.
    """
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    returned = pytree.tree_leaves([node.args[0] for node in graph.find_nodes(op="output")])
    outputs = [leaf for leaf in returned if isinstance(leaf, torch.fx.Node) and _is_tensor(leaf)]
    return _capture(nodes, graph_inputs(graph), outputs)


def graph_inputs(graph: torch.fx.Graph) -> tuple[torch.fx.Node, ...]:
    """Tensor placeholders and constant tensors, in graph order."""
    return tuple(node for node in graph.nodes if node.op in ("placeholder", "get_attr") and _is_tensor(node))


def canonical_symbols(inputs: Iterable[torch.fx.Node]) -> dict[str, str]:
    """Own name → canonical name of every symbol that is a plain size of an input."""
    return {name: f"s{count}" for count, name in enumerate(_places(inputs))}


def identifiers(dim: Dim) -> list[str]:
    """The symbols of a size."""
    return [] if isinstance(dim, int) else _IDENTIFIER.findall(dim)


def renamed(dim: Dim, names: Mapping[str, str]) -> Dim:
    """``dim`` in canonical symbols. Raises ``UnsupportedError("dynamic")`` for a symbol that has no name."""
    if isinstance(dim, int):
        return dim
    missing = [name for name in identifiers(dim) if name not in names]
    if missing:
        raise UnsupportedError("dynamic", f"size {dim} is not known from the inputs: {missing[0]} is no input's size")
    return _IDENTIFIER.sub(lambda found: names[found[0]], dim)


def renamed_spec(spec: TensorSpec, names: Mapping[str, str]) -> TensorSpec:
    shape, stride = (tuple(renamed(dim, names) for dim in dims) for dims in (spec.shape, spec.stride))
    return TensorSpec(shape, stride, spec.dtype, spec.device)


def canonical_kernel(kernel: Kernel, inputs: Sequence[torch.fx.Node]) -> Kernel:
    """A kernel written in a graph's own symbols, in the names and the order of the region's.

    Size arguments of ``kernel`` count the sorted own names of the symbols that are plain sizes of ``inputs``; those of
    the result count ``Region.symbols``. In the source a symbol becomes ``size_s0``, so that it meets no other name.
    """
    names = canonical_symbols(inputs)
    if not names:
        return kernel
    after = sorted(names.values())
    moved = {before: after.index(names[own]) for before, own in enumerate(sorted(names))}

    def argument(value: Argument) -> Argument:
        return replace(value, index=moved[value.index]) if value.kind == "size" else value

    def launch(value: Launch) -> Launch:
        grid = tuple(_IDENTIFIER.sub(lambda found: names.get(found[0], found[0]), axis) for axis in value.grid)
        return replace(value, arguments=tuple(map(argument, value.arguments)), grid=grid)

    return Kernel(
        kernel.language,
        _IDENTIFIER.sub(lambda found: f"size_{names[found[0]]}" if found[0] in names else found[0], kernel.source),
        tuple(map(launch, kernel.launches)),
        tuple(replace(w, numel=str(renamed(w.numel, names))) for w in kernel.workspaces),
    )


def _places(inputs: Iterable[torch.fx.Node]) -> dict[str, tuple[int, int]]:
    """Symbol → (input, dimension) of its first appearance as a plain size."""
    places: dict[str, tuple[int, int]] = {}
    for position, node in enumerate(inputs):
        for dim, size in enumerate(shape_of(node)):
            if isinstance(size, str) and size.isidentifier():
                places.setdefault(size, (position, dim))
    return places


def _is_tensor(node: torch.fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _capture(nodes: Sequence[torch.fx.Node], inputs: Sequence[torch.fx.Node],
             outputs: Sequence[torch.fx.Node]) -> Captured:  # fmt: skip
    places, names = _places(inputs), canonical_symbols(inputs)
    encoder = _Encoder(names)
    specs = tuple(encoder.input(node, position) for position, node in enumerate(inputs))
    for node in nodes:
        encoder.node(node)
    symbols = tuple(sorted((names[own], *place) for own, place in places.items()))
    region = Region(specs, tuple(encoder.nodes), tuple(map(encoder.output, outputs)), symbols)
    return Captured(region, names, {node.name: name for node, name in encoder.values.items()})


@dataclass
class _Encoder:
    """Turns nodes into :class:`RegionNode` values while it counts them."""

    names: Mapping[str, str]
    nodes: list[RegionNode] = field(default_factory=list)
    values: dict[torch.fx.Node, str] = field(default_factory=dict)

    def input(self, node: torch.fx.Node, position: int) -> TensorSpec:
        self.values[node] = f"i{position}"
        return self._spec(tensor_of(node), node)

    def node(self, node: torch.fx.Node) -> None:
        target = _target(node)
        if target in _ASSERTIONS or _is_size(node):
            return
        if isinstance(node.meta.get("val"), (torch.SymFloat, torch.SymBool)):
            raise UnsupportedError("dynamic", f"{node} computes a number that is no size from sizes")
        args = tuple(self._argument(argument, node) for argument in node.args)
        kwargs = {name: self._argument(argument, node) for name, argument in node.kwargs.items()}
        if not target:
            raise UnsupportedError("structure", f"{node} is not a call of an operator")
        self.values[node] = f"n{len(self.nodes)}"
        self.nodes.append(RegionNode(target, args, kwargs, self._specs(node)))

    def output(self, node: torch.fx.Node) -> str:
        tensor_of(node)
        return self._name(node, node)

    def _name(self, node: torch.fx.Node, user: torch.fx.Node) -> str:
        if node not in self.values:
            raise UnsupportedError("structure", f"{node}, needed for {user}, is neither in the region nor its input")
        return self.values[node]

    def _specs(self, node: torch.fx.Node) -> tuple[TensorSpec, ...]:
        value = node.meta.get("val")
        parts = value if isinstance(value, (tuple, list)) else [value]
        specs = tuple(self._spec(part, node) for part in parts if isinstance(part, torch.Tensor))
        if not specs:
            raise UnsupportedError("structure", f"{node} gives no tensor")
        return specs

    def _spec(self, value: torch.Tensor, node: torch.fx.Node) -> TensorSpec:
        if value.layout is not torch.strided:
            raise UnsupportedError("layout", f"{node} is {dtype_name(value.dtype)} in layout {value.layout}")
        return renamed_spec(spec_of(value), self.names)

    def _argument(self, value: Any, node: torch.fx.Node) -> Any:
        match value:
            case torch.fx.Node() if _is_size(value):
                return self._size(value)
            case torch.fx.Node():
                return {"node": self._name(value, node)}
            case torch.SymInt():
                return self._size(value)
            case list() | tuple():
                return [self._argument(part, node) for part in value]
            case None | bool() | int() | str():
                return value
            case float():
                return value if math.isfinite(value) else {"float": str(value)}
            case torch.dtype():
                return {"dtype": dtype_name(value)}
            case torch.device():
                return {"device": value.type}
            case torch.layout():
                return {"layout": str(value).removeprefix("torch.")}
            case torch.memory_format():
                return {"memory_format": str(value).removeprefix("torch.")}
        raise UnsupportedError("structure", f"{node} has an argument of type {type(value).__name__}")

    def _size(self, value: Any) -> Any:
        dim = renamed(dim_of(value), self.names)
        return dim if isinstance(dim, int) else {"dim": dim}


def _is_size(node: torch.fx.Node) -> bool:
    """Does the node stand for an integer known from sizes?"""
    return isinstance(node.meta.get("val"), (int, torch.SymInt)) and not isinstance(node.meta["val"], bool)


def _target(node: torch.fx.Node) -> str:
    """``"aten.mul.Tensor"`` or ``"getitem"``; empty for anything that is not one operator applied to values."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return "getitem" if node.target is operator.getitem else ""
