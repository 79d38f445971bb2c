"""Finding stencils in a graph with what can be computed in the same pass, and reading each as a plan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.fx

from ....exc import UnsupportedError
from ....graph.dims import Dim
from ....graph.meta import dtype_name, shape_of, spec_of, target_name, tensor_of
from ...expression import ExpressionBuilder, is_constant, is_pointwise, is_view
from ...expression import expression as ex
from ...expression.expression import Expr
from ...expression.loops import Axis, Store
from ...expression.printer import operator_flops
from ...expression.views import splits
from .. import common, cores
from .operators import BACKWARD, MOST_TAPS, is_stencil, stencil_of
from .plan import FOLDED, PLACE, REACH, StencilPlan, affine, tap_name
from .pooling import PLACES, Maximum
from .pooling_gradient import is_for_gradient
from .stencil import Index

_FREE = ("aten.constant_pad_nd.default", "prims.convert_element_type.default", "aten._to_copy.default")


def is_tensor(node: Any) -> bool:
    return isinstance(node, torch.fx.Node) and isinstance(node.meta.get("val"), torch.Tensor)


def _is_crop(node: torch.fx.Node) -> bool:
    """Padding by less than nothing: a slice."""
    if target_name(node) != "aten.constant_pad_nd.default":
        return False
    return all(isinstance(pad, int) and pad <= 0 for pad in node.args[1])  # type: ignore[union-attr]


def _moves(node: torch.fx.Node) -> bool:
    """A view; of calls with several results only of those that cut a tensor into pieces."""
    return is_view(node) and (target_name(node) != "getitem" or splits(node))


class Surroundings(cores.Surroundings):
    """What of a graph may join a stencil's region, and is not part of a region found before."""

    def __init__(self, graph: torch.fx.Graph) -> None:
        super().__init__(graph, is_stencil)

    def results(self, core: torch.fx.Node) -> list[torch.fx.Node]:
        """The tensors that ``core`` itself gives."""
        if is_tensor(core):
            return [core]
        items = [user for user in core.users if target_name(user) == "getitem"]
        if target_name(core) == BACKWARD:
            return [item for item in items if item.args[1] == 0]
        users = (user for item in items for user in item.users if target_name(user) == PLACES)
        return [*items, *(user for user in users if not is_for_gradient(user))]

    def followers(self, core: torch.fx.Node) -> Iterator[torch.fx.Node]:
        """Values computed element by element from the stencil's results, in graph order, the results themselves first.

        What else they read must not hang on a stencil that is not earlier than this one: so regions never wait for each
        other.
        """
        results = self.results(core)
        yield from results
        inside = {core, *results}
        for node in self.graph.nodes:
            sources = node.all_input_nodes
            if node in inside or node in self._taken or not is_tensor(node):
                continue
            if not any(source in inside for source in sources) or not (is_pointwise(node) or _moves(node)):
                continue
            if all(self._is_ready(source, core) for source in sources if source not in inside):
                inside.add(node)
                yield node

    def producers(self, inside: set[torch.fx.Node], lean: bool) -> set[torch.fx.Node]:
        """As :func:`common.absorbable`, without reads by index; padding is always computed again, rather than read.

        ``lean`` leaves out all that takes arithmetic.
        """
        found = set(inside)
        for node in reversed(self.graph.nodes):
            if node in found or node in self._taken or not is_tensor(node) or not node.users:
                continue
            moves = _moves(node) or is_constant(node)
            if not (moves or target_name(node) in _FREE) and (lean or not is_pointwise(node)):
                continue
            users = [user in found for user in node.users]
            free = moves or target_name(node) == _FREE[0]
            if all(users) or (free and any(users)):
                found.add(node)
        return found - inside


class Reader:
    """Reads one stencil with ``inside``, the nodes computed with it, as a plan. Raises ``UnsupportedError``."""

    def __init__(self, core: torch.fx.Node, inside: set[torch.fx.Node], device: str) -> None:
        self.core = core
        self.stencil = stencil_of(core)
        taps = math.prod(window.taps for window in self.stencil.windows)
        if not 0 < taps <= MOST_TAPS:
            raise UnsupportedError("size", f"windows of {taps} elements")
        self.builder = ExpressionBuilder(device, lambda node: node in inside)
        # Padding that became the windows' own is a part of the region still.
        self.used: dict[torch.fx.Node, None] = dict.fromkeys([core, *self.stencil.absorbed])
        self._tried = 0
        if is_tensor(core):
            self.builder.bind(core, lambda index: self._result(core, index, 0))
        for item in core.users:
            if target_name(item) == "getitem" and (target_name(core) != BACKWARD or item.args[1] == 0):
                self._bind_item(item)
        for node in inside:
            if _is_crop(node):
                self.builder.bind(node, lambda index, node=node: self._cropped(node, index))  # type: ignore[misc]

    def _bind_item(self, item: torch.fx.Node) -> None:
        which = 1 if item.args[1] == 1 else 0
        self.builder.bind(item, lambda index: self._result(item, index, which))
        for user in item.users:
            if which == 1 and target_name(user) == PLACES:
                self.builder.bind(user, lambda index, user=user: self._result(user, index, 2))  # type: ignore[misc]

    def _result(self, node: torch.fx.Node, index: Index, which: int) -> Expr:
        """The stencil's value (0), the number of the tap that gave it (1), or where in its plane that is (2).

        Until all is known of where the stencil is read, its results stand as ``result`` (args: index; value: which).
        """
        self.used[node] = None
        if which == 2:
            self.used[node.args[0]] = None  # type: ignore[index]
        if which == 0:
            value = self.stencil.finish(self.builder, index, ex.make("result", self.stencil.held, index, FOLDED))
            return ex.cast(value, dtype_name(tensor_of(node).dtype))
        assert isinstance(self.stencil, Maximum)
        result = dtype_name(tensor_of(node).dtype)
        if result == "int8":
            return ex.cast(ex.make("result", "int32", index, PLACE), result)
        return ex.cast(self.stencil.flat_index(index, ex.make("result", "int32", index, REACH)), result)

    def _cropped(self, node: torch.fx.Node, index: Index) -> Expr:
        self.used[node] = None
        source, pads = node.args[:2]
        assert isinstance(source, torch.fx.Node)
        fronts = [-int(pad) for pad in reversed(pads[::2])]  # type: ignore[index,arg-type,call-overload,union-attr]
        kept = len(index) - len(fronts)
        moved = (ex.iadd(at, ex.index(front)) for at, front in zip(index[kept:], fronts, strict=True))
        return self.builder.build(source, (*index[:kept], *moved))

    def shape(self, node: torch.fx.Node) -> Index:
        """New variables for the axes of ``node``."""
        self._tried += 1
        return tuple(
            ex.index(0) if size == 1 else ex.var(f"y{self._tried}_{d}", size) for d, size in enumerate(shape_of(node))
        )

    def asked(self, node: torch.fx.Node, index: Index) -> Index:
        """Where ``node`` at ``index`` reads the stencil: each variable in one axis of it, by itself or shifted."""
        found = {part.args for part in ex.walk(self.builder.build(node, index)) if part.op == "result"}
        if len(found) != 1:
            raise UnsupportedError("structure", f"{node} reads {self.core} at {len(found)} positions")
        (asked,) = found
        places = [affine(at) for at in asked]
        names = [place[0] for place in places if place is not None and place[0] is not None]
        own = {at.value[0] for at in index if at.op == "var"}
        if None in places or len(set(names)) != len(names) or set(names) != own:
            raise UnsupportedError("structure", f"{node} has not one element for each of {self.core}")
        return asked

    def placed(self, node: torch.fx.Node, first: Index) -> Index:
        """The index of ``node`` at which it reads the stencil at ``first``."""
        own = self.shape(node)
        solved: dict[str, Expr] = {}
        for mine, theirs in zip(self.asked(node, own), first, strict=True):
            if mine.op == "var" and _extent(theirs) == mine.value[1]:
                solved[mine.value[0]] = theirs
            elif mine is not theirs:
                raise UnsupportedError("structure", f"{node} covers other positions of {self.core}")
        return tuple(solved[at.value[0]] if at.op == "var" else at for at in own)

    def writes(self, node: torch.fx.Node, first: Index | None) -> bool:
        """Can ``node`` be written where the stencil is at ``first``, or, where that is ``None``, at all?"""
        if dtype_name(tensor_of(node).dtype) not in (*ex.FLOATS, *ex.LOW_PRECISION, *ex.INTEGERS, "bool"):
            return False
        try:
            index = self.shape(node) if first is None else self.placed(node, first)
            self.asked(node, index)
        except UnsupportedError:
            return False
        return True

    def plan(self, outputs: Sequence[torch.fx.Node], every: Sequence[torch.fx.Node]) -> StencilPlan:
        """The plan of ``outputs``, which are some of the region's; reads may have become inputs before."""
        primary = self.shape(outputs[0])
        at = self.asked(outputs[0], primary)
        stores = []
        for node in outputs:
            index = primary if node is outputs[0] else self.placed(node, at)
            value = ex.substitute(self.builder.build(node, index), _named)
            stores.append(Store(value, _offset(node, index), every.index(node)))
        windows = self.stencil.windows
        plane = self.stencil.plane if isinstance(self.stencil, Maximum) and _asks_where(stores) else (0,) * len(windows)
        taps = tuple(ex.var(tap_name(d), window.taps) for d, window in enumerate(windows))
        term, counted = self.stencil.tap(self.builder, at, taps)
        for node in self.stencil.shapes:
            self.builder.input_index(node)
        common.check_acyclic(self.builder.inputs, every)
        inputs, results = common.specs_of(self.builder.inputs), common.specs_of(every)
        return StencilPlan(
            self.stencil.kind, self.stencil.held, windows, tuple(map(affine, at[len(at) - len(windows) :])), plane, term,
            counted, _axes(primary, results[every.index(outputs[0])].stride), tuple(stores), inputs, results,
            common.symbols_of((*inputs, *results)),
        )  # fmt: skip


def _named(part: Expr) -> Expr | None:
    return ex.var(part.value, None, part.dtype) if part.op == "result" else None


def _asks_where(stores: Sequence[Store]) -> bool:
    return any({PLACE, REACH} & ex.variables(store.value) for store in stores)


def _extent(at: Expr) -> Dim | None:
    """The number of values that an index takes."""
    variable = at.args[0] if at.op == "add" else at
    return variable.value[1] if variable.op == "var" else None


def _offset(node: torch.fx.Node, index: Index) -> Expr:
    strides = spec_of(tensor_of(node)).stride
    return ex.isum([ex.imul(at, ex.size(step)) for at, step in zip(index, strides, strict=True)])


def _axes(index: Index, strides: Sequence[Dim]) -> tuple[Axis, ...]:
    """The variables of ``index`` with their extents, those that are slow in memory first."""
    pairs = [(at.value, step) for at, step in zip(index, strides, strict=True) if at.op == "var"]
    # What is not a number is a stride over a dynamic axis, and large.
    pairs.sort(key=lambda pair: -float(pair[1]) if isinstance(pair[1], int) else -1e30)
    return tuple((value[0], value[1]) for value, _ in pairs)


def repeated_flops(plan: StencilPlan) -> float:
    """Operations for each element of the result that taps do again because their windows share what they read."""
    fresh = math.prod(window.stride for window in plan.windows)
    return max(plan.taps / fresh - 1.0, 0.0) * max(operator_flops(plan.term) - 1, 0)


def read(
    around: Surroundings, core: torch.fx.Node, device: str, alone: bool, lean: bool
) -> tuple[Reader, list[torch.fx.Node]]:
    """A reader of ``core`` and the values that leave its region; ``alone`` leaves out what follows it.

    A value that cannot be written where the first one is stays outside, with all that is computed from it.
    Raises ``UnsupportedError``.
    """
    results = around.results(core)
    followers = results if alone else list(around.followers(core))
    while True:
        members = {core, *followers}
        reader = Reader(core, members | around.producers(members, lean), device)
        outputs = [node for node in followers if common.used_outside(node, members)]
        first = next((node for node in outputs if reader.writes(node, None)), None)
        at = reader.asked(first, reader.shape(first)) if first is not None else None
        others = [node for node in outputs if node is not first]
        dropped = next((n for n in others if _is_last_view(n, members, results) or not reader.writes(n, at)), None)
        if dropped is None:
            return reader, outputs
        gone = {dropped}
        for node in followers:
            if any(source in gone for source in node.all_input_nodes):
                gone.add(node)
        followers = [node for node in followers if node not in gone]


def _is_last_view(node: torch.fx.Node, members: set[torch.fx.Node], results: Sequence[torch.fx.Node]) -> bool:
    """Costs nothing where it is, and would be written a second time here."""
    copies = target_name(node) == "aten.clone.default"
    return node not in results and is_view(node) and not copies and not any(user in members for user in node.users)
