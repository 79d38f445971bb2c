"""What kernel text may contain. Everything that is not listed is refused, before anything is compiled or imported.

For Triton the syntax tree is walked; for C++ see :mod:`.gate_cpp`. The gate is one of several walls: kernels run in a
worker process, and a built C++ object may import nothing but arithmetic (``platforms.cpp_imports``).
"""

from __future__ import annotations

import ast

from ..exc import GateError
from ..kernel import Kernel
from .gate_cpp import check_cpp

_MODULES = ("tl", "libdevice", "triton")
_BUILTINS = frozenset({"range", "min", "max", "abs", "float", "int", "bool", "len", "isinstance", "tuple"})
# Of triton.language everything public but what leaves the language: foreign code, printing, and its submodules.
_REFUSED_TL = frozenset(
    "inline_asm_elementwise extra core semantic standard target_info device_print static_print map_elementwise builtin "
    "dispatch tensor_descriptor make_tensor_descriptor call".split()
)
_VALUE_ATTRIBUTES = frozenset(
    "to dtype shape T trans reshape is_floating is_int is_int_signed is_int_unsigned is_fp64 is_fp32 is_fp16 is_bf16 element_ty "
    "primitive_bitwidth bit_length type scalar value is_ptr broadcast_to expand_dims sum max min".split()
)
_NODES = (
    ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Return, ast.If,
    ast.For, ast.While, ast.Expr, ast.Pass, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.keyword,
    ast.Constant, ast.Name, ast.Attribute, ast.Subscript, ast.Slice, ast.Tuple, ast.List, ast.IfExp, ast.expr_context,
    ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip


def check_kernel(kernel: Kernel) -> None:
    """Raises ``GateError`` naming the first construct that is not allowed, with its line."""
    if kernel.language == "cpp":
        check_cpp(kernel.source, tuple(launch.function for launch in kernel.launches))
    elif kernel.language == "triton":
        check_triton(kernel.source)
    else:
        raise GateError(f"the language {kernel.language}", 1)


def check_triton(source: str) -> None:
    """Only functions decorated with ``@triton.jit`` that use ``tl``, arithmetic and each other."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise GateError(f"text that is not Python ({error.msg})", error.lineno or 1) from None
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for statement in tree.body:
        if not isinstance(statement, ast.FunctionDef) and not _is_text(statement):
            raise GateError("a statement outside a function", statement.lineno)
    for function in functions:
        _check_function(function, {other.name for other in functions})


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _check_function(function: ast.FunctionDef, functions: set[str]) -> None:
    if [ast.unparse(decorator) for decorator in function.decorator_list] != ["triton.jit"]:
        raise GateError(f"the function {function.name} without exactly the decorator @triton.jit", function.lineno)
    if function.args.vararg or function.args.kwarg:
        raise GateError("a variable number of parameters", function.lineno)
    inside = [node for part in (function.args, *function.body) for node in ast.walk(part)]
    known = functions | _BUILTINS | {"tl", "libdevice"}
    known |= {argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)}
    for node in inside:
        if not isinstance(node, _NODES) or isinstance(node, ast.FunctionDef | ast.Module):
            raise GateError(f"{type(node).__name__}", getattr(node, "lineno", function.lineno))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            if node.id in _MODULES or node.id.startswith("__"):
                raise GateError(f"an assignment to {node.id}", node.lineno)
            known.add(node.id)
    for node in inside:
        _check_node(node, known, functions)


def _check_node(node: ast.AST, known: set[str], functions: set[str]) -> None:
    match node:
        case ast.Name(id=name, lineno=line) if name not in known:
            raise GateError(f"the name {name}", line)
        case ast.Attribute():
            _check_attribute(node)
        case ast.Call(func=ast.Name(id=name), lineno=line) if name not in functions | _BUILTINS:
            raise GateError(f"a call of {name}", line)
        case ast.Call(func=func, lineno=line) if not isinstance(func, ast.Name | ast.Attribute):
            raise GateError("a call of an expression", line)


def _check_attribute(node: ast.Attribute) -> None:
    text, name = ast.unparse(node), node.attr
    if name.startswith("_"):
        raise GateError(text, node.lineno)
    match node.value:
        case ast.Name(id="tl"):
            allowed = name not in _REFUSED_TL
        case ast.Name(id="libdevice") | ast.Attribute(value=ast.Name(id="tl"), attr="math"):
            allowed = True
        case ast.Attribute(value=ast.Name(id="tl")) | ast.Attribute(value=ast.Name(id="libdevice")):
            allowed = name in _VALUE_ATTRIBUTES
        case _:
            allowed = name in _VALUE_ATTRIBUTES
    if not allowed:
        raise GateError(text, node.lineno)
