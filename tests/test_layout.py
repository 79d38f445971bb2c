"""The shape of the package: which way imports point, who reads the environment, what is public, what imports cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kevolve_inductor

PACKAGE = Path(kevolve_inductor.__file__).parent
NAME = "kevolve_inductor"

# Each part may import those before it and itself; the longest matching prefix decides. ``testing`` and
# ``integrations`` are for users of the package and stand above everything.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("", "exc", "settings"),
    ("kernel", "graph"),
    ("platforms",),
    ("graph.cost", "graph.launch", "graph.lowering", "graph.rewrite"),
    ("evaluate", "cache", "knowledge"),
    ("synthesis",),
    ("graph.discovery", "graph.view"),
    ("search",),
    ("tuner", "whole_graph", "export"),
    ("report",),
    ("swap_pass", "final_choice", "first_call", "step"),
    ("backend", "warm", "cli"),
    ("integrations", "testing"),
)
ENVIRONMENT = ("environ", "environb", "getenv", "getenvb")
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    """``graph.region`` for ``kevolve_inductor/graph/region.py``; the empty string for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def rank(module: str) -> int:
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        for position, layer in enumerate(LAYERS):
            if prefix in layer:
                return position
    raise AssertionError(f"{module} belongs to no layer")


def imported_modules(path: Path) -> Iterator[str]:
    """Modules of this package that ``path`` imports, anywhere in the file, but for type checking alone."""
    tree = ast.parse(path.read_text())
    package = [NAME, *path.relative_to(PACKAGE).parts[:-1]]
    for node in _run_time_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (_inside(alias.name) for alias in node.names if alias.name.split(".")[0] == NAME)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            full = ".".join([*base, *([node.module] if node.module else [])])
            if full.split(".")[0] == NAME:
                yield from (_resolve(_inside(full), alias.name) for alias in node.names)


def _run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _run_time_nodes(node)


def _inside(name: str) -> str:
    return name.removeprefix(NAME).removeprefix(".")


def _resolve(module: str, name: str) -> str:
    """``from .graph import region`` imports the module ``graph.region``, not a name of ``graph``."""
    candidate = f"{module}.{name}" if module else name
    path = PACKAGE.joinpath(*candidate.split("."))
    return candidate if path.is_dir() or path.with_suffix(".py").exists() else module


@pytest.mark.parametrize("path", MODULES, ids=lambda path: module_name(path) or "package")
def test_imports_point_one_way(path: Path) -> None:
    module = module_name(path)
    upward = [name for name in imported_modules(path) if rank(name) > rank(module)]
    assert not upward, f"{module} imports {', '.join(upward)}, which stand above it"


def test_the_import_reader_sees_relative_and_absolute_imports(tmp_path: Path) -> None:
    seen = set(imported_modules(PACKAGE / "evaluate" / "evaluator.py"))
    assert {"graph.region", "kernel", "evaluate.evaluation"} <= seen


def test_search_knows_no_torch_no_triton_and_no_clock() -> None:
    for path in (PACKAGE / "search").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {name.split(".")[0] for name in names}
            assert not roots & {"torch", "triton", "time", "datetime"}, f"{path.name} imports {roots}"


def test_the_environment_is_read_in_settings_alone() -> None:
    for path in MODULES:
        if module_name(path) == "settings":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            read = isinstance(node, ast.Attribute) and ast.unparse(node) in {f"os.{name}" for name in ENVIRONMENT}
            if isinstance(node, ast.ImportFrom) and node.module == "os":
                read = any(alias.name in ENVIRONMENT for alias in node.names)
            assert not read, f"{module_name(path)} reads the environment in line {node.lineno}"


def test_only_commands_and_reports_print() -> None:
    for path in MODULES:
        if module_name(path).split(".")[0] in ("cli", "report"):
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        printing = [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
        assert not printing, f"{module_name(path)} prints in line {printing[0]}"


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


REFUSE_PROCESSES = """
import os, subprocess, sys, multiprocessing.process
def refuse(*args, **kwargs):
    raise AssertionError("a process was started")
subprocess.Popen.__init__ = refuse
multiprocessing.process.BaseProcess.start = refuse
os.fork = os.posix_spawn = os.system = refuse
"""


def test_importing_the_package_imports_no_triton_and_starts_no_process() -> None:
    imports = "import kevolve_inductor, kevolve_inductor.cli, kevolve_inductor.tuner, kevolve_inductor.report\n"
    assert run_python(REFUSE_PROCESSES + imports + "print('triton' in sys.modules)") == "False"


def test_loading_the_backend_starts_no_process_and_loads_what_inductor_loads() -> None:
    # Inductor itself imports triton where it is installed, so what counts is that we add nothing to that.
    before = "import torch._inductor.compile_fx\nbefore = 'triton' in sys.modules\n"
    after = "import kevolve_inductor.backend\nprint(before == ('triton' in sys.modules))"
    assert run_python(REFUSE_PROCESSES + before + after) == "True"


def test_no_module_imports_triton_when_it_is_imported() -> None:
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not any(name.split(".")[0] == "triton" for name in names), f"{module_name(path)} imports triton"


def test_the_public_surface_is_what_it_was() -> None:
    assert sorted(kevolve_inductor.__all__) == ["__version__"]
