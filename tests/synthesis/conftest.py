from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from family_checks import HEADERS

from kevolve_inductor.exc import CompilerMissingError
from kevolve_inductor.platforms.cpp_compiler import find_compiler


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a file's kernels are built."""
    return tmp_path_factory.mktemp("build")


@pytest.fixture(scope="session")
def headers_once(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """A folder in which g++ finds what every kernel includes, read already: without it that takes most of its time."""
    try:
        compiler = find_compiler()
    except CompilerMissingError:
        return None
    if "g++" not in compiler.version:
        return None
    place = tmp_path_factory.mktemp("headers")
    (place / "all.h").write_text("".join(f"#include <{name}>\n" for name in HEADERS))
    # A kernel's first line includes it; what is compiled in another way finds the header itself.
    (place / "cstdint").write_text("#include_next <cstdint>\n")
    command = [*compiler.command, *compiler.flags, "-x", "c++-header", "-o", str(place / "cstdint.gch")]
    done = subprocess.run([*command, str(place / "all.h")], capture_output=True, check=False)
    return place if done.returncode == 0 else None


@pytest.fixture(scope="module", autouse=True)
def headers(headers_once: Path | None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if headers_once is not None:
            patch.setenv("CPLUS_INCLUDE_PATH", str(headers_once))
        yield
