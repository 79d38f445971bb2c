"""Finding scans in a graph with what can be computed in the same pass, and reading each as a plan."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from .. import common, cores
from .plan import BEFORE, PLACE, PLACE_BEFORE, RUNNING, Kind, ScanPlan

_SCANS: dict[str, Kind] = {"aten.cumsum.default": "sum", "aten.cumprod.default": "product",
                           "aten.cummax.default": "maximum", "aten.cummin.default": "minimum",
                           "aten.logcumsumexp.default": "logsumexp"}  # fmt: skip
_REVERSALS = ("prims.rev.default", "aten.flip.default")
_EXTREMES = ("maximum", "minimum")

Index = tuple[Expr, ...]


def is_tensor(node: Any) -> bool:
    return isinstance(node, torch.fx.Node) and isinstance(node.meta.get("val"), torch.Tensor)


def is_scan(node: torch.fx.Node) -> bool:
    return target_name(node) in _SCANS


def _is_reversal(node: torch.fx.Node) -> bool:
    return target_name(node) in _REVERSALS and all(isinstance(size, int) for size in shape_of(node))


# --- which nodes ---


class Surroundings(cores.Surroundings):
    """What of a graph may join a scan's region, and is not part of a region found before."""

    def __init__(self, graph: torch.fx.Graph) -> None:
        super().__init__(graph, is_scan)

    def followers(self, core: torch.fx.Node) -> Iterator[torch.fx.Node]:
        """Values computed element by element from the scan's results, in graph order, the results themselves first.

        What else they read must not hang on a scan that is not earlier than this one: so regions never wait for each other.
        """
        inside = {core}
        for node in self.graph.nodes:
            sources = node.all_input_nodes
            if node in self._taken or not is_tensor(node) or not any(source in inside for source in sources):
                continue
            is_result = sources == [core] and target_name(node) == "getitem"
            fits = is_result or is_pointwise(node) or is_view(node) or _is_reversal(node)
            others = [source for source in sources if source not in inside]
            if fits and all(self._is_ready(source, core) for source in others):
                inside.add(node)
                yield node

    def results(self, core: torch.fx.Node) -> list[torch.fx.Node]:
        """The tensors that ``core`` itself gives."""
        return [core] if is_tensor(core) else [user for user in core.users if target_name(user) == "getitem"]

    def producers(self, inside: set[torch.fx.Node]) -> set[torch.fx.Node]:
        """As :func:`common.absorbable`, but reversals are views here and reads by index stay outside."""
        found = set(inside)
        for node in reversed(self.graph.nodes):
            if node in found or node in self._taken or not is_tensor(node) or not node.users:
                continue
            if not (is_pointwise(node) or is_view(node) or is_constant(node) or _is_reversal(node)):
                continue
            users = [user in found for user in node.users]
            free = is_constant(node) or is_view(node) or _is_reversal(node)
            if all(users) or (free and any(users)):
                found.add(node)
        return found - inside


# --- indices ---


@dataclass(frozen=True)
class _Affine:
    """``sign * name + offset``; a constant has no name."""

    name: str | None
    sign: int
    offset: int


def _affine(at: Expr) -> _Affine | None:
    """What an index is, as far as flips, shifts and paddings make it. Clamps count as nothing: what they yield is masked."""
    if at.op == "const":
        return _Affine(None, 0, int(at.value))
    if at.op == "var":
        return _Affine(at.value[0], 1, 0)
    if at.op == "within":
        return _affine(at.args[0])
    if at.op not in ("add", "sub"):
        return None
    left, right = _affine(at.args[0]), _affine(at.args[1])
    if left is None or right is None or (left.name is not None and right.name is not None):
        return None
    way = 1 if at.op == "add" else -1
    return _Affine(left.name or right.name, left.sign + way * right.sign, left.offset + way * right.offset)


def _reversed(at: Expr, size: int) -> Expr:
    return ex.make("sub", "int64", (ex.index(size - 1), at)) if size != 1 else at


_KNOWN: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add, "sub": operator.sub, "lt": operator.lt, "ge": operator.ge, "logical_and": operator.and_,
}  # fmt: skip


def _constant(expr: Expr) -> Any:
    """The number that index arithmetic yields, or ``None``."""
    if expr.op == "const":
        return expr.value
    values = [_constant(argument) for argument in expr.args] if expr.op in _KNOWN else [None]
    return None if None in values else _KNOWN[expr.op](*values)


def _without_choices(expr: Expr) -> Expr:
    """``expr`` with selections whose condition is known replaced by what they select."""

    def chosen(part: Expr) -> Expr | None:
        condition = _constant(part.args[0]) if part.op == "where" else None
        return None if condition is None else _without_choices(part.args[1 if condition else 2])

    return ex.substitute(expr, chosen)


def _variable(name: str, size: Dim) -> Expr:
    return ex.index(0) if size == 1 else ex.var(name, size)


# --- reading ---


class Reader:
    """Reads one scan with ``inside``, the nodes computed with it, as a plan."""

    def __init__(self, core: torch.fx.Node, inside: set[torch.fx.Node], device: str) -> None:
        self.core, self.device = core, device
        self.kind = _SCANS[target_name(core)]
        self.source = core.args[0]
        if not is_tensor(self.source) or not shape_of(self.source):  # type: ignore[arg-type]
            raise UnsupportedError("structure", f"{core} scans a single number")
        assert isinstance(self.source, torch.fx.Node)
        self.shape = shape_of(self.source)
        dim = core.args[1] if len(core.args) > 1 else core.kwargs.get("dim", 0)
        self.dim = int(dim) % len(self.shape)  # type: ignore[arg-type]
        value = core.meta["val"]
        self.result = dtype_name((value[0] if isinstance(value, tuple | list) else value).dtype)
        self.held = _held(self.kind, self.result)
        self.variables = tuple(_variable(f"x{d}", size) for d, size in enumerate(self.shape))
        self.builder = ExpressionBuilder(device, lambda node: node in inside)
        self.used: dict[torch.fx.Node, None] = {core: None}
        self._asked: list[Index] = []
        self._tried = 0
        self._bind(inside)

    def _bind(self, inside: set[torch.fx.Node]) -> None:
        for node in inside:
            if _is_reversal(node):
                self.builder.bind(node, lambda index, rev=node: self._flipped(rev, index))  # type: ignore[misc]
        for node in (self.core, *self.core.users):
            if node is self.core or target_name(node) == "getitem":
                self.builder.bind(node, lambda index, result=node: self._result(result, index))  # type: ignore[misc]

    def _flipped(self, node: torch.fx.Node, index: Index) -> Expr:
        self.used[node] = None
        source, dims = node.args[:2]
        assert isinstance(source, torch.fx.Node)
        flipped = {int(d) % len(index) for d in dims}  # type: ignore[union-attr,arg-type]
        sizes = shape_of(source)
        return self.builder.build(
            source, tuple(_reversed(at, int(sizes[d])) if d in flipped else at for d, at in enumerate(index))
        )

    def _result(self, node: torch.fx.Node, index: Index) -> Expr:
        """One of the scan's results, at the position itself or, shifted by one, before it."""
        self.used[node] = None
        self._asked.append(index)
        at = _affine(index[self.dim])
        names = (PLACE, PLACE_BEFORE) if node is not self.core and node.args[1] == 1 else (RUNNING, BEFORE)
        name = names[int(at is not None and self._shift(at) == 1)]
        if name in (PLACE, PLACE_BEFORE):
            return ex.var(name, None, "int64")
        return ex.cast(ex.var(name, None, self.held), self.result)

    def _shift(self, at: _Affine) -> int | None:
        """By how many positions an index stays behind the one that it runs with, in either direction."""
        size = self.shape[self.dim]
        if at.sign == 1:
            return -at.offset
        return size - 1 - at.offset if at.sign == -1 and isinstance(size, int) else None

    def store(self, node: torch.fx.Node, output: int) -> tuple[Store, Store | None]:
        """How ``node`` is written: at each position, and in front of the first where it is longer by one.

        Raises ``UnsupportedError`` where its elements are not one per position.
        """
        written = dtype_name(tensor_of(node).dtype)
        if written not in (*ex.FLOATS, *ex.LOW_PRECISION, *ex.INTEGERS, "bool"):
            raise UnsupportedError("dtype", f"{node} has dtype {written}")
        # New names every time: what has been built before is not asked for again.
        self._tried += 1
        own = tuple(_variable(f"y{self._tried}_{d}", size) for d, size in enumerate(shape_of(node)))
        self._asked.clear()
        self.builder.build(node, own)
        index = self._placed(node, own)
        self._asked.clear()
        value = self.builder.build(node, index)
        for asked in self._asked:
            self._check_in_place(node, asked)
        whole = Store(value, self._offset(node, index), output)
        after = ex.iadd(self.variables[self.dim], ex.index(1))
        if after not in index:
            return whole, None
        front = tuple(ex.index(0) if at is after else at for at in index)
        edge = _without_choices(self.builder.build(node, front))
        if {RUNNING, BEFORE, PLACE, PLACE_BEFORE} & ex.variables(edge):
            raise UnsupportedError("structure", f"{node} needs {self.core} in front of its first position")
        return whole, Store(edge, self._offset(node, front), output)

    def _offset(self, node: torch.fx.Node, index: Index) -> Expr:
        strides = spec_of(tensor_of(node)).stride
        return ex.isum([ex.imul(at, ex.size(step)) for at, step in zip(index, strides, strict=True)])

    def writes(self, node: torch.fx.Node) -> bool:
        """Can ``node`` be written in the scan's order?"""
        try:
            self.store(node, 0)
        except UnsupportedError:
            return False
        return True

    def _placed(self, node: torch.fx.Node, own: Index) -> Index:
        """The index of ``node`` in the scan's variables, solved from the index at which it reads the scan."""
        extents = {at.value[0]: at.value[1] for at in own if at.op == "var"}
        solved: dict[str, Expr] = {}
        for asked in self._asked:
            for d, at in enumerate(asked):
                way = _affine(at)
                if self.shape[d] == 1 or way is None or way.name is None:
                    continue
                size, extent, here = self.shape[d], extents.get(way.name), self.variables[d]
                if d == self.dim and (way.sign, way.offset) == (1, -1) and isinstance(size, int) and extent == size + 1:
                    here = ex.iadd(here, ex.index(1))
                elif abs(way.sign) != 1 or extent != size:
                    raise UnsupportedError("structure", f"{node} has not one element for each of {self.core}")
                elif way.sign == -1:
                    here = _reversed(here, int(size))
                if solved.setdefault(way.name, here) is not here:
                    raise UnsupportedError("structure", f"{node} reads {self.core} at several positions")
        taken = {name for here in solved.values() for name in ex.variables(here)}
        if set(solved) != set(extents) or len(taken) < len(solved):
            raise UnsupportedError("structure", f"{node} has not one element for each of {self.core}")
        return tuple(solved[at.value[0]] if at.op == "var" else at for at in own)

    def _check_in_place(self, node: torch.fx.Node, asked: Index) -> None:
        for d, (at, variable) in enumerate(zip(asked, self.variables, strict=True)):
            way = _affine(at)
            offsets = (0, -1) if d == self.dim else (0,)
            name = variable.value[0] if variable.op == "var" else None
            if way is None or way.name != name or way.sign != int(name is not None) or way.offset not in offsets:
                raise UnsupportedError("structure", f"{node} reads {self.core} at another position")

    def plan(self, outputs: Sequence[torch.fx.Node]) -> ScanPlan:
        """Raises ``UnsupportedError``."""
        body = self.builder.build(self.source, self.variables)  # type: ignore[arg-type]
        if dtype_name(tensor_of(self.source).dtype) != self.result:  # type: ignore[arg-type]
            body = ex.cast(body, self.result)
        body = ex.cast(body, self.held)
        pairs = [self.store(node, k) for k, node in enumerate(outputs)]
        stores, edges = tuple(store for store, _ in pairs), tuple(edge for _, edge in pairs if edge is not None)
        common.check_acyclic(self.builder.inputs, outputs)
        inputs, results = common.specs_of(self.builder.inputs), common.specs_of(outputs)
        axes = self._axes(stores[0])
        names = [name for name, _ in axes]
        scan = (f"x{self.dim}", self.shape[self.dim])
        outside = names.index(scan[0])
        rest = tuple(axis for axis in axes if axis != scan)
        symbols = common.symbols_of((*inputs, *results))
        return ScanPlan(
            self.kind, self.held, self.result, scan, rest, outside, body, stores, edges, inputs, results, symbols
        )

    def _axes(self, store: Store) -> list[Axis]:
        """All axes, those that are slow in the memory of the first output first; sizes of one only where scanned."""
        steps: dict[str, Dim] = {}
        terms = [store.offset]
        while terms:
            term = terms.pop()
            if term.op == "add":
                terms += term.args
                continue
            scale = term.args[1] if term.op == "mul" else ex.index(1)
            for name in ex.variables(term):
                steps[name] = scale.value
        axes = [(f"x{d}", size) for d, size in enumerate(self.shape) if size != 1 or d == self.dim]
        # What is not a number is a stride over a dynamic axis, and large.
        return sorted(axes, key=lambda axis: -float(step) if isinstance(step := steps.get(axis[0], 0), int) else -1e30)


def _held(kind: Kind, result: str) -> str:
    """The type in which eager on a GPU would accumulate; extremes of narrow integers are taken as wider ones."""
    if result in ex.LOW_PRECISION:
        return "float32"
    if kind == "logsumexp" and result not in ex.FLOATS:
        raise UnsupportedError("dtype", f"a logarithm of sums as {result}")
    if result in ("bool", "int8", "uint8", "int16"):
        return "int32"
    if result not in (*ex.FLOATS, "int32", "int64"):
        raise UnsupportedError("dtype", f"a scan of {result}")
    return result


def _is_last_view(node: torch.fx.Node, members: set[torch.fx.Node]) -> bool:
    """Costs nothing where it is, and would be written a second time here."""
    copies = target_name(node) == "aten.clone.default"
    return is_view(node) and not copies and not any(user in members for user in node.users)


def read(around: Surroundings, core: torch.fx.Node, device: str, alone: bool) -> tuple[Reader, list[torch.fx.Node]]:
    """A reader of ``core`` and the values that leave its region; ``alone`` leaves out what follows it.

    A value that cannot be written in the scan's order stays outside, with all that is computed from it.
    Raises ``UnsupportedError``.
    """
    results = around.results(core)
    followers = results if alone else [*results, *(n for n in around.followers(core) if n not in results)]
    while True:
        members = {core, *followers}
        reader = Reader(core, members | around.producers(members), device)
        outputs = [node for node in followers if common.used_outside(node, members)]
        dropped = next(
            (n for n in outputs if n not in results and (_is_last_view(n, members) or not reader.writes(n))), None
        )
        if dropped is None:
            return reader, outputs
        gone = {dropped}
        for node in followers:
            if any(source in gone for source in node.all_input_nodes):
                gone.add(node)
        followers = [node for node in followers if node not in gone]
