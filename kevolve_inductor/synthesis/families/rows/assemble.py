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
from ..common import specs_of, symbols_of
from .address import flattened, joined_rows, offset_of, rejoined
from .domain import RowDomain
from .operators import Reduction, Selection, is_reduction, is_selection, reduction_of, selection_of
from .program import COLUMNS, ColumnSum, Element, Reduce, ReduceOp, RowProgram, Select, Statement, Store, without_unused


class BlockedError(UnsupportedError):
    """Carries the node that cannot be part of the program."""

    def __init__(self, node: torch.fx.Node, error: UnsupportedError) -> None:
        super().__init__(error.code, error.message)
        self.node = node


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
        self.column_sums: list[ColumnSum] = []
        self.of_columns: set[torch.fx.Node] = set()
        self.count = 0

    def run(self) -> Assembled:
        for node in self.chosen:
            try:
                self._add(node)
            except BlockedError:
                raise
            except UnsupportedError as error:
                raise BlockedError(node, error) from error
        # Which nodes leave is known only when all that is inlined is; storing one inlines at most views.
        outputs = [node for node in self.chosen if self._leaves(node)]
        stores = [self._store(node, number) for number, node in enumerate(outputs)]
        inputs, nodes = tuple(self.builder.inputs), frozenset(self.chosen) | set(self.builder.inlined)
        if not inputs:
            raise BlockedError(self.chosen[0], UnsupportedError("structure", "nothing is read"))
        for_columns = [node in self.of_columns for node in outputs]
        return Assembled(self._program(stores, for_columns, inputs, tuple(outputs)), nodes, inputs, tuple(outputs))

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
        if not is_selection(node) and is_reduction(node) and self.domain.runs(reduction_of(node)) == "across":
            self._sum_columns(node)
        elif is_selection(node):
            self._select(node)
        elif is_reduction(node):
            self._reduce(node)
        elif not self.of_columns.isdisjoint(producers(node)):
            if isinstance(node.meta.get("val"), torch.Tensor) and self.domain.column_index(shape_of(node)) is None:
                raise UnsupportedError("structure", f"{node} has every row wait for a sum over all rows")
            self.of_columns.add(node)
        elif target_name(node) == "getitem" and (node.args[0], node.args[1]) in self.results:
            self.builder.bind(node, self.results[node.args[0], node.args[1]])  # type: ignore[index]

    def _select(self, node: torch.fx.Node) -> None:
        asked = selection_of(node)
        source = asked.source
        value, axis = self._operand(node, source, asked.dims)
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
        value, axis = self._operand(node, asked.source, asked.dims)
        shape = _reduced_shape(asked)
        parts = self._parts(node, asked.kind, value, axis, asked.correction)
        for item, part in enumerate(parts):
            self.results[node, item] = self._bound(part, shape, None, None)
        if isinstance(node.meta.get("val"), torch.Tensor):
            self.builder.bind(node, self.results[node, 0])

    def _sum_columns(self, node: torch.fx.Node) -> None:
        asked = reduction_of(node)
        index, at = self.domain.whole_index(shape_of(asked.source)), self.domain.column_index(_reduced_shape(asked))
        if asked.kind != "sum" or index is None or at is None:
            raise UnsupportedError("structure", f"{node} is no sum over all rows")
        name = dtype_name(tensor_of(node).dtype)
        held = "float32" if name in ex.LOW_PRECISION else name
        result = ex.var(f"w{self._next()}", None, held)
        self.column_sums.append(ColumnSum(result, ex.cast(self.builder.build(asked.source, index), held)))
        self.of_columns.add(node)

        def value(given: Index) -> Expr:
            if any(rejoined(one) is not rejoined(wanted) for one, wanted in zip(given, at, strict=True)):
                raise UnsupportedError("structure", f"a sum over the rows at {given}")
            return ex.cast(result, name)

        self.builder.bind(node, value)

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
        elif kind in ("var", "var_mean"):
            mean = _divided(self._reduced("sum", axis, ex.cast(value, held)), number)
            off = ex.make("sub", held, (ex.cast(value, held), mean))
            squares = self._reduced("sum", axis, ex.make("mul", held, (off, off)))
            results = [_divided(squares, max(0.0, number - correction)), mean][: len(names)]
        elif kind == "mean":
            results = [_divided(self._reduced("sum", axis, ex.cast(value, held)), number)]
        elif kind == "any":
            found = self._reduced("amax", axis, ex.cast(ex.cast(value, "bool"), "int32"))
            results = [ex.make("ne", "bool", (found, ex.const(0, "int32")))]
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

    def _operand(self, node: torch.fx.Node, source: torch.fx.Node, dims: tuple[int, ...]) -> tuple[Expr, str]:
        """A selection's or reduction's operand at the current position, and the axis that position is on."""
        shape = shape_of(source)
        extent = product(tuple(shape[dim] for dim in dims))
        names = [name for name, size in self.axes.items() if size == extent]

        def tries() -> Iterator[tuple[str | None, Index]]:
            for name in names:
                index = self.domain.index_of(shape, dims, ex.var(name, self.axes[name]))
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
        expected = self.domain.index_of(shape, () if at is None else (at,), position)
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
            column = self.domain.column_index(shape) if node in self.of_columns else None
            if column is not None:
                yield COLUMNS, column
                return
            row, whole = self.domain.index_of(shape, (), None), self.domain.whole_index(shape)
            if row is not None:
                yield None, row
            if whole is not None:
                yield COLUMNS, whole
            for name, size in self.axes.items():
                for at in self.domain.places(shape, size):
                    index = self.domain.index_of(shape, (at,), ex.var(name, size))
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
        self, stores: list[Store], for_columns: list[bool], inputs: tuple[torch.fx.Node, ...],
        outputs: tuple[torch.fx.Node, ...],
    ) -> RowProgram:  # fmt: skip
        specs, results = specs_of(inputs), specs_of(outputs)
        values = [flattened(s.value, specs) for s in self.statements if not isinstance(s, Element)]
        values += [flattened(one.value, specs) for one in self.column_sums]
        values += [flattened(store.value, specs) for store in stores]
        rows, values, offsets = joined_rows(self.domain.variables, values, [store.offset for store in stores])
        left = iter(values)
        statements = [s if isinstance(s, Element) else replace(s, value=next(left)) for s in self.statements]
        sums = [replace(one, value=next(left)) for one in self.column_sums]
        done = [
            replace(store, value=value, offset=offset)
            for store, value, offset in zip(stores, left, offsets, strict=True)
        ]
        program = RowProgram(
            rows=tuple(rows),
            axes=dict(self.axes),
            statements=tuple(statements),
            stores=tuple(store for store, of_column in zip(done, for_columns, strict=True) if not of_column),
            inputs=specs,
            outputs=results,
            symbols=symbols_of((*specs, *results)),
            column_sums=tuple(sums),
            column_stores=tuple(store for store, of_column in zip(done, for_columns, strict=True) if of_column),
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


def _reduced_shape(asked: Reduction) -> tuple[Dim, ...]:
    """Of the reduction's result."""
    shape = shape_of(asked.source)
    kept = (1 if dim in asked.dims else size for dim, size in enumerate(shape) if asked.keeps or dim not in asked.dims)
    return tuple(kept)


def producers(node: torch.fx.Node) -> Iterator[torch.fx.Node]:
    """Operands, seen through views; constants need no thought."""
    for source in node.all_input_nodes:
        while is_view(source) and not taken_from(source):
            source = source.all_input_nodes[0]
        if not is_constant(source):
            yield source


def taken_from(node: torch.fx.Node) -> list[torch.fx.Node]:
    """The selection or reduction that a ``getitem`` takes its value from."""
    source = node.args[0] if node.args and target_name(node) == "getitem" else None
    found = isinstance(source, torch.fx.Node) and (is_selection(source) or is_reduction(source))
    return [source] if found and isinstance(source, torch.fx.Node) else []


def _divided(total: Expr, number: float) -> Expr:
    return ex.make("truediv", total.dtype, (total, ex.const(number, total.dtype)))
