"""The pointwise operators: which ATen overload means which expression, and how each is spelled in C++ and Triton.

Spelling templates take the already printed arguments as ``{0}``, ``{1}`` …; ``kv_*`` are helpers of the C++ and
Triton preludes. Semantics are eager's: NaN propagates through maximum, minimum, clamp and relu; integer remainder and
floor division round towards minus infinity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# How argument dtypes promote: "same" as the result, "float" (integers become float), "compare" (arguments promote
# among themselves, the result is bool), "bool" (arguments are tested for non-zero).
Promotion = Literal["same", "float", "compare", "bool"]


@dataclass(frozen=True)
class Operator:
    """One pointwise operator. ``triton`` may name libdevice functions; ``flops`` counts it for floors."""

    cpp: str
    triton: str
    promotion: Promotion = "same"
    flops: int = 1


OPERATORS: dict[str, Operator] = {
    "add": Operator("({0} + {1})", "({0} + {1})"),
    "sub": Operator("({0} - {1})", "({0} - {1})"),
    "mul": Operator("({0} * {1})", "({0} * {1})"),
    "truediv": Operator("({0} / {1})", "({0} / {1})", "float"),
    "floordiv": Operator("kv_floordiv({0}, {1})", "kv_floordiv({0}, {1})"),
    "truncdiv": Operator("kv_truncdiv({0}, {1})", "kv_truncdiv({0}, {1})"),
    "mod": Operator("kv_remainder({0}, {1})", "kv_remainder({0}, {1})"),
    "fmod": Operator("kv_fmod({0}, {1})", "kv_fmod({0}, {1})"),
    # Division of indices, which are never negative.
    "idiv": Operator("({0} / {1})", "({0} // {1})"),
    "imod": Operator("({0} % {1})", "({0} % {1})"),
    "neg": Operator("(-{0})", "(-{0})"),
    "abs": Operator("kv_abs({0})", "tl.abs({0})"),
    "sign": Operator("kv_sign({0})", "kv_sign({0})"),
    "maximum": Operator("kv_max({0}, {1})", "kv_max({0}, {1})"),
    "minimum": Operator("kv_min({0}, {1})", "kv_min({0}, {1})"),
    "relu": Operator("kv_relu({0})", "kv_relu({0})"),
    "exp": Operator("kv_exp({0})", "kv_exp({0})", "float", 10),
    "exp2": Operator("std::exp2({0})", "tl.exp2({0})", "float", 10),
    "expm1": Operator("std::expm1({0})", "libdevice.expm1({0})", "float", 10),
    "log": Operator("kv_log({0})", "tl.log({0})", "float", 10),
    "log2": Operator("std::log2({0})", "tl.log2({0})", "float", 10),
    "log10": Operator("std::log10({0})", "libdevice.log10({0})", "float", 10),
    "log1p": Operator("kv_log1p({0})", "libdevice.log1p({0})", "float", 10),
    "sqrt": Operator("std::sqrt({0})", "tl.sqrt_rn({0})", "float", 4),
    "rsqrt": Operator("(1 / std::sqrt({0}))", "libdevice.rsqrt({0})", "float", 4),
    "reciprocal": Operator("(1 / {0})", "(1 / {0})", "float", 4),
    "sigmoid": Operator("kv_sigmoid({0})", "tl.sigmoid({0})", "float", 12),
    "tanh": Operator("kv_tanh({0})", "libdevice.tanh({0})", "float", 12),
    "erf": Operator("std::erf({0})", "libdevice.erf({0})", "float", 12),
    "sin": Operator("std::sin({0})", "tl.sin({0})", "float", 12),
    "cos": Operator("std::cos({0})", "tl.cos({0})", "float", 12),
    "pow": Operator("std::pow({0}, {1})", "libdevice.pow({0}, {1})", "same", 20),
    "floor": Operator("std::floor({0})", "tl.floor({0})"),
    "ceil": Operator("std::ceil({0})", "tl.ceil({0})"),
    "trunc": Operator("std::trunc({0})", "libdevice.trunc({0})"),
    "nearbyint": Operator("std::nearbyint({0})", "libdevice.nearbyint({0})"),
    "eq": Operator("({0} == {1})", "({0} == {1})", "compare"),
    "ne": Operator("({0} != {1})", "({0} != {1})", "compare"),
    "lt": Operator("({0} < {1})", "({0} < {1})", "compare"),
    "le": Operator("({0} <= {1})", "({0} <= {1})", "compare"),
    "gt": Operator("({0} > {1})", "({0} > {1})", "compare"),
    "ge": Operator("({0} >= {1})", "({0} >= {1})", "compare"),
    "logical_and": Operator("({0} & {1})", "({0} & {1})", "bool"),
    "logical_or": Operator("({0} | {1})", "({0} | {1})", "bool"),
    "logical_xor": Operator("({0} ^ {1})", "({0} ^ {1})", "bool"),
    "logical_not": Operator("(!{0})", "({0} == 0)", "bool"),
    "bitwise_and": Operator("({0} & {1})", "({0} & {1})"),
    "bitwise_or": Operator("({0} | {1})", "({0} | {1})"),
    "bitwise_xor": Operator("({0} ^ {1})", "({0} ^ {1})"),
    "bitwise_not": Operator("kv_not({0})", "(~{0})"),
    "lshift": Operator("kv_shl({0}, {1})", "kv_shl({0}, {1})"),
    "rshift": Operator("kv_shr({0}, {1})", "kv_shr({0}, {1})"),
    "isnan": Operator("({0} != {0})", "({0} != {0})", "compare"),
    "isinf": Operator("kv_isinf({0})", "(tl.abs({0}) == float('inf'))", "compare"),
    "where": Operator("({0} ? {1} : {2})", "tl.where({0}, {1}, {2})"),
}

# ATen overload → operator, where arguments map one to one. The rest has a rule in `builder`.
ATEN: dict[str, str] = {
    "aten.mul.Tensor": "mul", "aten.mul.Scalar": "mul",
    "aten.div.Tensor": "truediv", "aten.div.Scalar": "truediv", "aten.true_divide.Tensor": "truediv",

    "aten.neg.default": "neg", "aten.abs.default": "abs", "aten.sign.default": "sign", "aten.relu.default": "relu",
    "aten.maximum.default": "maximum", "aten.minimum.default": "minimum",
    "aten.exp.default": "exp", "aten.exp2.default": "exp2", "aten.expm1.default": "expm1", "aten.log.default": "log",
    "aten.log2.default": "log2", "aten.log10.default": "log10", "aten.log1p.default": "log1p",
    "aten.sqrt.default": "sqrt", "aten.rsqrt.default": "rsqrt", "aten.reciprocal.default": "reciprocal",
    "aten.sigmoid.default": "sigmoid", "aten.tanh.default": "tanh", "aten.erf.default": "erf",
    "aten.sin.default": "sin", "aten.cos.default": "cos",
    "aten.pow.Tensor_Tensor": "pow",
    "aten.floor.default": "floor", "aten.ceil.default": "ceil", "aten.trunc.default": "trunc",
    "aten.round.default": "nearbyint",
    "aten.eq.Tensor": "eq", "aten.eq.Scalar": "eq", "aten.ne.Tensor": "ne", "aten.ne.Scalar": "ne",
    "aten.lt.Tensor": "lt", "aten.lt.Scalar": "lt", "aten.le.Tensor": "le", "aten.le.Scalar": "le",
    "aten.gt.Tensor": "gt", "aten.gt.Scalar": "gt", "aten.ge.Tensor": "ge", "aten.ge.Scalar": "ge",
    "aten.logical_and.default": "logical_and", "aten.logical_or.default": "logical_or",
    "aten.logical_xor.default": "logical_xor", "aten.logical_not.default": "logical_not",
    "aten.bitwise_and.Tensor": "bitwise_and", "aten.bitwise_and.Scalar": "bitwise_and",
    "aten.bitwise_or.Tensor": "bitwise_or", "aten.bitwise_or.Scalar": "bitwise_or",
    "aten.bitwise_xor.Tensor": "bitwise_xor", "aten.bitwise_xor.Scalar": "bitwise_xor",
    "aten.bitwise_not.default": "bitwise_not",
    "aten.__lshift__.Scalar": "lshift", "aten.__rshift__.Scalar": "rshift", "aten.__lshift__.Tensor": "lshift",
    "aten.__rshift__.Tensor": "rshift", "aten.bitwise_left_shift.Tensor": "lshift",
    "aten.bitwise_left_shift.Tensor_Scalar": "lshift", "aten.bitwise_right_shift.Tensor": "rshift",
    "aten.bitwise_right_shift.Tensor_Scalar": "rshift",
    "aten.isnan.default": "isnan", "aten.isinf.default": "isinf",
}  # fmt: skip
