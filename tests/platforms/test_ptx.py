"""PTX that is known to be assembled wrongly."""

from __future__ import annotations

from kevolve_inductor.platforms.ptx import mixes_swizzles

PRODUCT = "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%r1}, %rd9, %rd8, 0, 1, 1, 0, 1;\n"
# Rows of 128 bytes, and of 64.
WIDE, NARROW = 0x4000004000010000, 0x8000002000010000 - 2**64


def descriptors(*layouts: int, address: str = "%rd7") -> str:
    lines = [f"or.b64 \t%rd{20 + k}, {address}, {layout};" for k, layout in enumerate(layouts)]
    return "\n".join(lines) + "\n" + PRODUCT


def test_one_address_in_two_layouts_is_found() -> None:
    assert mixes_swizzles(descriptors(WIDE, NARROW))
    assert mixes_swizzles(descriptors(WIDE).replace("or.b64", "add.s64") + descriptors(NARROW + 64))


def test_other_steps_of_one_layout_and_other_addresses_are_none() -> None:
    assert not mixes_swizzles(descriptors(WIDE, WIDE + 2, WIDE + 128))
    assert not mixes_swizzles(descriptors(WIDE) + descriptors(NARROW, address="%rd8"))
    assert not mixes_swizzles("add.s64 %rd3, %rd1, 4096;\n" + descriptors(WIDE, address="%rd1"))


def test_without_asynchronous_products_nothing_is() -> None:
    assert not mixes_swizzles(descriptors(WIDE, NARROW).replace("wgmma", "mma"))
