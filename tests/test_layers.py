"""The house holds: who may import whom and what, how long functions are, what is loaded before the fork."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "sosfs"
FUNCTION_MAX = 45  # lines: what a screen shows whole

# Imports go to the right and down: a module may import what stands after it, in its row or in a later one.
ROWS = (
    # what a user types
    ("__main__", "umount_helper", "fstab", "cli", "acl_command", "demo", "doctor", "overview", "umount"),
    ("cache_command", "bench", "measuring"),
    ("machine_checks", "account_checks", "rights", "server_checks", "bucket_checks", "findings", "daemon"),
    # the mount and what the kernel asks of it
    (
        "mount",
        "under_way",
        "service",
        "bucket_routing",
        "top_operations",
        "buckets",
        "bucket_errands",
        "member",
        "roster",
        "served",
        "composition",
        "routing",
        "operations",
        "entries",
        "control_operations",
        "answered",
        "callers",
        "xattrs",
        "control_files",
        "kernel_cache",
    ),
    # names
    ("guesses", "recovery", "attribute_replay", "resumption", "places", "reclaim"),
    ("creation", "rename", "undoing", "moving", "warming", "dropping", "shedding"),
    ("namespace", "sharing", "versions", "exclusive"),
    # bytes
    ("contents", "writeback", "discards", "filling", "succession", "pages", "commits", "resting", "records", "unsent"),
    ("content",),
    ("attributes", "changes", "doubts", "learning", "foresight", "listing", "subtree"),
    ("refusals", "deletions", "conflict", "upload", "parts"),
    ("shares", "draft", "reader", "spool", "descriptors", "blocks"),
    ("fetching", "integrity", "disk_cache", "budget", "extents"),
    # what both share
    ("copying", "multiparts", "directory", "attribute_cache", "gate", "streak", "inodes", "journal", "saved", "edits"),
    ("headers", "salvage", "database", "reserve", "watermark", "damage"),
    ("absences", "xattr_names", "control", "keys", "metadata"),
    # the store
    ("bucket_zone", "scratch"),
    (
        "s3",
        "arrival",
        "account",
        "reasons",
        "digests",
        "removal",
        "paging",
        "guards",
        "landing",
        "abilities",
        "bucket_settings",
        "sender",
        "fake",
    ),
    ("links",),
    (
        *("lane_signed", "object_answers", "signed_http", "unsigned_http", "transport", "retries"),
        *("listing_answers", "answers", "wire", "target", "customer_key", "messages", "interrupt"),
    ),
    ("acl", "cors", "rejected"),
    # the machine and its settings
    ("metrics", "errands", "listening", "status", "readiness", "location"),
    ("holders", "mountpoint", "kernel", "allocator", "private", "cache_lock"),
    ("option_table", "trust", "proxies", "keysearch", "keyfiles", "aws_resolver", "credentials"),
    ("log_level", "config", "values", "zone"),
    (
        "tasks",
        "threads",
        "pauses",
        "turns",
        "interrupt",
        "disk",
        "store",
        "checksums",
        "errors",
        "printable",
        "__init__",
    ),
)

# Libraries that only these modules may import.
ONLY = {
    "pyfuse3": {
        "mount",
        "operations",
        "entries",
        "answered",
        "control_operations",
        "routing",
        "service",
        "bucket_routing",
        "top_operations",
        "kernel_cache",
    },
    "boto3": set[str](),
    "botocore": {"signed_http", "bucket_settings", "links", "aws_resolver"},
    "pycurl": {"transport"},
    "awscrt": {"checksums"},
    "sqlite3": {"journal", "salvage", "database", "reserve", "attribute_cache"},
}
# What starts threads or opens connections when it is loaded must not be there when the daemon forks; trio neither,
# half of whose 0.2 s a command that answers at once would be.
AFTER_FORK = {"awscrt", "boto3", "botocore", "urllib3", "pycurl", "pyfuse3", "trio"}


@dataclass
class Module:
    """A module of the package and what it imports, at its top or within its functions."""

    name: str
    lines: int
    tree: ast.Module
    own: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        """All functions and methods."""
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def read(path: Path) -> Module:
    """Reads one module."""
    text = path.read_text(encoding="utf-8")
    module = Module(path.stem, len(text.splitlines()), ast.parse(text))
    for node in nodes(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                add(module, alias.name, [])
        elif isinstance(node, ast.ImportFrom):
            source = "sosfs." * bool(node.level) + (node.module or "")
            add(module, source.removesuffix("."), [alias.name for alias in node.names])
    return module


def nodes(top: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`, which only the type checker imports."""
    for node in ast.iter_child_nodes(top):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from nodes(node)


def add(module: Module, source: str, names: list[str]) -> None:
    """Notes `from source import names`, or `import source` without names."""
    top, _, below = source.partition(".")
    if top != "sosfs":
        module.others.add(top)
    elif below:
        module.own.add(below.partition(".")[0])
    else:
        found = {name for name in names if (PACKAGE / f"{name}.py").exists()}
        module.own |= found or {"__init__"}


MODULES = {path.stem: read(path) for path in sorted(PACKAGE.glob("*.py"))}
PLACE = {name: place for place, name in enumerate(name for row in ROWS for name in row)}


def test_every_module_has_its_place() -> None:
    assert sorted(MODULES) == sorted(PLACE)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_to_the_right_and_down(name: str) -> None:
    wrong = {other for other in MODULES[name].own if PLACE[other] <= PLACE[name]}
    assert not wrong, f"{name} may not import {wrong}"


@pytest.mark.parametrize("library", ONLY)
def test_libraries_stay_where_they_belong(library: str) -> None:
    assert {module.name for module in MODULES.values() if library in module.others} <= ONLY[library]


def test_nothing_heavy_is_loaded_before_the_fork() -> None:
    code = "import sys, sosfs.cli, sosfs.fstab; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert AFTER_FORK & set(done.stdout.split()) == set()


@pytest.mark.parametrize("name", MODULES)
def test_functions_stay_short(name: str) -> None:
    module = MODULES[name]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in module.functions() if f.end_lineno}
    assert {function: lines for function, lines in long.items() if lines > FUNCTION_MAX} == {}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is(name: str) -> None:
    assert ast.get_docstring(MODULES[name].tree)
