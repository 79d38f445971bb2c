"""Index arithmetic that leaves 32 bits, found by intervals: no memory is large enough to try every tensor for real.

Triton computes with 32-bit integers wherever both operands have them: program numbers, ranges, and sizes below 2**31. A
product of such numbers wraps around silently, and what it addresses belongs to somebody else. So a kernel's text is walked
once for each launch with, for every integer that follows from the grid and from constants, the interval of its values.
What is loaded from memory is not followed.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from ..graph.dims import evaluate
from ..kernel import Kernel, Launch
from .evaluation import Refused

_INT32 = 2**31
# A size that is not known may be as large as memory allows.
_UNKNOWN_SIZE = 2**36
_CALL_DEPTH = 8


@dataclass(frozen=True)
class _Range:
    """Integers from ``low`` to ``high``, both attained; ``wide`` where they are held in 64 bits.

    ``fixed`` numbers are known to the compiler, which computes with them without end.
    """

    low: int
    high: int
    wide: bool = False
    fixed: bool = False

    def hull(self, other: _Range) -> _Range:
        return _Range(min(self.low, other.low), max(self.high, other.high), self.wide or other.wide)


# ``None`` stands for whatever is not an integer or not followed.
_Value = _Range | None
_Names = dict[str, _Value]


class _Overflow(Exception):
    def __init__(self, line: int, text: str, high: int) -> None:
        super().__init__(line, text, high)
        self.line, self.text, self.high = line, text, high


@lru_cache(maxsize=4096)
def index_overflow(kernel: Kernel, symbols: tuple[str, ...]) -> Refused | None:
    """Why an index of a Triton kernel may wrap around, or ``None``.

    The region's ``symbols`` are taken to be as large as memory allows, whatever they are now.
    """
    if kernel.language != "triton":
        return None
    functions = {node.name: node for node in ast.parse(kernel.source).body if isinstance(node, ast.FunctionDef)}
    for launch in kernel.launches:
        try:
            walk = _Walk(functions, _grid(launch, symbols))
            walk.function(functions[launch.function], _arguments(launch), dict(launch.constants))
        except _Overflow as found:
            place = f"line {found.line}: {found.text}" if len(found.text) < 200 else f"line {found.line}"
            return Refused("index overflow", f"{place} reaches {found.high}, and 32 bits end at {_INT32 - 1}")
    return None


def _grid(launch: Launch, symbols: Sequence[str]) -> list[_Range]:
    # A grid's axis has fewer than 2**31 programs; with sizes that are unknown, as many as that.
    largest = dict.fromkeys(symbols, _UNKNOWN_SIZE)
    return [_Range(0, min(max(evaluate(extent, largest), 1), _INT32 - 1) - 1) for extent in launch.grid]


def _arguments(launch: Launch) -> list[_Value]:
    # A size below 2**31 arrives as a number of 32 bits.
    return [_Range(0, _INT32 - 1) if argument.kind == "size" else None for argument in launch.arguments]


def _constant(value: object) -> _Value:
    if isinstance(value, int) and not isinstance(value, bool):
        return _fixed(value)
    return None


def _fixed(value: int) -> _Range:
    return _Range(value, value, not -_INT32 <= value < _INT32, fixed=True)


class _Walk:
    """Follows one launch through the functions it calls."""

    def __init__(self, functions: Mapping[str, ast.FunctionDef], grid: Sequence[_Range]) -> None:
        self._functions, self._grid = functions, grid
        self._depth = 0

    def function(
        self, function: ast.FunctionDef, arguments: Sequence[_Value], constants: Mapping[str, object]
    ) -> _Value:  # fmt: skip
        parameters = [argument.arg for argument in function.args.args]
        names: _Names = dict(zip(parameters, arguments, strict=False))
        names.update({name: _constant(value) for name, value in constants.items()})
        returned: list[_Value] = []
        self._depth += 1
        if self._depth <= _CALL_DEPTH:
            self._body(function.body, names, returned)
        self._depth -= 1
        return _hull(returned) if returned else None

    def _body(self, statements: Sequence[ast.stmt], names: _Names, returned: list[_Value]) -> None:
        for statement in statements:
            self._statement(statement, names, returned)

    def _statement(self, statement: ast.stmt, names: _Names, returned: list[_Value]) -> None:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                names[name] = self._value(value, names)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                names[name] = self._value(value, names)
            case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=value):
                changed = ast.BinOp(ast.Name(target.id, ast.Load()), op, value)
                names[name] = self._value(ast.copy_location(changed, statement), names)
            case ast.For():
                self._loop(statement, names, returned)
            case ast.While(body=body):
                self._forget(body, names)
                self._body(body, names, returned)
                self._forget(body, names)
            case ast.If(test=test, body=body, orelse=orelse):
                self._value(test, names)
                other = dict(names)
                self._body(body, names, returned)
                self._body(orelse, other, returned)
                for name in names.keys() | other.keys():
                    names[name] = _hull([names.get(name), other.get(name)])
            case ast.Return(value=ast.expr() as value):
                returned.append(self._value(value, names))
            case _:
                self._others(statement, names)

    def _others(self, statement: ast.stmt, names: _Names) -> None:
        """What assigns several names at once makes them unknown; whatever it computes is still looked at."""
        for node in ast.iter_child_nodes(statement):
            if isinstance(node, ast.expr) and not isinstance(getattr(node, "ctx", None), ast.Store):
                self._value(node, names)
        self._forget([statement], names)

    def _loop(self, loop: ast.For, names: _Names, returned: list[_Value]) -> None:
        counted = self._counted(loop.iter, names)
        # What a loop carries from turn to turn is unknown, unless it grows by a known step as often as the loop turns.
        carried = self._carried(loop, names, counted)
        self._forget(loop.body, names)
        if isinstance(loop.target, ast.Name):
            names[loop.target.id] = counted[0] if counted else None
        names.update(carried)
        self._body(loop.body, names, returned)
        self._forget(loop.body, names)
        names.update(carried)

    def _counted(self, over: ast.expr, names: _Names) -> tuple[_Range, int] | None:
        """The values of a loop's counter, and the most turns it takes."""
        if not isinstance(over, ast.Call) or ast.unparse(over.func).split(".")[-1] not in ("range", "static_range"):
            return None
        values = [self._value(argument, names) for argument in over.args]
        if not values or len(values) > 3 or any(value is None for value in values):
            return None
        known = [value for value in values if value is not None]
        start = known[0] if len(known) > 1 else _Range(0, 0)
        end = known[1] if len(known) > 1 else known[0]
        step = known[2].low if len(known) > 2 else 1
        if step < 1:
            return None
        high = max(start.low, end.high - 1)
        wide = any(value.wide for value in known) and high >= _INT32
        return _Range(start.low, high, wide), -(-(high + 1 - start.low) // step)

    def _carried(self, loop: ast.For, names: _Names, counted: tuple[_Range, int] | None) -> _Names:
        carried: _Names = {}
        assigned = _assigned(loop.body)
        for statement in loop.body:
            match statement:
                case ast.AugAssign(target=ast.Name(id=name), op=ast.Add(), value=value) if assigned.count(name) == 1:
                    start, step = names.get(name), self._value(value, dict.fromkeys(assigned) | names)
                    if counted and start is not None and step is not None and step.low >= 0:
                        end = start.high + step.high * counted[1]
                        wide = start.wide or step.wide
                        if not wide and end >= _INT32:
                            raise _Overflow(statement.lineno, ast.unparse(statement), end)
                        carried[name] = _Range(start.low, end, wide)
        return carried

    def _forget(self, statements: Sequence[ast.stmt], names: _Names) -> None:
        for name in _assigned(statements):
            names[name] = None

    # --- expressions ---

    def _value(self, node: ast.expr, names: _Names) -> _Value:
        match node:
            case ast.Constant(value=value):
                return _constant(value)
            case ast.Name(id=name):
                return names.get(name)
            case ast.BinOp(left=left, op=op, right=right):
                return self._binary(node, self._value(left, names), op, self._value(right, names))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                known = self._value(operand, names)
                return None if known is None else replace(known, low=-known.high, high=-known.low)
            case ast.Subscript(value=indexed, slice=index):
                self._value(index, names)
                return self._value(indexed, names)
            case ast.Call():
                return self._call(node, names)
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                for part in parts:
                    self._value(part, names)
                return None
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._value(child, names)
        return None

    def _binary(self, node: ast.expr, left: _Value, op: ast.operator, right: _Value) -> _Value:
        if left is None or right is None:
            return None
        wide = left.wide or right.wide
        ends = _ends(left, op, right)
        if ends is None:
            return None
        if left.fixed and right.fixed and ends[0] == ends[1]:
            return _fixed(ends[0])
        if not wide and max(abs(ends[0] + 1), abs(ends[1])) >= _INT32:
            raise _Overflow(node.lineno, ast.unparse(node), max(ends, key=abs))
        return _Range(*ends, wide)

    def _call(self, call: ast.Call, names: _Names) -> _Value:
        arguments = [self._value(argument, names) for argument in call.args]
        for keyword in call.keywords:
            self._value(keyword.value, names)
        match call.func:
            case ast.Name(id=name) if name in self._functions:
                return self.function(self._functions[name], arguments, {})
            case ast.Attribute(value=ast.Name(id="tl"), attr=name):
                return self._builtin(name, call, arguments)
            case ast.Attribute(value=value, attr="to"):
                converted = self._value(value, names)
                return _converted(converted, ast.unparse(call.args[0]) if call.args else "")
            case ast.Attribute(value=value, attr=("expand_dims" | "broadcast_to" | "reshape" | "trans")):
                return self._value(value, names)
        return None

    def _builtin(self, name: str, call: ast.Call, arguments: Sequence[_Value]) -> _Value:
        known = [argument for argument in arguments if argument is not None]
        match name:
            case "program_id":
                axis = known[0].low if known else 0
                return self._grid[axis] if axis < len(self._grid) else _Range(0, 0)
            case "num_programs":
                axis = known[0].low if known else 0
                return _Range(1, self._grid[axis].high + 1) if axis < len(self._grid) else _Range(1, 1)
            case "arange" if len(known) == 2:
                return _Range(known[0].low, known[1].high - 1)
            case "minimum" | "maximum" if len(known) == 2:
                pick = min if name == "minimum" else max
                low, high = (pick(getattr(value, end) for value in known) for end in ("low", "high"))
                return _Range(low, high, any(value.wide for value in known))
            case "where" if len(arguments) == 3:
                return _hull(arguments[1:])
            case "full" if len(call.args) == 3:
                return _converted(arguments[1], ast.unparse(call.args[2]))
            case "expand_dims" | "broadcast_to" | "reshape" | "view" | "max_contiguous" | "multiple_of" | "trans":
                return arguments[0]
        return None


def _assigned(statements: Sequence[ast.stmt]) -> list[str]:
    nodes = [node for statement in statements for node in ast.walk(statement)]
    return [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def _ends(left: _Range, op: ast.operator, right: _Range) -> tuple[int, int] | None:
    match op:
        case ast.Add():
            return left.low + right.low, left.high + right.high
        case ast.Sub():
            return left.low - right.high, left.high - right.low
        case ast.Mult():
            corners = [a * b for a in (left.low, left.high) for b in (right.low, right.high)]
            return min(corners), max(corners)
        case ast.FloorDiv() if right.low > 0 and left.low >= 0:
            return left.low // right.high, left.high // right.low
        case ast.Mod() if right.low > 0 and left.low >= 0:
            return 0, min(left.high, right.high - 1)
        case ast.LShift() if right.low >= 0 and right.high < 64 and left.low >= 0:
            return left.low << right.low, left.high << right.high
        case ast.RShift() if right.low >= 0 and left.low >= 0:
            return left.low >> right.high, left.high >> right.low
        case ast.BitAnd() if min(left.low, right.low) >= 0:
            return 0, min(left.high, right.high)
        case ast.BitOr() | ast.BitXor() if min(left.low, right.low) >= 0:
            return 0, 2 ** math.ceil(math.log2(max(left.high, right.high) + 1)) - 1
    return None


def _converted(value: _Value, dtype: str) -> _Value:
    kind = dtype.split(".")[-1]
    if value is None or kind not in ("int32", "int64"):
        return None
    return _Range(value.low, value.high, wide=kind == "int64")


def _hull(values: Sequence[_Value]) -> _Value:
    """Everything that one of ``values`` may be; unknown where one of them is."""
    result: _Value = None
    for position, value in enumerate(values):
        if value is None:
            return None
        result = value if position == 0 or result is None else result.hull(value)
    return result
