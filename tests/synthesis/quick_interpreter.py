"""Triton's interpreter in a sixth of its time: it reduces and scans element by element, asks anew what each type is, and
prepares the whole language for every call of a function.

Reductions combine neighbours and scans what lies a power of two before, all of a tile at once, in an order much like a GPU's.
As a program, it makes the calls it is asked for in copies of itself, in which everything is loaded.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NoReturn

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import ReduceOps, ScanOps

from kevolve_inductor.synthesis.families.scans import ScansFamily


def install() -> None:
    """In this process, for good."""
    interpreter._get_np_dtype = _np_dtype
    tl.core.tensor.__init__ = _tensor
    tl.core.block_type.__init__ = _block_type
    tl.core.block_type.name = property(lambda self: f"<{self.shape}, {self.element_ty}>")
    tl.semantic.TritonSemantic.broadcast_impl_value = _broadcast
    tl.semantic.TritonSemantic.binary_op_type_checking_impl = _operands
    interpreter.InterpretedFunction.__call__ = _call
    interpreter._patch_attr = _patch_attr
    # What it computes for this only says something where kernels are debugged.
    interpreter.interpreter_builder.options = replace(
        interpreter.interpreter_builder.options, sanitize_overflow=interpreter.interpreter_builder.options.debug
    )
    ReduceOps.generic_reduce = _reduce
    ScanOps.generic_scan = _scan


_original_np_dtype = interpreter._get_np_dtype
_np_dtypes: dict[str, np.dtype] = {}


def _np_dtype(dtype: Any) -> np.dtype:
    name = dtype.scalar.name
    if name not in _np_dtypes:
        _np_dtypes[name] = _original_np_dtype(dtype)
    return _np_dtypes[name]


@cache
def _shape(sizes: tuple[int, ...]) -> tuple[Any, Any]:
    return tl.core.tuple([tl.constexpr(size) for size in sizes]), tl.constexpr(int(np.prod(sizes)))


def _tensor(self: Any, handle: Any, type: Any) -> None:
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = _shape(tuple(type.shape) if type.is_block() else ())


@cache
def _block_shape(sizes: tuple[int, ...]) -> tuple[Any, int]:
    shape = tl.core.tuple(sizes)
    return shape, tl.core.validate_block_shape(shape)


def _block_type(self: Any, element_ty: Any, shape: Sequence[Any]) -> None:
    if not shape:
        raise TypeError("a block of no dimensions")
    self.element_ty = element_ty
    self.shape, self.numel = _block_shape(tuple(getattr(size, "value", size) for size in shape))


_original_broadcast = tl.semantic.TritonSemantic.broadcast_impl_value
_original_operands = tl.semantic.TritonSemantic.binary_op_type_checking_impl


def _broadcast(self: Any, left: Any, right: Any) -> tuple[Any, Any]:
    if left.shape is right.shape:
        return left, right
    if left.shape and right.shape and len(left.shape) == len(right.shape):
        # Equal ones need nothing, and others one of both; what does not fit is for the original to refuse.
        sizes = [tuple(tl.core._unwrap_if_constexpr(one.type.shape)) for one in (left, right)]
        wanted = tuple(max(pair) for pair in zip(*sizes, strict=True))
        if all(one in (1, size) and two in (1, size) for one, two, size in zip(*sizes, wanted, strict=True)):
            return tuple(
                one if of == wanted else tl.core.tensor(
                    self.builder.create_broadcast(one.handle, wanted), tl.core.block_type(one.type.scalar, wanted)
                )
                for one, of in zip((left, right), sizes, strict=True)
            )  # fmt: skip
    return _original_broadcast(self, left, right)


# What stays what it is in any operation of two of it.
_PLAIN = (tl.int32, tl.int64, tl.float32, tl.float64)


def _operands(self: Any, left: Any, right: Any, *rest: Any, **named: Any) -> tuple[Any, Any]:
    if isinstance(left, tl.core.tensor) and isinstance(right, tl.core.tensor):
        for kind in _PLAIN:
            if left.dtype is kind and right.dtype is kind:
                return _broadcast(self, left, right)
    return _original_operands(self, left, right, *rest, **named)


_known: set[Any] = set()


def _call(self: Any, *args: Any, **named: Any) -> Any:
    """The language is made ready for a function within a kernel once: what that changes is not taken back."""
    if self.fn not in _known:
        interpreter._patch_lang(self.fn)
        _known.add(self.fn)
    try:
        return self.rewrite()(*args, **named)
    except Exception as error:
        raise interpreter.InterpreterError(repr(error)) from error


def _patch_attr(place: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
    function, semantic = getattr(member, "__wrapped__", member), interpreter.interpreter_semantic
    assert builder is semantic.builder

    def called(*args: Any, **named: Any) -> Any:
        named["_semantic"] = semantic
        return function(*args, **named)

    scope.set_attr(place, name, called)


def _combined(
    op: Any, before: Sequence[np.ndarray], after: Sequence[np.ndarray], given: Sequence[Any]
) -> list[np.ndarray]:
    tensors = [op.to_tensor(part, given[at % len(given)].dtype) for at, part in enumerate((*before, *after))]
    results = op.combine_fn.fn(*tensors)
    results = results if isinstance(results, (tuple, tl.core.tuple)) else (results,)
    values = (result.handle.data if isinstance(result, tl.core.tensor) else result for result in results)
    return [np.broadcast_to(value, part.shape).astype(part.dtype) for value, part in zip(values, before, strict=True)]


def _reduce(self: Any, given: Sequence[Any]) -> list[Any]:
    flat, axis = self.unravel(given, self.axis)
    parts = [one.handle.data for one in flat]
    while parts[0].shape[axis] > 1:
        even, odd = (
            [part.take(range(first, part.shape[axis], 2), axis) for part in parts] for first in (0, 1)
        )  # fmt: skip
        parts = _combined(self, even, odd, flat)
    if self.keep_dims:
        shape = [1] * given[0].handle.data.ndim if self.axis is None else parts[0].shape
        parts = [part.reshape(shape) for part in parts]
    else:
        parts = [part.item() if self.axis is None else part.squeeze(axis) for part in parts]
    return [self.to_tensor(part, one.dtype) for part, one in zip(parts, flat, strict=True)]


def _scan(self: Any, given: Sequence[Any]) -> list[Any]:
    parts = [one.handle.data for one in given]
    count = parts[0].shape[self.axis]
    place = np.arange(count).reshape([-1 if dim == self.axis else 1 for dim in range(parts[0].ndim)])
    distance = 1
    while distance < count:
        before = [np.roll(part, distance, self.axis) for part in parts]
        joined = _combined(self, before, parts, given)
        parts = [np.where(place >= distance, new, old) for new, old in zip(joined, parts, strict=True)]
        distance *= 2
    return [self.to_tensor(part, one.dtype) for part, one in zip(parts, given, strict=True)]


def serve() -> None:
    """For every ``[module, function, store]`` on standard input, what its call in a child of this process ended with."""
    # Standard output is for the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    install()
    import family_checks

    # What the compiler sets up when it is first used.
    family_checks.find(ScansFamily(), torch.sigmoid, [torch.ones(3)])
    for line in sys.stdin:
        module, function, store = json.loads(line)
        with tempfile.TemporaryFile("w+") as words:
            child = os.fork()
            if child == 0:
                _call_in_child(module, function, store, words.fileno())
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            words.seek(0)
            failure = None if status == 0 else f"{function} ended with {status}\n{words.read()[-4000:]}"
        print(json.dumps(failure), file=answers, flush=True)


def _call_in_child(module: str, function: str, store: str, words: int) -> NoReturn:
    status = 1
    try:
        os.dup2(words, 1)
        os.dup2(words, 2)
        os.environ["KEVOLVE_STORE"] = store
        call = getattr(importlib.import_module(module), function)
        torch.manual_seed(0)
        call()
        status = 0
    except BaseException:  # noqa: BLE001 - it is reported
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
