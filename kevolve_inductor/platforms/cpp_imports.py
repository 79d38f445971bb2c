"""What a built C++ kernel may import from other libraries: arithmetic, OpenMP, and what its binding needs.

Read from the object itself, so that it holds whatever the text looked like.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from ..exc import GateError

_BINDING = frozenset(
    "PyErr_SetString PyErr_Occurred PyErr_NoMemory PyLong_AsLongLong Py_IncRef PyExc_TypeError _Py_NoneStruct "
    "aligned_alloc free".split()
)
_RUNTIME = frozenset(
    "__gmon_start__ _ITM_deregisterTMCloneTable _ITM_registerTMCloneTable __cxa_finalize __cxa_begin_catch "
    "__cxa_end_catch __gxx_personality_v0 _Unwind_Resume __stack_chk_fail __cxa_atexit _ZSt9terminatev "
    "__cxa_call_terminate memcpy memset memmove memcmp bcmp omp_get_thread_num omp_get_num_threads "
    "omp_get_max_threads __memcpy_chk __memset_chk __memmove_chk _ZdlPv _ZdlPvm _Znwm _ZnwmRKSt9nothrow_t "
    "_ZdlPvRKSt9nothrow_t _ZSt7nothrow _ZSt20__throw_length_errorPKc _ZSt28__throw_bad_array_new_lengthv "
    "_ZSt17__throw_bad_allocv".split()
)
_MATHEMATICS = re.compile(
    r"_?_?(exp|exp2|exp10|expm1|log|log2|log10|log1p|sqrt|cbrt|pow|hypot|floor|ceil|trunc|round|roundeven|nearbyint|rint|l?lround|"
    r"l?lrint|fmod|remainder|fma|fmax|fmin|fdim|copysign|erf|erfc|tgamma|lgamma|sin|cos|sincos|tan|asin|acos|atan|atan2|sinh|"
    r"cosh|tanh|asinh|acosh|atanh|ldexp|frexp|modf|ilogb|logb|scalbn|nextafter|fabs)[fl]?(_finite)?|_ZGV\w+"
)
_COMPILER = re.compile(r"GOMP_\w+|__kmpc_\w+|__(trunc|extend|float|fix|div|mod|udiv|umod|mul|pow|cpu)\w*|__aarch64_\w+")


# The type of the section that holds a shared object's dynamic symbols, by the ELF specification.
_DYNAMIC_SYMBOLS = 11
# Section types: symbols, and lists of functions to run when an object is loaded or unloaded; the flag of what may be written.
_SYMBOLS = 2
_RUN_AT_LOAD = (14, 15, 16)
_WRITABLE = 1
_SYMBOL_BYTES, _SECTION_SYMBOL = 24, 3
# The binding's own pointers, and the compiler's to its routine for exceptions.
_BINDING_MEMORY = re.compile(r"_ZL\d+kvb_(pointer|index_error)|DW\.ref\.\w+")


def check_imports(library: bytes) -> None:
    """Raises ``GateError`` for the first import that is not allowed."""
    for name in sorted(imported_symbols(library)):
        known = name in _BINDING or name in _RUNTIME
        if not known and not _MATHEMATICS.fullmatch(name) and not _COMPILER.fullmatch(name):
            raise GateError(f"a call of {name}", 0)


def check_memory(unit: bytes) -> None:
    """Raises ``GateError`` where the object keeps memory between calls beside its binding's, or code for when it is loaded.

    Read before linking, which adds both and drops the names.
    """
    writable = set()
    for number, (name, kind, flags, *_) in enumerate(_sections(unit)):
        if kind in _RUN_AT_LOAD or name.startswith((".ctors", ".dtors", ".init", ".fini")):
            raise GateError("code that runs when the kernel is loaded", 0)
        # What the linker fills in and then makes read-only: tables of constants' addresses.
        if flags & _WRITABLE and not name.startswith(".data.rel.ro"):
            writable.add(number)
    for name, information, section in _symbols(unit, _SYMBOLS):
        if section in writable and information & 15 != _SECTION_SYMBOL and not _BINDING_MEMORY.fullmatch(name):
            raise GateError(f"memory that outlives the call ({name})", 0)


def _symbols(content: bytes, wanted: int) -> Iterator[tuple[str, int, int]]:
    """Name, type and binding, and section number of every symbol in sections of type ``wanted``."""
    sections = _sections(content)
    for _, kind, _, at, size, link in sections:
        for position in range(at, at + size, _SYMBOL_BYTES) if kind == wanted else ():
            name_at, information, _, section = struct.unpack_from("<IBBH", content, position)
            yield _text_at(content, sections[link][3] + name_at), information, section


def _sections(unit: bytes) -> list[tuple[str, int, int, int, int, int]]:
    """Name, type, flags, offset, size and link of every section."""
    if unit[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit ELF object")
    (sections_at,) = struct.unpack_from("<Q", unit, 0x28)
    entry_size, count, names = struct.unpack_from("<HHH", unit, 0x3A)
    sections = [struct.unpack_from("<IIQQQQI", unit, sections_at + k * entry_size) for k in range(count)]
    return [
        (_text_at(unit, sections[names][4] + name_at), kind, flags, at, size, link)
        for name_at, kind, flags, _, at, size, link in sections
    ]


def _text_at(unit: bytes, start: int) -> str:
    return unit[start : unit.index(b"\0", start)].decode()


def imported_symbols(library: bytes) -> set[str]:
    """Names a 64-bit little-endian ELF shared object leaves to others. Raises ``ValueError`` for any other content."""
    return {name for name, _, section in _symbols(library, _DYNAMIC_SYMBOLS) if section == 0 and name}
