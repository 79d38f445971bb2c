"""How an expression depends on the position within a row: where conditions hold, where an index moves in step.

A *window* is the run of positions at which a condition like ``position < length[row]`` holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...expression import expression as ex
from ...expression.access import replace
from ...expression.expression import Expr

Visit = Callable[[Expr], Expr]

_COMPARISONS = ("lt", "le", "gt", "ge")
_CONJUNCTIONS = ("logical_and", "bitwise_and")
_NEGATIONS = ("logical_not", "bitwise_not")


@dataclass(frozen=True)
class Window:
    """Positions ``p`` with ``low <= p < high`` for all ``lows`` and ``highs``, which do not depend on ``p``."""

    lows: tuple[Expr, ...]
    highs: tuple[Expr, ...]


def uses(expr: Expr, name: str) -> bool:
    return any(part.op == "var" and part.value[0] == name for part in ex.walk(expr))


def slope(expr: Expr, name: str) -> int | None:
    """By how much ``expr`` rises from one position to the next, where that is the same number everywhere."""
    if not uses(expr, name):
        return 0
    if expr.op == "var":
        return 1
    if expr.op in ("as_value", "cast") and expr.dtype in ("int64", "int32"):
        return slope(expr.args[0], name)
    slopes = [slope(argument, name) for argument in expr.args]
    if expr.op not in ("add", "sub", "neg", "mul") or None in slopes:
        return None
    known = [s for s in slopes if s is not None]
    if expr.op == "add":
        return known[0] + known[1]
    if expr.op == "sub":
        return known[0] - known[1]
    if expr.op == "neg":
        return -known[0]
    scale = expr.args[1]
    return known[0] * int(scale.value) if scale.op == "const" and not isinstance(scale.value, float) else None


def moves_in_step(expr: Expr, name: str) -> int | None:
    """1 or -1 where ``expr`` moves by that or stays, from position to position, and never turns; 0 where it stays.

    Two ends as far apart as their positions then say that every place between is in step too.
    """
    direct = slope(expr, name)
    if direct is not None:
        return direct if abs(direct) <= 1 else None
    if expr.op in ("minimum", "maximum"):
        ways = [moves_in_step(argument, name) for argument in expr.args]
        if None in ways:
            return None
        moving = {way for way in ways if way}
        return moving.pop() if len(moving) == 1 else (0 if not moving else None)
    if expr.op in ("within", "check_index", "as_value", "cast") and expr.dtype in ("int64", "int32"):
        return moves_in_step(expr.args[0], name)
    return None


def window_of(condition: Expr, name: str) -> tuple[Window, bool] | None:
    """The window of ``condition`` and whether it holds inside (or, negated, outside); ``None`` if it is no window."""
    if condition.op in _NEGATIONS:
        inner = window_of(condition.args[0], name)
        return None if inner is None else (inner[0], not inner[1])
    if condition.op in _CONJUNCTIONS:
        sides = [window_of(argument, name) for argument in condition.args]
        if any(side is None or not side[1] for side in sides):
            return None
        windows = [side[0] for side in sides if side is not None]
        return Window(windows[0].lows + windows[1].lows, windows[0].highs + windows[1].highs), True
    if not uses(condition, name):
        # A condition on the whole row opens or closes the window.
        closed = ex.make("where", "int64", (condition, ex.index(2**62), ex.index(0)))
        return Window((), (closed,)), True
    return _comparison(condition, name)


def _comparison(condition: Expr, name: str) -> tuple[Window, bool] | None:
    if condition.op not in _COMPARISONS or condition.args[0].dtype not in ex.INTEGERS:
        return None
    left, right = condition.args
    slopes = slope(left, name), slope(right, name)
    if None in slopes:
        return None
    rise = (slopes[0] or 0) - (slopes[1] or 0)
    if abs(rise) != 1:
        return None
    # rise * p + (left - right at 0) compared with 0
    start = ex.make("sub", "int64", (_at_zero(right, name), _at_zero(left, name)))
    op = condition.op
    if rise == -1:
        start = ex.make("neg", "int64", (start,))
        op = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}[op]
    after = ex.iadd(start, ex.index(1))
    match op:
        case "lt":
            return Window((), (start,)), True
        case "le":
            return Window((), (after,)), True
        case "gt":
            return Window((after,), ()), True
        case _:
            return Window((start,), ()), True


def _at_zero(expr: Expr, name: str) -> Expr:
    return ex.cast(at_position(expr, name, ex.index(0)), "int64")


def at_position(expr: Expr, name: str, position: Expr) -> Expr:
    """``expr`` with ``position`` for the variable."""
    return replace(expr, lambda part, _: position if part.op == "var" and part.value[0] == name else None)


def conditions(expr: Expr, name: str) -> dict[Expr, tuple[Window, bool]]:
    """Outermost conditions within ``expr`` that are windows, those nearest to the result first."""
    found: dict[Expr, tuple[Window, bool]] = {}
    seen: set[Expr] = set()
    queue = deque([expr])
    while queue:
        part = queue.popleft()
        if part in seen:
            continue
        seen.add(part)
        window = window_of(part, name) if part.dtype == "bool" and uses(part, name) else None
        if window is None:
            queue.extend(part.args)
        else:
            found[part] = window
    return found


def resolved(expr: Expr, known: Mapping[Expr, bool]) -> Expr:
    """``expr`` where the conditions in ``known`` have these values; what they select is folded."""
    done: dict[Expr, Expr] = {}

    def visit(part: Expr) -> Expr:
        if part not in done:
            if part in known:
                done[part] = ex.const(known[part], "bool")
            elif part.op == "where":
                done[part] = _selected(part, visit)
            else:
                args = tuple(visit(argument) for argument in part.args)
                done[part] = _folded(part if args == part.args else ex.make(part.op, part.dtype, args, part.value))
        return done[part]

    return visit(expr)


def _selected(part: Expr, visit: Visit) -> Expr:
    condition = visit(part.args[0])
    if condition.op == "const":
        return visit(part.args[1] if condition.value else part.args[2])
    return ex.make("where", part.dtype, (condition, visit(part.args[1]), visit(part.args[2])))


def _folded(part: Expr) -> Expr:
    constants = [argument.value if argument.op == "const" else None for argument in part.args]
    if part.op in _NEGATIONS and part.dtype == "bool" and constants[0] is not None:
        return ex.const(not constants[0], "bool")
    if part.op == "cast" and constants[0] is not None:
        return ex.cast(part.args[0], part.dtype)
    if part.op in _CONJUNCTIONS and part.dtype == "bool":
        for mine, other in ((0, 1), (1, 0)):
            if constants[mine] is not None:
                return part.args[other] if constants[mine] else part.args[mine]
    # One times a value is the value, NaN included; zero times it is not zero.
    if part.op == "mul" and 1 in constants:
        return part.args[1 - constants.index(1)]
    return part
