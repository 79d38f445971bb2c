"""The Python binding of a C++ kernel, generated into the same text: tensors and sizes in, nothing out.

It needs neither torch's nor Python's headers: the few functions of Python's stable interface are declared by hand, and
a tensor's address is read by the function that torch exports for this purpose. One call costs a few hundred nanoseconds.
"""

from __future__ import annotations

import ast
import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..exc import BuildError, KernelIndexError
from ..graph.dims import Dim
from ..graph.region import ITEM_SIZES, Region
from ..kernel import Argument, Kernel, Workspace

STORAGE_TYPES = {
    "float64": "double", "float32": "float", "float16": "uint16_t", "bfloat16": "uint16_t", "int64": "int64_t",
    "int32": "int32_t", "int16": "int16_t", "int8": "int8_t", "uint8": "uint8_t", "bool": "uint8_t",
}  # fmt: skip

_METH_FASTCALL = 0x0080

_PRELUDE = r"""
#line 1 "binding"
#include <cstdint>
#include <cstdlib>
#include <cstring>
typedef struct _object PyObject;
extern "C" {
void PyErr_SetString(PyObject*, const char*);
PyObject* PyErr_Occurred(void);
PyObject* PyErr_NoMemory(void);
long long PyLong_AsLongLong(PyObject*);
void Py_IncRef(PyObject*);
extern PyObject* PyExc_TypeError;
extern char _Py_NoneStruct;
}
typedef void* (*kvb_pointer_of)(PyObject*);
static kvb_pointer_of kvb_pointer = nullptr;
static PyObject* kvb_index_error = nullptr;
static inline int64_t kvb_floordiv(int64_t a, int64_t b) { int64_t q = a / b; return q - ((a % b != 0) && ((a < 0) != (b < 0))); }
static inline int64_t kvb_cdiv(int64_t a, int64_t b) { return -kvb_floordiv(-a, b); }
static inline int64_t kvb_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t kvb_max(int64_t a, int64_t b) { return a > b ? a : b; }
struct kvb_memory {
  void* at;
  void* owned;
  kvb_memory(void* lent, int64_t count, int64_t item, bool zeroed) : at(lent), owned(nullptr) {
    size_t size = size_t(count > 0 ? count : 0) * size_t(item);
    if (!at) at = owned = std::aligned_alloc(64, (size + 127) & ~size_t(63));
    if (at && zeroed) std::memset(at, 0, size);
  }
  ~kvb_memory() { std::free(owned); }
};
extern "C" __attribute__((visibility("default"))) void kevolve_init(void* pointer_of, PyObject* index_error) {
  kvb_pointer = reinterpret_cast<kvb_pointer_of>(pointer_of);
  kvb_index_error = index_error;
}
"""

_CALL = r"""
static PyObject* kvb_call(PyObject* const* args, bool lent) {{
{body}
  Py_IncRef(reinterpret_cast<PyObject*>(&_Py_NoneStruct));
  return reinterpret_cast<PyObject*>(&_Py_NoneStruct);
}}
extern "C" __attribute__((visibility("default"))) PyObject* kevolve_call(PyObject*, PyObject* const* args, int64_t count) {{
  if (count != {count} && count != {count} + {workspaces}) {{
    PyErr_SetString(PyExc_TypeError, "a kernel takes {count} arguments");
    return nullptr;
  }}
  try {{
    return kvb_call(args, count != {count});
  }} catch (...) {{
    PyErr_SetString(PyExc_TypeError, "a kernel takes tensors, then sizes");
    return nullptr;
  }}
}}
"""


def generate_cpp(kernel: Kernel, region: Region) -> str:
    """The complete text to build: the kernel's source and a binding typed by the region's inputs and outputs.

    The callable takes the region's inputs, its outputs (allocated by the caller) and its symbols, positionally. Whoever
    wants to see the kernel's workspaces hands them over as further tensors; otherwise they are allocated and freed.
    Raises ``BuildError`` where an argument does not exist or its dtype cannot be passed.
    """
    binding = _Binding(kernel, region)
    count = len(region.inputs) + len(region.outputs) + len(region.symbols)
    call = _CALL.format(body="\n".join(binding.body()), count=count, workspaces=len(kernel.workspaces))
    return f'#include <cstdint>\n#line 1 "kernel"\n{kernel.source}\n{_PRELUDE}{call}'


class _Binding:
    def __init__(self, kernel: Kernel, region: Region) -> None:
        self.kernel = kernel
        self.inputs, self.outputs, self.symbols = region.inputs, region.output_specs, region.symbol_names

    def body(self) -> list[str]:
        lines = []
        for k, spec in enumerate(self.inputs):
            lines.append(f"  const auto* i{k} = static_cast<const {_storage(spec.dtype)}*>(kvb_pointer(args[{k}]));")
        first = len(self.inputs)
        for k, spec in enumerate(self.outputs):
            lines.append(f"  auto* o{k} = static_cast<{_storage(spec.dtype)}*>(kvb_pointer(args[{first + k}]));")
        first += len(self.outputs)
        for k, name in enumerate(self.symbols):
            lines.append(f"  const int64_t kvs_{name} = PyLong_AsLongLong(args[{first + k}]);")
            lines.append(f"  if (kvs_{name} == -1 && PyErr_Occurred()) return nullptr;")
        first += len(self.symbols)
        for k, workspace in enumerate(self.kernel.workspaces):
            lines += self._workspace(k, workspace, f"lent ? kvb_pointer(args[{first + k}]) : nullptr")
        for launch in self.kernel.launches:
            arguments = ", ".join(self._argument(argument) for argument in launch.arguments)
            lines.append(f"  if ({launch.function}({arguments}) != 0) {{")
            lines.append('    PyErr_SetString(kvb_index_error, "index out of range in a fused kernel");')
            lines.append("    return nullptr;")
            lines.append("  }")
        return lines

    def _workspace(self, k: int, workspace: Workspace, lent: str) -> list[str]:
        kind = _storage(workspace.dtype)
        numel = size_expression(workspace.numel, self.symbols)
        zeroed = str(workspace.zeroed).lower()
        return [
            f"  kvb_memory m{k}({lent}, {numel}, {ITEM_SIZES[workspace.dtype]}, {zeroed});",
            f"  if (!m{k}.at) return PyErr_NoMemory();",
            f"  auto* w{k} = static_cast<{kind}*>(m{k}.at);",
        ]

    def _argument(self, argument: Argument) -> str:
        pools: dict[str, tuple[Sequence[Any], str]] = {
            "input": (self.inputs, "i"),
            "output": (self.outputs, "o"),
            "workspace": (self.kernel.workspaces, "w"),
            "size": (self.symbols, "kvs_"),
        }
        pool, prefix = pools[argument.kind]
        if argument.index >= len(pool):
            raise BuildError("launch", f"there is no {argument.kind} {argument.index}")
        return f"{prefix}{pool[argument.index] if argument.kind == 'size' else argument.index}"


def _storage(dtype: str) -> str:
    if dtype not in STORAGE_TYPES:
        raise BuildError("launch", f"{dtype} cannot be passed to a C++ kernel")
    return STORAGE_TYPES[dtype]


def size_expression(dim: Dim, symbols: Sequence[str]) -> str:
    """A size in the grammar of ``graph.dims`` as C++. Raises ``BuildError`` on text outside the grammar."""
    if isinstance(dim, int):
        return f"int64_t({dim})"
    try:
        return _size(ast.parse(dim, mode="eval").body, symbols)
    except SyntaxError as error:
        raise BuildError("launch", f"not a size expression: {dim}") from error


def _size(node: ast.expr, symbols: Sequence[str]) -> str:
    match node:
        case ast.Constant(value=int() as value):
            return f"int64_t({value})"
        case ast.Name(id=name) if name in symbols:
            return f"kvs_{name}"
        case ast.BinOp(left=left, op=ast.FloorDiv(), right=right):
            return f"kvb_floordiv({_size(left, symbols)}, {_size(right, symbols)})"
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() as op, right=right):
            sign = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}[type(op)]
            return f"({_size(left, symbols)} {sign} {_size(right, symbols)})"
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return f"(-{_size(operand, symbols)})"
        case ast.Call(func=ast.Name(id=("cdiv" | "min" | "max") as name), args=[left, right], keywords=[]):
            return f"kvb_{name}({_size(left, symbols)}, {_size(right, symbols)})"
    raise BuildError("launch", f"not a size expression: {ast.unparse(node)}")


class _MethodDefinition(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("documentation", ctypes.c_char_p),
    ]


# Python keeps a pointer to a method's definition for as long as the method lives, which is as long as the process.
_DEFINITIONS: list[_MethodDefinition] = []


def load_library(path: Path) -> Callable[..., None]:
    """The binding of a built kernel as a Python function. The library stays loaded until the process ends."""
    library = ctypes.PyDLL(str(path))
    address = torch._C._dynamo.guards._torchinductor_pyobject_tensor_data_ptr  # type: ignore[attr-defined]
    library.kevolve_init(ctypes.c_void_p(address), ctypes.py_object(KernelIndexError))
    function = ctypes.cast(library.kevolve_call, ctypes.c_void_p).value
    definition = _MethodDefinition(b"kernel", function, _METH_FASTCALL, None)
    _DEFINITIONS.append(definition)
    new_function = ctypes.pythonapi.PyCFunction_NewEx
    new_function.restype = ctypes.py_object
    new_function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    call: Callable[..., None] = new_function(ctypes.addressof(definition), None, None)
    return call
