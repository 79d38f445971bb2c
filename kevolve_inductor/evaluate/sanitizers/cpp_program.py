"""A C++ kernel as a program of its own: the kernel's text, and a ``main`` that gives it memory and calls it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ...graph.dims import evaluate
from ...graph.region import ITEM_SIZES, TensorSpec
from ...kernel import Argument, Workspace
from ...platforms.cpp_binding import STORAGE_TYPES
from ..inputs import extent_of, generate, named, sizes_of
from .tool import Case, bytes_of

HARNESS = Path(__file__).with_name("harness.hpp")


def program_text(case: Case) -> str:
    """The complete text. Its arguments are :func:`program_arguments`'; errors name lines of the file ``kernel``.

    A buffer is allocated in a file of its own name (``output_0``), by which a sanitizer's report names it.
    """
    return "\n".join(
        (
            f'#include <cstdint>\n#line 1 "kernel"\n{case.kernel.source}',
            f'#line 1 "harness"\n{HARNESS.read_text()}',
            "int main(int, char** argv) {",
            "  kvb_arguments given{argv + 1};",
            "  const int64_t turns = given.number();",
            *_declarations(case),
            '#line 1 "program"',
            "  for (int64_t turn = 0; turn < turns; turn++) {",
            *_turn(case),
            "  }",
            "  return 0;",
            "}",
            "",
        )
    )


def _declarations(case: Case) -> Iterator[str]:
    for k in range(len(case.region.inputs)):
        yield f'#line 1 "input_{k}"\n  kvb_memory input_{k} = given.contents();'
    for k in range(len(case.region.outputs)):
        yield f'#line 1 "output_{k}"\n  kvb_memory output_{k} = given.output();'
    for k in range(len(case.kernel.workspaces)):
        yield f'#line 1 "workspace_{k}"\n  kvb_memory workspace_{k}(given.number());'
    for k in range(len(case.region.symbols)):
        yield f"  const int64_t size_{k} = given.number();"


def _turn(case: Case) -> Iterator[str]:
    outputs = [f"output_{k}" for k in range(len(case.region.outputs))]
    yield from (f"    {name}.fill(turn);" for name in outputs)
    for k, workspace in enumerate(case.kernel.workspaces):
        yield f"    workspace_{k}.{'zero()' if workspace.zeroed else 'fill(turn)'};"
    for launch in case.kernel.launches:
        arguments = ", ".join(_argument(case, argument) for argument in launch.arguments)
        # An index out of range: what is in the outputs means nothing.
        yield f"    if ({launch.function}({arguments}) != 0) return 0;"
    yield from (f'    {name}.compare(turn, "{name.replace("_", " ")}");' for name in outputs)


def _argument(case: Case, argument: Argument) -> str:
    name = f"{argument.kind}_{argument.index}"
    if argument.kind == "size":
        return name
    pools: dict[str, Sequence[TensorSpec | Workspace]] = {
        "input": case.region.inputs,
        "output": case.region.output_specs,
        "workspace": case.kernel.workspaces,
    }
    constant = "const " if argument.kind == "input" else ""
    return f"{name}.as<{constant}{STORAGE_TYPES[pools[argument.kind][argument.index].dtype]}>()"


def program_arguments(case: Case, inputs: str, folder: Path) -> list[str]:
    """The program's arguments but for the number of turns; the inputs called ``inputs`` are written to ``folder``."""
    symbols = named(inputs, case.workload)[1].symbols
    arguments = []
    for k, tensor in enumerate(generate(case.region, case.workload, inputs, case.setup.seed, torch.device("cpu"))):
        path = folder / f"input_{k}"
        content = bytes_of(tensor)
        content.numpy().tofile(path)
        arguments += [str(path), str(content.numel()), str(tensor.storage_offset() * tensor.element_size())]
    for spec in case.region.output_specs:
        shape, stride = sizes_of(spec, symbols)
        extent = extent_of(shape, stride)
        arguments += [str(extent * ITEM_SIZES[spec.dtype]), str(int(extent > math.prod(shape)))]
    for workspace in case.kernel.workspaces:
        arguments.append(str(max(evaluate(workspace.numel, symbols), 0) * ITEM_SIZES[workspace.dtype]))
    return arguments + [str(symbols[name]) for name in case.region.symbol_names]
