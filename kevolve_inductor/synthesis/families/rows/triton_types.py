"""How a selection's values are packed with their positions in Triton."""

from __future__ import annotations

from dataclasses import dataclass

from ....exc import EmissionError
from ...expression.triton import TRITON_TYPES
from .program import Select

_NARROW_POSITIONS = 2**15
_DOUBLE_POSITIONS = 2**19
_POSITIONS = 2**30
_SMALL = ("bool", "int8", "uint8", "int16")


@dataclass(frozen=True)
class Packing:
    """Texts of one selection's keys. ``kind`` is the type of packed values (``"float64"``, ``"int64"``, ``"int32"``)."""

    select: Select
    kind: str

    @property
    def last(self) -> str:
        """A packed value that stands behind every other one."""
        return {"float64": "float('inf')", "int64": "9223372036854775807", "int32": "2147483647"}[self.kind]

    @property
    def _greatest(self) -> str:
        return str(self.select.order == "greatest")

    def packed(self, value: str, position: str) -> str:
        key = key_of(self.select, value, narrow=self.kind == "int32")
        low = f"({position} << 1)"
        if self.select.value.dtype == "float32":
            low = f"kv_low_float({value}, {position})"
        return f"kv_pack_{self.kind}({key}, {low})"

    def unpacked(self, name: str) -> tuple[str, str, str]:
        """The statement that takes the packed tensor ``name`` apart, then value and position."""
        statement = f"{name}_key, {name}_low = kv_unpack_{self.kind}({name})"
        value = self.select.value
        if value.dtype != "float32":
            integer = f"(~{name}_key)" if self.select.order == "greatest" else f"{name}_key"
            text = f"({integer} != 0)" if value.dtype == "bool" else f"{integer}.to({TRITON_TYPES[value.dtype]})"
        elif self.kind == "int32":
            text = f"kv_half_of({name}_key, {name}_low, {TRITON_TYPES[self.select.dtype]}, {self._greatest})"
        else:
            text = f"kv_float_of({name}_key, {name}_low, {self._greatest})"
        return statement, text, f"({name}_low >> 1).to(tl.int64)"


def packing_of(select: Select, extent: int, wanted: str) -> Packing | None:
    """``wanted`` is how keys of 32 bits are packed. ``None`` for values that do not fit beside a position."""
    if select.value.dtype in ("float64", "int64"):
        return None
    if is_narrow(select, extent):
        return Packing(select, "int32")
    if extent > _POSITIONS:
        raise EmissionError(f"positions up to {extent} do not fit beside a value")
    return Packing(select, wanted if extent <= _DOUBLE_POSITIONS else "int64")


def is_narrow(select: Select, extent: int) -> bool:
    """Whether value and position fit into 32 bits."""
    return select.dtype in ("bfloat16", "float16", *_SMALL) and extent <= _NARROW_POSITIONS


def key_of(select: Select, value: str, narrow: bool = False) -> str:
    """An integer that orders like the selection, smallest first; ``narrow``: of 16 bits, held in 32."""
    greatest, first_nan = str(select.order == "greatest"), str(select.order != "smallest")
    if select.value.dtype == "float64":
        return f"kv_key64({value}, {greatest}, {first_nan})"
    if select.value.dtype == "float32" and narrow:
        return f"kv_key16({value}, {TRITON_TYPES[select.dtype]}, {greatest}, {first_nan})"
    if select.value.dtype == "float32":
        return f"kv_key32({value}, {greatest}, {first_nan})"
    wide = "tl.int64" if select.value.dtype == "int64" else "tl.int32"
    return f"kv_key_int({value}.to({wide}), {greatest})"
