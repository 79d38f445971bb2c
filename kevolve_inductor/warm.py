"""Searching a model's regions ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._inductor import config as inductor_config
from torch.utils import _pytree as pytree

from .settings import Settings


def warm(function: Callable[..., Any], inputs: Sequence[Any], settings: Settings, *, train: bool = False) -> None:
    """Compile ``function`` on ``inputs`` and, with ``train``, its backward, so that every region gets its verdict.

    Regions decided before are looked up, so a warm-up that was killed goes on where it stopped. Inductor's own caches are
    left out, for a graph found there is never looked at.
    """
    options: dict[str, Any] = {
        "kevolve.search": settings.search,
        "kevolve.budget_s": settings.budget_s,
        "kevolve.store": settings.store,
        "kevolve.strict": True,
    }
    given = {name: value for name, value in options.items() if value is not None}
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="kevolve", options=given)
    with inductor_config.patch(force_disable_caches=True), torch.set_grad_enabled(train):
        result = compiled(*inputs)
        if train:
            torch.autograd.backward(_scalar(result))


def _scalar(result: Any) -> torch.Tensor:
    """The sum of every output that has a gradient: any loss reaches the same backward graphs."""
    leaves = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    if not leaves:
        raise ValueError("no output requires a gradient; leave out --train")
    return torch.stack([leaf.float().sum() for leaf in leaves]).sum()
