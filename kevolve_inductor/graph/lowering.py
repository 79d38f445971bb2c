"""Inductor's side of ``kevolve::launch``: IR nodes that write the call. The only module that touches Inductor's IR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
from torch._inductor import ir
from torch._inductor.ir import ExternKernel, IRNode, MutationOutput, NoneLayout, TensorBox
from torch._inductor.lowering import lowerings, register_lowering
from torch._inductor.virtualized import V
from torch.utils._ordered_set import OrderedSet

from ..exc import SwapError
from ..kernel import Argument, Kernel, Launch
from .launch import Program, dtype_of, program_of, resolve

_LOAD_CPP = "from kevolve_inductor.platforms.cpu import load_cpp as kevolve_load_cpp"


def register() -> None:
    register_lowering(torch.ops.kevolve.launch.default, type_promotion_kind=None)(_lower)


def _lower(inputs: Sequence[TensorBox], sizes: Sequence[Any], program: str) -> list[TensorBox]:
    known = program_of(program)
    if V.graph.cpp_wrapper:
        raise SwapError("kernels cannot be called from Inductor's C++ wrapper")
    values: Any = V.graph.current_node.args[0]
    fixed = [_as_searched(box, node) for box, node in zip(inputs, values, strict=True)]
    sizes = [sympy.sympify(size) for size in sizes]
    device = fixed[0].get_device() if fixed else torch.device(known.region.device)
    outputs = [_empty(spec.shape, spec.stride, dtype_of(spec), device, known, sizes) for spec in _outputs(known)]
    if known.kernel.language == "cpp":
        CppLaunch(known, fixed, outputs, sizes, device)
    else:
        _lower_triton(known, fixed, outputs, sizes, device)
    return outputs


def _outputs(program: Program) -> tuple[Any, ...]:
    return program.region.output_specs


def _as_searched(box: TensorBox, node: torch.fx.Node) -> TensorBox:
    """The input with exactly the strides it had in the graph, which the kernel's addressing relies on."""
    exact: Any = ExternKernel.require_exact_strides(box, node.meta["val"].stride())
    box_with_strides: TensorBox = exact
    return box_with_strides


def _empty(
    shape: Sequence[Any], stride: Sequence[Any], dtype: torch.dtype, device: Any, program: Program, sizes: Sequence[Any]
) -> TensorBox:
    names = program.region.symbol_names
    box: TensorBox = lowerings[torch.ops.aten.empty_strided.default](
        [resolve(size, names, sizes) for size in shape],
        [resolve(step, names, sizes) for step in stride],
        dtype=dtype,
        device=device,
    )
    box.realize()
    return box


class CppLaunch(ExternKernel):
    """A call of a compiled C++ function: inputs, outputs, sizes. A fusion barrier that writes its outputs in place."""

    def __init__(
        self,
        program: Program,
        inputs: Sequence[TensorBox],
        outputs: Sequence[TensorBox],
        sizes: Sequence[Any],
        device: Any,
    ) -> None:
        buffers = self.unwrap_storage([self.realize_input(box) for box in (*inputs, *outputs)])
        super().__init__(None, NoneLayout(device=device), buffers, tuple(sizes))
        self.program = program
        self.device = device
        self.mutation_outputs = [MutationOutput(NoneLayout(device=device), box, self) for box in outputs]
        V.graph.register_operation(self)

    def codegen(self, wrapper: Any) -> None:
        from ..platforms.cpu import generate_cpp

        name = f"kevolve_{self.program.digest[:16]}"
        text = generate_cpp(self.program.kernel, self.program.region)
        wrapper.add_import_once(_LOAD_CPP)
        wrapper.add_import_once(f"{name} = kevolve_load_cpp({text!r})")
        buffers: Any = self.inputs
        arguments = [buffer.codegen_reference() for buffer in buffers]
        arguments += [wrapper.codegen_sizevar(size) for size in self.constant_args]
        wrapper.writeline(f"{name}({', '.join(arguments)})")

    def get_outputs(self) -> list[Any]:
        return [*self.mutation_outputs]

    def should_allocate(self) -> bool:
        return False

    def get_device(self) -> Any:
        return self.device

    def has_side_effects(self) -> bool:
        return False

    def get_unbacked_symbol_defs(self) -> OrderedSet[sympy.Symbol]:
        return OrderedSet()


class TritonLaunch(ir.UserDefinedTritonKernel):
    """A user kernel of the wrapper whose written buffers are declared by us instead of inferred."""

    def __init__(
        self, kernel_idx: int, grid: list[Any], arguments: dict[str, Any], written: Sequence[TensorBox], device: Any
    ) -> None:
        tensors: list[IRNode] = []
        kwargs: dict[str, Any] = {}
        for name, value in arguments.items():
            if isinstance(value, TensorBox):
                value = self.unwrap_storage_for_input(self.realize_input(value))
                tensors.append(value)
            kwargs[name] = value
        constants = tuple(value for value in arguments.values() if not isinstance(value, TensorBox))
        ExternKernel.__init__(self, None, NoneLayout(device=device), tensors, constants, kwargs)
        self.device = device
        self.kernel_idx = kernel_idx
        self.grid = grid
        kernel: Any = self.get_kernel_and_metadata()[0]
        self.ordered_kwargs_for_cpp_kernel = [name for name in kernel.arg_names if name in arguments]
        self.mutable_args = list(written)
        self.mutation_outputs = [MutationOutput(NoneLayout(device=device), box, self) for box in written]
        V.graph.register_operation(self)

    def can_fuse_epilogue(self) -> bool:
        return False


def _lower_triton(
    program: Program, inputs: Sequence[TensorBox], outputs: Sequence[TensorBox], sizes: Sequence[Any], device: Any
) -> None:
    from ..platforms.cuda import autotuned_kernels

    kernel, names = program.kernel, program.region.symbol_names
    workspaces = [_workspace(kernel, k, names, sizes, device) for k in range(len(kernel.workspaces))]
    values = {"input": inputs, "output": outputs, "workspace": workspaces, "size": sizes}
    for launch, function in zip(kernel.launches, autotuned_kernels(kernel), strict=True):
        arguments = _named(launch, function.fn.arg_names, values)
        written = [values[a.kind][a.index] for a in launch.arguments if a.kind in ("output", "workspace")]
        grid = tuple(sympy.sympify(resolve(extent, names, sizes)) for extent in launch.grid)
        grid = grid + (sympy.Integer(1),) * (3 - len(grid))
        TritonLaunch(kernel_side_table.add_kernel(function), [grid], arguments, written, device)


def _named(launch: Launch, names: Sequence[str], values: dict[str, Sequence[Any]]) -> dict[str, Any]:
    arguments: Sequence[Argument] = launch.arguments
    named = {name: values[a.kind][a.index] for name, a in zip(names, arguments, strict=False)}
    return {**named, **dict(launch.constants)}


def _workspace(kernel: Kernel, which: int, names: Sequence[str], sizes: Sequence[Any], device: Any) -> TensorBox:
    workspace = kernel.workspaces[which]
    numel = resolve(workspace.numel, names, sizes)
    dtype = getattr(torch, workspace.dtype)
    if workspace.zeroed:
        box: TensorBox = lowerings[torch.ops.aten.full.default]([numel], 0, dtype=dtype, device=device)
    else:
        box = lowerings[torch.ops.aten.empty_strided.default]([numel], [1], dtype=dtype, device=device)
    box.realize()
    return box
