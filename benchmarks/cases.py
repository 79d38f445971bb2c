"""What is measured: long-tail pieces of ranking and mixture-of-experts models, in plain PyTorch.

A case marked ``table`` has the shape, dtype and spelling whose times were published with the design; one marked
``variation`` differs from it in shape, dtype or spelling, so that nothing can be won by recognising a case. ``shapes.py``
draws more at ``random``.
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
    """A case on one device. ``least_bytes`` is given where not all of the inputs must be read, or some twice.

    ``trained`` names the inputs, by position, whose gradients are part of the case: forward and backward are both timed.
    """

    function: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    least_bytes: int | None = None
    flops: int = 0
    flops_dtype: torch.dtype = torch.float32
    selection: Selection | None = None
    trained: tuple[int, ...] = ()


@dataclass(frozen=True)
class Case:
    """``make`` builds the instance for ``"cpu"`` or ``"cuda"``; ``devices`` are those it is meant for."""

    name: str
    family: str
    origin: Literal["table", "variation", "random"]
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
    rows = _normal(device, 128, 131072) if device == "cpu" else _normal(device, 4096, 32768, dtype=torch.bfloat16)
    return Instance(lambda x: torch.softmax(x, dim=-1), (rows,))


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


def _layer_norm(device: str) -> Instance:
    inputs = (_normal(device, 16384, 1024), _normal(device, 1024), _normal(device, 1024))
    return Instance(lambda x, weight, bias: functional.layer_norm(x, (1024,), weight, bias), inputs)


def layer_norm_gradient(gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> Any:
    """Of the input, the weight and the bias, as autograd computes them from what the forward pass saved."""
    wanted = [True, True, True]
    return torch.ops.aten.native_layer_norm_backward(gradient, x, weight.shape, mean, scale, weight, bias, wanted)


def _layer_norm_gradient(device: str) -> Instance:
    columns, dtype = (768, torch.float32) if device == "cpu" else (4096, torch.bfloat16)
    gradient, x = (_normal(device, 16384, columns, dtype=dtype) for _ in range(2))
    weight, bias = (_normal(device, columns, dtype=dtype) for _ in range(2))
    _, mean, scale = torch.native_layer_norm(x, (columns,), weight, bias, 1e-5)
    return Instance(layer_norm_gradient, (gradient, x, mean, scale, weight, bias))


def rms_norm_gradient(gradient: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Of the input and the weight; ``scale`` is the inverse root mean square of each row."""
    normal, scaled = x.float() * scale, gradient.float() * weight.float()
    along = (scaled * normal).mean(dim=-1, keepdim=True)
    of_input = (scaled - normal * along) * scale
    return of_input.to(x.dtype), (gradient.float() * normal).sum(dim=0).to(weight.dtype)


def _rms_norm_gradient(device: str) -> Instance:
    columns, dtype = (1024, torch.float32) if device == "cpu" else (4096, torch.bfloat16)
    gradient, x = (_normal(device, 16384, columns, dtype=dtype) for _ in range(2))
    scale = torch.rsqrt(x.float().square().mean(dim=-1, keepdim=True) + 1e-6)
    return Instance(rms_norm_gradient, (gradient, x, _normal(device, columns, dtype=dtype), scale))


def _group_norm_silu(device: str) -> Instance:
    batch, side = (8, 32) if device == "cpu" else (32, 64)
    inputs = (_normal(device, batch, 256, side, side), _normal(device, 256), _normal(device, 256))
    return Instance(lambda x, weight, bias: functional.silu(functional.group_norm(x, 32, weight, bias)), inputs)


def _logits(device: str) -> tuple[Tensor, Tensor]:
    rows, classes, dtype = (4096, 32000, torch.float32) if device == "cpu" else (8192, 128256, torch.bfloat16)
    return _normal(device, rows, classes, dtype=dtype), torch.randint(0, classes, (rows,), device=device)


def _cross_entropy(device: str) -> Instance:
    return Instance(lambda logits, target: functional.cross_entropy(logits, target), _logits(device))


def _smoothed_cross_entropy(device: str) -> Instance:
    def smoothed_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
        z = torch.logsumexp(logits.float(), dim=-1)
        return functional.cross_entropy(logits.float(), target, label_smoothing=0.1) + 1e-4 * z.square().mean()

    rows, classes = (2048, 20000) if device == "cpu" else (8192, 50304)
    logits = _normal(device, rows, classes, dtype=torch.bfloat16)
    return Instance(smoothed_cross_entropy, (logits, torch.randint(0, classes, (rows,), device=device)))


def cross_entropy_gradient(logits: Tensor, target: Tensor, total: Tensor) -> Tensor:
    """Of the mean over rows, as autograd spells it; ``total`` is the logarithm of each row's sum of exponentials."""
    one, count = torch.ones_like(total[0]), torch.ones_like(total[0]) * len(target)
    log_probabilities = logits.float() - total[:, None]
    gradient = torch.ops.aten.nll_loss_backward(one, log_probabilities, target, None, 1, -100, count)
    return torch.ops.aten._log_softmax_backward_data(gradient, log_probabilities, 1, torch.float32).to(logits.dtype)


def _cross_entropy_gradient(device: str) -> Instance:
    logits, target = _logits(device)
    return Instance(cross_entropy_gradient, (logits, target, torch.logsumexp(logits.float(), dim=-1)))


def _layer_norm_training(device: str) -> Instance:
    rows, columns, dtype = (16384, 1024, torch.float32) if device == "cpu" else (16384, 4096, torch.bfloat16)
    inputs = (_normal(device, rows, columns, dtype=dtype), *(_normal(device, columns, dtype=dtype) for _ in "wb"))
    least = 5 * _size_bytes(inputs[0])
    return Instance(
        lambda x, weight, bias: functional.layer_norm(x, weight.shape, weight, bias), inputs, least, trained=(0, 1, 2)
    )


def _rms_norm_training(device: str) -> Instance:
    rows, columns, dtype = (16384, 1024, torch.float32) if device == "cpu" else (16384, 4096, torch.bfloat16)
    inputs = (_normal(device, rows, columns, dtype=dtype), _normal(device, columns, dtype=dtype))
    least = 5 * _size_bytes(inputs[0])
    return Instance(lambda x, weight: functional.rms_norm(x, weight.shape, weight), inputs, least, trained=(0, 1))


def _cross_entropy_training(device: str) -> Instance:
    """The logits are read for the loss and again for their gradient."""
    logits, target = _logits(device)
    return Instance(
        lambda logits, target: functional.cross_entropy(logits.float(), target),
        (logits, target), 3 * _size_bytes(logits), trained=(0,),
    )  # fmt: skip


def picked_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy by hand, with a penalty on the normaliser."""
    normaliser = torch.logsumexp(logits.float(), dim=-1)
    picked = logits.gather(1, target.unsqueeze(1)).squeeze(1)
    return (normaliser - picked).mean() + 1e-4 * normaliser.square().mean()


def _picked_loss_training(device: str) -> Instance:
    rows, classes = (2048, 20000) if device == "cpu" else (8192, 50304)
    logits = _normal(device, rows, classes, dtype=torch.bfloat16)
    target = torch.randint(0, classes, (rows,), device=device)
    return Instance(picked_loss, (logits, target), 3 * _size_bytes(logits), trained=(0,))


def _log_sum_exp_outer(device: str) -> Instance:
    return Instance(lambda x: torch.logsumexp(x, 0), (_normal(device, 512, 8192 if device == "cpu" else 65536),))


def _log_softmax_outer(device: str) -> Instance:
    size = 2048 if device == "cpu" else 4096
    return Instance(lambda x: functional.log_softmax(x, 0), (_normal(device, size, size),))


def _variance_middle(device: str) -> Instance:
    return Instance(lambda x: torch.var(x, 1), (_normal(device, 8 if device == "cpu" else 64, 512, 1000),))


def _softmax_gradient(device: str) -> Instance:
    def softmax_gradient(gradient: Tensor, y: Tensor) -> Tensor:
        return (gradient - (gradient * y).sum(dim=-1, keepdim=True)) * y

    rows = 2048 if device == "cpu" else 8192
    y = torch.softmax(_normal(device, rows, 8192), dim=-1)
    return Instance(softmax_gradient, (_normal(device, rows, 8192), y))


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


# --- stencils --------------------------------------------------------------------------------------------------------


def causal_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The short convolution of a state-space model: each channel by itself, no look ahead."""
    padded = functional.pad(x, (weight.shape[-1] - 1, 0))
    return functional.silu(functional.conv1d(padded, weight, bias, groups=x.shape[1]))


def trimmed_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same as it is written around a module that pads both ends, with a gate."""
    mixed = functional.conv1d(x, weight, bias, padding=weight.shape[-1] - 1, groups=x.shape[1])
    return functional.gelu(mixed[..., : x.shape[-1]], approximate="tanh") * x


def inverted_residual(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The middle of a mobile network's block: strided, normalised by constants, ReLU6."""
    mixed = functional.conv2d(x, weight, stride=2, padding=1, groups=x.shape[1])
    return functional.relu6(mixed * scale[:, None, None] + shift[:, None, None])


def _causal_convolution(device: str) -> Instance:
    batch, channels, length, dtype = (
        (4, 256, 4096, torch.float32) if device == "cpu" else (32, 2048, 4096, torch.bfloat16)
    )
    inputs = [
        _normal(device, *shape, dtype=dtype) for shape in ((batch, channels, length), (channels, 1, 4), (channels,))
    ]
    return Instance(causal_convolution, tuple(inputs))


def _trimmed_convolution(device: str) -> Instance:
    batch, channels, length, dtype = (
        (2, 192, 3000, torch.float32) if device == "cpu" else (16, 1536, 6000, torch.float16)
    )
    inputs = [
        _normal(device, *shape, dtype=dtype) for shape in ((batch, channels, length), (channels, 1, 3), (channels,))
    ]
    return Instance(trimmed_convolution, tuple(inputs))


def _depthwise_plane(device: str) -> Instance:
    def depthwise_plane(x: Tensor, weight: Tensor) -> Tensor:
        return functional.relu(functional.conv2d(x, weight, padding=1, groups=x.shape[1]))

    batch, channels, dtype = (8, 64, torch.float32) if device == "cpu" else (64, 256, torch.bfloat16)
    inputs = (_normal(device, batch, channels, 56, 56, dtype=dtype), _normal(device, channels, 1, 3, 3, dtype=dtype))
    return Instance(depthwise_plane, inputs)


def _inverted_residual(device: str) -> Instance:
    batch, channels, dtype = (4, 144, torch.float32) if device == "cpu" else (128, 144, torch.float16)
    x = _normal(device, batch, channels, 56, 56, dtype=dtype).to(memory_format=torch.channels_last)
    weights = (_normal(device, channels, 1, 3, 3, dtype=dtype), *(_normal(device, channels, dtype=dtype) for _ in "ab"))
    return Instance(inverted_residual, (x, *weights))


def _large_kernel(device: str) -> Instance:
    def large_kernel(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.conv2d(x, weight, bias, padding=3, groups=x.shape[1]) + x

    # Of two images on a CPU, what surrounds a compiled graph's call would take as long as the convolution.
    batch, channels, dtype = (16, 96, torch.float32) if device == "cpu" else (64, 192, torch.bfloat16)
    shapes = ((batch, channels, 28, 28), (channels, 1, 7, 7), (channels,))
    return Instance(large_kernel, tuple(_normal(device, *shape, dtype=dtype) for shape in shapes))


def _average_lines(device: str) -> Instance:
    x = _normal(device, *((8, 64, 8192) if device == "cpu" else (64, 128, 65536)))
    return Instance(lambda x: functional.avg_pool1d(x, 8, stride=2, padding=3), (x,))


def _average_planes(device: str) -> Instance:
    x = _normal(device, *((8, 64, 112, 112) if device == "cpu" else (32, 64, 512, 512)))
    return Instance(lambda x: functional.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False), (x,))


def _average_large(device: str) -> Instance:
    x = _normal(device, *((8, 32, 121, 120) if device == "cpu" else (32, 64, 495, 504)))
    return Instance(lambda x: functional.avg_pool2d(x, 9), (x,))


def _average_volumes(device: str) -> Instance:
    x = _normal(device, *((2, 16, 48, 48, 48) if device == "cpu" else (8, 32, 128, 128, 128)))
    return Instance(lambda x: functional.avg_pool3d(x, 3, stride=2, padding=1), (x,))


def _greatest_planes(device: str) -> Instance:
    def greatest_planes(x: Tensor) -> Tensor:
        return functional.max_pool2d(functional.relu(x), 3, stride=2, padding=1)

    x = _normal(device, *((4, 64, 112, 112) if device == "cpu" else (64, 64, 224, 224)))
    return Instance(greatest_planes, (x if device == "cpu" else x.bfloat16(),))


def _greatest_training(device: str) -> Instance:
    x = _normal(device, *((4, 32, 112, 112) if device == "cpu" else (32, 64, 112, 112)))
    pooled = _size_bytes(x) // 4
    # Where maxima were is known by a byte each.
    least = 2 * _size_bytes(x) + 2 * pooled + pooled // 2
    return Instance(lambda x: functional.max_pool2d(x, 3, 2, 1), (x,), least, trained=(0,))


def _greatest_and_where(device: str) -> Instance:
    x = _normal(device, *((4, 32, 112, 112) if device == "cpu" else (32, 64, 256, 256)))
    return Instance(lambda x: functional.max_pool2d(x, 2, return_indices=True), (x,))


def _greatest_volumes(device: str) -> Instance:
    x = _normal(device, *((2, 16, 32, 32, 32) if device == "cpu" else (8, 32, 128, 128, 128)))
    return Instance(lambda x: functional.max_pool3d(x, 3, stride=2, padding=1), (x,))


def _average_gradient(device: str) -> Instance:
    def average_gradient(gradient: Tensor, x: Tensor) -> Tensor:
        return torch.ops.aten.avg_pool2d_backward(gradient, x, [3, 3], [2, 2], [1, 1], False, True, None)

    x = _normal(device, *((8, 64, 112, 112) if device == "cpu" else (32, 64, 512, 512)))
    gradient = functional.avg_pool2d(x, 3, 2, 1)
    return Instance(average_gradient, (gradient, x), least_bytes=_size_bytes(gradient, x))


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


# --- embedding bags ---------------------------------------------------------------------------------------------------


def embedding_bags(*tensors: Tensor) -> Tensor:
    """Pooled embeddings of many features side by side; tables first, then ids, then offsets."""
    count = len(tensors) // 3
    parts = [functional.embedding_bag(tensors[count + k], tensors[k], tensors[2 * count + k], mode="sum")
             for k in range(count)]  # fmt: skip
    return torch.cat(parts, dim=1)


def gather_and_sum(*tensors: Tensor) -> Tensor:
    """The same spelled by hand, with a matrix of ids for each feature."""
    count = len(tensors) // 2
    return torch.cat([tensors[k][tensors[count + k]].sum(1) for k in range(count)], dim=1)


def masked_mean_pooling(table: Tensor, ids: Tensor) -> Tensor:
    """The mean of the embeddings of a sequence's words, without those that only fill it up."""
    real = ids != 0
    words = functional.embedding(ids, table) * real[..., None]
    return words.sum(1) / real.sum(1, keepdim=True).clamp(min=1)


def factorization_machine(table: Tensor, linear: Tensor, ids: Tensor) -> Tensor:
    """Second-order interactions of one-hot features that share a table, and their linear terms."""
    embeddings = functional.embedding(ids, table)
    pairs = 0.5 * (embeddings.sum(1) ** 2 - (embeddings**2).sum(1))
    return torch.cat([pairs, linear[ids].sum(1)], dim=1)


def attention_pooling(table: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    """Recent items weighted by how well they fit."""
    return (table[ids] * scores.softmax(dim=1).unsqueeze(-1)).sum(dim=1)


def _tables(device: str, count: int, rows: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    return [_normal(device, rows, width, dtype=dtype) for _ in range(count)]


def _embedding_bags(device: str) -> Instance:
    count, rows, width, dtype = (8, 100_000, 64, torch.float32) if device == "cpu" else (26, 2**20, 128, torch.bfloat16)
    ids = [torch.randint(rows, (4096 * 20,), device=device) for _ in range(count)]
    offsets = [torch.arange(0, 4096 * 20, 20, device=device) for _ in range(count)]
    tables = _tables(device, count, rows, width, dtype)
    least = count * (4096 * 20 * (width * tables[0].element_size() + 8) + 4096 * width * tables[0].element_size())
    return Instance(embedding_bags, (*tables, *ids, *offsets), least_bytes=least)


def _gather_and_sum(device: str) -> Instance:
    count, rows, width, dtype = (8, 100_000, 64, torch.float32) if device == "cpu" else (26, 2**20, 128, torch.bfloat16)
    ids = [torch.randint(rows, (4096, 20), device=device) for _ in range(count)]
    tables = _tables(device, count, rows, width, dtype)
    least = count * (4096 * 20 * (width * tables[0].element_size() + 8) + 4096 * width * tables[0].element_size())
    return Instance(gather_and_sum, (*tables, *ids), least_bytes=least)


def _masked_mean_pooling(device: str) -> Instance:
    batch = 2048 if device == "cpu" else 16384
    ids = torch.randint(50_000, (batch, 48), device=device, dtype=torch.int32)
    ids[:, 30:] *= torch.randint(2, (batch, 18), device=device, dtype=torch.int32)
    table = _normal(device, 50_000, 100)
    return Instance(masked_mean_pooling, (table, ids), least_bytes=min(_size_bytes(table), ids.numel() * 400))


def weighted_bags(table: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """A product of one row of weights with the rows that were looked up."""
    return torch.bmm(weights.softmax(-1).unsqueeze(1), functional.embedding(ids, table)).squeeze(1)


def _weighted_bags(device: str) -> Instance:
    batch, rows, width = (2048, 100_000, 64) if device == "cpu" else (16384, 1_000_000, 64)
    ids = torch.randint(rows, (batch, 50), device=device)
    inputs = (_normal(device, rows, width), ids, _normal(device, batch, 50))
    return Instance(weighted_bags, inputs, least_bytes=batch * (50 * (width * 4 + 12) + width * 4))


def _bags_training(device: str) -> Instance:
    """The gradient of the table is dense, as that of most tables is."""
    batch, rows, width = (4096, 20_000, 64) if device == "cpu" else (16384, 100_000, 64)
    ids = torch.randint(rows, (batch, 20), device=device)
    table = _normal(device, rows, width)

    def bags(table: Tensor, ids: Tensor) -> Tensor:
        return functional.embedding_bag(ids, table, mode="mean", padding_idx=0)

    bag_bytes = batch * width * 4
    least = min(_size_bytes(table), 20 * bag_bytes) + 2 * _size_bytes(ids) + 2 * bag_bytes + _size_bytes(table)
    return Instance(bags, (table, ids), least, trained=(0,))


def _factorization_machine(device: str) -> Instance:
    batch = 16384 if device == "cpu" else 262144
    rows = 1_000_000
    inputs = (_normal(device, rows, 16), _normal(device, rows, 1), torch.randint(rows, (batch, 39), device=device))
    return Instance(factorization_machine, inputs, least_bytes=batch * 39 * (17 * 4 + 8))


# --- chains of products ----------------------------------------------------------------------------------------------


def factor_pooling(x: Tensor) -> Tensor:
    """All pairs of features, multiplied and summed, in linear time."""
    return x.sum(dim=1).square() - x.square().sum(dim=1)


def factor_score(x: Tensor, linear: Tensor) -> Tensor:
    """The second-order term of a factorisation machine as a number per sample, beside the first-order one."""
    pairs = torch.pow(torch.sum(x, dim=1), 2) - torch.sum(x * x, dim=1)
    return torch.sigmoid(linear + 0.5 * torch.sum(pairs, dim=1, keepdim=True))


def projected_interaction(x: Tensor, projection: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    flat = torch.matmul(x, torch.matmul(x.transpose(1, 2), projection)).flatten(1)
    return functional.layer_norm(flat, flat.shape[1:], weight, bias)


def feature_interaction(x: Tensor, y: Tensor) -> Tensor:
    return torch.bmm(x, torch.bmm(x.transpose(1, 2), y))


def personal_feed_forward(x: Tensor, up: Tensor, down: Tensor, scale: Tensor) -> Tensor:
    """Every sample has weights of its own."""
    hidden = functional.rms_norm(torch.bmm(x, up), up.shape[2:])
    return functional.rms_norm(torch.bmm(hidden, down), x.shape[2:], scale)


def personal_gelu(x: Tensor, up: Tensor, down: Tensor, scale: Tensor) -> Tensor:
    return functional.rms_norm(torch.bmm(functional.gelu(torch.bmm(x, up)), down), x.shape[2:], scale)


def perceptron(x: Tensor, *layers: Tensor) -> Tensor:
    """Linear layers (weight, bias, …) with ReLU between them."""
    for number in range(0, len(layers) - 2, 2):
        x = torch.relu(functional.linear(x, layers[number], layers[number + 1]))
    return functional.linear(x, layers[-2], layers[-1])


def low_rank_cross(x: Tensor, *layers: Tensor) -> Tensor:
    first = x
    for up, down, bias in zip(layers[0::3], layers[1::3], layers[2::3], strict=True):
        x = first * (functional.linear(functional.linear(x, down), up) + bias) + x
    return x


def squeezed_gate(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """A gate made of two products of the values that it is applied to."""
    return x * torch.sigmoid(functional.silu(x @ down) @ up)


def _halves(device: str, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """bfloat16 tensors, the first of variance one, the others as weights are."""
    first, *rest = shapes
    weights = [_normal(device, *shape, dtype=torch.bfloat16) / math.sqrt(shape[-1]) for shape in rest]
    return (_normal(device, *first, dtype=torch.bfloat16), *weights)


def _factor_pooling(device: str) -> Instance:
    if device == "cpu":
        return Instance(factor_pooling, (_normal(device, 16384, 39, 64),))
    return Instance(factor_pooling, (_normal(device, 65536, 39, 64, dtype=torch.bfloat16),))


def _factor_score(device: str) -> Instance:
    rows = 32768 if device == "cpu" else 262144
    return Instance(factor_score, (_normal(device, rows, 26, 16), _normal(device, rows, 1)))


def _projected_interaction(device: str) -> Instance:
    x, projection = _halves(device, (4096, 128, 128), (128, 32))
    weight, bias = _normal(device, 4096, dtype=torch.bfloat16), _normal(device, 4096, dtype=torch.bfloat16)
    flops = 4 * 4096 * 128 * 128 * 32
    return Instance(projected_interaction, (x, projection, weight, bias), flops=flops, flops_dtype=torch.bfloat16)


def _feature_interaction(features: int) -> Callable[[str], Instance]:
    def make(device: str) -> Instance:
        x, y = _halves(device, (1024, features, 224), (1024, features, 448))
        # The least arithmetic: that of the better order of the two products.
        flops = 2 * 1024 * features * min(features * (224 + 448), 2 * 224 * 448)
        return Instance(feature_interaction, (x, y), flops=flops, flops_dtype=torch.bfloat16)

    return make


def _personal(
    function: Callable[..., Tensor], samples: int, rows: int, width: int, hidden: int
) -> Callable[[str], Instance]:
    def make(device: str) -> Instance:
        inputs = _halves(device, (samples, rows, width), (samples, width, hidden), (samples, hidden, width), (width,))
        flops = 4 * samples * rows * width * hidden
        return Instance(function, inputs, flops=flops, flops_dtype=torch.bfloat16)

    return make


def _perceptron(device: str) -> Instance:
    inputs = _halves(device, (131072, 256), (128, 256), (128,), (64, 128), (64,), (1, 64), (1,))
    flops = 2 * 131072 * (256 * 128 + 128 * 64 + 64)
    return Instance(perceptron, inputs, flops=flops, flops_dtype=torch.bfloat16)


def _perceptron_single(device: str) -> Instance:
    inputs = tuple(tensor.float() for tensor in _halves(device, (65536, 100), (64, 100), (64,), (48, 64), (48,)))
    return Instance(perceptron, inputs, flops=2 * 65536 * (100 * 64 + 64 * 48))


def _low_rank_cross(device: str) -> Instance:
    shapes = ((1024, 64), (64, 1024), (1024,))
    inputs = _halves(device, (65536, 1024), *shapes, *shapes, *shapes)
    return Instance(low_rank_cross, inputs, flops=12 * 65536 * 1024 * 64, flops_dtype=torch.bfloat16)


def _squeezed_gate(device: str) -> Instance:
    inputs = _halves(device, (65536, 384), (384, 48), (48, 384))
    return Instance(squeezed_gate, inputs, flops=4 * 65536 * 384 * 48, flops_dtype=torch.bfloat16)


def _attention_pooling(device: str) -> Instance:
    batch, items = (8192, 25) if device == "cpu" else (65536, 50)
    ids, scores = torch.randint(200_000, (batch, items), device=device), _normal(device, batch, items)
    return Instance(attention_pooling, (_normal(device, 200_000, 32), ids, scores), least_bytes=batch * items * 140)


# --- scatters --------------------------------------------------------------------------------------------------------


def add_by_segment(values: Tensor, rows: Tensor, count: int) -> Tensor:
    return torch.zeros(count, values.shape[1], device=values.device, dtype=values.dtype).index_add(0, rows, values)


def gradient_of_table(gradient: Tensor, ids: Tensor, count: int) -> Tensor:
    """What pooling leaves for the backward of a table: one row for every id of a bag."""
    table = torch.zeros(count, gradient.shape[1], device=gradient.device)
    return table.index_put((ids,), gradient[:, None].expand(-1, ids.shape[1], -1), accumulate=True)


def messages(nodes: Tensor, weights: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
    """One step along the edges of a graph: every node receives what its neighbours send."""
    sent = nodes[sources] * weights[:, None]
    return torch.zeros_like(nodes).index_add(0, targets, sent)


def greatest_by_segment(values: Tensor, rows: Tensor, count: int) -> Tensor:
    start = torch.full((count, values.shape[1]), -math.inf, device=values.device)
    return start.scatter_reduce(0, rows[:, None].expand_as(values), values, "amax")


def _index_add(device: str) -> Instance:
    events, count, width = (200_000, 20_000, 64) if device == "cpu" else (2_000_000, 100_000, 128)
    values = _normal(device, events, width, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
    return Instance(lambda x, i: add_by_segment(x, i, count), (values, torch.randint(count, (events,), device=device)))


def _gradient_of_table(device: str) -> Instance:
    inputs = (_normal(device, 4096, 48), torch.randint(50_000, (4096, 12), device=device))
    return Instance(lambda g, i: gradient_of_table(g, i, 50_000), inputs)


def _messages(device: str) -> Instance:
    nodes, edges = 20_000, 300_000
    ends = torch.randint(nodes, (2, edges), device=device)
    return Instance(messages, (_normal(device, nodes, 32), _normal(device, edges), ends[0], ends[1]))


def _greatest_by_segment(device: str) -> Instance:
    rows = torch.randint(5_000, (100_000,), device=device)
    return Instance(lambda x, i: greatest_by_segment(x, i, 5_000), (_normal(device, 100_000, 48), rows))


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


def _interaction_training(device: str) -> Instance:
    """The features are read for the products and again for their gradient, which is written."""
    batch, width, dtype = (4096, 64, torch.float32) if device == "cpu" else (16384, 128, torch.bfloat16)
    features = _normal(device, batch, 27, width, dtype=dtype)
    least = 3 * _size_bytes(features) + 2 * batch * (width + 27 * 26 // 2) * dtype.itemsize
    flops = 3 * _interaction_flops(batch, 27, width)
    return Instance(dot_interaction, (features,), least, flops=flops, flops_dtype=dtype, trained=(0,))


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

# With more features the other order of the two products is the shorter one, and a vendor's products catch up.
CURVE_FEATURES = (8, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256)


def curve() -> tuple[Case, ...]:
    """X (XᵀY) as it was published (1024 samples, widths 224 and 448), over the number of features."""
    return tuple(
        Case(f"features-{count}", "chains", "variation", BOTH, _feature_interaction(count)) for count in CURVE_FEATURES
    )


CASES: tuple[Case, ...] = (
    Case("router-top8", "rows", "table", CUDA, _softmax_topk),
    Case("moe-gate-top2", "rows", "table", CPU, _moe_gate),
    Case("sort-rows", "rows", "table", BOTH, _sort_rows),
    Case("topk8-wide", "rows", "table", CPU, _topk_wide),
    Case("argmax-middle", "rows", "table", CUDA, _argmax_middle),
    Case("sigmoid-router", "rows", "variation", BOTH, _sigmoid_router),
    Case("argsort-descending", "rows", "variation", BOTH, _argsort_descending),
    Case("beam-step", "rows", "variation", BOTH, _beam_step),
    Case("softmax-long", "reductions", "table", BOTH, _softmax_long),
    Case("log-softmax-vocabulary", "reductions", "variation", CUDA, _log_softmax_vocabulary),
    Case("layer-norm", "reductions", "table", CPU, _layer_norm),
    Case("layer-norm-residual", "reductions", "variation", CUDA, _layer_norm_residual),
    Case("layer-norm-gradient", "reductions", "variation", BOTH, _layer_norm_gradient),
    Case("rms-norm-gradient", "reductions", "table", BOTH, _rms_norm_gradient),
    Case("group-norm-silu", "reductions", "table", BOTH, _group_norm_silu),
    Case("softmax-gradient", "reductions", "variation", BOTH, _softmax_gradient),
    Case("log-sum-exp-outer", "reductions", "variation", BOTH, _log_sum_exp_outer),
    Case("log-softmax-outer", "reductions", "variation", BOTH, _log_softmax_outer),
    Case("variance-middle", "reductions", "variation", BOTH, _variance_middle),
    Case("cross-entropy", "reductions", "table", BOTH, _cross_entropy),
    Case("cross-entropy-gradient", "reductions", "table", BOTH, _cross_entropy_gradient),
    Case("smoothed-cross-entropy", "reductions", "variation", BOTH, _smoothed_cross_entropy),
    Case("layer-norm-training", "reductions", "table", BOTH, _layer_norm_training),
    Case("rms-norm-training", "reductions", "table", BOTH, _rms_norm_training),
    Case("cross-entropy-training", "reductions", "table", BOTH, _cross_entropy_training),
    Case("picked-loss-training", "reductions", "variation", BOTH, _picked_loss_training),
    Case("running-sum", "scans", "table", BOTH, _running_sum),
    Case("exclusive-offsets", "scans", "variation", BOTH, _exclusive_offsets),
    Case("discounted-returns", "scans", "variation", BOTH, _discounted_returns),
    Case("running-maximum", "scans", "variation", BOTH, _running_maximum),
    Case("causal-convolution", "stencils", "table", BOTH, _causal_convolution),
    Case("trimmed-convolution", "stencils", "variation", BOTH, _trimmed_convolution),
    Case("depthwise-plane", "stencils", "table", BOTH, _depthwise_plane),
    Case("inverted-residual", "stencils", "variation", BOTH, _inverted_residual),
    Case("large-kernel", "stencils", "variation", BOTH, _large_kernel),
    Case("average-lines", "stencils", "variation", BOTH, _average_lines),
    Case("average-planes", "stencils", "variation", BOTH, _average_planes),
    Case("average-large", "stencils", "variation", BOTH, _average_large),
    Case("average-volumes", "stencils", "variation", BOTH, _average_volumes),
    Case("average-gradient", "stencils", "variation", BOTH, _average_gradient),
    Case("greatest-planes", "stencils", "variation", BOTH, _greatest_planes),
    Case("greatest-training", "stencils", "variation", BOTH, _greatest_training),
    Case("greatest-and-where", "stencils", "variation", BOTH, _greatest_and_where),
    Case("greatest-volumes", "stencils", "variation", BOTH, _greatest_volumes),
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
    Case("embedding-bags", "bags", "table", BOTH, _embedding_bags),
    Case("gather-and-sum", "bags", "table", BOTH, _gather_and_sum),
    Case("masked-mean-pooling", "bags", "variation", BOTH, _masked_mean_pooling),
    Case("weighted-bags", "bags", "variation", BOTH, _weighted_bags),
    Case("bags-training", "bags", "variation", BOTH, _bags_training),
    Case("factorization-machine", "bags", "variation", BOTH, _factorization_machine),
    Case("factor-pooling", "chains", "table", BOTH, _factor_pooling),
    Case("factor-score", "chains", "variation", BOTH, _factor_score),
    Case("projected-interaction", "chains", "table", CUDA, _projected_interaction),
    Case("feature-interaction-24", "chains", "table", CUDA, _feature_interaction(24)),
    Case("feature-interaction-40", "chains", "table", CUDA, _feature_interaction(40)),
    Case("feature-interaction-48", "chains", "table", CUDA, _feature_interaction(48)),
    Case("feature-interaction-64", "chains", "variation", CUDA, _feature_interaction(64)),
    Case("feature-interaction-96", "chains", "variation", CUDA, _feature_interaction(96)),
    Case("feature-interaction-160", "chains", "variation", CUDA, _feature_interaction(160)),
    Case("personal-feed-forward", "chains", "table", CUDA, _personal(personal_feed_forward, 4096, 64, 128, 32)),
    Case("personal-gelu", "chains", "variation", CUDA, _personal(personal_gelu, 1024, 200, 192, 96)),
    Case("perceptron", "chains", "table", CUDA, _perceptron),
    Case("perceptron-single", "chains", "variation", CUDA, _perceptron_single),
    Case("low-rank-cross", "chains", "table", CUDA, _low_rank_cross),
    Case("squeezed-gate", "chains", "variation", CUDA, _squeezed_gate),
    Case("attention-pooling", "bags", "variation", BOTH, _attention_pooling),
    Case("index-add", "scatter", "table", BOTH, _index_add),
    Case("messages", "scatter", "variation", BOTH, _messages),
    Case("greatest-by-segment", "scatter", "variation", BOTH, _greatest_by_segment),
    Case("gradient-of-table", "scatter", "variation", BOTH, _gradient_of_table),
    Case("dot-interaction", "interaction", "table", BOTH, _dot_interaction),
    Case("interaction-training", "interaction", "variation", BOTH, _interaction_training),
    Case("interaction-from-list", "interaction", "variation", BOTH, _interaction_from_list),
    Case("interaction-einsum", "interaction", "variation", BOTH, _interaction_einsum),
    Case("interaction-scaled", "interaction", "variation", BOTH, _interaction_scaled),
)
