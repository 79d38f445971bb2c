"""What is measured: long-tail pieces of ranking and mixture-of-experts models, in plain PyTorch.

A case marked ``table`` has the shape, dtype and spelling whose times were published with the design; one marked
``variation`` differs from it in shape, dtype or spelling, so that nothing can be won by recognising a case.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

HASH_PRIME = 2654435761
KEEP_POSITIVE = 0x7FFFFFFFFFFFFFFF


@dataclass(frozen=True)
class Selection:
    """Output ``index_output`` holds indices into ``scores(*inputs)`` along ``dim``; equal scores may come in any order."""

    index_output: int
    scores: Callable[..., Tensor]
    dim: int = -1


@dataclass(frozen=True)
class Instance:
    """A case on one device. ``least_bytes`` is given where not all of the inputs must be read."""

    function: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    least_bytes: int | None = None
    flops: int = 0
    flops_dtype: torch.dtype = torch.float32
    selection: Selection | None = None


@dataclass(frozen=True)
class Case:
    """``make`` builds the instance for ``"cpu"`` or ``"cuda"``; ``devices`` are those it is meant for."""

    name: str
    family: str
    origin: Literal["table", "variation"]
    devices: tuple[str, ...]
    make: Callable[[str], Instance]


def _normal(device: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device=device, dtype=dtype)


def _identifiers(device: str, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    high = 2**31 - 1 if dtype is torch.int32 else 2**62
    return torch.randint(-high, high, shape, device=device, dtype=dtype)


def _borders(device: str, count: int) -> Tensor:
    return torch.sort(torch.randn(count, device=device)).values


def _size_bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# --- row selection ---------------------------------------------------------------------------------------------------


def softmax_topk(logits: Tensor) -> tuple[Tensor, Tensor]:
    weights, experts = torch.topk(torch.softmax(logits, dim=-1), 8)
    return weights, experts


def moe_gate(logits: Tensor) -> tuple[Tensor, Tensor]:
    weights, experts = torch.topk(torch.softmax(logits, dim=-1), 2)
    return weights / weights.sum(dim=-1, keepdim=True), experts


def sigmoid_router(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Experts are chosen by biased scores and weighted by the unbiased ones."""
    scores = logits.float().sigmoid()
    experts = torch.topk(scores + bias, 6, dim=-1).indices
    weights = scores.gather(-1, experts)
    return 2.5 * weights / (weights.sum(dim=-1, keepdim=True) + 1e-20), experts


def beam_step(logits: Tensor, beam_scores: Tensor) -> tuple[Tensor, Tensor]:
    log_probabilities = functional.log_softmax(logits.float(), dim=-1) + beam_scores[:, None]
    best, tokens = log_probabilities.topk(4, dim=-1)
    return best, tokens


def _softmax_topk(device: str) -> Instance:
    return Instance(softmax_topk, (_normal(device, 32768, 128),), selection=Selection(1, lambda x: x))


def _moe_gate(device: str) -> Instance:
    return Instance(moe_gate, (_normal(device, 65536, 64),), selection=Selection(1, lambda x: x))


def _sort_rows(device: str) -> Instance:
    x = _normal(device, 65536, 64 if device == "cpu" else 128)
    return Instance(lambda x: tuple(torch.sort(x, dim=-1)), (x,), selection=Selection(1, lambda x: x))


def _topk_wide(device: str) -> Instance:
    x = _normal(device, 4096, 8192)
    return Instance(lambda x: tuple(torch.topk(x, 8)), (x,), selection=Selection(1, lambda x: x))


def _argmax_middle(device: str) -> Instance:
    x = _normal(device, *((32, 256, 512) if device == "cpu" else (256, 512, 512)))
    return Instance(lambda x: torch.argmax(x, dim=1), (x,), selection=Selection(0, lambda x: x, dim=1))


def _sigmoid_router(device: str) -> Instance:
    rows, experts, dtype = (8192, 160, torch.float32) if device == "cpu" else (16384, 256, torch.bfloat16)
    inputs = (_normal(device, rows, experts, dtype=dtype), 0.1 * _normal(device, experts))
    return Instance(sigmoid_router, inputs, selection=Selection(1, lambda x, bias: x.float().sigmoid() + bias))


def _argsort_descending(device: str) -> Instance:
    rows, columns, dtype = (8192, 100, torch.float32) if device == "cpu" else (16384, 200, torch.float16)
    x = _normal(device, rows, columns, dtype=dtype)
    return Instance(lambda x: x.argsort(dim=-1, descending=True), (x,), selection=Selection(0, lambda x: x))


def _beam_step(device: str) -> Instance:
    rows, dtype = (64, torch.float32) if device == "cpu" else (512, torch.bfloat16)
    inputs = (_normal(device, rows, 32000, dtype=dtype), _normal(device, rows))
    return Instance(beam_step, inputs, selection=Selection(1, lambda x, scores: x.float()))


def _softmax_long(device: str) -> Instance:
    return Instance(lambda x: torch.softmax(x, dim=-1), (_normal(device, 4096, 32768, dtype=torch.bfloat16),))


def _log_softmax_vocabulary(device: str) -> Instance:
    logits = _normal(device, 8192, 20000, dtype=torch.bfloat16)
    return Instance(lambda x: functional.log_softmax(x.float() / 0.8, dim=-1), (logits,))


def _layer_norm_residual(device: str) -> Instance:
    inputs = (
        *(_normal(device, 16384, 4096, dtype=torch.bfloat16) for _ in range(2)),
        _normal(device, 4096),
        _normal(device, 4096),
    )

    def layer_norm_residual(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return total, functional.layer_norm(total.float(), (4096,), weight, bias).to(x.dtype)

    return Instance(layer_norm_residual, inputs)


def _softmax_gradient(device: str) -> Instance:
    def softmax_gradient(gradient: Tensor, y: Tensor) -> Tensor:
        return (gradient - (gradient * y).sum(dim=-1, keepdim=True)) * y

    y = torch.softmax(_normal(device, 8192, 8192), dim=-1)
    return Instance(softmax_gradient, (_normal(device, 8192, 8192), y))


# --- scans -----------------------------------------------------------------------------------------------------------


def exclusive_offsets(lengths: Tensor) -> Tensor:
    """Where each row's segments begin: a running sum of lengths that does not count its own."""
    return torch.cumsum(lengths, dim=1) - lengths


def discounted(rewards: Tensor) -> Tensor:
    """Returns from every step to the end of an episode, steps along the rows."""
    return torch.flip(torch.cumsum(torch.flip(rewards * 0.99, (1,)), dim=1), (1,))


def _running_sum(device: str) -> Instance:
    side = 4096 if device == "cpu" else 8192
    return Instance(lambda x: torch.cumsum(x, dim=0 if device == "cpu" else -1), (_normal(device, side, side),))


def _exclusive_offsets(device: str) -> Instance:
    lengths = torch.randint(0, 40, (8192 if device == "cpu" else 65536, 300), device=device)
    return Instance(exclusive_offsets, (lengths,))


def _discounted_returns(device: str) -> Instance:
    return Instance(discounted, (_normal(device, *((2048, 1000) if device == "cpu" else (16384, 1000))),))


def _running_maximum(device: str) -> Instance:
    def running_maximum(x: Tensor) -> Tensor:
        return torch.cummax(x, dim=1).values - x

    return Instance(running_maximum, (_normal(device, 16 if device == "cpu" else 256, 1024, 200),))


# --- feature preprocessing -------------------------------------------------------------------------------------------


def hash_modulo(ids: Tensor, table_size: int) -> Tensor:
    mixed = ids * HASH_PRIME
    mixed = (mixed ^ (mixed >> 29)) & KEEP_POSITIVE
    return mixed % table_size


def murmur_modulo(ids: Tensor, table_size: int) -> Tensor:
    """The finaliser of MurmurHash3, with arithmetic shifts as PyTorch has them."""
    mixed = (ids ^ (ids >> 33)) * -49064778989728563
    mixed = (mixed ^ (mixed >> 33)) * -4265267296055464877
    return (mixed ^ (mixed >> 33)) % table_size


def bucketize_hash(values: Tensor, borders: Tensor, ids: Tensor) -> Tensor:
    """A crossed feature: the bucket of a number and an identifier, hashed together into one table."""
    return hash_modulo(ids + torch.bucketize(values, borders), 1_000_003)


def dense_features(values: Tensor, mean: Tensor, scale: Tensor, *borders: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of counts: log-scaled and standardised, and bucketized with borders of their own."""
    logs = torch.log1p(values.clamp(min=0.0))
    buckets = [torch.bucketize(values[:, column], own) for column, own in enumerate(borders)]
    return ((logs - mean) * scale).clamp(-5.0, 5.0), torch.stack(buckets, dim=1)


def crossed_identifiers(ids: Tensor, salts: Tensor, sizes: Tensor) -> Tensor:
    """Every column and its neighbour hashed together, each into a table of its own size."""
    wide = ids.long()
    crossed = wide * 31 + torch.roll(wide, 1, dims=1)
    mixed = (crossed ^ salts) * 0x27D4EB2F165667C5
    return torch.remainder(mixed ^ (mixed >> 32), sizes)


def searchsorted_columns(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Right-closed buckets as int32, shifted by one so that 0 means missing."""
    half = len(tensors) // 2
    outputs = []
    for values, borders in zip(tensors[:half], tensors[half:], strict=True):
        buckets = torch.searchsorted(borders, values, right=True, out_int32=True) + 1
        outputs.append(torch.where(torch.isnan(values), torch.zeros_like(buckets), buckets))
    return tuple(outputs)


def _bucketize_many(device: str) -> Instance:
    count = 64
    inputs = [_normal(device, 65536) for _ in range(count)] + [_borders(device, 128) for _ in range(count)]

    def bucketize_many(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.bucketize(tensors[i], tensors[count + i]) for i in range(count))

    return Instance(bucketize_many, tuple(inputs))


def _hash_many(device: str) -> Instance:
    sizes = [10_000 + 7919 * index for index in range(64)]

    def hash_many(*ids: Tensor) -> tuple[Tensor, ...]:
        return tuple(murmur_modulo(column, size) for column, size in zip(ids, sizes, strict=True))

    return Instance(hash_many, tuple(_identifiers(device, 65536, 8) for _ in sizes))


def _bucketize_hash(device: str) -> Instance:
    count = 2**22
    return Instance(bucketize_hash, (_normal(device, count), _borders(device, 64), _identifiers(device, count)))


def _dense_features(device: str) -> Instance:
    rows = 65536 if device == "cpu" else 524288
    values = torch.randint(-2, 10_000, (rows, 13), device=device).float()
    borders = [torch.sort(torch.rand(50, device=device) * 10_000.0).values for _ in range(13)]
    return Instance(dense_features, (values, _normal(device, 13), _normal(device, 13), *borders))


def _crossed_identifiers(device: str) -> Instance:
    rows = 65536 if device == "cpu" else 524288
    ids = _identifiers(device, rows, 26, dtype=torch.int32)
    sizes = torch.randint(1_000, 5_000_000, (26,), device=device)
    return Instance(crossed_identifiers, (ids, _identifiers(device, 26), sizes))


def _searchsorted_columns(device: str) -> Instance:
    rows = 65536 if device == "cpu" else 262144
    values = [_normal(device, rows) for _ in range(16)]
    for column in values:
        column[::37] = math.nan
    borders = [_borders(device, 17 + 31 * index) for index in range(16)]
    return Instance(searchsorted_columns, (*values, *borders))


# --- jagged ----------------------------------------------------------------------------------------------------------


def truncate_ids(values: Tensor, offsets: Tensor, max_length: int) -> Tensor:
    """The first ``max_length`` events of each row, zero where a row is shorter; the others land in a column cut off."""
    rows, events = offsets.shape[0] - 1, values.shape[0]
    lengths = offsets[1:] - offsets[:-1]
    row = torch.repeat_interleave(torch.arange(rows, device=values.device), lengths, output_size=events)
    position = torch.arange(events, device=values.device) - offsets[row]
    dense = values.new_zeros(rows, max_length + 1)
    dense[row, position.clamp(max=max_length)] = values
    return dense[:, :max_length]


def truncate_embeddings(values: Tensor, offsets: Tensor, max_length: int) -> Tensor:
    position = torch.arange(max_length, device=values.device)
    mask = position[None, :] < (offsets[1:] - offsets[:-1])[:, None]
    index = (offsets[:-1, None] + position[None, :]).clamp(max=values.shape[0] - 1)
    return values[index] * mask[..., None]


def keep_latest(values: Tensor, offsets: Tensor, max_length: int, padding: float) -> tuple[Tensor, Tensor]:
    """The last ``max_length`` events of each row, oldest first, and which of them are real."""
    end = offsets[1:]
    start = torch.maximum(offsets[:-1], end - max_length)
    index = start.unsqueeze(1) + torch.arange(max_length, device=values.device).unsqueeze(0)
    real = index < end.unsqueeze(1)
    gathered = values[torch.where(real, index, torch.zeros_like(index))]
    return gathered.masked_fill(~real.unsqueeze(-1), padding), real


def segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    event = torch.arange(values.shape[0], device=values.device)
    row = torch.searchsorted(offsets, event, right=True) - 1
    return torch.zeros(offsets.shape[0] - 1, values.shape[1], device=values.device).index_add(0, row, values)


def mean_pool(values: Tensor, offsets: Tensor, max_length: int) -> Tensor:
    """The mean of each row's first events: what a sequence feature without attention becomes."""
    dense = truncate_embeddings(values, offsets, max_length)
    lengths = (offsets[1:] - offsets[:-1]).clamp(min=1, max=max_length)
    return dense.sum(dim=1) / lengths[:, None]


def _offsets(device: str, rows: int, longest: int) -> Tensor:
    lengths = torch.randint(0, longest + 1, (rows,), device=device)
    return functional.pad(lengths.cumsum(0), (1, 0))


def _kept_bytes(values: Tensor, offsets: Tensor, max_length: int) -> int:
    """Bytes of the events that survive truncation, and of the offsets."""
    kept = int((offsets[1:] - offsets[:-1]).clamp(max=max_length).sum())
    return kept * _size_bytes(values[:1]) + _size_bytes(offsets)


def _jagged_truncate(device: str) -> Instance:
    if device == "cpu":
        offsets = _offsets(device, 65536, 32)
        values = _identifiers(device, int(offsets[-1]))
        least = _kept_bytes(values, offsets, 16) + 65536 * 16 * 8
        return Instance(lambda v, o: truncate_ids(v, o, 16), (values, offsets), least_bytes=least)
    offsets = _offsets(device, 16384, 128)
    values = _normal(device, int(offsets[-1]), 64, dtype=torch.bfloat16)
    least = _kept_bytes(values, offsets, 64) + 16384 * 64 * 64 * 2
    return Instance(lambda v, o: truncate_embeddings(v, o, 64), (values, offsets), least_bytes=least)


def _keep_latest(device: str) -> Instance:
    rows = 8192 if device == "cpu" else 65536
    offsets = _offsets(device, rows, 40)
    values = _normal(device, int(offsets[-1]), 32)
    least = _kept_bytes(values, offsets, 20) + rows * 20 * (32 * 4 + 1)
    return Instance(lambda v, o: keep_latest(v, o, 20, -1.0), (values, offsets), least_bytes=least)


def _segment_sum(device: str) -> Instance:
    offsets = _offsets(device, 20_000 if device == "cpu" else 100_000, 20)
    return Instance(segment_sum, (_normal(device, int(offsets[-1]), 64 if device == "cpu" else 128), offsets))


def _mean_pool(device: str) -> Instance:
    rows = 8192 if device == "cpu" else 65536
    offsets = _offsets(device, rows, 30)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    values = _normal(device, int(offsets[-1]), 48, dtype=dtype)
    least = _kept_bytes(values, offsets, 16) + rows * 48 * 4
    return Instance(lambda v, o: mean_pool(v.float(), o, 16), (values, offsets), least_bytes=least)


# --- dot interaction -------------------------------------------------------------------------------------------------


def dot_interaction(features: Tensor) -> Tensor:
    """Every pair of different features multiplied, after the first feature itself."""
    count = features.shape[1]
    products = torch.bmm(features, features.transpose(1, 2))
    row, column = torch.tril_indices(count, count, offset=-1, device=features.device)
    return torch.cat([features[:, 0], products[:, row, column]], dim=1)


def interaction_from_list(dense: Tensor, *embeddings: Tensor) -> Tensor:
    """Upper triangle with the diagonal, of features that arrive one by one."""
    stacked = torch.stack([dense, *embeddings], dim=1)
    products = stacked @ stacked.transpose(-1, -2)
    row, column = torch.triu_indices(stacked.shape[1], stacked.shape[1], device=dense.device)
    return torch.cat([dense, products[:, row, column]], dim=-1)


def interaction_einsum(features: Tensor, pairs: Tensor) -> Tensor:
    """Pairs taken from the flattened square by one index, with nothing else beside them."""
    products = torch.einsum("bnd,bmd->bnm", features, features)
    return products.flatten(1).index_select(1, pairs)


def interaction_scaled(features: Tensor) -> Tensor:
    count, width = features.shape[1:]
    products = torch.matmul(features, features.mT) / math.sqrt(width)
    row, column = torch.triu_indices(count, count, offset=1, device=features.device)
    return functional.relu(products[:, row, column])


def _interaction_flops(batch: int, count: int, width: int) -> int:
    return batch * count * (count - 1) * width


def _dot_interaction(device: str) -> Instance:
    batch, width, dtype = (4096, 64, torch.float32) if device == "cpu" else (16384, 128, torch.bfloat16)
    features = _normal(device, batch, 27, width, dtype=dtype)
    return Instance(dot_interaction, (features,), flops=_interaction_flops(batch, 27, width), flops_dtype=dtype)


def _interaction_from_list(device: str) -> Instance:
    batch = 4096 if device == "cpu" else 65536
    embeddings = tuple(_normal(device, batch, 32) for _ in range(9))
    return Instance(interaction_from_list, embeddings, flops=_interaction_flops(batch, 9, 32))


def _interaction_einsum(device: str) -> Instance:
    batch, dtype = (2048, torch.float32) if device == "cpu" else (16384, torch.bfloat16)
    row, column = torch.tril_indices(40, 40, offset=-1, device=device)
    inputs = (_normal(device, batch, 40, 64, dtype=dtype), row * 40 + column)
    return Instance(interaction_einsum, inputs, flops=_interaction_flops(batch, 40, 64), flops_dtype=dtype)


def _interaction_scaled(device: str) -> Instance:
    batch, dtype = (16384, torch.float32) if device == "cpu" else (131072, torch.float16)
    features = _normal(device, batch, 16, 16, dtype=dtype)
    return Instance(interaction_scaled, (features,), flops=_interaction_flops(batch, 16, 16), flops_dtype=dtype)


CPU, CUDA, BOTH = ("cpu",), ("cuda",), ("cpu", "cuda")

CASES: tuple[Case, ...] = (
    Case("router-top8", "rows", "table", CUDA, _softmax_topk),
    Case("moe-gate-top2", "rows", "table", CPU, _moe_gate),
    Case("sort-rows", "rows", "table", BOTH, _sort_rows),
    Case("topk8-wide", "rows", "table", CPU, _topk_wide),
    Case("argmax-middle", "rows", "table", CUDA, _argmax_middle),
    Case("sigmoid-router", "rows", "variation", BOTH, _sigmoid_router),
    Case("argsort-descending", "rows", "variation", BOTH, _argsort_descending),
    Case("beam-step", "rows", "variation", BOTH, _beam_step),
    Case("softmax-long", "rows", "table", CUDA, _softmax_long),
    Case("log-softmax-vocabulary", "rows", "variation", CUDA, _log_softmax_vocabulary),
    Case("layer-norm-residual", "rows", "variation", CUDA, _layer_norm_residual),
    Case("softmax-gradient", "rows", "variation", CUDA, _softmax_gradient),
    Case("running-sum", "scans", "table", BOTH, _running_sum),
    Case("exclusive-offsets", "scans", "variation", BOTH, _exclusive_offsets),
    Case("discounted-returns", "scans", "variation", BOTH, _discounted_returns),
    Case("running-maximum", "scans", "variation", BOTH, _running_maximum),
    Case("bucketize-64", "features", "table", CUDA, _bucketize_many),
    Case("hash-mod-64", "features", "table", CUDA, _hash_many),
    Case("bucketize-hash", "features", "table", CPU, _bucketize_hash),
    Case("dense-features", "features", "variation", BOTH, _dense_features),
    Case("crossed-identifiers", "features", "variation", BOTH, _crossed_identifiers),
    Case("searchsorted-columns", "features", "variation", BOTH, _searchsorted_columns),
    Case("jagged-truncate", "jagged", "table", BOTH, _jagged_truncate),
    Case("jagged-keep-latest", "jagged", "variation", BOTH, _keep_latest),
    Case("jagged-segment-sum", "jagged", "variation", BOTH, _segment_sum),
    Case("jagged-mean-pool", "jagged", "variation", BOTH, _mean_pool),
    Case("dot-interaction", "interaction", "table", BOTH, _dot_interaction),
    Case("interaction-from-list", "interaction", "variation", BOTH, _interaction_from_list),
    Case("interaction-einsum", "interaction", "variation", BOTH, _interaction_einsum),
    Case("interaction-scaled", "interaction", "variation", BOTH, _interaction_scaled),
)
