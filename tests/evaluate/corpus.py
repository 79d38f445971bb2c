"""Kernels that the judge must tell apart: honest ones, however ugly, and all the ways known to be wrong or to cheat.

Every cheat names the check that has to catch it, so that no other check can stand in for a wall that has fallen.
"""

# ruff: noqa: E501 - a line of C++ is easier to read whole

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kevolve_inductor.evaluate.build import gate
from kevolve_inductor.evaluate.correctness import Judge, NoReference
from kevolve_inductor.evaluate.evaluation import Crashed, Evaluation, Mismatch, Refused, TimedOut, from_json
from kevolve_inductor.evaluate.guarded import read_outputs
from kevolve_inductor.evaluate.inputs import BROKEN, distributions_for
from kevolve_inductor.evaluate.job import OpenJob, RunJob, WorkerSetup
from kevolve_inductor.evaluate.process import Died, Hung, WorkerSlot
from kevolve_inductor.exc import KevolveError
from kevolve_inductor.graph.region import InputRange, Region, RegionNode, TensorSpec, Workload
from kevolve_inductor.kernel import Argument, Kernel, Launch, Workspace
from kevolve_inductor.platforms.cpu import compile_cpp, generate_cpp
from kevolve_inductor.platforms.cpu_executor import CpuExecutor

LIMIT_S = 10.0
_OPEN_LIMIT_S = 120.0
PRIME = 2654435761
# What the gate says of an object that was built, whatever its text looked like.
OUTLIVES = "memory that outlives the call"


def tensor(*shape: int, dtype: str = "float32", stride: tuple[int, ...] | None = None) -> TensorSpec:
    steps = [1]
    for size in reversed(shape[1:]):
        steps.insert(0, steps[0] * size)
    return TensorSpec(shape, stride or tuple(steps), dtype, "cpu")


def node(name: str, *args: object, result: TensorSpec | tuple[TensorSpec, ...], **kwargs: object) -> RegionNode:
    """``"i0"`` and ``"n3"`` among ``args`` stand for values."""
    values = tuple({"node": a} if re.fullmatch(r"[in]\d+", str(a)) else a for a in args)
    return RegionNode(name, values, kwargs, result if isinstance(result, tuple) else (result,))


@dataclass(frozen=True)
class Ground:
    """A region with what its kernels look like. ``parameters`` are those of the C++ function, in order."""

    region: Region
    workload: Workload
    parameters: str

    def kernel(self, body: str, before: str = "", workspaces: tuple[Workspace, ...] = ()) -> Kernel:
        """``body`` is what the function does before it returns 0, ``before`` stands between the headers and it."""
        counts = {"input": self.region.inputs, "output": self.region.outputs, "workspace": workspaces}
        arguments = [Argument(kind, k) for kind, values in counts.items() for k in range(len(values))]  # type: ignore[arg-type]
        parameters = self.parameters + "".join(f", float* __restrict scratch{k}" for k in range(len(workspaces)))
        headers = "".join(f"#include <{name}>\n" for name, words in _HEADERS.items() if re.search(words, before + body))
        source = f'{headers}{before}\nextern "C" int64_t run({parameters}) {{\n{body}\n  return 0;\n}}\n'
        return Kernel("cpp", source, (Launch("run", tuple(arguments)),), workspaces)


# By header, the words that need it: those that are not needed cost more to compile than the kernels.
_HEADERS = {
    "cstdint": "",
    "algorithm": r"std::(fill|copy|clamp|max|min|transform|lower_bound|partial_sort)|drand48|std::this_thread|: \{\d",
    "bit": r"std::(bit_cast|popcount)",
    "cmath": r"std::\w+\(|INFINITY|expf",
    "cstring": r"mem(cpy|set)",
    "immintrin.h": r"_mm|_CMP|__rdtsc",
    "limits": "numeric_limits",
    "numeric": r"std::(accumulate|iota)",
    "omp.h": "omp_",
}


def _ground(inputs: tuple[TensorSpec, ...], nodes: tuple[RegionNode, ...], parameters: str, *outputs: str,
            ranges: tuple[InputRange | None, ...] = ()) -> Ground:  # fmt: skip
    region = Region(inputs, nodes, outputs or (f"n{len(nodes) - 1}",))
    return Ground(region, Workload((), ranges or (None,) * len(inputs)), parameters)


def _sums() -> Ground:
    made = node("aten.sum.dim_IntList", "i0", [1], result=tensor(400))
    return _ground((tensor(400, 101),), (made,), "const float* __restrict in, float* __restrict out")


def _softmax() -> Ground:
    made = node("aten._softmax.default", "i0", -1, False, result=tensor(64, 77))
    return _ground((tensor(64, 77),), (made,), "const float* __restrict in, float* __restrict out")


def _biased() -> Ground:
    wide = tensor(120, 50)
    nodes = (node("aten.add.Tensor", "i0", "i1", result=wide), node("aten.add.Tensor", "n0", "i2", result=wide))
    parameters = (
        "const float* __restrict a, const float* __restrict b, const float* __restrict w, float* __restrict out"
    )
    return _ground((wide, wide, tensor(50)), nodes, parameters)


def _look_up() -> Ground:
    inputs = (tensor(50), tensor(3000, dtype="int64"))
    made = node("aten.index_select.default", "i0", 0, "i1", result=tensor(3000))
    parameters = "const float* __restrict table, const int64_t* __restrict at, float* __restrict out"
    return _ground(inputs, (made,), parameters, ranges=(None, InputRange(0, 49)))


def _buckets() -> Ground:
    made = node("aten.bucketize.Tensor", "i0", "i1", result=tensor(900, dtype="int64"))
    parameters = "const float* __restrict in, const float* __restrict borders, int64_t* __restrict out"
    return _ground((tensor(900), tensor(21)), (made,), parameters)


def _argmax() -> Ground:
    made = node("aten.argmax.default", "i0", 1, result=tensor(90, dtype="int64"))
    return _ground((tensor(90, 40),), (made,), "const float* __restrict in, int64_t* __restrict out")


def _top3() -> Ground:
    values, indices = tensor(60, 40), tensor(60, 3, dtype="int64")
    both = node("aten.topk.default", "i0", 3, result=(tensor(60, 3), indices))
    first = node("getitem", "n0", 0, result=tensor(60, 3))
    second = node("getitem", "n0", 1, result=indices)
    parameters = "const float* __restrict in, float* __restrict out, int64_t* __restrict at"
    return _ground((values,), (both, first, second), parameters, "n1", "n2")


def _turned() -> Ground:
    turned = node("aten.permute.default", "i0", [1, 0], result=tensor(130, 70, stride=(1, 130)))
    layout = {"memory_format": "torch.contiguous_format"}
    copied = node("aten.clone.default", "n0", result=tensor(130, 70), memory_format=layout)
    return _ground((tensor(70, 130),), (turned, copied), "const float* __restrict in, float* __restrict out")


def _hashed() -> Ground:
    ids = tensor(1000, dtype="int64")
    nodes = (
        node("aten.mul.Tensor", "i0", PRIME, result=ids),
        node("aten.__rshift__.Scalar", "n0", 29, result=ids),
        node("aten.bitwise_xor.Tensor", "n0", "n1", result=ids),
        node("aten.sub.Tensor", "n2", "i0", result=ids),
        node("aten.remainder.Scalar", "n3", 1009, result=ids),
    )
    return _ground((ids,), nodes, "const int64_t* __restrict in, int64_t* __restrict out")


def _strided() -> Ground:
    made = node("aten.mul.Tensor", "i0", 2.0, result=tensor(60, 40))
    parameters = "const float* __restrict in, float* __restrict out"
    return _ground((tensor(60, 40, stride=(48, 1)),), (made,), parameters)


def _segments() -> Ground:
    inputs = (tensor(500), tensor(41, dtype="int64"))
    made = node("aten.segment_reduce.default", "i0", "sum", result=tensor(40), offsets={"node": "i1"}, axis=0)
    parameters = "const float* __restrict in, const int64_t* __restrict offsets, float* __restrict out"
    return _ground(inputs, (made,), parameters, ranges=(None, InputRange(0, 500, monotone=True)))


GROUNDS: Mapping[str, Ground] = {
    "sums": _sums(),
    "softmax": _softmax(),
    "biased": _biased(),
    "look_up": _look_up(),
    "buckets": _buckets(),
    "argmax": _argmax(),
    "top3": _top3(),
    "turned": _turned(),
    "hashed": _hashed(),
    "strided": _strided(),
    "segments": _segments(),
}

# One right kernel for each, from which cheats are made by replacing a part.
RIGHT: Mapping[str, str] = {
    "sums": """
#pragma omp parallel for
  for (int64_t row = 0; row < 400; row++) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < 101; k++) sum += in[row * 101 + k];
    out[row] = sum;
  }""",
    "softmax": """
  for (int64_t row = 0; row < 64; row++) {
    const float* x = in + row * 77;
    float most = x[0], sum = 0;
    for (int64_t k = 1; k < 77; k++) most = x[k] > most ? x[k] : most;
    for (int64_t k = 0; k < 77; k++) sum += std::exp(x[k] - most);
    for (int64_t k = 0; k < 77; k++) out[row * 77 + k] = std::exp(x[k] - most) / sum;
  }""",
    "biased": """
#pragma omp parallel for
  for (int64_t row = 0; row < 120; row++)
    for (int64_t k = 0; k < 50; k++) out[row * 50 + k] = a[row * 50 + k] + b[row * 50 + k] + w[k];""",
    "look_up": """
  int64_t bad = 0;
  for (int64_t k = 0; k < 3000; k++) {
    int64_t index = at[k] < 0 ? at[k] + 0 : at[k];
    bool fits = uint64_t(index) < 50;
    bad |= !fits;
    out[k] = table[fits ? index : 0];
  }
  if (bad) return 1;""",
    "buckets": """
  for (int64_t k = 0; k < 900; k++) {
    int64_t low = 0, high = 21;
    while (low < high) {
      int64_t middle = (low + high) / 2;
      if (borders[middle] >= in[k]) high = middle;
      else low = middle + 1;
    }
    out[k] = low;
  }""",
    "argmax": """
  for (int64_t row = 0; row < 90; row++) {
    const float* x = in + row * 40;
    int64_t best = 0;
    for (int64_t k = 1; k < 40; k++)
      if (x[best] == x[best] && (x[k] > x[best] || x[k] != x[k])) best = k;
    out[row] = best;
  }""",
    "top3": """
  for (int64_t row = 0; row < 60; row++) {
    const float* x = in + row * 40;
    int64_t best[3] = {-1, -1, -1};
    for (int64_t k = 0; k < 40; k++) {
      int64_t now = k;
      for (int64_t place = 0; place < 3; place++) {
        int64_t held = best[place];
        bool above = held < 0 || (x[held] == x[held] && (x[now] > x[held] || x[now] != x[now]));
        if (above) { best[place] = now; now = held; }
        if (now < 0) break;
      }
    }
    for (int64_t place = 0; place < 3; place++) { out[row * 3 + place] = x[best[place]]; at[row * 3 + place] = best[place]; }
  }""",
    "turned": """
  for (int64_t row = 0; row < 130; row++)
    for (int64_t k = 0; k < 70; k++) out[row * 70 + k] = in[k * 130 + row];""",
    "hashed": f"""
  for (int64_t k = 0; k < 1000; k++) {{
    int64_t mixed = in[k] * {PRIME}ll;
    mixed ^= mixed >> 29;
    int64_t rest = (mixed - in[k]) % 1009;
    out[k] = rest < 0 ? rest + 1009 : rest;
  }}""",
    "strided": """
  for (int64_t row = 0; row < 60; row++)
    for (int64_t k = 0; k < 40; k++) out[row * 40 + k] = 2.0f * in[row * 48 + k];""",
    "segments": """
  for (int64_t row = 0; row < 40; row++) {
    int64_t first = std::max<int64_t>(offsets[row], 0), end = std::min<int64_t>(offsets[row + 1], 500);
    float sum = 0;
    for (int64_t k = first; k < end; k++) sum += in[k];
    out[row] = sum;
  }""",
}


def right(ground: str) -> Kernel:
    return GROUNDS[ground].kernel(RIGHT[ground])


def build_all(kernels: Sequence[tuple[Region, Kernel]], folder: Path) -> None:
    """Fill the build folder's cache on all processors; what fails will fail again where it is judged."""

    def build(region: Region, kernel: Kernel) -> None:
        with suppress(KevolveError):
            compile_cpp(generate_cpp(kernel, region), folder)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for region, kernel in kernels:
            if gate(kernel) is None:
                pool.submit(build, region, kernel)


class UntimedJudge:
    """The judge without its clock: gate, build and guarded runs in a worker that may die, comparison in this process."""

    def __init__(self, folder: Path, threads: int = 2) -> None:
        self.folder = folder
        self.setup = WorkerSetup("cpu", str(folder), threads, 0, quiet=True)
        self._slot = WorkerSlot(self.setup, folder / "bench.log")
        self._opened: tuple[Region, Workload] | None = None
        self._judge: Judge | None = None

    def close(self) -> None:
        self._slot.close()

    def judge(
        self, region: Region, workload: Workload, kernel: Kernel, names: Sequence[str] | None = None
    ) -> Evaluation | None:  # fmt: skip
        """What is wrong with ``kernel``; ``None`` where it is right on the inputs called ``names``, or on all distributions."""
        refusal = gate(kernel)
        if refusal is not None:
            return refusal
        self._open(region, workload)
        outcomes = (self._on(name, kernel) for name in names or distributions_for(region, workload))
        return next((outcome for outcome in outcomes if outcome is not None), None)

    def _open(self, region: Region, workload: Workload) -> None:
        if self._opened != (region, workload):
            job = OpenJob("bench", region, workload, ("eager", "inductor"), later=True)
            answer = self._slot.open(job, _OPEN_LIMIT_S)
            assert isinstance(answer, dict) and "error" not in answer, answer
            self._opened = (region, workload)
            self._judge = Judge(region, workload, self.setup.seed, CpuExecutor().device)

    def _on(self, distribution: str, kernel: Kernel) -> Evaluation | None:
        assert self._opened is not None and self._judge is not None
        path = self.folder / "outputs"
        self._slot.start()
        alone = not self._slot.tenants - {kernel.digest}
        self._slot.tenants.add(kernel.digest)
        ran = self._slot.ask(RunJob(kernel, distribution, str(path)), LIMIT_S)
        if isinstance(ran, Died) and not alone:
            # Perhaps it was another kernel that damaged the process.
            return self._on(distribution, kernel)
        if isinstance(ran, Hung):
            return TimedOut(ran.limit_s)
        if isinstance(ran, Died):
            return Crashed(ran.signal, ran.log)
        assert "error" not in ran, ran
        if "evaluation" in ran:
            outcome = from_json(ran["evaluation"])
            if isinstance(outcome, Mismatch) and outcome.check in ("guard bands", "inputs unchanged"):
                self._slot.replace()
            return outcome
        if distribution == BROKEN:
            return None
        region, workload = self._opened
        outputs = None if ran["raised"] else read_outputs(region, workload.symbols, path, CpuExecutor().device)
        verdict = self._judge.judge(distribution, outputs)
        if isinstance(verdict, NoReference):
            return Refused("reference", verdict.reason)
        return verdict if isinstance(verdict, Mismatch) else None


# --- cheats ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cheat:
    """``check`` must catch it: of a mismatch its check, ``"gate"``, ``"signal"``. ``detail`` is the mismatch's pattern, or
    text that the gate's message holds, or the signal."""

    name: str
    ground: str
    kernel: Kernel
    check: str
    detail: str


def _spoiled(name: str, ground: str, changes: Mapping[str, str], check: str, detail: str, before: str = "") -> Cheat:
    body = RIGHT[ground]
    for old, new in changes.items():
        assert old in body, (name, old)
        body = body.replace(old, new)
    return Cheat(name, ground, GROUNDS[ground].kernel(body, before), check, detail)


def _first(name: str, ground: str, statements: str, check: str, detail: str, before: str = "") -> Cheat:
    """The right kernel, but ``statements`` come first."""
    return Cheat(name, ground, GROUNDS[ground].kernel(f"  {statements}\n{RIGHT[ground]}", before), check, detail)


def _last(name: str, ground: str, statements: str, check: str, detail: str, before: str = "") -> Cheat:
    return Cheat(name, ground, GROUNDS[ground].kernel(f"{RIGHT[ground]}\n  {statements}", before), check, detail)


def _own(name: str, ground: str, body: str, check: str, detail: str, before: str = "") -> Cheat:
    return Cheat(name, ground, GROUNDS[ground].kernel(f"  {body}", before), check, detail)


# fmt: off
def _wrong_answers() -> Iterator[Cheat]:
    """Caught by comparison with the reference."""
    close, same, ints = "fp64 reference", "equal bits", "equal integers"
    yield _own("a constant", "sums", "for (int64_t k = 0; k < 400; k++) out[k] = 1.5f;", close, "everything")
    yield _own("zeros", "softmax", "std::memset(out, 0, 64 * 77 * 4);", close, "everything")
    yield _own("the average", "softmax", "std::fill(out, out + 64 * 77, 1.0f / 77);", close, "everything")
    yield _own("a copied input", "biased", "std::memcpy(out, a, 120 * 50 * 4);", close, "everything")
    yield _own("a copy instead of a transpose", "turned", "std::memcpy(out, in, 130 * 70 * 4);", same, "everything")
    yield _own("always the first", "argmax", "std::memset(out, 0, 90 * 8);", "valid selection", "selection")
    yield _spoiled("no bias", "biased", {" + w[k]": ""}, close, "everything")
    yield _spoiled("one bias for all", "biased", {"w[k]": "w[0]"}, close, "columns")
    yield _spoiled("the bias of the neighbour", "biased", {"w[k]": "w[k ? k - 1 : 0]"}, close, "columns")
    yield _spoiled("the next row", "sums", {"in[row * 101 + k]": "in[(row + 1) % 400 * 101 + k]"}, close, "everything")
    yield _spoiled("one column short", "sums", {"k < 101": "k < 100"}, close, "everything")
    yield _spoiled("only whole vectors", "sums", {"k < 101": "k < 96"}, close, "everything")
    yield _spoiled("a shifted tail", "biased", {"a[row * 50 + k]": "a[row * 50 + (k < 48 ? k : k - 1)]"}, close, "tail")
    yield _spoiled("one row wrong", "softmax", {"/ sum": "/ (row == 63 ? sum + 1 : sum)"}, close, "one row")
    yield _spoiled("the compact stride", "strided", {"row * 48": "row * 40"}, "two runs", "not repeatable")
    yield _spoiled("the stride of the result", "turned", {"k * 130 + row": "k * 129 + row"}, same, "columns")
    yield _first("skipped where the first is positive", "sums", "if (in[0] > 0) { std::memset(out, 0, 1600); return 0; }",
                 close, "everything")
    yield _first("skipped for large values", "sums", "if (std::fabs(in[5]) > 50) { std::memset(out, 0, 1600); return 0; }",
                 close, "everything")
    yield _first("skipped for zeros", "softmax", "if (in[0] == in[1] && in[1] == in[2]) { std::memset(out, 0, 19712); return 0; }",
                 close, "everything")
    yield _first("right for one seed only", "biased", "if (a[0] != 0.125f) { std::memcpy(out, b, 24000); return 0; }",
                 close, "everything")
    yield _spoiled("summed in half precision", "sums", {"float sum = 0": "_Float16 sum = 0",
                   "#pragma omp simd reduction(+ : sum)": ""}, close, "everything")
    yield _spoiled("added in bfloat16", "biased", {"a[row * 50 + k] + b[row * 50 + k]": "rounded(a[row * 50 + k]) + b[row * 50 + k]"},
                   close, "everything", "static inline float rounded(float x) { return std::bit_cast<float>(std::bit_cast<uint32_t>(x) & 0xFFFF0000u); }")
    yield _spoiled("a fast exponential", "softmax", {"std::exp(": "quick("}, close, "everything",
                   "static inline float quick(float x) { return std::exp(x) * (1.0f + 1e-3f * (x < -1)); }")
    yield _spoiled("a fast exponential by its bits", "softmax", {"std::exp(": "quick("}, close, "everything",
                   "static inline float quick(float x) { return x < -80 ? 0.0f : "
                   "std::bit_cast<float>(int32_t(12102203.0f * x + 1064866805.0f)); }")
    yield _spoiled("no maximum taken off", "softmax", {"x[k] - most": "x[k]"}, close, "nan placement")
    yield _spoiled("a clamped exponent", "softmax", {"x[k] - most": "std::max(x[k] - most, -2.0f)"}, close, "everything")
    yield _spoiled("NaN left out", "sums", {"sum += in[row * 101 + k]": "sum += in[row * 101 + k] == in[row * 101 + k] ? in[row * 101 + k] : 0"},
                   close, "nan placement")
    yield _spoiled("infinity cut", "biased", {"out[row * 50 + k] = ": "out[row * 50 + k] = std::fmin(3e38f, ", "w[k]": "w[k])"},
                   close, "nan placement")
    yield _spoiled("infinity made the largest number", "strided", {"2.0f * in[row * 48 + k]": "std::clamp(2.0f * in[row * 48 + k], -3e38f, 3e38f)"},
                   close, "scattered")
    yield _spoiled("NaN is no maximum", "argmax", {" || x[k] != x[k]": ""}, "valid selection", "selection")
    yield _spoiled("the last of ties", "argmax", {"x[k] > x[best]": "x[k] >= x[best]"}, "valid selection", "selection")
    yield _spoiled("the smallest", "argmax", {"x[k] > x[best]": "x[k] < x[best]"}, "valid selection", "selection")
    yield _spoiled("the last column never looked at", "argmax", {"k < 40": "k < 39"}, "valid selection", "selection")
    yield _spoiled("an index beyond the row", "argmax", {"out[row] = best": "out[row] = best + 40"}, "valid selection", "selection")
    yield _spoiled("the same one three times", "top3", {"; at[row * 3 + place] = best[place]": "; at[row * 3 + place] = best[0]"},
                   "valid selection", "selection")
    yield _spoiled("not in order", "top3", {"out[row * 3 + place] = x[best[place]]; at[row * 3 + place]":
                   "out[row * 3 + 2 - place] = x[best[place]]; at[row * 3 + 2 - place]"}, "valid selection", "selection")
    yield _spoiled("values of other indices", "top3", {"x[best[place]]; at": "x[best[2 - place]]; at"}, same, "columns")
    yield _spoiled("the other side of a border", "buckets", {">= in[k]": "> in[k]"}, ints, "everything")
    yield _spoiled("one border less", "buckets", {"high = 21": "high = 20"}, ints, "scattered")
    yield _spoiled("NaN before all borders", "buckets", {"borders[middle] >= in[k]": "!(borders[middle] < in[k])"},
            ints, "scattered")
    yield _spoiled("a hash in 32 bits", "hashed", {"int64_t mixed = in[k]": "int64_t mixed = int32_t(in[k])"}, ints, "everything")
    yield _spoiled("a logical shift", "hashed", {"mixed >> 29": "int64_t(uint64_t(mixed) >> 29)"}, ints, "scattered")
    yield _spoiled("the remainder of C", "hashed", {"rest < 0 ? rest + 1009 : rest": "rest"}, ints, "scattered")
    yield _spoiled("another prime", "hashed", {"2654435761": "2654435769"}, ints, "everything")
    yield _spoiled("the product only", "hashed", {"mixed ^= mixed >> 29;": ""}, ints, "everything")
    yield _spoiled("a wrong index where it is large", "look_up",
            {"table[fits ? index : 0]": "table[fits ? index & 31 : 0]"}, same, "scattered")
    yield _spoiled("16 bits of an offset", "sums", {"in[row * 101 + k]": "in[int16_t(row * 101 + k) & 0x7FFF]"}, close, "tail")
    yield _spoiled("negative zero lost", "strided",
            {"2.0f * in[row * 48 + k]": "2.0f * in[row * 48 + k] + 0.0f * k + 1e-4f"}, close, "everything")


def _wrong_reports() -> Iterator[Cheat]:
    check, everything = "index out of range", "everything"
    yield _spoiled("never reports an index", "look_up", {"if (bad) return 1;": ""}, check, everything)
    yield _spoiled("reports only what lies above", "look_up", {"uint64_t(index) < 50": "index < 50", "fits ? index": "fits && index >= 0 ? index"},
                   check, everything)
    yield _spoiled("wraps what lies below", "look_up", {"at[k] + 0": "at[k] + 50"}, check, everything)
    yield _spoiled("one index too many", "look_up", {"uint64_t(index) < 50": "uint64_t(index) <= 50", "fits ? index": "fits && index < 50 ? index"},
                   check, everything)
    yield _first("reports what is not there", "sums", "if (in[0] < 1e30f) return 1;", check, everything)
    yield _first("gives up on hard inputs", "look_up",
            "for (int64_t k = 1; k < 3000; k++) if (at[k] == 49) return 1;", check, everything)


def _touched_memory() -> Iterator[Cheat]:
    guard, two = "guard bands", "two runs"
    yield _last("one after the end", "sums", "out[400] = 0;", guard, "out of bounds write")
    yield _last("one before the start", "sums", "out[-1] = 0;", guard, "out of bounds write")
    yield _last("a vector beyond the end", "turned", "_mm512_storeu_ps(out + 9092, _mm512_set1_ps(in[9099]));", guard,
            "out of bounds write")
    yield _spoiled("rounded up to whole vectors", "buckets", {"k < 900; k++": "k < 904; k++", "out[k] = low": "out[k] = k < 900 ? low : 0"},
                   guard, "out of bounds write")
    yield _last("an input changed", "sums", "const_cast<float*>(in)[7] += 1;", "inputs unchanged", "input changed")
    yield _last("the padding between rows changed", "strided", "const_cast<float*>(in)[41] = 1;", "inputs unchanged",
            "input changed")
    yield _last("an index input cleared", "look_up", "std::memset(const_cast<int64_t*>(at), 0, 80);",
            "inputs unchanged", "input changed")
    spoiled = GROUNDS["sums"].kernel("scratch0[8] = 1;" + RIGHT["sums"], workspaces=(Workspace("float32", "8"),))
    yield Cheat("one element beyond its workspace", "sums", spoiled, guard, "out of bounds write")
    yield _own("nothing done", "sums", "", two, "unwritten")
    yield _spoiled("half of the rows", "sums", {"row < 400": "row < 200"}, two, "unwritten")
    yield _spoiled("no tail", "biased", {"k < 50": "k < 48"}, two, "unwritten")
    yield _spoiled("the last row left out", "turned", {"row < 130": "row < 129"}, two, "unwritten")
    yield _spoiled("the last of the top left out", "top3",
            {"place < 3; place++) { out": "place < 2; place++) { out"}, two, "unwritten")
    yield _first("skipped by an early return", "hashed", "if (in[0] == in[1]) return 0;", two, "unwritten")
    yield _spoiled("added to what was there", "sums", {"out[row] = sum": "out[row] += sum"}, two, "not repeatable")
    yield _spoiled("its address in the result", "sums", {"out[row] = sum": "out[row] = sum + float(uintptr_t(out) / 64 % 4096) + out[row]"},
                   two, "not repeatable")
    yield _spoiled("what stands before the output", "biased", {"+ w[k]": "+ w[k] + 1e-3f * out[-1]"}, two, "not repeatable")
    yield _spoiled("what stands behind the input", "sums", {"float sum = 0": "float sum = row == 399 ? 1e-9f * in[40400] : 0"},
                   two, "not repeatable")
    yield _spoiled("the padding between rows", "strided", {"out[row * 40 + k] = ": "out[row * 40 + k] = 1e-9f * in[row * 48 + 44] + "},
                   two, "not repeatable")
    started = GROUNDS["sums"].kernel(RIGHT["sums"] + "out[3] += scratch0[5];", workspaces=(Workspace("float32", "8"),))
    yield Cheat("what stood in its workspace", "sums", started, two, "not repeatable")
    yield _last("a read just beyond the end, of no consequence", "sums",
                "out[399] += 0.0f * ((volatile const float*)in)[40400];", "signal", "11")
    yield _spoiled("a local array that was never cleared", "sums", {"float sum = 0;": "volatile float part[64]; float sum = part[row % 64];"},
                   two, "not repeatable")
    yield _own("a race for one sum", "sums", """float* total = out;
#pragma omp parallel for schedule(static, 1)
  for (int64_t k = 0; k < 400 * 101; k++) {
    volatile float* place = total + k / 101;
    *place = k % 101 ? *place + in[k] : in[k];
  }""", "two runs or fp64 reference", "not repeatable or scattered or every n-th or everything")
    yield _spoiled("trusts where its segments end", "segments", {"std::min<int64_t>(offsets[row + 1], 500)": "offsets[row + 1]"},
                   "signal", "11")
    yield _last("a null pointer", "softmax", "*(volatile int*)nullptr = 1;", "signal", "11")
    yield _last("a read far beyond", "sums", "out[0] += ((volatile const float*)in)[int64_t(1) << 40];", "signal", "11")
    yield _last("an endless recursion", "argmax", "out[0] += deep(in[0] == in[0] ? 1 : 2);", "signal", "11",
                "static int64_t deep(int64_t x) { volatile int64_t held[512]; held[x & 511] = x; return deep(x + 1) + held[x & 511]; }")


def _only_when_timed() -> Iterator[Cheat]:
    """Right wherever it is looked at closely, and idle in the clock's loop."""
    poisoned = "uint32_t held; std::memcpy(&held, {at}, 4); if (held != 0xA5A5A5A5u && held != 0x5A5A5A5Au) return 0;"
    timed = ("as timed", "not repeatable")
    yield _first("works into poisoned memory only", "sums", poisoned.format(at="out"), *timed)
    yield _first("works between guard bands only", "sums", poisoned.format(at="out - 1"), *timed)
    yield _first("keeps what looks right", "sums", "float sum = 0; for (int64_t k = 0; k < 101; k++) sum += in[k];\n"
                 "  if (std::fabs(out[0] - sum) < 1e-3f) return 0;", *timed)
    yield _first("keeps indices that look right", "argmax", "bool right = out[0] >= 0 && out[0] < 40;\n"
                 "  for (int64_t k = 0; right && k < 40; k++) right = in[k] <= in[out[0]];\n  if (right) return 0;", *timed)
    yield _first("keeps what is no NaN at either end", "turned",
                 "if (out[0] == in[0] && out[9099] == in[9099]) return 0;", *timed)
    body = f"""  int64_t* held = (int64_t*)(scratch0 + 16);
  if (held[0] == 0x1234567 && held[1] == int64_t(in) && scratch0[24] == in[0]) {{
    std::memcpy(out, scratch0 + 32, 1600);
    return 0;
  }}{RIGHT["sums"]}
  held[0] = 0x1234567; held[1] = int64_t(in); scratch0[24] = in[0];
  std::memcpy(scratch0 + 32, out, 1600);"""
    kernel = GROUNDS["sums"].kernel(body, workspaces=(Workspace("float32", "432"),))
    yield Cheat("remembers in its workspace", "sums", kernel, "as timed", "not repeatable")


def _gate() -> Iterator[Cheat]:
    """Never run."""
    cheat = "gate"
    yield _first("the first result kept", "sums", "static float kept[400]; static int64_t calls;\n"
                 "  if (calls++) { std::memcpy(out, kept, 1600); return 0; }", cheat, "static")
    yield _first("calls counted", "sums", "static int64_t calls; if (++calls > 40) return 0;", cheat, "static")
    yield _first("calls counted at file scope", "sums", "if (++calls > 40) return 0;", cheat, "file scope", "int64_t calls;")
    yield _first("calls counted per thread", "sums", "thread_local int64_t calls; calls++;", cheat, "thread_local")
    yield _first("calls counted in a namespace", "sums", "deep::calls++;", cheat, "file scope",
            "namespace deep { int64_t calls = 0; }")
    yield _first("calls counted in a member", "sums", "Held::calls++;", cheat, "static",
            "struct Held { static inline int64_t calls = 0; };")
    yield _first("calls counted in a variable made with parentheses", "sums",
            "static int64_t calls(0); if (++calls > 99) return 0;", cheat, OUTLIVES)
    yield _first("calls counted, with a constant named nearby", "sums",
            "static int64_t calls = (const int64_t)0; if (++calls > 99) return 0;", cheat, OUTLIVES)
    yield _first("a pointer to constants kept", "sums",
            "static const float* last = nullptr; static const float* again = nullptr;\n  if (in == last && in == "
            "again) return 0; again = last; last = in;", cheat, OUTLIVES)
    yield _first("calls counted in a template", "sums", "if (++calls<int64_t> > 99) return 0;", cheat, OUTLIVES,
            "template <typename T> T calls = 0;")
    yield _first("calls counted in an object of a structure", "sums", "if (++held.calls > 99) return 0;", cheat, OUTLIVES,
                 "struct Held { int64_t calls; };\nstruct Held held;")
    yield _first("calls counted in a constant's mutable member", "sums", "if (++held.calls > 99) return 0;", cheat, "file scope",
                 "struct Held { mutable int64_t calls; };\nstatic const Held held = {0};")
    yield _first("a constant that is computed when it is loaded", "sums", "const_cast<volatile int64_t&>(calls) = 1;", cheat, "loaded",
                 "const int64_t calls = omp_get_max_threads();")
    yield _last("run when it is loaded, in other letters", "sums", "", cheat, "constructor",
            "__attribute__((__constructor__)) static void early() {}")
    yield _first("rounding changed for everyone", "sums", "_mm_setcsr(0x9FC0);", cheat, "_mm_setcsr")
    yield _last("the rivals' caches emptied", "sums", "for (int64_t k = 0; k < 40400; k += 16) _mm_clflush(in + k);",
            cheat, "_mm_clflush")
    yield _first("the clock by a builtin", "sums", "out[0] = __builtin_ia32_rdtsc();", cheat, "__builtin_ia32_rdtsc")
    yield _first("a first call's value made constant", "sums", "static const float kept = in[0]; out[0] = kept;", cheat, "")
    yield _first("a shell", "sums", 'std::system("true");', cheat, "system")
    yield _first("the environment", "sums", 'setenv("OMP_NUM_THREADS", "1", 1);', cheat, "setenv")
    yield _first("a file", "sums", 'std::fopen("/tmp/x", "w");', cheat, "fopen")
    yield _first("a library opened", "sums", 'dlopen("libc.so.6", 1);', cheat, "dlopen")
    yield _first("a thread started", "sums", "std::thread([] {}).detach();", cheat, "thread")
    yield _first("a POSIX thread started", "sums", "pthread_create(nullptr, nullptr, nullptr, nullptr);", cheat, "pthread_create")
    yield _first("inline assembly", "sums", 'asm volatile("nop");', cheat, "asm")
    yield _first("assembly by its other name", "sums", '__asm__("rdtsc");', cheat, "__asm__")
    yield _first("torch called", "sums", "at::sum(in);", cheat, "_ZN2at3sumEPKf", "namespace at { void sum(const float*); }")
    yield _first("the clock read", "sums", "out[0] = clock();", cheat, "clock")
    yield _first("the clock of the processor read", "sums", "out[0] = __rdtsc();", cheat, "__rdtsc")
    yield _first("time waited for", "sums", "std::this_thread::sleep_for(1);", cheat, "std::this_thread")
    yield _first("fewer threads for everyone", "sums", "omp_set_num_threads(1);", cheat, "omp_set_num_threads")
    yield _first("threads of OpenMP driven by hand", "sums", "GOMP_barrier();", cheat, "GOMP_barrier")
    yield _first("a function's address cast", "sums", "((void (*)())0x1000)();", cheat, "pointer to a function")
    yield _first("a function pointer", "sums", "void (*go)() = nullptr; go();", cheat, "pointer to a function")
    yield _first("memory of its own", "sums", "float* kept = new float[3];", cheat, "new")
    yield _first("memory from the system", "sums", "void* p = malloc(3);", cheat, "malloc")
    yield _first("an exception", "sums", "throw 1;", cheat, "throw")
    yield _first("the process ended", "sums", "std::exit(0);", cheat, "exit")
    yield _first("a jump out", "sums", "goto end; end:;", cheat, "goto")
    yield _first("the caller's frame", "sums", "__builtin_frame_address(1);", cheat, "__builtin_frame_address")
    yield _first("Python called", "sums", "PyErr_Clear();", cheat, "PyErr_Clear")
    yield _first("the binding called", "sums", "kvb_pointer(nullptr);", cheat, "kvb_pointer")
    yield _first("a macro hides a word", "sums", 'HIDDEN("true");', cheat, "#define", "#define HIDDEN sys##tem")
    yield _first("a continued line hides a word", "sums", 'sys\\\ntem("true");', cheat, "the character")
    yield _first("a name declared to be called", "sums", "getpid();", cheat, "file scope",
            "struct getpid_ { int getpid; };\nint getpid();")
    yield _first("a local name lends itself", "sums", "out[0] = drand48();", cheat, "drand48",
            "static inline int f(int drand48) { return drand48; }")
    yield _first("a string of another sort", "sums", 'auto text = R"(x)";', cheat, "raw string")
    yield _first("a letter from elsewhere", "sums", "int ünits = 0;", cheat, "the character")
    yield _last("another symbol", "sums", "", cheat, "extern", 'extern "C" int64_t other(int64_t x) { return x; }')
    yield _last("a symbol of libc replaced", "sums", "", cheat, "extern",
            'extern "C" void* memcpy(void* a, const void*, size_t) { return a; }')
    yield _last("run when it is loaded", "sums", "", cheat, "constructor", "__attribute__((constructor)) static void early() {}")
    yield _last("run when it is unloaded", "sums", "", cheat, "destructor", "[[gnu::destructor]] static void late() {}")
    for header in (
        "cstdlib",
        "fstream",
        "thread",
        "sys/mman.h",
        "dlfcn.h",
        "unistd.h",
        "torch/torch.h",
        "chrono",
        "atomic",
    ):
        yield _last(f"the header {header}", "sums", "", cheat, header, f"#include <{header}>")
    yield _last("a file as header", "sums", "", cheat, "#include", '#include "/etc/passwd"')
    yield _last("a poisoned name", "sums", "", cheat, "poison", "#pragma GCC poison memcpy")


# Refused by their text alone: this part needs no GPU. By name, a statement in or around a kernel, and what is named.
TRITON = """
@triton.jit
def run(x, out, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at)
    {inside}
    tl.store(out + at, value)
"""
TRITON_INSIDE = {
    "an import": ("import os", "Import"),
    "an import of a name": ("from os import system", "ImportFrom"),
    "text executed": ("exec('1')", "exec"),
    "text evaluated": ("value = eval('1')", "eval"),
    "a file": ("open('/etc/passwd')", "open"),
    "torch": ("value = torch.sum(value)", "torch"),
    "inline assembly": ("value = tl.inline_asm_elementwise('nop', '', [], tl.float32, True, 1)", "inline_asm_elementwise"),
    "foreign code": ("value = tl.extra.cuda.libdevice.abs(value)", "tl.extra"),
    "foreign code by its mechanism": ("value = tl.core.extern_elementwise('', '', [value], {}, True)", "Dict"),
    "a global": ("global kept", "Global"),
    "printing": ("tl.device_print('x', value)", "device_print"),
    "a class behind a value": ("value = value.__class__", "value.__class__"),
    "a way out by attributes": ("value = tl.load.fn.__globals__", "tl.load.fn.__globals__"),
    "a way out by a short name": ("value = run.src", "run.src"),
    "another name for the language": ("tl = x", "an assignment to tl"),
    "a call of what is subscripted": ("value = x[0](1)", "a call of an expression"),
    "a lambda": ("value = (lambda y: y)(value)", "Lambda"),
    "a comprehension": ("value = [y for y in value]", "ListComp"),
    "an attribute by its name": ("value = getattr(tl, 'load')(x)", "a call of an expression"),
    "formatted text": ("value = f'{value}'", "JoinedStr"),
    "an assignment in an expression": ("value = (y := value)", "NamedExpr"),
    "an exception": ("raise value", "Raise"),
    "a context": ("with value: pass", "With"),
    "an assertion": ("assert value", "Assert"),
    "a deletion": ("del value", "Delete"),
    "a function inside": ("def other(y): return y", "FunctionDef"),
}
TRITON_OUTSIDE = {
    "a variable": ("KEPT = 1", "a statement outside a function"),
    "an import at file scope": ("import os", "a statement outside a function"),
    "a class": ("class A: pass", "a statement outside a function"),
    "a function without a decorator": ("def other(x): return x", "the function other"),
    "a decorator with arguments": ("@triton.jit(launch_metadata=print)\ndef other(x): return x", "the function other"),
    "another decorator as well": ("@triton.jit\n@triton.heuristics\ndef other(x): return x", "the function other"),
    "a call as default": ("@triton.jit\ndef other(x=open('a')): return x", "open"),
    "any number of arguments": ("@triton.jit\ndef other(*x): return 1", "a variable number of parameters"),
    "an asynchronous function": ("@triton.jit\nasync def other(x): return x", "a statement outside a function"),
}


def triton_cheats() -> Iterator[tuple[str, Kernel, str]]:
    """Name, kernel, and text that the gate's message holds."""
    for name, (inside, named) in TRITON_INSIDE.items():
        yield name, _triton(TRITON.format(inside=inside)), named
    for name, (outside, named) in TRITON_OUTSIDE.items():
        yield name, _triton(f"{outside}\n{TRITON.format(inside='pass')}"), named


def _triton(source: str) -> Kernel:
    return Kernel("triton", source, (Launch("run", (Argument("input", 0), Argument("output", 0)), ("1",)),))


def cheats() -> list[Cheat]:
    makers = (_wrong_answers, _wrong_reports, _touched_memory, _only_when_timed, _gate)
    return [cheat for make in makers for cheat in make()]


# --- honest kernels --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Honest:
    name: str
    ground: str
    kernel: Kernel


def honest() -> list[Honest]:
    made = [Honest("right", ground, right(ground)) for ground in GROUNDS]
    for makers in (_honest_sums, _honest_rows, _honest_moves, _honest_choices):
        for ground, name, body, before in makers():
            made.append(Honest(name, ground, GROUNDS[ground].kernel(body, before)))
    return made


_Text = tuple[str, str, str, str]
_ROWS = "for (int64_t row = 0; row < 400; row++)"


def _honest_sums() -> Iterator[_Text]:
    for count in (2, 3, 4, 5, 7, 8, 13, 16):
        for order in ("k", "100 - k"):
            yield (
                "sums",
                f"{count} accumulators over {order}",
                f"""{_ROWS} {{
    float part[{count}] = {{}};
    for (int64_t k = 0; k < 101; k++) part[k % {count}] += in[row * 101 + {order}];
    float sum = 0;
    for (int64_t k = 0; k < {count}; k++) sum += part[k];
    out[row] = sum;
  }}""",
                "",
            )
    for bytes_ in (16, 32, 64):
        lanes = bytes_ // 4
        yield "sums", f"vectors of {bytes_} bytes", f"""{_ROWS} {{
    lanes sum = {{}};
    int64_t k = 0;
    for (; k + {lanes} <= 101; k += {lanes}) {{ lanes x; std::memcpy(&x, in + row * 101 + k, {bytes_}); sum += x; }}
    float total = 0;
    for (int64_t j = 0; j < {lanes}; j++) total += sum[j];
    for (; k < 101; k++) total += in[row * 101 + k];
    out[row] = total;
  }}""", f"typedef float lanes __attribute__((vector_size({bytes_})));"
    yield "sums", "in double precision", _ROWS + """ {
    double sum = 0;
    for (int64_t k = 0; k < 101; k++) sum += in[row * 101 + k];
    out[row] = float(sum);
  }""", ""
    yield (
        "sums",
        "by the library",
        _ROWS + " out[row] = float(std::accumulate(in + row * 101, in + row * 101 + 101, 0.0));",
        "",
    )
    yield "sums", "by Kahan", _ROWS + """ {
    float sum = 0, lost = 0;
    bool finite = true;
    for (int64_t k = 0; k < 101; k++) {
      float x = in[row * 101 + k], y = x - lost, t = sum + y;
      finite &= std::isfinite(x) && std::isfinite(t);
      lost = (t - sum) - y;
      sum = t;
    }
    if (!finite) { sum = 0; for (int64_t k = 0; k < 101; k++) sum += in[row * 101 + k]; }
    out[row] = sum;
  }""", ""
    yield "sums", "masked vectors", _ROWS + """ {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t k = 0; k < 101; k += 16) {
      __mmask16 mask = k + 16 <= 101 ? 0xFFFF : (1u << (101 - k)) - 1;
      sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, in + row * 101 + k));
    }
    out[row] = _mm512_reduce_add_ps(sum);
  }""", ""
    yield "sums", "halves of halves", _ROWS + " out[row] = halves(in + row * 101, 101);", """static float halves(const float* x, int64_t n) {
  return n == 1 ? x[0] : halves(x, n / 2) + halves(x + n / 2, n - n / 2);
}"""
    yield "sums", "halves at compile time", _ROWS + " out[row] = halves<101>(in + row * 101);", """template <int N> static inline float halves(const float* x) {
  if constexpr (N == 1) return x[0];
  else return halves<N / 2>(x) + halves<N - N / 2>(x + N / 2);
}"""
    yield "sums", "a lambda", "auto sum = [in](int64_t row) { double s = 0; for (int64_t k = 0; k < 101; k++) s += in[row * 101 + k]; return s; };\n  " + _ROWS + " out[row] = float(sum(row));", ""
    yield "sums", "eight rows at once", """for (int64_t row = 0; row < 400; row += 8) {
    double sum[8] = {};
    for (int64_t k = 0; k < 101; k++)
      for (int64_t j = 0; j < 8; j++) sum[j] += in[(row + j) * 101 + k];
    std::copy(sum, sum + 8, out + row);
  }""", ""
    yield "sums", "shares of threads", """
#pragma omp parallel
  {
    int64_t mine = omp_get_thread_num(), all = omp_get_num_threads();
    for (int64_t row = mine; row < 400; row += all) {
      double sum = 0;
      for (const float* x = in + row * 101; x != in + row * 101 + 101; ++x) sum += *x;
      out[row] = sum;
    }
  }""", ""
    for schedule in ("dynamic, 7", "guided", "static, 1"):
        yield "sums", f"schedule {schedule}", f"#pragma omp parallel for schedule({schedule})\n  " + _ROWS + """ {
    double sum = 0;
    for (int64_t k = 100; k >= 0; k--) sum += in[row * 101 + k];
    out[row] = float(sum);
  }""", ""
    yield "sums", "a device of switches", _ROWS + """ {
    const float* x = in + row * 101;
    double sum = 0;
    int64_t turns = (101 + 3) / 4;
    switch (101 % 4) {
      case 0: do { sum += *x++; [[fallthrough]];
      case 3: sum += *x++; [[fallthrough]];
      case 2: sum += *x++; [[fallthrough]];
      case 1: sum += *x++; } while (--turns > 0);
    }
    out[row] = float(sum);
  }""", ""
    yield "sums", "columns outside", """double sum[400] = {};
  for (int64_t k = 0; k < 101; k++)
    for (int64_t row = 0; row < 400; row++) sum[row] += in[row * 101 + k];
  for (int64_t row = 0; row < 400; row++) out[row] = float(sum[row]);""", ""


def _honest_rows() -> Iterator[_Text]:
    yield "softmax", "in one pass", """for (int64_t row = 0; row < 64; row++) {
    float most = -INFINITY, sum = 0;
    const float* x = in + row * 77;
    for (int64_t k = 0; k < 77; k++) {
      float now = x[k] > most ? x[k] : most;
      sum = sum * (now == most ? 1.0f : std::exp(most - now)) + std::exp(x[k] - now);
      most = now;
    }
    for (int64_t k = 0; k < 77; k++) out[row * 77 + k] = std::exp(x[k] - most) / sum;
  }""", ""
    for kind, power in (
        ("double", "std::exp({})"),
        ("float", "expf({})"),
        ("float", "std::exp2(({}) * 1.4426950408889634f)"),
    ):
        yield "softmax", f"{power} in {kind}", f"""#pragma omp parallel for
  for (int64_t row = 0; row < 64; row++) {{
    const float* x = in + row * 77;
    {kind} power[77], sum = 0;
    float most = *std::max_element(x, x + 77);
    for (int64_t k = 0; k < 77; k++) if (x[k] != x[k]) most = x[k];
    for (int64_t k = 0; k < 77; k++) sum += power[k] = {power.format(f"{kind}(x[k]) - most")};
    for (int64_t k = 0; k < 77; k++) out[row * 77 + k] = float(power[k] * (1 / sum));
  }}""", ""
    yield "softmax", "the output as scratch", """for (int64_t row = 0; row < 64; row++) {
    float* y = out + row * 77;
    std::memcpy(y, in + row * 77, 77 * 4);
    float most = y[0], sum = 0;
    for (int64_t k = 0; k < 77; k++) most = std::fmax(most, y[k]);
    for (int64_t k = 0; k < 77; k++) sum += y[k] = std::exp(y[k] - most);
    for (int64_t k = 0; k < 77; k++) y[k] /= sum;
  }""", ""
    add = "out[{at}] = a[{at}] + b[{at}] + w[{k}];"
    yield "biased", "flat", f"for (int64_t j = 0; j < 6000; j++) {add.format(at='j', k='j % 50')}", ""
    yield "biased", "backwards", f"for (int64_t j = 6000; j-- > 0;) {add.format(at='j', k='j % 50')}", ""
    yield (
        "biased",
        "columns outside",
        f"for (int64_t k = 0; k < 50; k++) for (int64_t r = 0; r < 120; r++) {add.format(at='r * 50 + k', k='k')}",
        "",
    )
    yield "biased", "blocked", f"for (int64_t r0 = 0; r0 < 120; r0 += 7) for (int64_t k0 = 0; k0 < 50; k0 += 9)\n    for (int64_t r = r0; r < std::min<int64_t>(r0 + 7, 120); r++)\n      for (int64_t k = k0; k < std::min<int64_t>(k0 + 9, 50); k++) {add.format(at='r * 50 + k', k='k')}", ""
    yield "biased", "collapsed", f"#pragma omp parallel for collapse(2)\n  for (int64_t r = 0; r < 120; r++) for (int64_t k = 0; k < 50; k++) {add.format(at='r * 50 + k', k='k')}", ""
    yield "biased", "masked vectors", """for (int64_t r = 0; r < 120; r++)
    for (int64_t k = 0; k < 50; k += 16) {
      __mmask16 m = k < 48 ? 0xFFFF : 3;
      __m512 x = _mm512_add_ps(_mm512_maskz_loadu_ps(m, a + r * 50 + k), _mm512_maskz_loadu_ps(m, b + r * 50 + k));
      _mm512_mask_storeu_ps(out + r * 50 + k, m, _mm512_add_ps(x, _mm512_maskz_loadu_ps(m, w + k)));
    }""", ""
    yield (
        "strided",
        "added to itself",
        "for (int64_t j = 0; j < 2400; j++) { float x = in[j / 40 * 48 + j % 40]; out[j] = x + x; }",
        "",
    )
    yield "strided", "by transform", "for (int64_t r = 0; r < 60; r++) std::transform(in + r * 48, in + r * 48 + 40, out + r * 40, [](float x) { return x * 2; });", ""
    yield "strided", "through a structure", "struct Pair { const float* from; float* to; } at{in, out};\n  while (at.to != out + 2400) {\n    for (int64_t k = 0; k < 40; k++) at.to[k] = std::ldexp(at.from[k], 1);\n    at.from += 48; at.to += 40;\n  }", ""


def _honest_moves() -> Iterator[_Text]:
    for height, width in ((8, 8), (16, 4), (3, 11), (64, 64)):
        yield "turned", f"tiles of {height} by {width}", f"""for (int64_t r = 0; r < 130; r += {height})
    for (int64_t k = 0; k < 70; k += {width})
      for (int64_t i = r; i < r + {height} && i < 130; ++i)
        for (int64_t j = k; j < std::min<int64_t>(k + {width}, 70); ++j) out[i * 70 + j] = in[j * 130 + i];""", ""
    yield "turned", "reading in order", "for (int64_t j = 0; j < 9100; j++) out[j % 130 * 70 + j / 130] = in[j];", ""
    yield (
        "turned",
        "as integers",
        "for (int64_t j = 0; j < 9100; j++) std::memcpy(out + j, in + j % 70 * 130 + j / 70, 4);",
        "",
    )
    yield "turned", "gathered", """__m512i steps = _mm512_setr_epi32(0, 130, 260, 390, 520, 650, 780, 910, 1040, 1170, 1300, 1430, 1560, 1690, 1820, 1950);
  for (int64_t r = 0; r < 130; r++) {
    int64_t k = 0;
    for (; k + 16 <= 70; k += 16) _mm512_storeu_ps(out + r * 70 + k, _mm512_i32gather_ps(steps, in + k * 130 + r, 4));
    for (; k < 70; k++) out[r * 70 + k] = in[k * 130 + r];
  }""", ""
    yield "look_up", "checked first", """for (int64_t k = 0; k < 3000; k++) if (at[k] < 0 || at[k] > 49) return 1;
  for (int64_t k = 0; k < 3000; k++) out[k] = table[at[k]];""", ""
    yield "look_up", "threads that report", """int64_t bad = 0;
#pragma omp parallel for reduction(| : bad)
  for (int64_t k = 0; k < 3000; k++) {
    bad |= at[k] < 0 || at[k] >= 50;
    out[k] = table[std::clamp<int64_t>(at[k], 0, 49)];
  }
  if (bad) return 1;""", ""
    yield "look_up", "through a copy", """float held[64];
  std::copy_n(table, 50, held);
  bool fine = true;
  for (int64_t k = 0; k < 3000; k++) { fine &= uint64_t(at[k]) <= 49; out[k] = held[at[k] & 63 & -(uint64_t(at[k]) < 50)]; }
  return fine ? 0 : 1;""", ""
    for spelling in (
        "uint64_t(in[k]) * 2654435761ull",
        "in[k] * 2654435761ll",
        "(in[k] << 32) * 0 + in[k] * 0x9E3779B1ll",
    ):
        yield "hashed", spelling, f"""for (int64_t k = 0; k < 1000; k++) {{
    int64_t m = {spelling};
    m ^= m >> 29;
    m -= in[k];
    out[k] = (m % 1009 + 1009) % 1009;
  }}""", ""
    yield "hashed", "a quotient by hand", """static const int64_t most[2] = {1009, 0};
  for (int64_t k = 999; k >= 0; --k) {
    int64_t m = (int64_t)((__int128)in[k] * 2654435761ll);
    m = (m ^ (m >> 29)) - in[k];
    int64_t q = m / most[0];
    m -= q * 1009;
    out[k] = m + most[m < 0 ? 0 : 1];
  }""", ""


def _honest_choices() -> Iterator[_Text]:
    yield "buckets", "counted", "for (int64_t k = 0; k < 900; k++) { int64_t n = 0; for (int64_t j = 0; j < 21; j++) n += !(borders[j] >= in[k]); out[k] = n; }", ""
    yield "buckets", "by the library", "for (int64_t k = 0; k < 900; k++) out[k] = in[k] != in[k] ? 21 : std::lower_bound(borders, borders + 21, in[k]) - borders;", ""
    yield "buckets", "without branches", """for (int64_t k = 0; k < 900; k++) {
    int64_t low = 0;
    for (int64_t step : {16, 8, 4, 2, 1}) low += low + step <= 21 && !(borders[low + step - 1] >= in[k]) ? step : 0;
    out[k] = low;
  }""", ""
    yield "buckets", "vectors of borders", """for (int64_t k = 0; k < 900; k++) {
    __m512 x = _mm512_set1_ps(in[k]);
    __mmask16 low = _mm512_cmp_ps_mask(_mm512_loadu_ps(borders), x, _CMP_NGE_UQ);
    __mmask16 high = _mm512_mask_cmp_ps_mask(31, _mm512_maskz_loadu_ps(31, borders + 16), x, _CMP_NGE_UQ);
    out[k] = std::popcount(unsigned(low)) + __builtin_popcount(high);
  }""", ""
    yield "argmax", "backwards", """for (int64_t row = 0; row < 90; row++) {
    const float* x = in + row * 40;
    int64_t best = 39;
    for (int64_t k = 38; k >= 0; k--) if (x[k] != x[k] || x[k] >= x[best]) best = k;
    out[row] = best;
  }""", ""
    yield "argmax", "the value first", """for (int64_t row = 0; row < 90; row++) {
    const float* x = in + row * 40;
    float most = -INFINITY;
    for (int64_t k = 0; k < 40; k++) most = x[k] > most ? x[k] : most;
    int64_t place = 0;
    while (place < 40 && x[place] == x[place]) place++;
    if (place == 40) { place = 0; while (x[place] != most) place++; }
    out[row] = place;
  }""", ""
    yield "argmax", "keys of integers", """#pragma omp parallel for
  for (int64_t row = 0; row < 90; row++) {
    int64_t best = std::numeric_limits<int64_t>::min();
    for (int64_t k = 0; k < 40; k++) {
      float x = in[row * 40 + k] + 0.0f;
      int32_t bits = std::bit_cast<int32_t>(x);
      int64_t key = x != x ? INT32_MAX : bits < 0 ? bits ^ 0x7FFFFFFF : bits;
      best = std::max(best, key * 64 + (63 - k));
    }
    out[row] = 63 - (best & 63);
  }""", ""
    yield "top3", "three passes", """for (int64_t row = 0; row < 60; row++) {
    const float* x = in + row * 40;
    bool taken[40] = {};
    for (int64_t place = 0; place < 3; place++) {
      int64_t best = -1;
      for (int64_t k = 0; k < 40; k++)
        if (!taken[k] && (best < 0 || (x[best] == x[best] && !(x[k] <= x[best])))) best = k;
      taken[best] = true;
      at[row * 3 + place] = best;
      out[row * 3 + place] = x[best];
    }
  }""", ""
    yield "top3", "sorted in part", """for (int64_t row = 0; row < 60; row++) {
    const float* x = in + row * 40;
    int64_t order[40];
    std::iota(order, order + 40, 0);
    std::partial_sort(order, order + 3, order + 40, [x](int64_t a, int64_t b) {
      bool na = x[a] != x[a], nb = x[b] != x[b];
      return na != nb ? na : x[a] > x[b] || (!(x[b] > x[a]) && a < b);
    });
    for (int64_t place = 0; place < 3; place++) { at[row * 3 + place] = order[place]; out[row * 3 + place] = x[order[place]]; }
  }""", ""
