"""What must be there after a kill: a mixed workload, a model of what it was promised, and the check of both.

Each `Worker` works by itself in a directory of its own and knows its tree: what every returned call promised. The
call that a kill cuts short leaves one of the trees that its `Step` names; the worker goes on with the one that
is found, so a loss shows in whichever round it happens. Bodies are random, so two of them never pass for each other.

Promised is: a write once close, fsync or truncate returned; all else (mkdir, rmdir, rename, unlink, chmod, utimens,
setxattr, a new ACL) once it returned. In journal mode, where the spool is written in place, a cut write may
leave each byte old or new and the file any length between; in bucket mode an object is replaced whole.

Concurrency: one thread a worker; the killer's thread only reads the count of steps and sends the signal.
"""

from __future__ import annotations

import os
import random
import signal
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sosfs.config.parameters import Durability

PAGE = 4096
SIZES = (0, 1, 700, 5_000, 70_000, 300_000, 2_000_000)  # bytes; around what stays in memory and what spills
LARGE = 17 << 20  # above what goes up in one PUT
FILES_MAX = 14  # a worker's files, so that rounds stay short
LARGE_MAX = 2
MODES = (0o600, 0o640, 0o755, 0o644)
XATTR = "user.color"
ACLS = ("public-read", "private")


@dataclass(frozen=True, slots=True)
class Seen:
    """A file as it was found: in the mount, and its ACL in the bucket ("" where there is no object)."""

    body: bytes
    stat: os.stat_result
    color: str
    acl: str


@dataclass(frozen=True, slots=True)
class File:
    """What a file must be; mode and time 0, xattr and ACL empty, where nothing was promised.

    `color` is the xattr `user.color`, `acl` the name of a canned ACL.
    `other`: of a write cut in place each byte may be of that body instead, and the length any between both.
    """

    body: bytes
    mode: int = 0
    mtime_ns: int = 0
    other: bytes | None = None
    color: str = ""
    acl: str = ""

    def written(self, body: bytes) -> File:
        """The file with other bytes: its mode stays, its time is whatever the write made it."""
        return File(body, self.mode, color=self.color, acl=self.acl)

    def differs(self, seen: Seen) -> str:
        """What is wrong with what was found, "" if nothing."""
        body, found = seen.body, seen.stat
        if self.mode and stat.S_IMODE(found.st_mode) != self.mode:
            return f"mode {found.st_mode:o}, not {self.mode:o}"
        if self.mtime_ns and found.st_mtime_ns != self.mtime_ns:
            return f"mtime {found.st_mtime_ns}, not {self.mtime_ns}"
        if self.color and seen.color != self.color:
            return f"xattr {seen.color!r}, not {self.color!r}"
        if self.acl and seen.acl != self.acl:
            return f"ACL {seen.acl!r}, not {self.acl!r}"
        if body == self.body or (self.other is not None and _is_mixed(body, self.body, self.other)):
            return ""
        return f"{len(body)} bytes, not {len(self.body)}" if len(body) != len(self.body) else "other bytes"


Tree = dict[str, File | None]  # None: a directory
Found = Mapping[str, Seen | None]


def _is_mixed(found: bytes, one: bytes, other: bytes) -> bool:
    if not min(len(one), len(other)) <= len(found) <= max(len(one), len(other)):
        return False
    for at in range(0, len(found), PAGE):
        page, a, b = (body[at : at + PAGE] for body in (found, one, other))
        if page in (a[: len(page)], b[: len(page)]):
            continue
        if not all(
            byte in (a[i : i + 1], b[i : i + 1]) for i, byte in enumerate(page[i : i + 1] for i in range(len(page)))
        ):
            return False
    return True


@dataclass(frozen=True, slots=True)
class Step:
    """One or more system calls, what is there once they returned, and what may be there when they were cut."""

    what: str
    run: Callable[[], object]
    after: Tree
    cut: tuple[Tree, ...]  # beside the trees before and after


@dataclass
class Worker:
    """One thread's work in a directory of its own."""

    base: Path  # in the mount
    seed: int
    durability: Durability
    large: bool = True  # whether there may be files that go up in parts
    tree: Tree = field(default_factory=dict)
    cut: Step | None = None
    trail: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)
        self._named = 0

    def work(self, killed: threading.Event, count: Callable[[], None]) -> None:
        """Steps until the daemon dies under one of them. Raises what fails while it lives.

        They begin with a change of each kind of attribute, so that each round has some.
        """
        makers = deque((self._chmod, self._utimens, self._setxattr, self._set_acl) if self._has_files() else ())
        while True:
            for step in makers.popleft()() if makers else self._next():
                self.trail.append(step.what)
                try:
                    step.run()
                except OSError:
                    if not killed.is_set():
                        raise
                    self.cut = step
                    return
                self.tree = step.after
                count()

    def settle(self, found: Found) -> None:
        """Finds which of the allowed trees is there, and goes on with that. Raises AssertionError when none is."""
        trees = [self.tree] if self.cut is None else [self.cut.after, self.tree, *self.cut.cut]
        wrongs = [wrong(tree, found) for tree in trees]
        if all(wrongs):
            last = "\n  ".join(self.trail[-25:])
            raise AssertionError(
                f"{self.base.name} (seed {self.seed}): none of {len(trees)} allowed states:\n"
                + "\n".join(f"- {'; '.join(wrong)}" for wrong in wrongs)
                + f"\ncut: {self.cut.what if self.cut else 'nothing'}\nlast steps:\n  {last}"
            )
        self.tree = {
            path: None if file is None else replace(file, body=found[path].body, other=None)  # type: ignore[union-attr]
            for path, file in trees[next(at for at, wrong in enumerate(wrongs) if not wrong)].items()
        }
        self.cut = None

    # Which step comes next

    def _next(self) -> list[Step]:
        files = [path for path, file in self.tree.items() if file is not None]
        kinds: list[tuple[int, Callable[[], list[Step]]]] = [(3 if len(files) < FILES_MAX else 0, self._create)]
        kinds.append((1, self._mkdir))
        if files:
            kinds += [(3, self._rewrite), (3, self._append), (3, self._overwrite), (2, self._truncate)]
            kinds += [(3, self._rename), (2, self._attributes), (2, self._synced), (3, self._unlink)]
            kinds += [(1, self._chmod), (1, self._utimens), (1, self._setxattr), (1, self._set_acl)]
        if len(files) > 1:
            kinds.append((3, self._replace))
        if self._directories():
            kinds += [(2, self._rename_directory), (1, self._rmdir)]
        weights, makers = [weight for weight, _ in kinds], [maker for _, maker in kinds]
        return self._dice.choices(makers, weights)[0]()

    def _directories(self) -> list[str]:
        return [path for path, file in self.tree.items() if file is None]

    def _has_files(self) -> bool:
        return any(file is not None for file in self.tree.values())

    def _file(self) -> tuple[str, File]:
        path = self._dice.choice([path for path, file in self.tree.items() if file is not None])
        file = self.tree[path]
        assert file is not None
        return path, file

    def _body(self) -> bytes:
        large = sum(file is not None and len(file.body) >= LARGE for file in self.tree.values())
        if self.large and large < LARGE_MAX and self._dice.random() < 0.04:
            return self._dice.randbytes(LARGE + self._dice.randrange(PAGE))
        size = self._dice.choice(SIZES)
        return self._dice.randbytes(size and size + self._dice.randrange(size))

    def _new_name(self, *, outside: str = "") -> str:
        """A name nobody has, often in a directory, never in `outside`."""
        self._named += 1
        homes = [d for d in self._directories() if d.count("/") < 2 and not _is_in(d, outside)]
        home = self._dice.choice([*homes, ""]) if homes else ""
        return f"{home}/n{self._named}" if home else f"n{self._named}"

    def _with(self, path: str, file: File | None) -> Tree:
        return {**self.tree, path: file}

    def _torn(self, path: str, file: File, body: bytes) -> tuple[Tree, ...]:
        """What a write in place that was cut may leave of a file, on its way to `body`."""
        if self.durability is Durability.BUCKET:
            return ()
        return (self._with(path, replace(file.written(file.body), other=body)),)

    def _without(self, *paths: str) -> Tree:
        return {path: file for path, file in self.tree.items() if path not in paths}

    # Steps

    def _create(self) -> list[Step]:
        path, body = self._new_name(), self._body()
        return [
            Step(
                f"create {path} of {len(body)}",
                lambda: write(self.base / path, body, os.O_CREAT | os.O_EXCL),
                self._with(path, File(body)),
                (),
            )
        ]

    def _rewrite(self) -> list[Step]:
        path, file = self._file()
        body = self._body()
        return [
            Step(
                f"rewrite {path}, {len(file.body)} -> {len(body)}",
                lambda: write(self.base / path, body, os.O_TRUNC),
                self._with(path, file.written(body)),
                self._torn(path, file.written(b""), body),
            )
        ]

    def _append(self) -> list[Step]:
        path, file = self._file()
        more = self._dice.randbytes(self._dice.choice((1, 1000, 200_000)))
        return [
            Step(
                f"append {len(more)} to {path} of {len(file.body)}",
                lambda: write(self.base / path, more, os.O_APPEND),
                self._with(path, file.written(file.body + more)),
                self._torn(path, file, file.body + more),
            )
        ]

    def _overwrite(self) -> list[Step]:
        path, file = self._file()
        at = self._dice.randrange(len(file.body) + 1)
        piece = self._dice.randbytes(self._dice.choice((1, 5000, 400_000)))
        body = file.body[:at] + piece + file.body[at + len(piece) :]
        return [
            Step(
                f"write {len(piece)} at {at} of {path}, {len(file.body)} -> {len(body)}",
                lambda: write(self.base / path, piece, 0, at=at),
                self._with(path, file.written(body)),
                self._torn(path, file, body),
            )
        ]

    def _truncate(self) -> list[Step]:
        path, file = self._file()
        size = self._dice.choice((0, len(file.body) // 2, len(file.body) + 3000))
        body = file.body[:size].ljust(size, b"\0")
        return [
            Step(
                f"truncate {path}, {len(file.body)} -> {size}",
                lambda: os.truncate(self.base / path, size),
                self._with(path, file.written(body)),
                (),
            )
        ]

    def _synced(self) -> list[Step]:
        """A file that is fsynced half-way: the first half is promised before the close."""
        path, file = self._file()
        first, second = (self._dice.randbytes(self._dice.choice((10, 100_000))) for _ in range(2))
        middle = self._with(path, file.written(file.body + first))
        opened: list[int] = []

        def begin() -> None:
            opened.append(os.open(self.base / path, os.O_WRONLY | os.O_APPEND))
            try:
                _write(opened[0], first)
                os.fsync(opened[0])
            except OSError:
                _close(opened[0])
                raise

        def end() -> None:
            try:
                _write(opened[0], second)
            except OSError:
                _close(opened[0])
                raise
            os.close(opened[0])

        half, whole = file.body + first, file.body + first + second
        after = {**middle, path: file.written(whole)}
        cut = self._torn(path, file, half), self._torn(path, file.written(half), whole)
        return [
            Step(f"append {len(first)} to {path} of {len(file.body)}, fsync", begin, middle, cut[0]),
            Step(f"append {len(second)} to {path}, close", end, after, cut[1]),
        ]

    def _attributes(self) -> list[Step]:
        path, file = self._file()
        mode, when = self._dice.choice(MODES), self._dice.randrange(1 << 60)
        after = replace(file, mode=mode, mtime_ns=when)

        def run() -> None:
            os.chmod(self.base / path, mode)
            os.utime(self.base / path, ns=(when, when))
            opened = os.open(self.base / path, os.O_RDONLY)
            try:
                os.fsync(opened)
            finally:
                _close(opened)

        return [
            Step(
                f"chmod {mode:o} {path}, utimens {when}, fsync",
                run,
                self._with(path, after),
                (self._with(path, replace(file, mode=mode)), self._with(path, replace(file, mtime_ns=when))),
            )
        ]

    def _set(self, what: str, run: Callable[[Path], object], **changed: Any) -> list[Step]:
        """One attribute of a file, by one call."""
        path, file = self._file()
        after = self._with(path, replace(file, **changed))
        return [Step(f"{what} {path}", lambda: run(self.base / path), after, ())]

    def _chmod(self) -> list[Step]:
        mode = self._dice.choice(MODES)
        return self._set(f"chmod {mode:o}", lambda path: path.chmod(mode), mode=mode)

    def _utimens(self) -> list[Step]:
        when = self._dice.randrange(1 << 60)
        return self._set(f"utimens {when}", lambda path: os.utime(path, ns=(when, when)), mtime_ns=when)

    def _setxattr(self) -> list[Step]:
        color = f"{self._dice.randrange(1 << 32):08x}"
        return self._set(f"setxattr {color}", lambda path: os.setxattr(path, XATTR, color.encode()), color=color)

    def _set_acl(self) -> list[Step]:
        acl = self._dice.choice(ACLS)
        return self._set(f"set ACL {acl}", lambda path: os.setxattr(path, "user.sos.acl", acl.encode()), acl=acl)

    def _rename(self) -> list[Step]:
        path, file = self._file()
        new = self._new_name()
        return [self._renaming(path, new, {**self._without(path), new: file})]

    def _replace(self) -> list[Step]:
        path, file = self._file()
        new = self._dice.choice([other for other, it in self.tree.items() if it is not None and other != path])
        return [self._renaming(path, new, {**self._without(path), new: file})]

    def _renaming(self, path: str, new: str, after: Tree) -> Step:
        over = " over" if new in self.tree else ""
        return Step(f"rename {path} ->{over} {new}", lambda: os.rename(self.base / path, self.base / new), after, ())

    def _rename_directory(self) -> list[Step]:
        old = self._dice.choice(self._directories())
        new = self._new_name(outside=old)
        after = {(new + path[len(old) :] if _is_in(path, old) else path): file for path, file in self.tree.items()}
        step = self._renaming(old, new, after)
        # In the end the next mount finishes it; before a file of it was touched nothing has happened.
        return [step]

    def _unlink(self) -> list[Step]:
        path, _ = self._file()
        return [Step(f"unlink {path}", lambda: os.unlink(self.base / path), self._without(path), ())]

    def _mkdir(self) -> list[Step]:
        path = self._new_name()
        return [Step(f"mkdir {path}", lambda: os.mkdir(self.base / path), self._with(path, None), ())]

    def _rmdir(self) -> list[Step]:
        empty = [d for d in self._directories() if not any(_is_in(path, d) for path in self.tree if path != d)]
        if not empty:
            return self._mkdir()
        path = self._dice.choice(empty)
        return [Step(f"rmdir {path}", lambda: os.rmdir(self.base / path), self._without(path), ())]


def _is_in(path: str, directory: str) -> bool:
    return bool(directory) and (path == directory or path.startswith(f"{directory}/"))


def write(path: Path, body: bytes, flags: int, *, at: int = 0) -> None:
    """Opens, writes and closes; what close says counts."""
    opened = os.open(path, os.O_WRONLY | flags, 0o644)
    try:
        _write(opened, body, at=at)
    except OSError:
        _close(opened)
        raise
    os.close(opened)


def _write(opened: int, body: bytes, *, at: int = 0) -> None:
    view = memoryview(body)
    if at:
        os.lseek(opened, at, os.SEEK_SET)
    while view:
        view = view[os.write(opened, view[: 1 << 20]) :]


def _close(opened: int) -> None:
    """Frees a descriptor whose file has failed already."""
    try:
        os.close(opened)
    except OSError:
        return


def look(base: Path, acl: Callable[[str], str]) -> Found:
    """All that is below a directory, with its bytes and attributes; `acl` tells the ACL of a key of that name."""
    found: dict[str, Seen | None] = {}
    for path in sorted(base.rglob("*")):
        name = str(path.relative_to(base))
        if path.is_dir():
            found[name] = None
            continue
        color = os.getxattr(path, XATTR).decode() if XATTR in os.listxattr(path) else ""
        found[name] = Seen(path.read_bytes(), path.stat(), color, acl(name))
    return found


def wrong(tree: Tree, found: Found) -> list[str]:
    """How what was found differs from a tree."""
    wrongs = [f"{path} is missing" for path in tree if path not in found]
    wrongs += [f"{path} is too much" for path in found if path not in tree]
    for path, file in tree.items():
        here = found.get(path, None)
        if path not in found or (file is None and here is None):
            continue
        if file is None or here is None:
            wrongs.append(f"{path} is {'a directory' if here is None else 'a file'}")
        elif text := file.differs(here):
            wrongs.append(f"{path}: {text}")
    return wrongs


class Killer:
    """Kills a process some time after a number of steps."""

    def __init__(self, pid: int, *, steps: int, seconds: float) -> None:
        self.killed = threading.Event()  # set just before the signal is sent
        self._pid = pid
        self._seconds = seconds
        self._left = steps
        self._lock = threading.Lock()
        self._due = threading.Event()

    def count(self) -> None:
        """A step was done."""
        with self._lock:
            self._left -= 1
            if self._left <= 0:
                self._due.set()

    def run(self) -> None:
        """Waits, and kills."""
        self._due.wait(60)
        time.sleep(self._seconds)
        self.killed.set()
        os.kill(self._pid, signal.SIGKILL)


def rounds(seed: int) -> Iterator[tuple[int, float]]:
    """When to kill, round after round: after how many steps, and how many seconds later."""
    dice = random.Random(seed)
    while True:
        # The last are so long that attributes which were changed are on their way.
        yield dice.randrange(1, 30), dice.random() * dice.choice((0.0, 0.02, 0.3, 2.5))
