"""From a set of FX nodes to a row program: every node's value as an expression over one row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch.fx

from ....exc import UnsupportedError
from ....graph.dims import Dim, product
from ....graph.meta import dtype_name, shape_of, spec_of, target_name, tensor_of
from ...expression import ExpressionBuilder, is_constant, is_view
from ...expression import expression as ex
from ...expression.builder import Bound, Index
from ...expression.expression import Expr
from ...expression.views import reshape_index
from ..common import specs_of, symbols_of
from .address import flattened, joined_rows, offset_of, rejoined, same
from .operators import Reduction, Selection, extent, is_reduction, is_selection, reduction_of, selection_of
from .program import COLUMNS, Element, Reduce, ReduceOp, RowProgram, Select, Statement, Store, without_unused


class BlockedError(UnsupportedError):
    """Carries the node that cannot be part of the program."""

    def __init__(self, node: torch.fx.Node, error: UnsupportedError) -> None:
        super().__init__(error.code, error.message)
        self.node = node


@dataclass(frozen=True)
class RowDomain:
    """The rows: all axes of a selection's or reduction's operand but the one it runs along."""

    dims: tuple[Dim, ...]
    columns: int

    @classmethod
    def of(cls, node: torch.fx.Node) -> RowDomain:
        """Of a selection or reduction node. Raises ``UnsupportedError``."""
        asked: Selection | Reduction = selection_of(node) if is_selection(node) else reduction_of(node)
        shape = shape_of(asked.source)
        columns = extent(node, asked.source, asked.dim)
        if columns == 0:
            raise UnsupportedError("size", f"{node} runs along an empty axis")
        return cls(shape[: asked.dim] + shape[asked.dim + 1 :], columns)

    @property
    def variables(self) -> tuple[tuple[str, Dim], ...]:
        return tuple((f"r{k}", dim) for k, dim in enumerate(self.dims) if dim != 1)

    @property
    def index(self) -> Index:
        return tuple(ex.index(0) if dim == 1 else ex.var(f"r{k}", dim) for k, dim in enumerate(self.dims))

    def index_of(self, shape: tuple[Dim, ...], at: int | None, position: Expr | None) -> Index | None:
        """The current row's index into a tensor of ``shape`` whose axis ``at`` is the only one that is not of the rows."""
        rest = shape if at is None else shape[:at] + shape[at + 1 :]
        if rest == self.dims:
            index = self.index
        elif same(product(rest), product(self.dims)):
            index = reshape_index(self.index, self.dims, rest)
        else:
            return None
        if at is None:
            return index
        assert position is not None
        return (*index[:at], position, *index[at:])

    def places(self, shape: tuple[Dim, ...], size: int) -> list[int]:
        """Axes of ``shape`` that may be the one of ``size`` positions, the last first."""
        return [
            at
            for at in reversed(range(len(shape)))
            if shape[at] == size and self.index_of(shape, at, ex.index(0)) is not None
        ]


@dataclass(frozen=True)
class Assembled:
    """A program with the graph's nodes it stands for, in the order of its inputs and outputs."""

    program: RowProgram
    nodes: frozenset[torch.fx.Node]
    inputs: tuple[torch.fx.Node, ...]
    outputs: tuple[torch.fx.Node, ...]


class _RowBuilder(ExpressionBuilder):
    """Tells which of the chosen nodes could not be expressed."""

    def __init__(self, device: str, chosen: frozenset[torch.fx.Node]) -> None:
        super().__init__(device, lambda node: node in chosen or is_view(node) or is_constant(node))
        self.chosen = chosen

    def _build(self, node: torch.fx.Node, index: Index) -> Expr:
        try:
            return super()._build(node, index)
        except BlockedError:
            raise
        except UnsupportedError as error:
            if node in self.chosen and node not in self._bound:
                raise BlockedError(node, error) from error
            raise


def assemble(domain: RowDomain, chosen: Sequence[torch.fx.Node], device: str) -> Assembled:
    """``chosen`` (in graph order) as one program. Raises ``BlockedError`` naming one that does not fit."""
    return _Assembler(domain, chosen, device).run()


class _Assembler:
    def __init__(self, domain: RowDomain, chosen: Sequence[torch.fx.Node], device: str) -> None:
        self.domain = domain
        self.chosen = chosen
        self.builder = _RowBuilder(device, frozenset(chosen))
        self.axes: dict[str, int] = {COLUMNS: domain.columns}
        self.statements: list[Statement] = []
        self.elements: dict[tuple[Expr, int], Expr] = {}
        self.results: dict[tuple[torch.fx.Node, int], Bound] = {}
        self.count = 0

    def run(self) -> Assembled:
        for node in self.chosen:
            try:
                self._add(node)
            except BlockedError:
                raise
            except UnsupportedError as error:
                raise BlockedError(node, error) from error
        stores: list[Store] = []
        outputs: list[torch.fx.Node] = []
        for node in self.chosen:
            # Which nodes leave is known only when all that is inlined is; storing one inlines at most views.
            if self._leaves(node):
                stores.append(self._store(node, len(outputs)))
                outputs.append(node)
        inputs, nodes = tuple(self.builder.inputs), frozenset(self.chosen) | set(self.builder.inlined)
        if not inputs:
            raise BlockedError(self.chosen[0], UnsupportedError("structure", "nothing is read"))
        return Assembled(self._program(stores, inputs, tuple(outputs)), nodes, inputs, tuple(outputs))

    def _leaves(self, node: torch.fx.Node) -> bool:
        """Whether a value is needed outside; views of it that are needed outside stay in the graph and read it."""
        if not isinstance(node.meta.get("val"), torch.Tensor):
            return False
        stack = list(node.users)
        while stack:
            user = stack.pop()
            if user in self.builder.chosen:
                continue
            if not is_view(user):
                return True
            if not user.users:
                continue
            stack.extend(user.users)
        return False

    # --- statements ---

    def _add(self, node: torch.fx.Node) -> None:
        if is_selection(node):
            self._select(node)
        elif is_reduction(node):
            self._reduce(node)
        elif target_name(node) == "getitem" and (node.args[0], node.args[1]) in self.results:
            self.builder.bind(node, self.results[node.args[0], node.args[1]])  # type: ignore[index]

    def _select(self, node: torch.fx.Node) -> None:
        asked = selection_of(node)
        source = asked.source
        value, axis = self._operand(node, source, asked.dim)
        chosen = self._selected(asked, dtype_name(tensor_of(source).dtype), value, axis)
        single = asked.count == 1 or asked.element
        shape = list(shape_of(source))
        shape[asked.dim : asked.dim + 1] = [1 if single else asked.count] if asked.keeps else []
        at = asked.dim if asked.keeps and not single else None
        for item, result in enumerate((chosen.values, chosen.indices)):
            assert result is not None
            one = self._element(result, asked.count - 1) if asked.element and chosen.out is not None else result
            self.results[node, item] = self._bound(one, tuple(shape), at, chosen.out)
        if isinstance(node.meta.get("val"), torch.Tensor):
            self.builder.bind(node, self.results[node, 1])

    def _selected(self, asked: Selection, dtype: str, value: Expr, axis: str) -> Select:
        """The statement for a selection: one made before if it was the same."""
        for step in self.statements:
            same_choice = isinstance(step, Select) and (step.axis, step.order, step.count) == (
                axis,
                asked.order,
                asked.count,
            )
            if isinstance(step, Select) and same_choice and step.value is value:
                return step
        out = None
        if asked.count > 1:
            out = f"k{len(self.axes) - 1}"
            self.axes[out] = asked.count
        number = self._next()
        values, indices = ex.var(f"v{number}", None, value.dtype), ex.var(f"i{number}", self.axes[axis])
        made = Select(axis, value, dtype, asked.order, asked.count, out, values, indices, asked.any_of_equals)
        self.statements.append(made)
        return made

    def _reduce(self, node: torch.fx.Node) -> None:
        asked = reduction_of(node)
        value, axis = self._operand(node, asked.source, asked.dim)
        shape = list(shape_of(asked.source))
        shape[asked.dim : asked.dim + 1] = [1] if asked.keeps else []
        parts = self._parts(node, asked.kind, value, axis, asked.correction)
        for item, part in enumerate(parts):
            self.results[node, item] = self._bound(part, tuple(shape), None, None)
        if isinstance(node.meta.get("val"), torch.Tensor):
            self.builder.bind(node, self.results[node, 0])

    def _parts(self, node: torch.fx.Node, kind: str, value: Expr, axis: str, correction: float) -> list[Expr]:
        """The results of a reduction node as expressions of sums, maxima and minima."""
        made = node.meta["val"]
        names = [dtype_name(part.dtype) for part in (made if isinstance(made, (tuple, list)) else [made])]
        held = "float32" if names[0] in ex.LOW_PRECISION else names[0]
        number = float(self.axes[axis])
        if kind == "softmax":
            top = self._reduced("amax", axis, value)
            shifted = ex.make("exp", value.dtype, (ex.make("sub", value.dtype, (value, top)),))
            results = [top, self._reduced("sum", axis, shifted)]
        elif kind == "var_mean":
            mean = _divided(self._reduced("sum", axis, ex.cast(value, held)), number)
            off = ex.make("sub", held, (ex.cast(value, held), mean))
            squares = self._reduced("sum", axis, ex.make("mul", held, (off, off)))
            results = [_divided(squares, max(0.0, number - correction)), mean]
        elif kind == "mean":
            results = [_divided(self._reduced("sum", axis, ex.cast(value, held)), number)]
        else:
            if held == "bool":
                raise UnsupportedError("dtype", f"{node} reduces booleans")
            results = [self._reduced(kind, axis, ex.cast(value, held))]  # type: ignore[arg-type]
        return [ex.cast(result, name) for result, name in zip(results, names, strict=True)]

    def _reduced(self, op: ReduceOp, axis: str, value: Expr) -> Expr:
        for step in self.statements:
            if isinstance(step, Reduce) and (step.op, step.axis) == (op, axis) and step.value is value:
                return step.result
        result = ex.var(f"s{self._next()}", None, value.dtype)
        self.statements.append(Reduce(result, op, axis, value))
        return result

    def _next(self) -> int:
        self.count += 1
        return self.count - 1

    def _operand(self, node: torch.fx.Node, source: torch.fx.Node, dim: int) -> tuple[Expr, str]:
        """A selection's or reduction's operand at the current position, and the axis that position is on."""
        shape = shape_of(source)
        names = [name for name, size in self.axes.items() if size == shape[dim]]

        def tries() -> Iterator[tuple[str | None, Index]]:
            for name in names:
                index = self.domain.index_of(shape, dim, ex.var(name, self.axes[name]))
                if index is not None:
                    yield name, index

        value, axis, _ = self._first(node, source, tries())
        assert axis is not None
        return value, axis

    def _first(
        self, node: torch.fx.Node, source: torch.fx.Node, tries: Iterator[tuple[str | None, Index]]
    ) -> tuple[Expr, str | None, Index]:
        """``source`` at the first index at which it can be expressed, with the axis that goes with it."""
        failure: UnsupportedError | None = None
        for axis, index in tries:
            before = self._state()
            try:
                return self.builder.build(source, index), axis, index
            except UnsupportedError as error:
                failure = failure or error
                self._restore(before)
        raise failure or UnsupportedError("structure", f"{node} does not go along the rows")

    def _state(self) -> tuple[list[torch.fx.Node], dict[torch.fx.Node, None], int, dict[tuple[Expr, int], Expr]]:
        return list(self.builder.inputs), dict(self.builder.inlined), len(self.statements), dict(self.elements)

    def _restore(
        self, state: tuple[list[torch.fx.Node], dict[torch.fx.Node, None], int, dict[tuple[Expr, int], Expr]]
    ) -> None:
        self.builder.inputs[:], self.builder.inlined, count, self.elements = state[0], state[1], state[2], state[3]
        self.builder._memo.clear()
        del self.statements[count:]

    def _bound(self, result: Expr, shape: tuple[Dim, ...], at: int | None, axis: str | None) -> Bound:
        """``result`` as the value of a tensor of ``shape`` at the current row's index, and nowhere else."""
        position = ex.var(axis, self.axes[axis]) if axis is not None and at is not None else None
        expected = self.domain.index_of(shape, at, position)
        assert expected is not None

        def value(index: Index) -> Expr:
            for d, (given, wanted) in enumerate(zip(index, expected, strict=True)):
                if d != at and shape[d] != 1 and rejoined(given) is not rejoined(wanted):
                    raise UnsupportedError("structure", f"row {given} of a selection where {wanted} is expected")
            if at is None or index[at] is position:
                return result
            if index[at].op == "const":
                return self._element(result, int(index[at].value))
            raise UnsupportedError("structure", f"position {index[at]} of what was selected")

        return value

    def _element(self, source: Expr, position: int) -> Expr:
        key = (source, position)
        if key not in self.elements:
            result = ex.var(f"e{self._next()}", source.value[1], source.dtype)
            self.elements[key] = result
            self.statements.append(Element(result, source, position))
        return self.elements[key]

    # --- outputs ---

    def _store(self, node: torch.fx.Node, output: int) -> Store:
        shape = shape_of(node)

        def tries() -> Iterator[tuple[str | None, Index]]:
            whole = self.domain.index_of(shape, None, None)
            if whole is not None:
                yield None, whole
            for name, size in self.axes.items():
                for at in self.domain.places(shape, size):
                    index = self.domain.index_of(shape, at, ex.var(name, size))
                    if index is not None:
                        yield name, index

        try:
            value, axis, index = self._first(node, node, tries())
        except BlockedError:
            raise
        except UnsupportedError as error:
            raise BlockedError(node, error) from error
        return Store(output, axis, value, offset_of(index, spec_of(tensor_of(node)).stride))

    def _program(
        self, stores: list[Store], inputs: tuple[torch.fx.Node, ...], outputs: tuple[torch.fx.Node, ...]
    ) -> RowProgram:
        specs, results = specs_of(inputs), specs_of(outputs)
        values = [s.source if isinstance(s, Element) else flattened(s.value, specs) for s in self.statements]
        values += [flattened(store.value, specs) for store in stores]
        rows, values, offsets = joined_rows(self.domain.variables, values, [store.offset for store in stores])
        statements = [
            s if isinstance(s, Element) else replace(s, value=value)
            for s, value in zip(self.statements, values, strict=False)
        ]
        done = [
            replace(store, value=value, offset=offset)
            for store, value, offset in zip(stores, values[len(statements) :], offsets, strict=True)
        ]
        program = RowProgram(
            rows=tuple(rows),
            axes=dict(self.axes),
            statements=tuple(statements),
            stores=tuple(done),
            inputs=specs,
            outputs=results,
            symbols=symbols_of((*specs, *results)),
        )
        return _with_maxima(without_unused(program))


def _with_maxima(program: RowProgram) -> RowProgram:
    """Extremes of which nobody asks the position are reductions."""

    def plain(step: Statement) -> Statement:
        if not isinstance(step, Select) or step.out is not None or step.indices is not None or step.order == "smallest":
            return step
        if step.values is None or step.value.dtype == "bool":
            return step
        return Reduce(step.values, "amax" if step.order == "greatest" else "amin", step.axis, step.value)

    return replace(program, statements=tuple(plain(step) for step in program.statements))


def _divided(total: Expr, number: float) -> Expr:
    return ex.make("truediv", total.dtype, (total, ex.const(number, total.dtype)))
