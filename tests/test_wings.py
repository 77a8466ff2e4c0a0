"""The wings hold: what may import what, where libraries stay, how long functions are, what the fork finds loaded."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "sosfs"
FUNCTION_MAX = 45  # lines: what a screen shows whole

# From the top. A module imports from its own wing and from those that stand after it.
WINGS = (
    "__main__",
    "cli",
    "daemon",
    "buckets",
    "filesystem",
    "fuse",
    "control",
    "recovery",
    "namespace",
    "files",
    "attributes",
    "tree",
    "journal",
    "cache",
    "metadata",
    "disk",
    "s3",
    "ipc",
    "tracing",
    "log",
    "config",
    "concurrency",
    "errors",
    "__init__",
)

# Libraries that only these modules, or those in these wings, may import.
ONLY = {
    "pyfuse3": {"fuse", "daemon.mount", "daemon.service", "buckets"},
    "boto3": set[str](),
    "botocore": {"s3.signed_request", "s3.bucket_settings", "s3.object_urls", "config.aws_profiles"},
    "pycurl": {"s3.transport"},
    "awscrt": {"s3.checksums"},
    "sqlite3": {"journal.journal", "journal.salvage", "disk.database", "disk.reserve", "cache.attributes"},
}
# What starts threads or opens connections when it is loaded must not be there when the daemon forks; trio neither,
# half of whose 0.2 s a command that answers at once would be.
AFTER_FORK = {"awscrt", "boto3", "botocore", "urllib3", "pycurl", "pyfuse3", "trio"}


@dataclass
class Module:
    """A module of the package and what it imports: at its top, within its functions, or for the type checker alone."""

    name: str  # without `sosfs.`
    tree: ast.Module
    own: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)

    @property
    def wing(self) -> str:
        """The folder right below the package that it is in, or itself."""
        return self.name.partition(".")[0]

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        """All functions and methods."""
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def name_of(path: Path) -> str:
    """What a module is called without `sosfs.`; a package by its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


PATHS = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def read(name: str) -> Module:
    """Reads one module."""
    module = Module(name, ast.parse(PATHS[name].read_text(encoding="utf-8")))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                add(module, alias.name, [])
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module.name}: a relative import"
            add(module, node.module or "", [alias.name for alias in node.names])
    return module


def add(module: Module, source: str, names: list[str]) -> None:
    """Notes `from source import names`, or `import source` without names."""
    top, _, below = source.partition(".")
    if top != "sosfs":
        module.others.add(top)
        return
    found = {f"{below}.{name}".lstrip(".") for name in names} & PATHS.keys()
    module.own |= found or {below or "__init__"}


def test_every_module_is_in_a_wing() -> None:
    assert {module.wing for module in map(read, PATHS)} == set(WINGS)


@pytest.mark.parametrize("name", PATHS)
def test_imports_go_down(name: str) -> None:
    allowed = WINGS[WINGS.index(read(name).wing) :]
    wrong = {other for other in read(name).own if other.partition(".")[0] not in allowed}
    assert not wrong, f"{name} may not import {wrong}"


def test_no_imports_go_round() -> None:
    """Within a wing neither: of any two modules at most one knows the other, also by way of others."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(read(name).own):
                visit(other, (*path, name))
            done.add(name)

    for name in PATHS:
        visit(name, ())


def test_no_two_modules_of_a_wing_differ_by_an_ending() -> None:
    wings = {name.rpartition(".")[0] for name in PATHS}
    for wing in wings:
        leaves = [name.rpartition(".")[2] for name in PATHS if name.rpartition(".")[0] == wing]
        assert not [(a, b) for a in leaves for b in leaves if a != b and b in {a + "s", a + "d", a + "ed", a + "ing"}]


@pytest.mark.parametrize("library", ONLY)
def test_libraries_stay_where_they_belong(library: str) -> None:
    users = {module.name for module in map(read, PATHS) if library in module.others}
    assert {name for name in users if not {name, name.partition(".")[0]} & ONLY[library]} == set()


def test_nothing_heavy_is_loaded_before_the_fork() -> None:
    loads = "import sys, sosfs.cli.main, sosfs.cli.mount_helper"
    code = f"{loads}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert AFTER_FORK & set(done.stdout.split()) == set()


def test_every_module_is_loaded_without_a_warning() -> None:
    """Of what the next Python takes no more, this one warns."""
    load = "import importlib, sys, warnings; warnings.filterwarnings('error', module='sosfs')"
    code = f"{load}; [importlib.import_module(name) for name in sys.argv[1:]]"
    names = ["sosfs" if name == "__init__" else f"sosfs.{name}" for name in PATHS.keys() - {"__main__"}]
    done = subprocess.run(
        [sys.executable, "-c", code, *sorted(names)], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", PATHS)
def test_functions_stay_short(name: str) -> None:
    long = {f.name: f.end_lineno - f.lineno + 1 for f in read(name).functions() if f.end_lineno}
    assert {function: lines for function, lines in long.items() if lines > FUNCTION_MAX} == {}


@pytest.mark.parametrize("name", PATHS)
def test_every_module_says_what_it_is(name: str) -> None:
    assert ast.get_docstring(read(name).tree)
