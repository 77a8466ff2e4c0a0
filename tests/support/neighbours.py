"""Two mounts of one bucket whose programs add lines to the same files: dice choose what each does, and what befalls it.

As `turmoil`, but what is looked for is what one host takes from the other. Programs open a file, read it, add a line
that nobody else writes, and close it, while it is renamed, given another mode, or lies in a directory that is renamed,
here or there; requests of each mount are held back, fail or get no answer, and each may die. The rules that must hold:

- A line whose close or fsync succeeded is in the bucket in the end: in a file, or in one that keeps what has lost.
  Lines of a name that was removed before are excused: its removal may be on its way for some time.
- A file has whole lines, each once, and as a program has written them: its own is behind those that it has read. What
  has lost may have zeros before them.
- When all has settled each mount shows what the bucket has, and nothing is left in either.
"""

from __future__ import annotations

import errno
import os
import random
import traceback
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

from sosfs.config.parameters import TTL, Durability, Settings
from sosfs.errors import StoreError
from sosfs.files.open_file import Handle
from tests.support.composed import LONG, Composed, Loop
from tests.support.held import HELD, Held, begun, bodies, closed
from tests.support.turmoil import MADE, Wrong, decided_by, lower_thresholds, release_one

NOT_TOLD = "no answer"
STEPS = 100  # of a run
FILES = ("a", "b", "d/a", "e/b")
FOLDERS = ("d", "e", "g")
ATTEMPTS = 200  # of letting the time go by, until an operation counts as hanging
OPENED_MAX = 3  # handles of a mount
LINE = 16  # bytes
LONG_LINE = 9008  # bytes: past the size of a part
PAUSES = (0.1, 0.6, 1.5, 7.0, 3 * TTL)  # seconds
MODES = (0o600, 0o640, 0o755, 0o444)
EXPECTED = {errno.ENOENT, errno.ESTALE, errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY}
EPOCH = 1_700_000_000  # seconds


@dataclass(eq=False)
class Opened:
    """A handle, and the lines that it has written."""

    handle: Handle
    path: str
    lines: list[bytes] = field(default_factory=list)
    is_busy: bool = False
    is_gone: bool = False  # its name was removed


@dataclass(eq=False)
class Host:
    """One of the two."""

    name: str
    store: Held
    mount: Composed
    opened: list[Opened] = field(default_factory=list)
    going: int = 0  # operations under way
    changing: bool = False  # one that changes names is
    victim: str = ""  # the directory that it may replace, in which the kernel lets nobody make a file
    writing: defaultdict[int, trio.Lock] = field(default_factory=lambda: defaultdict(trio.Lock))  # by inode


class Neighbours:
    """One run."""

    def __init__(self, seed: int, durability: Durability, base: Path) -> None:
        self.log: list[str] = []
        self._dice = random.Random(seed)
        self._loop = Loop()
        self._wrong: list[str] = []
        self._lines = 0
        self._kept: dict[bytes, str] = {}  # lines that were acknowledged, and the path they went to
        self._excused: set[bytes] = set()
        self._removed: set[str] = set()  # names: their removal takes what comes before it
        self._written: set[bytes] = set()
        self._behind: dict[bytes, set[bytes]] = {}  # of a line: those that had been read before it
        hashes = self._dice.random() < 0.8
        page = self._dice.choice((2, 3, 1000))
        self._hosts = [self._host(name, page, hashes, durability, base) for name in ("one", "two")]
        first, second = (host.store for host in self._hosts)
        second._stored, second._uploads, second._issued = first._stored, first._uploads, 1000
        for host in self._hosts:
            host.mount.start()

    def _host(self, name: str, page: int, hashes: bool, durability: Durability, base: Path) -> Host:
        store = Held(page=page, hashes=hashes, clock=lambda: EPOCH + self._loop._clock.current_time())
        (base / name).mkdir()
        state = base / name / "state0"
        state.mkdir()
        settings = Settings("bucket", "", Path("/"), cache_dir=state, durability=durability, part_size=8192)
        return Host(name, store, Composed(self._loop, store, settings))

    def run(self) -> None:
        """All steps, with a look at everything in the end."""
        self._begin()
        for step in self._dice.choices(list(WEIGHTS), list(WEIGHTS.values()), k=STEPS):
            step(self, self._dice.choice(self._hosts))
            if self._wrong:
                raise Wrong(self._wrong[0])
        self._end()

    def close(self) -> None:
        """Drops everything."""
        with suppress(trio.RunFinishedError):  # an error has ended it
            for host in self._hosts:
                self._loop.run(host.store.release)
            for host in self._hosts:
                host.mount._end()
            self._loop.close()

    def _begin(self) -> None:
        async def go() -> None:
            for folder in ("d", "e"):
                await self._hosts[0].mount.mkdir(folder)
            for path in FILES:
                await self._hosts[0].mount.write(path, b"", flags=os.O_CREAT)

        self._loop.run(go)

    # Operations

    def _do(self, host: Host, what: str, work: Callable[[], Awaitable[Any]], done: Callable[[], None]) -> None:
        """Begins it; `done` is called when it has succeeded."""
        self.log.append(f"{host.name}: begin {what}")
        mount = host.mount

        async def go() -> None:
            host.going += 1
            try:
                await work()
            except OSError as error:
                self.log.append(f"  {host.name}: {what}: {errno.errorcode.get(error.errno or 0)} {error}")
                if error.errno not in EXPECTED and not any(one in str(error) for one in (MADE, NOT_TOLD)):
                    self._wrong.append(f"{host.name}: {what}: {error!r}")
            except Exception as error:  # noqa: BLE001
                self.log += traceback.format_exception(error)
                self._wrong.append(f"{host.name}: {what}: {error!r}")
            else:
                self.log.append(f"  {host.name}: {what}: done")
                done()
            finally:
                if host.mount is mount:
                    host.going -= 1

        self._loop.run(partial(begun, host.mount, go))

    def _some(self, host: Host) -> Opened | None:
        free = [one for one in host.opened if not one.is_busy]
        return self._dice.choice(free) if free else None

    def open(self, host: Host) -> None:
        if len(host.opened) >= OPENED_MAX:
            return
        path = self._dice.choice(FILES)
        if host.changing and host.victim and path.startswith(f"{host.victim}/"):
            return
        flags = os.O_RDWR | os.O_APPEND | (os.O_CREAT if self._dice.random() < 0.9 else 0)
        one = Opened(None, path)  # type: ignore[arg-type]
        one.is_busy = True

        async def go() -> None:
            one.handle = await host.mount._opened(*await host.mount._parent(path), flags)

        def done() -> None:
            one.is_busy = False
            host.opened.append(one)

        self._do(host, f"open {path}", go, done)

    def add(self, host: Host) -> None:
        one = self._some(host)
        if one is None:
            return
        self._lines += 1
        size = self._dice.choice((LINE, LINE, LONG_LINE))
        line = f"{self._lines:06d}:{size:06d}".encode().ljust(size - 1, b".") + b"\n"
        one.is_busy = True

        async def go() -> None:
            try:
                file_io, inode = host.mount.parts.file_io, one.handle.inode
                there = bytes(await file_io.read(one.handle, 0, inode.size))
                self._behind[line] = set(self._require_lines(there, f"{host.name} reads in {one.path}"))
                self._written.add(line)
                async with host.writing[inode.number]:  # as the kernel has it with O_APPEND
                    await file_io.write(one.handle, inode.size, line)
                one.lines.append(line)
            finally:
                one.is_busy = False

        self._do(host, f"add {line[:6].decode()} of {size} to {one.path}", go, lambda: None)

    def fsync(self, host: Host) -> None:
        one = self._some(host)
        if one is None:
            return
        lines = list(one.lines)
        one.is_busy = True

        async def go() -> None:
            try:
                await host.mount.parts.file_io.fsync(one.handle.inode)
            finally:
                one.is_busy = False

        self._do(host, f"fsync {one.path}", go, lambda: self._keep(one, lines))

    def close_one(self, host: Host) -> None:
        one = self._some(host)
        if one is None:
            return
        host.opened.remove(one)
        told = b" ".join(line[:6] for line in one.lines).decode()

        async def go() -> None:
            try:
                await closed(host.mount, one.handle)
            finally:
                host.mount.parts.namespace.forget(one.handle.inode, 0)

        self._do(host, f"close {one.path} with {told}", go, lambda: self._keep(one, one.lines))

    def _keep(self, one: Opened, lines: list[bytes]) -> None:
        if not one.is_gone and one.path not in self._removed:
            self._kept.update(dict.fromkeys(lines, one.path))

    def _changes(self, host: Host, what: str, work: Callable[[], Awaitable[Any]], victim: str = "") -> None:
        """Begins what changes names, unless another such is under way in that mount."""
        if host.changing:
            return
        host.changing, host.victim = True, victim
        mount = host.mount

        async def go() -> None:
            try:
                await work()
            finally:
                if host.mount is mount:
                    host.changing = False

        self._do(host, what, go, lambda: None)

    def rename(self, host: Host) -> None:
        """To a name that there never was: nobody loses anything by it."""
        old = self._dice.choice(FILES)
        self._lines += 1
        new = f"{self._dice.choice(('', 'd/', 'e/'))}r{self._lines}"
        self._changes(host, f"rename {old} to {new}", partial(host.mount.rename, old, new))

    def rename_folder(self, host: Host) -> None:
        old, new = self._dice.sample(FOLDERS, 2)
        self._changes(host, f"rename {old} to {new}", partial(host.mount.rename, old, new), new)

    def mkdir(self, host: Host) -> None:
        folder = self._dice.choice(FOLDERS)
        self._changes(host, f"mkdir {folder}", partial(host.mount.mkdir, folder))

    def unlink(self, host: Host) -> None:
        path = self._dice.choice(FILES)
        self._excuse(path)

        async def go() -> None:
            try:
                await host.mount.unlink(path)
            finally:
                self._excuse(path)

        self._changes(host, f"unlink {path}", go)

    def _excuse(self, path: str) -> None:
        """Whatever is or was meant for that name may be gone."""
        self._removed.add(path)
        for one in (one for host in self._hosts for one in host.opened):
            one.is_gone |= one.path == path
        self._excused |= {line for line in self._written if line not in self._kept or self._kept[line] == path}
        self._excused |= set(self._lines_of(path))

    def _lines_of(self, path: str) -> list[bytes]:
        objects = bodies(self._hosts[0].store)
        return self._require_lines(objects[path], path) if path in objects else []

    def chmod(self, host: Host) -> None:
        path, mode = self._dice.choice(FILES), self._dice.choice(MODES)

        async def go() -> None:
            inode = await host.mount._walk(path)
            inode.mode = (inode.mode & ~0o777) | mode
            host.mount.parts.attributes.changed(inode, posix={"mode"})

        self._do(host, f"chmod {path}", go, lambda: None)

    def look(self, host: Host) -> None:
        async def go() -> None:
            listings, todo = host.mount.parts.listings, [host.mount.parts.inodes.root]
            while todo:
                here = todo.pop()
                walk = await listings.complete(here)
                entries = listings.directory(here).entries
                for name, child in [(name, entries[name]) for name in walk.names if name in entries]:
                    if child.is_directory:
                        todo.append(child)
                    else:
                        body, _ = await host.mount._bytes(child)
                        self._require_lines(body, f"{host.name} reads {name.decode()}")

        self._do(host, "look at all", go, lambda: None)

    # What befalls it

    def pause(self, _: Host) -> None:
        seconds = self._dice.choice(PAUSES)
        self.log.append(f"{seconds} s go by")
        self._loop.passes(seconds)

    def hold(self, host: Host) -> None:
        what, when = self._dice.choice(sorted(HELD)), self._dice.choice(("before", "after"))
        self.log.append(f"{host.name}: hold each {what} {when} it takes effect")
        {"before": host.store.before, "after": host.store.after}[when].setdefault(what, trio.Event())

    def let_go(self, host: Host) -> None:
        release_one(host.store, self._loop, self._dice, self.log)

    def fail(self, host: Host) -> None:
        what, key = self._dice.choice(sorted(HELD)), self._dice.choice((*FILES, "d/", "e/"))
        is_told = self._dice.random() < 0.5
        self.log.append(f"{host.name}: the next {what} of {key} {'fails' if is_told else 'is done without an answer'}")
        error = StoreError(errno.EIO, f"{what} {key!r}", detail=MADE if is_told else NOT_TOLD)
        (host.store.errors if is_told else host.store.unanswered).setdefault((what, key), []).append(error)

    def crash(self, host: Host) -> None:
        self.log.append(f"{host.name}: crash; the bucket has {sorted(bodies(host.store))}")
        self._heal(host)
        host.mount.crash()
        host.opened.clear()
        host.going, host.changing = 0, False
        host.writing.clear()
        fresh = Composed(self._loop, host.store, host.mount._settings)
        fresh._generation = host.mount._generation
        host.mount = fresh
        fresh.start()

    def _heal(self, host: Host) -> None:
        host.store.before.clear()
        host.store.after.clear()
        host.store.errors.clear()
        host.store.unanswered.clear()

    # What must be

    def _require_lines(self, body: bytes, where: str) -> list[bytes]:
        """The lines of a file. Notes what is wrong with them."""
        has_lost = ".conflict-" in where
        lines: list[bytes] = []
        at = len(body) - len(body.lstrip(b"\0")) if has_lost else 0
        while at < len(body):
            size = body[at + 7 : at + 13]
            line = body[at : at + int(size)] if size.isdigit() else b""
            if line not in self._written:
                self._wrong.append(f"{where}: no line at {at} of {len(body)}: {body[at : at + 13]!r}")
                break
            if line in lines:
                self._wrong.append(f"{where}: line {number(line)} is there twice")
            if not has_lost and not self._behind[line] <= set(lines):
                self._wrong.append(f"{where}: {number(line)} was not behind {sorted(map(number, lines))}")
            lines.append(line)
            at += len(line)
        return lines

    def _settle(self) -> None:
        for host in self._hosts:
            while release_one(host.store, self._loop, self._dice, self.log):
                pass
            self._heal(host)
        for _ in range(ATTEMPTS):
            if not any(host.going for host in self._hosts):
                return
            self._loop.passes(1)
        raise Wrong("it hangs")

    def _end(self) -> None:
        self._settle()
        for host in self._hosts:
            while host.opened:
                self.close_one(host)
                self._settle()
        self._loop.passes(LONG)
        for host in self._hosts:
            self._do(host, "settle", host.mount.settle, lambda: None)
            self._settle()
        self._loop.passes(LONG)
        objects = {key: body for key, body in bodies(self._hosts[0].store).items() if not key.endswith("/")}
        found = {key: self._require_lines(body, f"the object {key}") for key, body in objects.items()}
        if lost := set(self._kept) - self._excused - {line for lines in found.values() for line in lines}:
            told = {key: [number(line) for line in lines] for key, lines in found.items()}
            self._wrong.append(f"lost are {sorted(map(number, lost))}: the bucket has {told}")
        for host in self._hosts:
            self._require_shown(host, objects)
        if self._wrong:
            raise Wrong(self._wrong[0])

    def _require_shown(self, host: Host, objects: dict[str, bytes]) -> None:
        tree = self._loop.run(host.mount.tree)
        files = {path: found[0] for path, found in tree.items() if found is not None}
        if files != objects:
            sizes = {key: (len(files.get(key, b"")), len(body)) for key, body in objects.items()}
            self._wrong.append(f"{host.name} shows {sorted(files)}, and has of what is in the bucket {sizes} bytes")
        rest = [host.mount.parts.pending, host.mount._journal.rows, host.mount._journal.damage.lines]
        if any(rest):
            self._wrong.append(f"there is left in {host.name} {rest}")


WEIGHTS: dict[Callable[[Neighbours, Host], None], int] = {
    Neighbours.open: 16,
    Neighbours.add: 20,
    Neighbours.fsync: 3,
    Neighbours.close_one: 14,
    Neighbours.rename: 2,
    Neighbours.rename_folder: 2,
    Neighbours.mkdir: 2,
    Neighbours.unlink: 1,
    Neighbours.chmod: 4,
    Neighbours.look: 2,
    Neighbours.pause: 8,
    Neighbours.hold: 6,
    Neighbours.let_go: 7,
    Neighbours.fail: 3,
    Neighbours.crash: 1,
}


def number(line: bytes) -> int:
    """A line in a word."""
    return int(line[:6])


@contextmanager
def neighbours(seed: int, durability: Durability, base: Path) -> Iterator[Neighbours]:
    """A run that the seed alone decides."""
    with decided_by(seed) as patch:
        lower_thresholds(patch)
        with closing(Neighbours(seed, durability, base)) as run:
            yield run
