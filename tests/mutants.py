"""Small slips in the modules that keep the promises, and whether the tests notice them: `make mutants PART=commits`.

Runs mutmut over one part of `mutants.toml` at a time, with the tests that run in one process: some seconds find out
about what a hundred mounts would take hours for. To mutmut's own operators come those that take a guard away (a
statement, a condition, one side of an `and`, a lock, what a `finally` does), since those are the slips that matter
here; its operators for texts and for positional arguments are left out, whose mutants nearly all end in a TypeError.

Each part has its directory in `build/mutants`, where the results stay. A later run goes on where one has stopped, and
tries again what has survived once all were tried. Survivors that change nothing a user could see stand in
`mutants.toml` with the reason. `--guards` tries our own operators alone, a third of all, with results of their own.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libcst as cst
from libcst import matchers

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILD = ROOT / "build" / "mutants"
TABLE = HERE / "mutants.toml"
MINUTES = 28  # of one run; what is left is for the next
UNDECORATED = "_undecorated_"
DECORATORS = ("@property", "@contextmanager", "@asynccontextmanager")
TEXTS = (r"\blog\.\w+\(", r"\braise \w+\(", r"^\s*assert\b")  # what they say is for people
SETTINGS = {
    "source_paths": ["sosfs"],
    "process_isolation": "fork",
    "timeout_multiplier": 40.0,  # on a busy machine; what hangs is ended by pytest
    "timeout_constant": 3.0,
    "use_git_change_detection": False,
    "track_dependencies": False,
    "do_not_mutate_patterns": list(TEXTS),
}
PYTEST = ["-p", "no:cacheprovider", "--timeout", "30"]


@dataclass(frozen=True, slots=True)
class Part:
    """Modules that are tried together, and the files of the tests that are to notice."""

    name: str
    modules: tuple[str, ...]
    tests: tuple[str, ...]
    only_guards: bool

    @property
    def directory(self) -> Path:
        """Where it is tried, and its results stay."""
        return BUILD / (f"{self.name}-guards" if self.only_guards else self.name)


@dataclass(frozen=True, slots=True)
class Slip:
    """A mutant as a person sees it: it outlives changes elsewhere in the file."""

    module: str
    function: str
    was: str
    becomes: str

    def __str__(self) -> str:
        return f"{self.module}.{self.function}\n    - {self.was}\n    + {self.becomes}"


# Operators that take a guard away


def operator_statement(node: cst.SimpleStatementLine) -> Iterator[cst.SimpleStatementLine]:
    """A statement that is forgotten: a call, an assignment to what outlives the function, `return` and `raise`."""
    if len(node.body) != 1:
        return
    (only,) = node.body
    if isinstance(only, cst.Expr):
        if matchers.matches(only.value, matchers.SimpleString() | matchers.ConcatenatedString() | matchers.Yield()):
            return
    elif isinstance(only, cst.Assign):
        if not all(map(_outlives, (one.target for one in only.targets))):
            return
    elif not isinstance(only, cst.AugAssign | cst.Del | cst.Return | cst.Raise | cst.Continue):
        return
    if matchers.matches(only, matchers.Expr(matchers.Call(matchers.Attribute(matchers.Name("log"))))):
        return
    yield node.with_changes(body=[cst.Pass()])


def _outlives(target: cst.BaseExpression) -> bool:
    """Whether what is assigned to is there after the function."""
    if isinstance(target, cst.Tuple):
        return all(_outlives(one.value) for one in target.elements)
    return isinstance(target, cst.Attribute | cst.Subscript)


def operator_condition(node: cst.If | cst.While) -> Iterator[cst.If | cst.While]:
    """A condition that is always or never so."""
    yield node.with_changes(test=cst.Name("False"))
    if isinstance(node, cst.If):
        yield node.with_changes(test=cst.Name("True"))


def operator_one_side(node: cst.BooleanOperation) -> Iterator[cst.BaseExpression]:
    """One of two conditions, forgotten."""
    for side in (node.left, node.right):
        yield side.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])


def operator_block(node: cst.With) -> Iterator[cst.If]:
    """What is held for the length of a block is not: a lock, a gate, a transaction."""
    if not any(item.asname for item in node.items):
        yield cst.If(test=cst.Name("True"), body=node.body, leading_lines=node.leading_lines)


def operator_finally(node: cst.Finally) -> Iterator[cst.Finally]:
    """What is to be done in any case is not done."""
    yield node.with_changes(body=cst.IndentedBlock([cst.SimpleStatementLine([cst.Pass()])]))


def operator_option(node: cst.Call) -> Iterator[cst.Call]:
    """An option that is not handed on."""
    for at, argument in enumerate(node.args):
        if argument.keyword is not None:
            yield node.with_changes(args=[*node.args[:at], *node.args[at + 1 :]])


def install(*, only_guards: bool) -> None:
    """Gives mutmut our operators, for its own that are left out."""
    from mutmut.mutation import file_mutation, mutators  # noqa: PLC0415  # reads its settings when it is imported

    spared = {mutators.operator_string, mutators.operator_arg_removal, mutators.operator_dict_arguments}
    others = [(kind, operator) for kind, operator in mutators.mutation_operators if operator not in spared]
    kept = [] if only_guards else others
    ours: list[tuple[type, Any]] = [
        (cst.SimpleStatementLine, operator_statement),
        (cst.If, operator_condition),
        (cst.While, operator_condition),
        (cst.BooleanOperation, operator_one_side),
        (cst.With, operator_block),
        (cst.Finally, operator_finally),
        (cst.Call, operator_option),
    ]
    file_mutation.mutation_operators = [*kept, *ours]


def undecorated(source: str) -> str:
    """`@property def f` as `def _undecorated_f` and, below, `f = property(_undecorated_f)`: mutmut skips the former."""
    lines: list[str] = []
    below: list[tuple[int, str]] = []  # what is to follow a function that is indented so
    decorator = ""
    for line in source.splitlines():
        indent = len(line) - len(line.lstrip())
        if below and line.strip() and indent <= below[-1][0] and not line.lstrip().startswith(")"):
            depth, text = below.pop()
            lines += [" " * depth + text, ""]
        found = re.match(r"( *(?:async )?def )(\w+)", line)
        if found and decorator:
            below.append((indent, f"{found[2]} = {decorator}({UNDECORATED}{found[2]})"))
            lines.append(f"{found[1]}{UNDECORATED}{line[found.end(1) :]}")
        elif line.strip() not in DECORATORS:
            lines.append(line)
        decorator = line.strip()[1:] if line.strip() in DECORATORS else ""
    lines += [" " * depth + text for depth, text in reversed(below)]
    return "\n".join(lines) + "\n"


# One part


def table() -> dict[str, Any]:
    """What `mutants.toml` says."""
    with TABLE.open("rb") as file:
        return tomllib.load(file)


def parts(*, only_guards: bool) -> dict[str, Part]:
    """All parts, in the order of the table."""
    return {
        name: Part(name, tuple(one["modules"]), tuple(one["tests"]), only_guards)
        for name, one in table()["parts"].items()
    }


def path_of(module: str) -> str:
    """The file of a module that is named without `sosfs.`."""
    return f"sosfs/{module.replace('.', '/')}.py"


def accepted() -> dict[Slip, str]:
    """Survivors that are known, each with the reason."""
    return {
        Slip(one["module"], one["function"], one["was"], one["becomes"]): one["reason"]
        for one in table().get("accepted", ())
    }


def prepare(part: Part) -> Path:
    """The directory of a part, with the sources and the tests as they are now."""
    directory = part.directory
    modules = {ROOT / path_of(module) for module in part.modules}
    for folder in ("sosfs", "tests"):
        for source in (ROOT / folder).rglob("*.py"):
            target = directory / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source in modules:
                plain = undecorated(source.read_text(encoding="utf-8"))
                if not target.exists() or target.read_text(encoding="utf-8") != plain:
                    target.write_text(plain, encoding="utf-8")
            elif not target.exists() or not filecmp.cmp(source, target, shallow=False):
                shutil.copy2(source, target)
    for stale in (*directory.glob("sosfs/**/*.py"), *directory.glob("tests/**/*.py")):
        if not (ROOT / stale.relative_to(directory)).exists():
            stale.unlink()
    options = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[tool.pytest.ini_options]")[2]
    settings = {
        **SETTINGS,
        "only_mutate": [path_of(module) for module in part.modules],
        "pytest_add_cli_args": PYTEST,
        "pytest_add_cli_args_test_selection": [f"tests/{name}" for name in part.tests],
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    text = f"[tool.pytest.ini_options]{options}\n[tool.mutmut]\n" + "\n".join(lines) + "\n"
    (directory / "pyproject.toml").write_text(text, encoding="utf-8")
    return directory


def metas(part: Part) -> Iterator[Path]:
    """The files that hold the results of a part's modules."""
    for module in part.modules:
        path = part.directory / "mutants" / f"{path_of(module)}.meta"
        if path.exists():
            yield path


def doubt(part: Part) -> None:
    """Once all were tried, those that were not killed are tried again: there may be new tests."""
    found = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in metas(part)]
    if any(code is None for _, data in found for code in data["exit_code_by_key"].values()):
        return
    for path, data in found:
        data["exit_code_by_key"] = {
            key: code if code in (1, 3) else None for key, code in data["exit_code_by_key"].items()
        }
        path.write_text(json.dumps(data, indent=4), encoding="utf-8")


def try_part(part: Part, *, minutes: float, children: int, only: Iterable[str]) -> None:
    """Tries the mutants of a part in this process, which is of no other use afterwards."""
    directory = prepare(part)
    doubt(part)
    os.chdir(directory)
    os.environ["SOSFS_MOUNTS"] = "no"  # a mutant has a second or two: what needs a server is left out (conftest)
    sys.path[:] = [str(directory), *(path for path in sys.path if path not in (str(HERE), str(ROOT), ""))]
    install(only_guards=part.only_guards)
    from mutmut.__main__ import _run  # noqa: PLC0415

    # As Ctrl-C: what was found out stays. An alarm would be taken away by the time limit of the tests.
    ending = threading.Timer(minutes * 60, os.kill, (os.getpid(), signal.SIGINT))
    ending.daemon = True
    ending.start()
    try:
        _run(tuple(only), children)
    finally:
        ending.cancel()


# What came of it


def slips(part: Part) -> dict[Slip, list[str]]:
    """The mutants of a part that were not killed, each with what became of it."""
    os.chdir(part.directory)
    from mutmut.mutation.diff_apply import get_diff_for_mutant  # noqa: PLC0415
    from mutmut.stats import status_by_exit_code  # noqa: PLC0415

    found: dict[Slip, list[str]] = {}
    for path in metas(part):
        source = str(path.relative_to(Path("mutants").resolve())).removesuffix(".meta")
        module = source.removeprefix("sosfs/").removesuffix(".py").replace("/", ".")
        for key, code in json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"].items():
            status = status_by_exit_code[code]
            if status in ("killed", "timeout", "segfault", "suspicious"):
                continue
            function = key.rpartition("__mutmut_")[0].rpartition("ǁ")[2].rpartition(".")[2]
            diff = get_diff_for_mutant(key, path=source).splitlines()[2:]
            was = " ".join(line[1:].strip() for line in diff if line.startswith("-"))
            becomes = " ".join(line[1:].strip() for line in diff if line.startswith("+"))
            name = function.removeprefix("x_").removeprefix(UNDECORATED)
            found.setdefault(Slip(module, name, was, becomes), []).append(status)
    return found


def report(part: Part) -> bool:
    """Prints what came of a part, and whether nine of ten mutants that change something were killed."""
    if not part.directory.exists():
        print(f"{part.name}: not tried yet")
        return False
    codes = [
        code
        for path in metas(part)
        for code in json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"].values()
    ]
    known = accepted()
    left = slips(part)
    survived = {slip: told for slip, told in left.items() if slip not in known and "not checked" not in told}
    unknown = sum(code is None for code in codes)
    spared = sum(len(told) - told.count("not checked") for slip, told in left.items() if slip in known)
    of = len(codes) - unknown - spared
    lost = sum(len(told) for told in survived.values())
    for slip, told in sorted(survived.items(), key=lambda item: str(item[0])):
        print(f"{told[0]}: {slip}")
    share = (of - lost) / of if of else 0.0
    print(
        f"{part.name}: {of - lost} of {of} killed ({share:.1%}), {lost} survived, "
        f"{spared} accepted, {unknown} not tried yet"
    )
    return not unknown and share >= 0.9


def main() -> int:
    """`python tests/mutants.py [PART...]`; 0 where nine of ten are killed in each part."""
    names = list(table()["parts"])
    parser = argparse.ArgumentParser(description="Tries small slips in the modules that keep the promises.")
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[[], *names], help=" ".join(names))
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time for each part (%(default)s)")
    parser.add_argument("--children", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    parser.add_argument("--only", nargs="*", default=[], help="names of mutants, as mutmut names them; may hold *")
    parser.add_argument("--guards", action="store_true", help="only mutants that take a guard away")
    parser.add_argument("--report", action="store_true", help="tell what earlier runs found, and try nothing")
    options = parser.parse_args()
    known = parts(only_guards=options.guards)
    if not options.report and len(options.parts) == 1:
        try_part(known[options.parts[0]], minutes=options.minutes, children=options.children, only=options.only)
        return 0
    good = True
    for name in options.parts or known:
        if not options.report:
            chosen = ["--minutes", str(options.minutes), "--children", str(options.children)]
            chosen += ["--guards"] if options.guards else []
            subprocess.run([sys.executable, __file__, name, *chosen, "--only", *options.only], check=False)
        good &= report(known[name])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
