"""``torch.compile(model, backend="kevolve")``.

Inductor compiles the graph. In its post-grad pass the regions of the graph are found, the store is asked for each, what is
missing is searched within the budget, and the kernels that won are swapped in. In the first call the whole is timed beside
eager, which stays where it is faster. Whatever goes wrong on our side, the user gets Inductor's own result and one warning.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.fx
from torch._inductor import config as inductor_config
from torch._inductor.compile_fx import compile_fx, compile_fx_inner

from .cache.store import Store
from .evaluate.client import SEEDS_S, WorkerEvaluator
from .evaluate.isolation import Level
from .evaluate.kept import kept_evaluator
from .exc import PlatformError, SwapError
from .final_choice import FinalChoice
from .graph.ranges import seen_ranges
from .platforms import use_build_folder
from .platforms.platform import Platform
from .report import warn_once
from .settings import Settings, worker_environment
from .swap_pass import SwapPass, platform_of

_HOOK = "post_grad_custom_post_pass"


def kevolve(
    gm: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """The backend. ``options`` are ``kevolve.*`` settings (see :class:`Settings`) and Inductor's own, side by side.

    Raises ``SettingsError`` on options that cannot be used; after that only what Inductor itself raises, unless
    ``kevolve.strict`` is set.
    """
    settings, rest = Settings.resolve(options, mode)
    patches = _inductor_patches(settings.inductor_mode, rest)
    if not settings.active:
        return compile_fx(gm, example_inputs, config_patches=patches)
    try:
        swap_pass = _swap_pass(settings, example_inputs, patches)
        choice = _final_choice(gm, example_inputs, patches, swap_pass)
        settled = choice.settled() if choice is not None else None
    except Exception as error:  # noqa: BLE001 - the boundary to the user's process: no failure of ours may reach it
        _fall_back(error, settings)
        return compile_fx(gm, example_inputs, config_patches=patches)
    if settled == "eager":
        return gm.forward
    if settled == "inductor":
        return compile_fx(gm, example_inputs, config_patches=patches)
    compiled: Any = compile_fx(
        gm,
        example_inputs,
        inner_compile=_guarded(settings, patches.get(_HOOK), swap_pass),
        config_patches={**patches, _HOOK: swap_pass},
    )
    return compiled if choice is None else choice.between(compiled, _plain(choice, patches, swap_pass))


def _inductor_patches(mode: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """Inductor's configuration for a mode and options, validated by torch itself: the options win."""
    wrapper: Any = torch._TorchCompileInductorWrapper
    patches = dict(wrapper(mode, None, None).config)
    return patches | wrapper(None, options, None).config


def _swap_pass(settings: Settings, example_inputs: Sequence[Any], patches: Mapping[str, Any]) -> SwapPass:
    if patches.get("cpp_wrapper", inductor_config.cpp_wrapper):
        raise PlatformError("Inductor's C++ wrapper cannot call kernels; compile without cpp_wrapper")
    platform = platform_of(example_inputs)
    before = patches.get(_HOOK, getattr(inductor_config, _HOOK))
    chain = before if isinstance(before, (list, tuple)) else [] if before is None else [before]
    store = Store.open(settings.store)
    use_build_folder(store.build_folder())
    return SwapPass(settings, platform, store, _evaluator, seen_ranges(example_inputs), chain)


def _final_choice(
    gm: torch.fx.GraphModule, example_inputs: Sequence[Any], patches: Mapping[str, Any], swap_pass: SwapPass
) -> FinalChoice | None:
    # Who asked for CUDA graphs asked for what eager cannot give.
    if patches.get("triton.cudagraphs", inductor_config.triton.cudagraphs):
        return None
    return FinalChoice.of(gm, example_inputs, swap_pass.settings, swap_pass.platform, swap_pass.store)


def _plain(
    choice: FinalChoice, patches: Mapping[str, Any], swap_pass: SwapPass
) -> Callable[[Sequence[torch.Tensor]], Any]:
    """Inductor's own result, made only where the whole with its kernels has not been measured beside it."""

    def compile_plain(inputs: Sequence[torch.Tensor]) -> Any:
        if swap_pass.failed:
            # Another compile is to try again, not to find that eager was faster than a failure.
            raise SwapError("the graph was left to Inductor")
        if not swap_pass.is_unconfirmed:
            return None
        return compile_fx(choice.untouched(), list(inputs), config_patches=dict(patches))

    return compile_plain


def _evaluator(platform: Platform, store: Store, settings: Settings) -> AbstractContextManager[WorkerEvaluator]:
    # Of their own: from a folder where candidates can write nothing is loaded into this process.
    folder = store.build_folder() / "workers"

    def make() -> WorkerEvaluator:
        return WorkerEvaluator(
            platform,
            folder,
            seed=settings.seed,
            tf32=settings.numerics == "eager_tf32",
            seeds_s=None if settings.search == "full" else SEEDS_S,
            isolation=Level[settings.isolation.upper()],
        )

    choices = (settings.seed, settings.numerics, settings.search, settings.isolation)
    return kept_evaluator((platform.name, folder, choices, *worker_environment().items()), make)


def _guarded(settings: Settings, previous: Any, swap_pass: SwapPass) -> Callable[..., Any]:
    """Inductor's inner compiler for one graph, tried with our pass and, if that fails in any way, without it.

    It is here and not around the whole compile because the backward graph is compiled long after this call returned.
    """

    def compile_graph(gm: torch.fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Any:
        untouched = copy.deepcopy(gm.graph)
        try:
            with swap_pass.settings_restored():
                return compile_fx_inner(gm, example_inputs, **kwargs)
        except Exception as error:  # noqa: BLE001 - the boundary to the user's process: no failure of ours may reach it
            _fall_back(error, settings)
            swap_pass.failed = True
            # The result is cached further out, under the key of a graph with our pass: another compile must try again.
            swap_pass.store.renew_generation()
            with inductor_config.patch({_HOOK: previous}):
                return compile_fx_inner(torch.fx.GraphModule(gm, untouched), example_inputs, **kwargs)

    return compile_graph


def _fall_back(error: Exception, settings: Settings) -> None:
    """Say once what went wrong, or raise it if the user asked for that."""
    if settings.strict:
        raise error
    warn_once("kevolve left this graph to Inductor", error)
