"""What a compiler made of a kernel, read from the machine code: vector width, how much is vectorised, use of the stack."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from .profile import Profile

SOURCE = "disassembly"
_TIMEOUT_S = 20.0
# Of x86: arithmetic (not moves) on whole vectors ends in ps or pd, on one element in ss or sd.
_ARITHMETIC = re.compile(
    r"\tv?(?:fn?m(?:add|sub)\w*?|add|sub|mul|div|max|min|sqrt)(?P<kind>[ps])(?P<type>[sd])\s+(?P<operands>.*)"
)
_STACK_FRAME = re.compile(r"\tsub\s+\$0x(?P<bytes>[0-9a-f]+),%rsp")
_STACK_STORE = re.compile(r"\tv?mov\w+\s+%[xyz]mm\d+,-?(?:0x[0-9a-f]+)?\(%r[sb]p\)")
_REGISTER_BITS = {"zmm": 512, "ymm": 256, "xmm": 128}
_ELEMENT_BITS = {"s": 32, "d": 64}


def read_machine_code(library: Path) -> Profile:
    """Of everything in a shared object. Only x86-64 is understood."""
    tool = shutil.which("objdump")
    if tool is None:
        return Profile.without(SOURCE, "objdump is not installed")
    command = [tool, "--disassemble", "--no-show-raw-insn", str(library)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Profile.without(SOURCE, f"objdump failed: {type(error).__name__}")
    if done.returncode != 0 or "x86-64" not in done.stdout[:500]:
        return Profile.without(SOURCE, done.stderr.strip()[:200] or "only x86-64 is understood")
    return profile_of_text(done.stdout)


def profile_of_text(text: str) -> Profile:
    """Of ``objdump``'s text in AT&T syntax. Every instruction counts once, however often it runs."""
    in_vectors, elements, widths = 0, 0, [0]
    for match in _ARITHMETIC.finditer(text):
        lanes = 1
        if match["kind"] == "p":
            width = next((bits for name, bits in _REGISTER_BITS.items() if f"%{name}" in match["operands"]), 128)
            widths.append(width)
            lanes = width // _ELEMENT_BITS[match["type"]]
            in_vectors += lanes
        elements += lanes
    figures = {
        "vector_bits": max(widths) if elements else None,
        "vector_share": in_vectors / elements if elements else None,
        "stack_bytes": max((int(match["bytes"], 16) for match in _STACK_FRAME.finditer(text)), default=0),
        "stack_stores": sum(1 for _ in _STACK_STORE.finditer(text)),
    }
    return Profile.of(SOURCE, figures)
