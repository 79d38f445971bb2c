"""Cases of every family with shapes, dtypes and layouts drawn at random: what nobody tuned for.

    python -m benchmarks.longtail --random 60 [--seed 0] [--cases FAMILY ...]

A family's cases are the same for a seed, however many of them are asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from . import cases
from .cases import Case, Instance

# Elements of the largest input: enough to be worth a kernel, few enough to be judged in seconds.
_ELEMENTS = {"cpu": (2**20, 2**22), "cuda": (2**22, 2**24)}
# On a CPU most models run in float32.
_DTYPES = {
    "cpu": (torch.float32, torch.float32, torch.bfloat16, torch.float16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}


@dataclass(frozen=True)
class Draw:
    """Random choices of one case. Sizes are odd as often as even."""

    rng: random.Random
    device: str

    def between(self, low: int, high: int) -> int:
        """Log-uniform, so that small sizes are as likely as large ones."""
        return min(high, int(low * (high / low) ** self.rng.random() + 0.5))

    def elements(self) -> int:
        return self.between(*_ELEMENTS[self.device])

    def dtype(self) -> torch.dtype:
        return self.rng.choice(_DTYPES[self.device])

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=dtype or torch.float32)

    def laid_out(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """With memory running along the last axis or, one time in four, along the one before."""
        if len(shape) < 2 or self.rng.random() < 0.75:
            return self.normal(*shape, dtype=dtype)
        return self.normal(*shape[:-2], shape[-1], shape[-2], dtype=dtype).transpose(-1, -2)

    def indices(self, count: int, *shape: int) -> Tensor:
        dtype = torch.int64 if self.rng.random() < 0.7 else torch.int32
        return torch.randint(count, shape, device=self.device, dtype=dtype)


def _selections(draw: Draw) -> Instance:
    if draw.rng.random() < 0.25:
        return _long_selections(draw)
    columns = draw.between(8, 256)
    count = draw.between(1, min(columns, 16))
    rows = max(1, draw.elements() // 4 // columns)
    x = draw.laid_out(rows, columns, dtype=draw.dtype())

    def top(x: Tensor) -> Tensor:
        return torch.topk(torch.softmax(x, -1), count).values

    def ordered(x: Tensor) -> Tensor:
        return torch.sort(x, dim=-1).values

    def gate(x: Tensor) -> Tensor:
        best = torch.topk(torch.sigmoid(x), count).values
        return best / best.sum(-1, keepdim=True)

    return Instance(draw.rng.choice((top, ordered, gate)), (x,))


def _long_selections(draw: Draw) -> Instance:
    """A few of a vocabulary."""
    columns, count, largest = draw.between(2000, 130_000), draw.between(1, 20), draw.rng.random() < 0.7
    rows = max(2, draw.elements() // columns)
    x = draw.normal(rows, columns, dtype=draw.dtype())
    if draw.rng.random() < 0.5:
        return Instance(lambda x: torch.topk(x, count, largest=largest).values, (x,))
    return Instance(lambda x: torch.topk(torch.log_softmax(x.float(), -1), count, largest=largest).values, (x,))


def _reductions(draw: Draw) -> Instance:
    columns, dtype = draw.between(200, 60_000), draw.dtype()
    rows = max(1, draw.elements() // columns)
    x, residual = draw.laid_out(rows, columns, dtype=dtype), draw.normal(rows, columns, dtype=dtype)
    weight, bias = draw.normal(columns, dtype=dtype), draw.normal(columns, dtype=dtype)
    kind = draw.rng.randrange(8)
    if kind == 0:
        return Instance(lambda x: torch.softmax(x, -1), (x,))
    if kind >= 6:
        return _reductions_across(draw)
    if kind == 1:
        return Instance(lambda x, r, w, b: functional.layer_norm(x + r, w.shape, w, b), (x, residual, weight, bias))
    if kind == 2:
        return Instance(lambda x, w: functional.silu(functional.rms_norm(x, w.shape, w)), (x, weight))
    if kind == 3:
        return Instance(lambda x, w: functional.rms_norm(x, w.shape, w), (x, weight), trained=(0, 1))
    if kind == 4:
        target = torch.randint(columns, (rows,), device=draw.device)
        return Instance(lambda x, t: functional.cross_entropy(x.float(), t), (x, target))
    return Instance(lambda x, w, b: functional.layer_norm(x, w.shape, w, b), (x, weight, bias), trained=(0, 1, 2))


def _reductions_across(draw: Draw) -> Instance:
    """Over an outer or a middle axis, or over groups of channels."""
    outer, length = draw.between(1, 64), draw.between(16, 4000)
    inner = max(1, draw.elements() // (outer * length))
    x = draw.normal(outer, length, inner, dtype=draw.dtype())
    groups = draw.rng.choice([count for count in (1, 2, 4, 8, 16) if length % count == 0])
    weight, bias = draw.normal(length, dtype=x.dtype), draw.normal(length, dtype=x.dtype)
    functions: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: torch.softmax(x, 1),
        lambda x: torch.logsumexp(x, 1),
        lambda x: torch.var(x, 1),
        lambda x: torch.amax(x, 1),
        lambda x: x / torch.linalg.vector_norm(x, dim=1, keepdim=True),
        lambda x: functional.silu(functional.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype))),
    )
    return Instance(draw.rng.choice(functions), (x,))


def _scans(draw: Draw) -> Instance:
    columns = draw.between(100, 20_000)
    x = draw.laid_out(max(2, draw.elements() // 2 // columns), columns, dtype=draw.dtype())
    dim = draw.rng.choice((0, 1))
    functions: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: torch.cumsum(x, dim),
        lambda x: torch.flip(torch.cumsum(torch.flip(torch.relu(x), (dim,)), dim), (dim,)),
        lambda x: torch.cummax(x, dim).values,
        lambda x: torch.cumsum(x, dim) - x,
        lambda x: torch.logcumsumexp(x, dim),
    )
    return Instance(draw.rng.choice(functions), (x,))


def _stencils(draw: Draw) -> Instance:
    dtype, kind = draw.dtype(), draw.rng.randrange(5)
    channels, batch = draw.between(16, 512), draw.between(2, 16)
    if kind == 0:
        taps, dilation = draw.between(2, 7), draw.rng.choice((1, 1, 2))
        x = draw.normal(batch, channels, max(16, draw.elements() // (batch * channels)), dtype=dtype)
        weight, bias = draw.normal(channels, 1, taps, dtype=dtype), draw.normal(channels, dtype=dtype)

        def causal(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            padded = functional.pad(x, ((taps - 1) * dilation, 0))
            return functional.silu(functional.conv1d(padded, weight, bias, groups=channels, dilation=dilation))

        return Instance(causal, (x, weight, bias))
    side = max(8, int((draw.elements() / (batch * channels)) ** 0.5))
    size, stride = draw.rng.choice(((3, 1), (3, 2), (5, 1), (2, 2)))
    x = draw.normal(batch, channels, side, side + draw.rng.randrange(9), dtype=dtype)
    if draw.rng.random() < 0.4:
        x = x.to(memory_format=torch.channels_last)
    if kind <= 2:
        weight = draw.normal(channels, 1, size, size, dtype=dtype)
        return Instance(
            lambda x, w: functional.relu(functional.conv2d(x, w, stride=stride, padding=size // 2, groups=channels)),
            (x, weight),
        )
    if kind == 3:
        return Instance(lambda x: functional.avg_pool2d(x, size, stride, padding=size // 2), (x,))
    return Instance(lambda x: functional.max_pool2d(x, size, stride, padding=size // 2), (x,))


def _features(draw: Draw) -> Instance:
    count = draw.between(2, 24)
    rows = max(1000, draw.elements() // 8 // count)
    borders = [torch.sort(draw.normal(draw.between(3, 300))).values for _ in range(count)]
    if draw.rng.random() < 0.3:
        return Instance(
            lambda columns, *own: torch.stack([torch.bucketize(columns[:, k], b) for k, b in enumerate(own)], 1),
            (draw.laid_out(rows, count, dtype=torch.float32), *borders),
        )
    if draw.rng.random() < 0.5:
        values = [draw.normal(rows) for _ in range(count)]
        return Instance(
            lambda *both: tuple(torch.bucketize(v, b) for v, b in zip(both[:count], both[count:], strict=True)),
            (*values, *borders),
        )
    sizes = [draw.between(1000, 10_000_000) for _ in range(count)]
    ids = [torch.randint(2**62, (rows,), device=draw.device) for _ in range(count)]
    return Instance(
        lambda *ids: tuple(cases.hash_modulo(own, size) for own, size in zip(ids, sizes, strict=True)), tuple(ids)
    )


def _jagged(draw: Draw) -> Instance:
    width, longest = draw.between(8, 128), draw.between(8, 200)
    rows = max(64, 2 * draw.elements() // 4 // (width * longest))
    lengths = torch.randint(0, longest + 1, (rows,), device=draw.device)
    offsets = functional.pad(lengths.cumsum(0), (1, 0))
    values, kept = draw.normal(int(offsets[-1]), width, dtype=draw.dtype()), draw.between(4, longest)
    if draw.rng.random() < 0.5:
        return Instance(lambda v, o: cases.truncate_embeddings(v, o, kept), (values, offsets))
    return Instance(lambda v, o: cases.mean_pool(v.float(), o, kept), (values, offsets))


def _bags(draw: Draw) -> Instance:
    width, pool, count, dtype = draw.between(8, 200), draw.between(2, 60), draw.between(1, 12), draw.dtype()
    rows = draw.between(1000, 300_000)
    if draw.rng.random() < 0.3:
        bags = max(64, draw.elements() // (width * pool))
        inputs = (
            draw.normal(rows, width, dtype=dtype),
            draw.indices(rows, bags, pool),
            draw.normal(bags, pool, dtype=dtype),
        )
        return Instance(cases.attention_pooling, inputs)
    bags = max(64, draw.elements() // (width * pool * count))
    tables = [draw.normal(rows, width, dtype=dtype) for _ in range(count)]
    ids = [draw.indices(rows, bags, pool) for _ in range(count)]
    if draw.rng.random() < 0.5:
        return Instance(cases.gather_and_sum, (*tables, *ids))
    mode = draw.rng.choice(("sum", "mean"))

    def pooled(*both: Tensor) -> Tensor:
        parts = zip(both[:count], both[count:], strict=True)
        return torch.cat([functional.embedding_bag(own, table, mode=mode) for table, own in parts], 1)

    return Instance(pooled, (*tables, *ids))


def _chains(draw: Draw) -> Instance:
    dtype = draw.dtype()
    rows, width = draw.between(8, 128), draw.between(16, 256)
    batch = max(4, draw.elements() // 2 // (rows * width))
    x = draw.laid_out(batch, rows, width, dtype=dtype)
    kind = draw.rng.randrange(5) if draw.device == "cuda" else 0
    hidden = draw.between(16, 128)
    if kind == 0:
        return Instance(cases.factor_pooling, (x,))
    if kind == 1:
        return Instance(cases.feature_interaction, (x, draw.normal(batch, rows, hidden, dtype=dtype) / width**0.5))
    if kind == 2:
        up, down = draw.normal(batch, width, hidden, dtype=dtype), draw.normal(batch, hidden, width, dtype=dtype)
        scale = draw.normal(width, dtype=dtype)
        return Instance(cases.personal_feed_forward, (x, up / width**0.5, down / hidden**0.5, scale))
    flat = x.reshape(-1, width)
    if kind == 3:
        sizes = (width, hidden, draw.between(8, 64))
        layers = [
            part
            for inner, outer in zip(sizes, sizes[1:], strict=False)
            for part in (draw.normal(outer, inner, dtype=dtype) / inner**0.5, draw.normal(outer, dtype=dtype))
        ]
        return Instance(cases.perceptron, (flat, *layers))
    rank = draw.rng.choice((16, 32, 64))
    layers = [
        part
        for _ in range(draw.between(1, 3))
        for part in (
            draw.normal(width, rank, dtype=dtype) / rank**0.5,
            draw.normal(rank, width, dtype=dtype) / width**0.5,
            draw.normal(width, dtype=dtype),
        )
    ]
    return Instance(cases.low_rank_cross, (flat, *layers))


def _scatter(draw: Draw) -> Instance:
    width, count = draw.between(8, 128), draw.between(100, 50_000)
    events = max(1000, draw.elements() // width)
    index = torch.randint(count, (events,), device=draw.device)
    x = draw.laid_out(events, width, dtype=draw.dtype())
    return Instance(lambda x, i: cases.add_by_segment(x, i, count), (x, index))


def _interaction(draw: Draw) -> Instance:
    count, width, dtype = draw.between(6, 48), draw.between(8, 128), draw.dtype()
    features = draw.laid_out(max(16, draw.elements() // (count * width)), count, width, dtype=dtype)
    return Instance(draw.rng.choice((cases.dot_interaction, cases.interaction_scaled)), (features,))


FAMILIES: Mapping[str, Callable[[Draw], Instance]] = {
    "rows": _selections, "reductions": _reductions, "scans": _scans, "stencils": _stencils, "features": _features,
    "jagged": _jagged, "bags": _bags, "chains": _chains, "scatter": _scatter, "interaction": _interaction,
}  # fmt: skip


def drawn(count: int, seed: int) -> Iterator[Case]:
    """``count`` cases of each family, the families in turn."""
    for number in range(count):
        for family, make in FAMILIES.items():
            yield Case(
                f"{family}-{number}", family, "random", ("cpu", "cuda"), _maker(make, f"{seed} {family} {number}")
            )


def _maker(make: Callable[[Draw], Instance], seed: str) -> Callable[[str], Instance]:
    return lambda device: make(Draw(random.Random(seed), device))
