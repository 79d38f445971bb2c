"""How values of each dtype are held, packed and moved in C++."""

from __future__ import annotations

from ....exc import EmissionError
from ...expression import expression as ex
from ...expression.cpp import CPP_TYPES
from .program import Order, Select

ORDERS: dict[Order, int] = {"greatest": 0, "smallest": 1, "least": 2}
_NARROW_POSITIONS = 2**15
_POSITIONS = 2**30


def work_type(dtype: str) -> str:
    """The type in which values are compared and accumulated: what vectors hold, at least 32 bits."""
    return CPP_TYPES[dtype] if dtype in ("float32", "float64", "int64") else "int32_t"


def converter(dtype: str, held: str) -> str:
    """The helper that takes memory elements of ``dtype`` to values held as ``held`` and back."""
    return {"bfloat16": "kv_bf16", "float16": "kv_fp16", "bool": "kv_flag"}.get(dtype, f"kv_plain<{CPP_TYPES[held]}>")


def lowest(dtype: str, kind: str) -> str:
    """The identity of a maximum over values of C++ type ``kind``."""
    return f"-std::numeric_limits<{kind}>::infinity()" if dtype in ex.FLOATS else f"std::numeric_limits<{kind}>::min()"


def highest(dtype: str, kind: str) -> str:
    return f"std::numeric_limits<{kind}>::infinity()" if dtype in ex.FLOATS else f"std::numeric_limits<{kind}>::max()"


def code_of(select: Select, extent: int) -> str:
    """The helper that packs values with their positions."""
    order = ORDERS[select.order]
    if extent >= _POSITIONS:
        raise EmissionError(f"positions up to {extent} do not fit beside a value")
    if select.value.dtype in ("float64", "int64"):
        return f"kv_code64<{order}, {CPP_TYPES[select.value.dtype]}>"
    if extent < _NARROW_POSITIONS:
        if select.dtype == "bfloat16":
            return f"kv_code16<{order}, kv_bits_bf16>"
        if select.dtype == "float16":
            return f"kv_code16<{order}, kv_bits_fp16>"
        if select.dtype in ("bool", "int8", "uint8", "int16"):
            return f"kv_code_small<{order}>"
    return f"kv_code32<{order}, {work_type(select.value.dtype)}>"


def is_wide(select: Select) -> bool:
    """Whether a packed value takes more than a vector element."""
    return select.value.dtype in ("float64", "int64")
