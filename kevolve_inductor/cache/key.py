"""The cache key: everything that a kernel's correctness or speed depends on, and nothing else.

No name, path, rank, process id or hash seed is part of it, so equal work has equal keys in any process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ..graph.region import Region
from ..kernel import digest_of
from ..platforms.platform import Target
from ..settings import Settings

# Raise when the layout of the key, or the meaning of one of its fields, changes.
KEY_SCHEMA = 1
# Raise when a stored kernel would be called or read differently: calling convention, launch spec, allowed subset.
KERNEL_SCHEMA = 1
# Inductor copies inputs that are not aligned to this before any kernel sees them.
DEFAULT_ALIGNMENT_BYTES = 16


@dataclass(frozen=True)
class CacheKey:
    """``fields`` is the JSON value that ``digest`` is the SHA-256 of."""

    fields: dict[str, Any]

    @cached_property
    def digest(self) -> str:
        return digest_of(self.fields)


def cache_key(
    region: Region,
    sizes: Mapping[str, int],
    target: Target,
    settings: Settings,
    alignment_bytes: int = DEFAULT_ALIGNMENT_BYTES,
) -> CacheKey:
    """The key of ``region`` on ``target``.

    Static sizes are part of the region. ``sizes`` gives each symbol of a dynamic region its hint, of which the bucket
    counts: a kernel takes any size, but which kernel is fastest changes only over orders of magnitude.
    Raises ``ValueError`` where a symbol has no size.
    """
    missing = [name for name in region.symbol_names if name not in sizes]
    if missing:
        raise ValueError(f"no size given for {', '.join(missing)}")
    return CacheKey(
        {
            "schema": KEY_SCHEMA,
            "kernel_schema": KERNEL_SCHEMA,
            "torch": str(torch.__version__),
            "region": region.digest,
            "size_buckets": {name: size_bucket(sizes[name]) for name in region.symbol_names},
            "alignment_bytes": alignment_bytes,
            "target": target.to_json() | {"features": sorted(target.features)},
            "numerics": {"setting": settings.numerics, **eager_numerics()},
        }
    )


def size_bucket(size: int) -> int:
    """The next power of two; 0 for an empty dimension."""
    return 1 << (size - 1).bit_length() if size > 0 else 0


def eager_numerics() -> dict[str, Any]:
    """The process-wide switches that change what eager computes, and so what a kernel is measured against."""
    # As values of no type: torch's own annotations do not know these attributes.
    backends: Any = torch.backends
    matmul = backends.cuda.matmul
    return {
        "cuda_matmul": _precision(matmul.fp32_precision),
        "cuda_conv": _precision(backends.cudnn.conv.fp32_precision),
        "cpu_matmul": _precision(backends.mkldnn.matmul.fp32_precision),
        "fp16_reduction": bool(matmul.allow_fp16_reduced_precision_reduction),
        "bf16_reduction": bool(matmul.allow_bf16_reduced_precision_reduction),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _precision(name: str) -> str:
    # "none" (never set) computes as "ieee"; setting the default explicitly must not be a miss.
    return "ieee" if name == "none" else name


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Explains a miss: the fields of two keys that differ, by dotted name. An absent field is ``None``."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted(mine.keys() | theirs.keys()):
        left, right = mine.get(name), theirs.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found |= differences(left, right, f"{prefix}{name}.")
        elif _plain(left) != _plain(right):
            found[prefix + name] = (left, right)
    return found


def _plain(value: Any) -> Any:
    # JSON has no tuples: a key that was stored compares equal to the one it was made from.
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
