"""Sums for a convolution's weight in Triton: programs share out positions, and a second launch adds up their parts.

A tile is ``[POSITIONS, CHANNELS]``: one channel where positions are next to each other in memory, many where channels are.
Every tap has a tile of running products, so that nothing is added across threads before the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from ....kernel import Argument, Launch, Workspace
from ...expression import expression as ex
from ...expression.access import flatten
from ...expression.expression import Expr
from ...expression.triton import TRITON_TYPES
from ...family import Schedule
from ..triton_tiles import TilePrinter, coordinates, needs_64_bits, next_power_of_2
from .plan import tap_name
from .triton import TritonText
from .weights import CHANNEL, WeightPlan
from .windows import simplified

_LANES = 64
_FINISH_BLOCK = 256


def weights_text(plan: WeightPlan, arguments: tuple[Argument, ...], schedule: Schedule) -> TritonText:
    text = _Text(plan, schedule)
    given = (*arguments, Argument("workspace", 0))
    sums = Launch(
        "kevolve_sums", given, grid=(str(text.blocks * text.parts),),
        constants=(("POSITIONS", text.tile), ("CHANNELS", text.lanes), ("STEPS", text.steps)),
        num_warps=int(schedule["sum_warps"]),
    )  # fmt: skip
    finish = Launch(
        "kevolve_finish", given, grid=(str(-(-text.numel // _FINISH_BLOCK)),),
        constants=(("BLOCK", _FINISH_BLOCK), ("PARTS", text.parts)),
    )  # fmt: skip
    workspace = Workspace(plan.held, str(text.parts * text.numel))
    return TritonText((text.sums(), text.finish()), (sums, finish), (workspace,))


class _Printer(TilePrinter):
    """A read at a clamped position is masked to positions inside."""

    def specials(self) -> dict[str, Callable[[Expr, list[str]], str]]:
        return {**super().specials(), "clamped": lambda e, a: a[0]}

    def _masks_of(self, expr: Expr) -> list[str]:
        marks = [part for part in ex.walk(expr) if part.op == "clamped"]
        names = [(self.value(mark.args[0]), mark.value[0]) for mark in marks]
        return [*super()._masks_of(expr), *(f"({name} >= 0) & ({name} < {size})" for name, size in names)]


class _Text:
    def __init__(self, plan: WeightPlan, schedule: Schedule) -> None:
        self.plan = plan
        channels = int(plan.channel[1])
        self.lanes = min(_LANES, next_power_of_2(channels)) if plan.has_channels_last else 1
        self.tile = max(1, int(schedule["tile"]) // self.lanes)
        self.blocks = -(-channels // self.lanes)
        steps = -(-plan.positions // self.tile)
        self.steps = max(1, -(-steps * self.blocks // int(schedule["programs"])))
        self.parts = -(-steps // self.steps)
        self.sizes = tuple(window.taps for window in plan.windows)
        self.numel = (plan.taps + 1) * channels
        names = [f"in{k}" for k in range(len(plan.inputs))] + [f"out{k}" for k in range(len(plan.outputs))]
        self.names = [*names, "parts"]
        self.wide = ".to(tl.int64)" if needs_64_bits((*plan.inputs, *plan.outputs)) else ""

    def _function(self, name: str, constants: Sequence[str], lines: Sequence[str]) -> str:
        parameters = [*self.names, *(f"{constant}: tl.constexpr" for constant in constants)]
        return "\n".join([f"@triton.jit\ndef {name}({', '.join(parameters)}):", *(f"    {line}" for line in lines)])

    def sums(self) -> str:
        plan, channels = self.plan, self.plan.channel[1]
        count = plan.taps
        kind = TRITON_TYPES[plan.held]
        lines = [
            f"program = tl.program_id(0){self.wide}",
            f"{CHANNEL} = (program % {self.blocks} * CHANNELS + tl.arange(0, CHANNELS))[None, :]",
            f"channel_mask = {CHANNEL} < {channels}",
            f"part = program // {self.blocks}",
            *(f"sum{k} = tl.zeros([POSITIONS, CHANNELS], {kind})" for k in range(count + 1)),
            "for step in range(STEPS):",
            *(f"    {line}" for line in self._step()),
            f"place = parts + part * {self.numel} + {CHANNEL}",
        ]
        lines += [
            f"tl.store(place + {k * int(channels)}, tl.sum(sum{k}, 0, keep_dims=True), mask=channel_mask)"
            for k in range(count + 1)
        ]
        return self._function("kevolve_sums", ("POSITIONS", "CHANNELS", "STEPS"), lines)

    def _step(self) -> list[str]:
        plan = self.plan
        lines = [
            "at = ((part * STEPS + step) * POSITIONS + tl.arange(0, POSITIONS))[:, None]",
            f"at_mask = at < {plan.positions}",
            *coordinates("at", plan.axes),
        ]
        masks = {CHANNEL: "channel_mask", **{name: "at_mask" for name, _ in plan.axes}}
        printer = _Printer(masks, {})
        gradient = printer.value(flatten(plan.gradient, plan.inputs))
        printer.lines.append(f"gradient = tl.where(at_mask & channel_mask, {gradient}, 0)")
        printer.lines.append(f"sum{plan.taps} += gradient")
        source = flatten(plan.source, plan.inputs)
        for number, taps in enumerate(itertools.product(*map(range, self.sizes))):
            if plan.weight is None:
                break
            mapping = {tap_name(d): ex.index(tap) for d, tap in enumerate(taps)}
            here = simplified(source, mapping)
            value = printer.value(here)
            inside = " & ".join(["at_mask", *(
                f"({name} >= 0) & ({name} < {size})"
                for name, size in ((printer.value(m.args[0]), m.value[0]) for m in ex.walk(here) if m.op == "clamped")
            )])  # fmt: skip
            printer.lines.append(f"sum{number} += tl.where({inside}, gradient * {value}, 0)")
        return [*lines, *printer.lines]

    def finish(self) -> str:
        plan, channels = self.plan, self.plan.channel[1]
        lines = [
            "at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)",
            f"mask = at < {self.numel}",
            f"total = tl.zeros([BLOCK], {TRITON_TYPES[plan.held]})",
            "for part in range(PARTS):",
            f"    total += tl.load(parts + part * {self.numel} + at, mask=mask, other=0)",
            f"{CHANNEL} = at % {channels}",
            f"tap = at // {channels}",
            *coordinates("tap", [(tap_name(d), taps) for d, taps in enumerate(self.sizes)]),
        ]
        printer = TilePrinter({}, {})
        if plan.weight is not None:
            place = printer.value(plan.weight_at)
            lines += [*printer.lines, f"tl.store(out{plan.weight} + {place}, total, mask=mask & (tap < {plan.taps}))"]
        if plan.bias is not None:
            place = f"out{plan.bias} + {CHANNEL} * {plan.bias_step}"
            lines.append(f"tl.store({place}, total, mask=mask & (tap == {plan.taps}))")
        return self._function("kevolve_finish", ("BLOCK", "PARTS"), lines)
