"""What a C++ kernel may contain, judged by tokens: arithmetic, loops, OpenMP and vector intrinsics over its arguments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..exc import GateError

_HEADERS = frozenset(
    "cstdint cstddef cmath cstring algorithm limits bit array utility type_traits numeric immintrin.h arm_neon.h omp.h".split()
)
_DIRECTIVES = re.compile(
    r"#\s*(include\s*<[\w./]+>|pragma\s+(omp|GCC)\b.*|if\b.*|ifdef\b.*|ifndef\b.*|elif\b.*|else|endif)\s*$"
)
# Foreign code, control flow that leaves the function, memory that outlives the call, and what runs at load time.
_REFUSED_WORDS = frozenset(
    "asm __asm __asm__ _Pragma throw try catch goto new delete typeid dynamic_cast virtual import export "
    "module co_await co_return co_yield friend thread_local __thread constructor destructor section ifunc "
    "alias weak weakref cleanup naked system popen fork vfork clone execl execle execlp execv execve execvp "
    "execvpe posix_spawn dlopen dlsym dlclose syscall mmap mprotect munmap ptrace kill signal raise abort "
    "exit _exit quick_exit atexit getenv setenv putenv fopen freopen open openat creat read write socket "
    "connect bind listen accept pthread_create thread jthread async FILE fstream ifstream ofstream filesystem "
    "setjmp longjmp environ stdin stdout stderr printf fprintf puts malloc calloc realloc free aligned_alloc "
    "omp_set_num_threads omp_set_dynamic omp_set_nested alloca_with_align errno gets scanf rand srand time "
    "clock _mm_getcsr _mm_setcsr _mm_clflush _mm_clflushopt _mm_clwb _mm_cldemote _mm_monitor _mm_mwait".split()
)
_REFUSED_ATTRIBUTES = frozenset("constructor destructor section ifunc alias weak weakref cleanup naked".split())
_REFUSED_PREFIXES = ("Py", "_Py", "kvb_", "kvs_", "kevolve_", "GOMP_", "pthread_", "omp_set_", "__cxa", "_Unwind")
_STD = frozenset(
    "abs fabs min max minmax clamp exp exp2 expm1 log log2 log10 log1p sqrt cbrt pow hypot floor ceil trunc "
    "round nearbyint rint lround llround lrint llrint fmod remainder fma fmax fmin fdim isnan isinf isfinite "
    "isnormal signbit copysign erf erfc tgamma lgamma sin cos tan asin acos atan atan2 sinh cosh tanh asinh "
    "acosh atanh ldexp frexp modf ilogb logb scalbn nextafter numeric_limits bit_cast bit_ceil bit_floor "
    "bit_width popcount countl_zero countr_zero countl_one countr_one rotl rotr has_single_bit memcpy memset "
    "memmove memcmp sort stable_sort nth_element partial_sort lower_bound upper_bound binary_search "
    "equal_range fill fill_n copy copy_n swap iota accumulate reverse rotate unique transform max_element "
    "min_element is_sorted push_heap pop_heap make_heap sort_heap merge inplace_merge pair tuple array "
    "make_pair move forward get less greater is_same is_same_v is_floating_point_v is_integral_v is_signed_v "
    "conditional_t enable_if_t make_unsigned_t make_signed_t decay_t remove_cv_t declval true_type false_type "
    "integral_constant index_sequence make_index_sequence size_t ptrdiff_t int8_t int16_t int32_t int64_t "
    "uint8_t uint16_t uint32_t uint64_t uintptr_t intptr_t".split()
)
_C_FUNCTIONS = frozenset(
    f"{name}{suffix}"
    for name in (
        "fabs exp exp2 expm1 log log2 log10 log1p sqrt cbrt pow hypot floor ceil trunc round nearbyint rint "
        "lround lrint fmod remainder fma fmax fmin copysign erf erfc tgamma lgamma sin cos tan asin acos atan "
        "atan2 sinh cosh tanh ldexp".split()
    )
    for suffix in ("", "f")
) | frozenset(
    "memcpy memset memmove memcmp abs isnan isinf isfinite signbit omp_get_thread_num omp_get_num_threads "
    "omp_get_max_threads alloca __builtin_alloca".split()
)
_TYPES = frozenset(
    "void bool char short int long float double signed unsigned auto size_t int8_t int16_t int32_t int64_t "
    "uint8_t uint16_t uint32_t uint64_t intptr_t uintptr_t __int128 _Float16 __bf16".split()
)
_BEFORE_PARENTHESIS = frozenset(
    "if for while switch return sizeof alignof alignas decltype static_assert noexcept __attribute__ "
    "vector_size aligned constexpr consteval explicit requires and or not else do case operator".split()
)
_BUILTINS = re.compile(
    r"__builtin_(expect|prefetch|clz|ctz|popcount|bswap|assume_aligned|unreachable|memcpy|memset|nan|inf|huge|isnan|isinf|"
    r"sqrt|fma|fabs|copysign|add_overflow|sub_overflow|mul_overflow|shuffle|convertvector|nontemporal_store|"
    r"ia32_movnt|ia32_sfence)\w*"
)  # fmt: skip
_INTRINSICS = re.compile(
    r"_mm\d*_\w+|_(pext|pdep|lzcnt|tzcnt|blsr|popcnt|bextr|ktest|kortest|cvt|load_mask|store_mask)\w*|v\w+q?_[suf]\d+"
)

_STATEMENTS = ("return", "else", "case", "do")
_TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?\*/)
      | (?P<directive>^[ \t]*\#[^\n]*)
      | (?P<raw>(?:u8|u|U|L)?R")
      | (?P<text>(?:u8|u|U|L)?"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])+')
      | (?P<number>\.?\d(?:[eEpP][+-]|[\w.]|'(?=\w))*)
      | (?P<word>[A-Za-z_]\w*)
      | (?P<sign>::|->|\+\+|--|<<=?|&&|\|\||[<>=!+\-*/%&|^]=|[{}()\[\];,<>=!+\-*/%&|^~?:.])
      | (?P<space>\s+)""",
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


def check_cpp(source: str, entries: Sequence[str]) -> None:
    """Raises ``GateError``. ``entries`` are the functions that may have C linkage."""
    tokens = list(_tokens(source))
    code = [token for token in tokens if token.kind != "directive"]
    for token in tokens:
        if token.kind == "directive":
            _check_directive(token)
        elif token.kind == "word" and token.text not in entries and _is_refused(token.text):
            raise GateError(token.text, token.line)
    _check_linkage(code, entries)
    _check_names(code)
    _check_lifetime(code)


def _is_refused(word: str) -> bool:
    # Attributes may be written with underscores around them.
    return word in _REFUSED_WORDS or word.strip("_") in _REFUSED_ATTRIBUTES or word.startswith(_REFUSED_PREFIXES)


def _tokens(source: str) -> Iterator[_Token]:
    end, line = 0, 1
    for found in _TOKEN.finditer(source):
        if found.start() != end:
            break
        end = found.end()
        kind, text = str(found.lastgroup), found[0]
        if kind == "raw":
            raise GateError("a raw string", line)
        if "\\\n" in text or "\\\r" in text or (kind == "word" and not text.isascii()):
            raise GateError("a continued line or a letter outside ASCII", line)
        if kind == "directive" and "/*" in text:
            raise GateError("a comment in a directive", line)
        if kind not in ("comment", "space"):
            yield _Token(kind, text.strip() if kind == "directive" else text, line)
        line += text.count("\n")
    if end < len(source):
        raise GateError(f"the character {source[end]!r}", line)


def _check_directive(token: _Token) -> None:
    text = token.text.split("//")[0].rstrip()
    if not _DIRECTIVES.match(text):
        raise GateError(text, token.line)
    included = re.match(r"#\s*include\s*<(.*)>", text)
    if included and included[1] not in _HEADERS:
        raise GateError(text, token.line)
    for word in re.findall(r"[A-Za-z_]\w*", text):
        if word in _REFUSED_WORDS or word in (
            "poison",
            "push_macro",
            "pop_macro",
            "__has_include",
            "diagnostic",
            "dependency",
        ):
            raise GateError(f"{word} in a directive", token.line)


def _check_linkage(code: Sequence[_Token], entries: Sequence[str]) -> None:
    """``extern`` only as ``extern "C" int64_t entry(``."""
    for position, token in enumerate(code):
        if token.text != "extern":
            continue
        after = [other.text for other in code[position + 1 : position + 5]]
        if after[:2] != ['"C"', "int64_t"] or len(after) < 4 or after[2] not in entries or after[3] != "(":
            raise GateError("extern", token.line)


def _check_names(code: Sequence[_Token]) -> None:
    own = _own_names(code)
    for position, token in enumerate(code):
        before = code[position - 1].text if position else ""
        after = code[position + 1].text if position + 1 < len(code) else ""
        if token.text == "(" and after == "*" and _is_function_pointer(code, position):
            raise GateError("a pointer to a function", token.line)
        if token.kind != "word":
            continue
        if before == "::" and not _is_qualified(code, position):
            raise GateError(f"::{token.text}", token.line)
        if before == "::" and code[position - 2].text == "std" and token.text not in _STD:
            raise GateError(f"std::{token.text}", token.line)
        if after == "(" and before not in ("::", ".", "->") and not _may_be_called(token.text, own):
            raise GateError(f"a call of {token.text}", token.line)
        if token.text == "using" and after == "namespace":
            raise GateError("using namespace", token.line)


def _is_qualified(code: Sequence[_Token], position: int) -> bool:
    """Whether the ``::`` before a name stands behind a class or namespace, not for the global scope."""
    scope = code[position - 2] if position >= 2 else None
    return scope is not None and (scope.text == ">" or (scope.kind == "word" and scope.text not in _BEFORE_PARENTHESIS))


def _is_function_pointer(code: Sequence[_Token], position: int) -> bool:
    """``(*)``, ``(*name)(``: a declarator, not a dereference in parentheses."""
    texts = [token.text for token in code[position + 2 : position + 5]]
    if texts[:1] == [")"]:
        return True
    return len(texts) == 3 and texts[1] == ")" and texts[2] == "("


def _may_be_called(name: str, own: set[str]) -> bool:
    if name in own or name in _TYPES or name in _BEFORE_PARENTHESIS or name in _C_FUNCTIONS:
        return True
    return bool(_BUILTINS.fullmatch(name) or _INTRINSICS.fullmatch(name))


def _own_names(code: Sequence[_Token]) -> set[str]:
    """Functions defined here, types, template parameters, and variables: what follows a type and is no prototype."""
    own: set[str] = set()
    for position in range(1, len(code)):
        before, token = code[position - 1], code[position]
        if token.kind != "word":
            continue
        after = code[position + 1].text if position + 1 < len(code) else ""
        if before.text in ("struct", "class", "typename", "using", "union", "enum"):
            own.add(token.text)
        elif after == "(":
            is_definition = _text_after_group(code, position + 1) in (
                "{",
                "const",
                "noexcept",
                ":",
                "->",
                "__attribute__",
            )
            # A variable initialised in parentheses stands inside a function, as a prototype does; calling it needs a body.
            if is_definition or _is_initialised_variable(code, position):
                own.add(token.text)
        elif before.text in ("&", "*", ">", "&&") or (before.kind == "word" and before.text not in _STATEMENTS):
            own.add(token.text)
    return own - _REFUSED_WORDS


def _is_initialised_variable(code: Sequence[_Token], position: int) -> bool:
    before = code[position - 1]
    typed = before.kind == "word" and before.text not in _BEFORE_PARENTHESIS
    first = code[position + 2] if position + 2 < len(code) else before
    return typed and first.text not in _TYPES | {"const", ")", "struct", "unsigned"} and before.text in _TYPES


def _text_after_group(code: Sequence[_Token], opening: int) -> str:
    depth = 0
    for position in range(opening, len(code)):
        depth += {"(": 1, ")": -1}.get(code[position].text, 0)
        if depth == 0:
            return code[position + 1].text if position + 1 < len(code) else ""
    return ""


def _check_lifetime(code: Sequence[_Token]) -> None:
    """Nothing that changes may outlive a call: no mutable statics, and at file scope only constants and definitions."""
    blocks: list[bool] = []
    statement: list[_Token] = []
    for token in code:
        if token.text == "}" and blocks:
            blocks.pop()
        if token.text in ("{", "}", ";"):
            _check_statement(statement, token.text, sum(blocks))
            if token.text == "{":
                # A namespace's contents are at file scope still.
                blocks.append(not any(other.text == "namespace" for other in statement))
            statement = []
        else:
            statement.append(token)
    if statement:
        raise GateError("text that is no declaration", statement[0].line)


def _check_statement(statement: Sequence[_Token], end: str, depth: int) -> None:
    words = {token.text for token in statement}
    if not statement or words & {"const", "constexpr"} or (depth == 0 and end == "{"):
        return
    if "static" in words and "(" not in words:
        raise GateError("a static variable that is not constant", statement[0].line)
    if depth == 0 and not words & {"using", "typedef", "static_assert", "struct", "template"}:
        raise GateError("a variable or prototype at file scope", statement[0].line)
