"""Sizes that may be symbolic: an ``int``, or a string in a tiny arithmetic grammar over symbols.

Allowed: decimal integers, names, ``+ - * //``, parentheses, and the functions ``cdiv``, ``min`` and ``max``.
The grammar is evaluated here by walking the syntax tree; text is never executed.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping

Dim = int | str

_FUNCTIONS: dict[str, Callable[..., int]] = {"cdiv": lambda a, b: -(-a // b), "min": min, "max": max}
_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
}


def evaluate(dim: Dim, symbols: Mapping[str, int]) -> int:
    """Value of ``dim`` under ``symbols``. Raises ``ValueError`` on text outside the grammar or an unknown symbol."""
    if isinstance(dim, int):
        return dim
    return _evaluate(ast.parse(dim, mode="eval").body, symbols)


def _evaluate(node: ast.expr, symbols: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int() as value):
            return value
        case ast.Name(id=name) if name in symbols:
            return symbols[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(left, symbols), _evaluate(right, symbols))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, symbols)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_evaluate(argument, symbols) for argument in args))
    raise ValueError(f"not a size expression: {ast.unparse(node)}")


def product(dims: tuple[Dim, ...]) -> Dim:
    """Number of elements of a shape; an ``int`` where every factor is one."""
    known = math.prod(dim for dim in dims if isinstance(dim, int))
    symbolic = [f"({dim})" for dim in dims if isinstance(dim, str)]
    if not symbolic or known == 0:
        return known
    return "*".join(symbolic if known == 1 else [str(known), *symbolic])
