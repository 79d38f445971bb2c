"""What a kernel has to beat: the region run eagerly, and compiled by Inductor without any pass of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

Compiled = Callable[[Sequence[torch.Tensor]], Sequence[Any]]


def with_fake_values(gm: torch.fx.GraphModule, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Put a fake tensor of static shape under ``meta["val"]`` of every node; returns the fake inputs."""
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    mode = FakeTensorMode(shape_env=ShapeEnv())
    fakes: list[torch.Tensor] = [mode.from_tensor(tensor, static_shapes=True) for tensor in inputs]
    with mode:
        FakeTensorProp(gm, mode).propagate_dont_convert_inputs(*fakes)
    return fakes


def decomposed(gm: torch.fx.GraphModule, inputs: Sequence[torch.Tensor]) -> torch.fx.GraphModule:
    """The module after Inductor's own decompositions; what already went through them comes out as it was."""
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad():
        return make_fx(gm, select_decomp_table(), tracing_mode="fake")(*inputs)


def compile_inductor(
    gm: torch.fx.GraphModule, inputs: Sequence[torch.Tensor], settings: Mapping[str, Any] | None = None
) -> Compiled:
    """Inductor's code for an ATen-level graph that AOTAutograd has already been through; inference only.

    Compiled below ``torch.compile``'s guards and AOTAutograd's wrapper, as the part of a larger graph would be, and under
    Inductor's own ``settings`` where there are any.
    """
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner

    fakes = with_fake_values(gm, inputs)
    # What nobody sees Inductor stores in rows of another length where that suits it; a user's results it does not.
    (output,) = gm.graph.find_nodes(op="output")
    output.meta["user_visible_output_idxs"] = list(range(len(output.args[0])))
    # The pool that compiles for GPUs is processes of their own, which find no GPU in a worker's isolation. It comes up some
    # time after the first compile, so that only the later ones would fail.
    alone = {} if all(tensor.device.type == "cpu" for tensor in inputs) else {"compile_threads": 1}
    passes = {"post_grad_custom_post_pass": None, "post_grad_custom_pre_pass": None}
    ours = config.patch({**alone, **(settings or {}), **passes})
    with torch.no_grad(), ours:
        compiled: Any = compile_fx_inner(gm, fakes, is_inference=True)

    def call(tensors: Sequence[torch.Tensor]) -> Sequence[Any]:
        # Compiled code takes its inputs out of the list, to free each after its last use.
        result: Sequence[Any] = compiled(list(tensors))
        return result

    return call
