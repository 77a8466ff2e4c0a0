"""One mount whose programs label their files: dice choose what they set, and what befalls it.

As `turmoil`, but of all that a file has beside its bytes (`things`): mode, owner, time, metadata, headers, ACL, class,
what a link leads to. Several operations are under way at once, as far as the kernel lets them: it serialises what
changes one inode, but for a close, and what changes the names of one directory. A run's seed decides all that happens.
The rules:

- What was set shows at once, under whatever name the file has by then; nothing shows that was not set.
- A step may fail where a fault that was made reached it, and then has changed nothing; but an ACL without an answer may
  be set, and of a name that was to be changed either of both is so.
- What was set of a file that was acknowledged outlives a crash; its time does where its bytes do.
- When all has settled the bucket has what was set, of each file, directory, link and special file, and nothing is left.
- What another client stores counts with all that it has, where nothing was under way here.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pyfuse3
import trio

from sosfs.config.choices import Canned
from sosfs.config.parameters import TTL, Durability, Settings
from sosfs.control.object_acl import ObjectAcls
from sosfs.errors import StoreError
from sosfs.filesystem.bucket import _operations
from sosfs.fuse.xattrs import ACL, HEADERS, MIME_TYPE, Xattrs
from sosfs.metadata import user_metadata, xattr_encoding
from sosfs.s3.protocol import Acl, Headers, Properties
from sosfs.tree.inodes import Inode
from tests.support.composed import LONG, TASK, Composed, Loop, state_in
from tests.support.fake_store import ANYONE, CANNED, OWNER, PRIVATE, FakeStore
from tests.support.held import ACLS, HELD, Held, begun, bodies
from tests.support.things import Thing, adopted, fresh, retyped, split
from tests.support.turmoil import MADE, Wrong, decided_by, lower_thresholds, release_one

NOT_TOLD = "no answer"
STEPS = 90  # of a run
BEFORE = ("a.html", "d/b.txt", "d/c")  # files that are there when it begins
ATTEMPTS = 200  # of letting the time go by, until an operation counts as hanging
AT_ONCE = 4  # operations under way
NAMES = ("a.html", "b.txt", "c")
FOLDERS = ("", "d", "e", "d/s")
LENGTHS = (10, 900, 3000, 20_000)  # of a write: within and beyond each threshold
MODES = (0o600, 0o640, 0o755, 0o444)
OWNERS = (0, 7, 1000)
TIMES = (1, 1_000_000_000_123_456_789, 1_700_000_000_000_000_000, -5_000_000_001)  # ns
DATES = (b"Thu, 01 Dec 2044 16:00:00 GMT", b"Fri, 01 Jan 2100 00:00:00 GMT")
VALUES = (b"one", b"two words", b"\xff\x00", b"")
METADATA = (b"user.colour", b"user.Author_1")
OF_HEADERS = tuple(name for name in HEADERS if name != MIME_TYPE)
TYPES = (b"text/x-mine", b"text/html", b"application/octet-stream")
CANNED_ACLS = (Canned.PRIVATE, Canned.PUBLIC_READ, Canned.AUTHENTICATED_READ)
CLASSES = ("", "COLD")
CALLER: Any = SimpleNamespace(pid=TASK, uid=0, gid=0, umask=0o022)
PAUSES = (0.1, 0.6, 1.5, 7.0, 3 * TTL, 150.0)  # seconds
NO_FIELDS = ("update_mode", "update_size", "update_uid", "update_gid", "update_atime", "update_mtime")
DENIED_ACLS = 3  # refusals after which an ACL may be taken for one that is not for this key to read


@dataclass(eq=False)
class Operation:
    """What is under way, and how the model takes its answer."""

    what: str
    work: Callable[[], Awaitable[Any]]
    done: Callable[[Any], None]
    locks: tuple[object, ...] = ()  # what nobody else changes meanwhile: things, folders by path
    ways: tuple[str, ...] = ()  # paths that it goes by
    places: tuple[str, ...] = ()  # names that it changes
    about: Thing | None = None  # whose attributes it tells
    of: Thing | None = None  # that it changes
    subject: Thing | None = None  # that it gives a name, or takes one from
    into: tuple[Thing | None, str] | None = None  # the directory and the name that it gives
    comes: Callable[[], None] = lambda: None  # what a crash in the middle of it may leave as well
    failed: Callable[[], None] = lambda: None  # what an error may leave
    is_void: bool = False  # it cannot be told what is right
    answer: Any = None
    error: BaseException | None = None
    is_done: bool = False


class Labels:
    """One run."""

    def __init__(self, seed: int, durability: Durability, base: Path) -> None:
        self.log: list[str] = []
        self._dice = random.Random(seed)
        self._loop = Loop()
        self._store = Held(hashes=self._dice.random() < 0.8, page=self._dice.choice((2, 1000)))
        self._store.pins_deletes = self._dice.random() < 0.8
        settings = Settings("bucket", "", Path("/"), cache_dir=state_in(base), durability=durability, part_size=8192)
        self._mount = Composed(self._loop, self._store, settings)
        self._things: dict[str, Thing] = {}
        self._going: list[Operation] = []
        self._opened: list[tuple[int, Thing, str]] = []
        self._unknown: list[Operation] = []  # what has failed, and may be done all the same
        self._denied = 0
        self._start()

    def _start(self) -> None:
        self._mount.start()
        parts = self._mount.parts
        self._kernel = _operations(self._mount._settings, parts)
        acls = ObjectAcls(parts.inodes, self._mount.trouble, parts.attributes, parts.commits, parts.subtree_lock)  # type: ignore[arg-type]
        self._xattrs = Xattrs(parts.inodes, parts.attributes, acls, Mock(), Mock(), Mock(), kept=[])
        self._denied = 0

    def run(self) -> None:
        """All steps, with a look at everything in the end."""
        self._begin_with()
        for step in self._dice.choices(list(WEIGHTS), list(WEIGHTS.values()), k=STEPS):
            step(self)
            if self._unknown:
                self._find_out()
            if strange := [key for key in self._store._stored if "conflict" in key]:
                raise Wrong(f"there are {strange}")
        self._end()

    def close(self) -> None:
        """Drops everything."""
        with suppress(trio.RunFinishedError):  # an error has ended it
            self._loop.run(self._store.release)
            with suppress(OSError):  # it was unmounted
                self._mount._end()
            self._loop.close()

    def _begin_with(self) -> None:
        async def go() -> None:
            await self._mount.mkdir("d")
            for path in BEFORE:
                await self._mount.write(path, path.encode() * 1000, flags=os.O_CREAT)
            await self._mount.settle()

        self._loop.run(go)
        self._things["d"] = Thing(fresh("d", stat.S_IFDIR | 0o755), is_kept=True)
        for path in BEFORE:
            now = fresh(split(path)[1], stat.S_IFREG | 0o644) | {"body": path.encode() * 1000}
            self._things[path] = Thing(now, is_kept=True)

    # Operations under way

    def _begin(self, op: Operation) -> None:
        if len(self._going) >= AT_ONCE:
            return
        locked = [lock for one in self._going for lock in one.locks]
        if any(lock is one or (isinstance(lock, str) and lock == one) for lock in op.locks for one in locked):
            return
        if any(is_at(way, place) for one in self._going for place in one.places for way in op.ways):
            return
        if any(is_at(way, place) for one in self._going for way in one.ways for place in op.places):
            return
        self.log.append(f"begin: {op.what}")
        for one in self._going:
            one.is_void |= one.about is not None and any(lock is one.about for lock in op.locks)
        op.is_void = op.about is not None and any(lock is op.about for lock in locked)

        async def run() -> None:
            try:
                op.answer = await op.work()
            except Exception as error:  # noqa: BLE001
                op.error = error
            op.is_done = True

        self._going.append(op)
        self._loop.run(partial(begun, self._mount, run))
        self._collect()

    def _collect(self) -> None:
        for op in [op for op in self._going if op.is_done]:
            self._going.remove(op)
            if op.error is None:
                self.log.append(f"  done: {op.what}")
                op.done(op.answer)
                continue
            self.log.append(f"  failed: {op.what}: {op.error!r} {op.error.__cause__ or ''}")
            if op.of is not None and (self._path(op.of) is None or self._is_going(op.of)):
                continue  # it was removed meanwhile
            if not is_excused(op.error):
                raise op.error
            op.failed()
            if op.places:
                self._unknown.append(op)

    def _is_going(self, thing: Thing) -> bool:
        """Whether it is being removed or replaced."""
        return any(op.places and any(lock is thing for lock in op.locks) for op in self._going)

    def _wait(self) -> None:
        """Until nothing is under way."""
        for _ in range(ATTEMPTS):
            if not self._going:
                return
            if not release_one(self._store, self._loop, self._dice, self.log):
                self._loop.passes(1)
            self._collect()
        raise Wrong(f"it hangs: {[op.what for op in self._going]}")

    def _heal(self) -> None:
        while release_one(self._store, self._loop, self._dice, self.log):
            pass
        self._store.errors.clear()
        self._store.unanswered.clear()
        self._collect()

    # What there is

    def _some(self, *, is_folder: bool | None = None) -> tuple[str, Thing] | None:
        choice = [
            (path, thing)
            for path, thing in self._things.items()
            if is_folder in (None, thing.is_folder) and not self._is_unsure(path)
        ]
        return self._dice.choice(choice) if choice else None

    def _is_unsure(self, path: str) -> bool:
        now = self._loop._clock.current_time()
        return any(is_at(there, path) and thing.unsure_until > now for there, thing in self._things.items())

    def _some_place(self) -> str | None:
        """A path that a name may be given, in a directory that is there."""
        folder = self._dice.choice(FOLDERS)
        if folder and (folder not in self._things or not self._things[folder].is_folder):
            return None
        return f"{folder}/{self._dice.choice(NAMES)}".lstrip("/")

    def _path(self, thing: Thing) -> str | None:
        return next((path for path, one in self._things.items() if one is thing), None)

    async def _number(self, path: str) -> int:
        """The kernel's number of a path, found from the root on."""
        number = pyfuse3.ROOT_INODE
        things = dict(self._things)
        at = ""
        for name in filter(None, path.split("/")):
            entry = await self._kernel.lookup(number, name.encode(), CALLER)
            if not entry.st_ino:
                raise pyfuse3.FUSEError(errno.ENOENT)
            at, number = f"{at}/{name}".lstrip("/"), entry.st_ino
            if at in things:
                things[at].number = number
        return number

    def _way(self, path: str, thing: Thing | None) -> tuple[Callable[[], Awaitable[int]], tuple[str, ...]]:
        """How the kernel comes to a number: it is known, or by the path."""
        if thing is not None and thing.number and self._dice.random() < 0.7:
            known = thing.number

            async def known_number() -> int:
                return known

            return known_number, ()
        return partial(self._number, path), (path,) if path else ()

    # What programs make

    def create(self) -> None:
        path = self._some_place()
        if path is None or path in self._things or len(self._opened) > 3:
            return
        folder, name = split(path)
        find, ways = self._way(folder, self._things.get(folder))
        thing = Thing(fresh(name, stat.S_IFREG | 0o644))

        async def go() -> tuple[int, int]:
            flags = os.O_CREAT | os.O_RDWR
            info, entry = await self._kernel.create(await find(), name.encode(), 0o644, flags, CALLER)
            return int(info.fh), int(entry.st_ino)

        def done(answer: tuple[int, int]) -> None:
            handle, thing.number = answer
            self._things[self._at(op)] = thing
            self._opened.append((handle, thing, path))

        above = self._things.get(folder)
        op = Operation(f"create {path}", go, done, (names_of(above), thing), ways, (path,), subject=thing)
        op.into = above, name
        self._begin(op)

    def make(self) -> None:
        """What is in the bucket at once: a link or a special file; or a directory."""
        path = self._some_place()
        if self._dice.random() < 0.4:
            path = self._dice.choice(FOLDERS[1:])
        if path is None or path in self._things:
            return
        folder, name = split(path)
        if folder and folder not in self._things:
            return
        find, ways = self._way(folder, self._things.get(folder))
        what = "mkdir" if path in FOLDERS else self._dice.choice(("symlink", "symlink", "mkfifo", "mknod"))
        target = f"to {self._dice.randrange(1000)}".encode()

        async def go() -> int:
            number, kernel = await find(), self._kernel
            if what == "mkdir":
                return (await kernel.mkdir(number, name.encode(), 0o755, CALLER)).st_ino
            if what == "symlink":
                return (await kernel.symlink(number, name.encode(), target, CALLER)).st_ino
            mode, rdev = (stat.S_IFIFO, 0) if what == "mkfifo" else (stat.S_IFCHR, 0x103)
            return (await kernel.mknod(number, name.encode(), mode | 0o644, rdev, CALLER)).st_ino

        modes = {"mkdir": stat.S_IFDIR | 0o755, "symlink": stat.S_IFLNK | 0o777, "mkfifo": stat.S_IFIFO | 0o644}
        thing = Thing(fresh(name, modes.get(what, stat.S_IFCHR | 0o644)), is_kept=True)
        thing.set("body", target if what == "symlink" else b"")
        thing.set("rdev", 0x103 if what == "mknod" else 0)

        def done(answer: int) -> None:
            thing.number = answer
            self._things[self._at(op)] = thing

        above = self._things.get(folder)
        op = Operation(f"{what} {path}", go, done, (names_of(above), thing), ways, (path,), subject=thing)
        op.into = above, name
        self._begin(op)

    def open(self) -> None:
        found = self._some(is_folder=False)
        if found is None or len(self._opened) > 3 or not stat.S_ISREG(found[1].kind):
            return
        path, thing = found
        find, ways = self._way(path, thing)

        async def go() -> int:
            number = await find()
            await self._kernel.getattr(number, CALLER)  # for its permissions
            return int((await self._kernel.open(number, os.O_RDWR, CALLER)).fh)

        def done(answer: int) -> None:
            self._opened.append((answer, thing, path))

        self._begin(Operation(f"open {path}", go, done, (thing,), ways))

    def write(self) -> None:
        if not self._opened:
            return
        handle, thing, path = self._dice.choice(self._opened)
        at = self._dice.choice((0, len(thing.now["body"])))
        data = bytes([self._dice.randrange(1, 256)]) * self._dice.choice(LENGTHS)

        async def go() -> None:
            await self._kernel.write(handle, at, data)

        def done(_: None) -> None:
            thing.write(at, data)

        self._begin(Operation(f"write {path} at {at}: {len(data)}", go, done, (thing,), comes=partial(done, None)))

    def close_one(self) -> None:
        self._save(is_close=True)

    def fsync(self) -> None:
        self._save(is_close=False)

    def _save(self, *, is_close: bool) -> None:
        if not self._opened or len(self._going) >= AT_ONCE:
            return
        one = self._dice.choice(self._opened)
        handle, thing, path = one
        if any(op.what.startswith("write") and op.locks[0] is thing for op in self._going):
            return  # a program that waits for a write closes nothing
        body, mtime = thing.now["body"], thing.now["mtime"]
        if is_close:
            self._opened.remove(one)

        async def go() -> None:
            if not is_close:
                await self._kernel.fsync(handle, False)
                return
            try:
                await self._kernel.flush(handle)
            finally:
                await self._kernel.release(handle)

        def done(_: None) -> None:
            if any(there is thing for there in self._things.values()) and body in thing.could["body"]:
                thing.acknowledged(body, mtime)

        self._begin(Operation(f"{'close' if is_close else 'fsync'} {path}", go, done))

    def unlink(self) -> None:
        found = self._some(is_folder=False)
        if found is None:
            return
        path, thing = found
        folder, name = split(path)
        find, ways = self._way(folder, self._things.get(folder))

        async def go() -> None:
            await self._kernel.unlink(await find(), name.encode(), CALLER)

        locks = (names_of(self._things.get(folder)), thing)
        gone = partial(self._gone, thing)
        self._begin(Operation(f"unlink {path}", go, gone, locks, ways, (path,), subject=thing))

    def rmdir(self) -> None:
        found = self._some(is_folder=True)
        if found is None or any(there.startswith(f"{found[0]}/") for there in self._things):
            return
        path, thing = found
        folder, name = split(path)
        find, ways = self._way(folder, self._things.get(folder))

        async def go() -> None:
            await self._kernel.rmdir(await find(), name.encode(), CALLER)

        locks = (names_of(self._things.get(folder)), names_of(thing), thing)
        gone = partial(self._gone, thing)
        self._begin(Operation(f"rmdir {path}", go, gone, locks, ways, (path,), subject=thing))

    def _gone(self, thing: Thing, _: None) -> None:
        path = self._path(thing)
        assert path is not None
        del self._things[path]

    def _at(self, op: Operation) -> str:
        """The path that it gives."""
        assert op.into is not None
        folder, name = op.into
        above = self._path(folder) if folder is not None else ""
        assert above is not None
        return f"{above}/{name}".lstrip("/")

    def rename(self) -> None:
        found, new = self._some(is_folder=False), self._some_place()
        if found is not None and new is not None and found[0] != new:
            self._rename(*found, new)

    def rename_folder(self) -> None:
        found, new = self._some(is_folder=True), self._dice.choice(FOLDERS[1:])
        above = split(new)[0]
        if found is None or found[0] == new or is_at(new, found[0]) or (above and above not in self._things):
            return
        if any(there.startswith(f"{new}/") for there in self._things):
            return
        self._rename(*found, new)

    def _rename(self, old: str, thing: Thing, new: str) -> None:
        target = self._things.get(new)
        if self._is_unsure(new) or (target is not None and target.is_folder != thing.is_folder):
            return
        if (
            target is not None
            and {("copy", old), ("copy", f"{old}/"), ("complete_multipart", new)} & self._store.unanswered.keys()
        ):
            return  # what is written to the target, too, would lose to that copy
        (old_folder, old_name), (folder, name) = split(old), split(new)
        find_old, ways_old = self._way(old_folder, self._things.get(old_folder))
        find_new, ways_new = self._way(folder, self._things.get(folder))

        async def go() -> None:
            here, there = await find_old(), await find_new()
            await self._kernel.rename(here, old_name.encode(), there, name.encode(), 0, CALLER)

        def done(_: None) -> None:
            here, there = self._path(thing), self._at(op)
            assert here is not None
            below = [path for path in self._things if is_at(path, here)]
            moved = {there + path[len(here) :]: self._things.pop(path) for path in below}
            self._things |= moved
            if not thing.is_folder:
                thing.replaced = None if thing.is_kept else target or thing.replaced
                if "type" in thing.now:
                    thing.set("type", retyped(thing, old_name, name))

        above = self._things.get(folder)
        locks: list[object] = [names_of(self._things.get(old_folder)), names_of(above)]
        locks += [thing] if old_folder == folder and thing.is_folder else [thing, self]
        if target is not None:
            locks += [target, names_of(target)]
        op = Operation(f"rename {old} to {new}", go, done, tuple(dict.fromkeys(locks)), ways_old + ways_new, (old, new))
        op.subject, op.into = thing, (above, name)
        self._begin(op)

    # What programs set

    def setattr(self) -> None:
        found = self._some()
        if found is None:
            return
        path, thing = found
        names = self._dice.sample(("mode", "uid", "gid", "mtime"), self._dice.choice((1, 1, 2)))
        if thing.kind == stat.S_IFLNK and "mode" in names:
            return
        self._setattr(path, thing, names, *self._way(path, thing))

    def fsetattr(self) -> None:
        if self._opened:
            _, thing, path = self._dice.choice(self._opened)
            names = self._dice.sample(("mode", "uid", "gid", "mtime"), 1)
            self._setattr(path, thing, names, *self._held(thing))

    def _held(self, thing: Thing) -> tuple[Callable[[], Awaitable[int]], tuple[str, ...]]:
        async def number() -> int:
            return thing.number

        return number, ()

    def _setattr(
        self, path: str, thing: Thing, names: list[str], find: Callable[[], Awaitable[int]], ways: tuple[str, ...]
    ) -> None:
        dice = {"mode": MODES, "uid": OWNERS, "gid": OWNERS, "mtime": TIMES}
        wanted = {name: self._dice.choice(dice[name]) for name in names}
        if "mode" in wanted:
            wanted["mode"] |= thing.kind
        fields: Any = SimpleNamespace(**dict.fromkeys(NO_FIELDS, False) | {f"update_{name}": True for name in names})
        given = {"st_mtime_ns" if name == "mtime" else f"st_{name}": value for name, value in wanted.items()}
        is_gone = self._path(thing) is None

        async def go() -> None:
            await self._kernel.setattr(await find(), SimpleNamespace(**given), fields, None, CALLER)  # type: ignore[arg-type]

        def done(_: None) -> None:
            for name, value in wanted.items():
                thing.set(name, value)

        self._change(f"set {wanted} of {path}", thing, go, done, ways, wanted, may_fail=is_gone)

    def _change(
        self, what: str, thing: Thing, go: Callable[[], Awaitable[None]], done: Callable[[None], None],
        ways: tuple[str, ...], wanted: Mapping[str, Any], *, may_fail: bool,
    ) -> None:  # fmt: skip
        def comes() -> None:
            for name, value in wanted.items():
                thing.could.setdefault(name, [None]).append(value)
                thing.stamp = None if name == "mtime" else thing.stamp

        async def tried() -> None:
            try:
                await go()
            except (pyfuse3.FUSEError, OSError):
                if not may_fail:
                    raise

        self._begin(Operation(what, tried, done, (thing,), ways, comes=comes))

    def setxattr(self) -> None:
        if (found := self._some()) and found[1].kind in (stat.S_IFREG, stat.S_IFDIR):
            self._setxattr(*found, *self._way(*found))

    def fsetxattr(self) -> None:
        if self._opened:
            _, thing, path = self._dice.choice(self._opened)
            self._setxattr(path, thing, *self._held(thing))

    def _setxattr(self, path: str, thing: Thing, find: Callable[[], Awaitable[int]], ways: tuple[str, ...]) -> None:
        name = self._dice.choice((*METADATA, *OF_HEADERS, MIME_TYPE))
        if name == MIME_TYPE:
            value = self._dice.choice(TYPES)
        elif name == b"user.sos.expires":
            value = self._dice.choice(DATES)
        else:
            value = self._dice.choice(VALUES[: 2 if name in HEADERS else None])
        text, told = name.decode(), frozenset({value}) if name == MIME_TYPE else value

        async def go() -> None:
            await self._xattrs.set(self._inode(await find()), name, value, uid=0)

        def done(_: None) -> None:
            thing.is_typed |= name == MIME_TYPE
            thing.set("type" if name == MIME_TYPE else text, told)

        wanted = {"type" if name == MIME_TYPE else text: told}
        self._change(
            f"setxattr {text} of {path} to {value!r}", thing, go, done, ways, wanted, may_fail=self._path(thing) is None
        )

    def removexattr(self) -> None:
        found = self._some()
        if found is None:
            return
        path, thing = found
        there = [name for name in thing.now if name.startswith("user.") and thing.now[name] is not None]
        if not there:
            return
        name, (find, ways) = self._dice.choice(there), self._way(path, thing)

        async def go() -> None:
            await self._xattrs.remove(self._inode(await find()), name.encode(), uid=0)

        def done(_: None) -> None:
            thing.set(name, None)

        self._change(f"removexattr {name} of {path}", thing, go, done, ways, {name: None}, may_fail=False)

    def set_acl(self) -> None:
        found = self._some()
        if found is None:
            return
        path, thing = found
        acl, (find, ways) = self._dice.choice(CANNED_ACLS), self._way(path, thing)

        async def go() -> None:
            await self._xattrs.set(self._inode(await find()), ACL, acl.value.encode(), uid=0)

        def done(_: None) -> None:
            thing.set("acl", acl.value)

        def unsure() -> None:
            before = thing.now["acl"]
            both = (before if isinstance(before, frozenset) else frozenset({before})) | {acl.value}
            thing.set("acl", both)

        lock = (thing,) if self._dice.random() < 0.5 else ()  # .sosfs/acl/PATH is another file
        op = Operation(f"set ACL of {path} to {acl.value}", go, done, (*lock, f"ACL {id(thing)}"), ways)
        op.comes = op.failed = unsure
        op.of = thing
        self._begin(op)

    def _inode(self, number: int) -> Inode:
        return self._mount.parts.inodes[number]

    # What programs see

    def look(self) -> None:
        found = self._some()
        if found is None:
            return
        path, thing = found
        find, ways = self._way(path, thing)

        async def go() -> dict[str, Any]:
            return await self._seen(await find(), thing.kind, with_body=False)

        op = Operation(f"look at {path}", go, lambda _: None, (), ways, about=thing, of=thing)

        def done(answer: dict[str, Any]) -> None:
            if not op.is_void and self._path(thing) is not None and not self._is_unsure(path):
                answer |= {"body": thing.now["body"]}
                if wrong := thing.differs(answer):
                    raise Wrong(f"{path}: {wrong}")

        op.done = done
        self._begin(op)

    async def _seen(self, number: int, kind: int, *, with_body: bool = True) -> dict[str, Any]:
        """What the mount tells of an inode, but for its ACL: who asks for that has it stored."""
        entry = await self._kernel.getattr(number, CALLER)
        inode = self._inode(number)
        found: dict[str, Any] = {
            "mode": entry.st_mode, "uid": entry.st_uid, "gid": entry.st_gid, "rdev": entry.st_rdev,
            "mtime": None if stat.S_ISDIR(kind) else entry.st_mtime_ns,
        }  # fmt: skip
        for name in await self._xattrs.names(inode):
            found[name.decode()] = await self._xattrs.get(inode, name, uid=0)
        found.pop(MIME_TYPE.decode(), None)
        if stat.S_ISREG(kind):
            found["type"] = await self._xattrs.get(inode, MIME_TYPE, uid=0)
        if with_body:
            found["body"] = b""
            if stat.S_ISLNK(kind):
                found["body"] = await self._kernel.readlink(number, CALLER)
            if stat.S_ISREG(kind):
                found["body"] = (await self._mount._bytes(inode))[0]
        return found

    async def _tree(self) -> dict[str, dict[str, Any]]:
        """What the mount tells of all that there is."""
        found: dict[str, dict[str, Any]] = {}
        todo = [("", self._mount.parts.inodes.root)]
        while todo:
            path, inode = todo.pop()
            walk = await self._mount.parts.listings.complete(inode)
            entries = self._mount.parts.listings.directory(inode).entries
            for name in [name for name in walk.names if name in entries]:
                here = f"{path}/{name.decode()}".lstrip("/")
                number = await self._number(here)
                child = self._inode(number)
                found[here] = await self._seen(number, stat.S_IFMT(child.mode))
                if child.is_directory:
                    todo.append((here, child))
        return found

    # What befalls it

    def pause(self) -> None:
        seconds = self._dice.choice(PAUSES)
        self.log.append(f"{seconds} s go by")
        self._loop.passes(seconds)
        self._collect()

    def hold(self) -> None:
        what, when = self._dice.choice(sorted(HELD | ACLS)), self._dice.choice(("before", "after"))
        self.log.append(f"hold each {what} {when} it takes effect")
        {"before": self._store.before, "after": self._store.after}[when].setdefault(what, trio.Event())

    def let_go(self) -> None:
        release_one(self._store, self._loop, self._dice, self.log)
        self._collect()

    def fail(self) -> None:
        if not self._things:
            return
        path = self._dice.choice(sorted(self._things))
        key = f"{path}/" if self._things[path].is_folder else path
        what = self._dice.choice(("copy", "copy", "get_acl", "put_acl", "put", *sorted(HELD)))
        how = self._dice.choice(("EIO", "EIO", "EACCES", "EINVAL", "503", NOT_TOLD, NOT_TOLD))
        if how == "EACCES" and not self._may_deny(what, key):
            return
        number = errno.EIO if how in ("503", NOT_TOLD) else getattr(errno, how)
        status = {"EACCES": 403, "EINVAL": 400, "503": 503}.get(how, 0)
        detail = NOT_TOLD if how == NOT_TOLD else MADE
        times = self._dice.choice((1, 1, 2))
        self.log.append(f"the next {times} {what} of {key}: {how}")
        error = StoreError(number, f"{what} {key!r}", status=status, detail=detail)
        faults = self._store.unanswered if how == NOT_TOLD else self._store.errors
        faults.setdefault((what, key), []).extend([error] * times)

    def _may_deny(self, what: str, key: str) -> bool:
        """Whether a refusal tells nothing that is taken for good."""
        if what == "head":
            return not key.endswith("/")  # whoever may not read a marker may list what is in it
        if what != "get_acl":
            return True
        self._denied += 1
        return self._denied <= 1 and key[: key.rfind("/") + 1] in self._mount.parts.attributes.acls._answered

    def forget(self) -> None:
        """The kernel drops an inode that nobody uses."""
        found = self._some()
        if found is None or self._going or any(thing is found[1] for _, thing, _ in self._opened):
            return
        path, thing = found
        if thing.is_folder or not thing.number:
            return
        self.log.append(f"forget {path}")

        async def go() -> None:
            if (inode := self._mount.parts.inodes.find(thing.number)) is not None:
                await self._kernel.forget([(thing.number, inode.lookups)])

        self._loop.run(go)
        thing.number = 0

    def another_client(self) -> None:
        """Stores a file anew, with attributes of its own, where nothing is on its way here."""
        self._close_all()
        if self._unknown:
            return
        self._loop.passes(LONG)  # what got no answer is guarded for some time
        self._loop.run(self._mount.settle)
        found = self._some(is_folder=False)
        if found is None or not stat.S_ISREG(found[1].kind):
            return
        path = found[0]
        mode, colour = stat.S_IFREG | self._dice.choice(MODES), self._dice.choice(VALUES[:2])
        acl, kept_class = self._dice.choice(CANNED_ACLS), self._dice.choice(CLASSES)
        body, control = self._dice.randbytes(20) * self._dice.choice((1, 300)), self._dice.choice(VALUES[:2])
        posix = user_metadata.Posix(mode, self._dice.choice(OWNERS), 0, self._dice.choice(TIMES))
        headers = Headers(content_type="text/x-theirs", cache_control=control.decode())
        metadata = user_metadata.write({"colour": colour.decode()}, posix)
        self.log.append(f"another client puts {path}")
        grants = Acl(OWNER, PRIVATE.grants + CANNED.get(acl, ()))
        put = partial(FakeStore.put, self._store, path, body, Properties(headers, metadata, kept_class), acl=grants)
        self._loop.run(put)
        now = {
            "mode": mode, "uid": posix.uid, "gid": 0, "rdev": 0, "mtime": posix.mtime_ns, "body": body,
            "acl": acl.value, "type": frozenset({b"text/x-theirs"}), "class": kept_class, "user.colour": colour,
            "user.sos.cache-control": control,
        }  # fmt: skip
        self._things[path] = Thing(now, is_kept=True, is_typed=True)
        self._things[path].unsure_until = self._loop._clock.current_time() + 2 * TTL + 1

    def crash(self) -> None:
        self._collect()
        self.log.append(f"crash; the bucket has {sorted(bodies(self._store))}")
        self._mount.crash()
        going, self._going = self._going, []
        self._opened.clear()
        self._store.before.clear()
        self._store.after.clear()
        self._store.errors.clear()
        self._store.unanswered.clear()
        for op in going:
            op.comes()
        self._start()
        self._adopt(going, crashed=True)

    def remount(self) -> None:
        self._close_all()
        self._loop.passes(LONG)
        if self._unknown:
            return
        self.log.append("unmount")
        self._loop.run(self._mount.parts.drain)
        self._mount.stop()
        self._require_bucket()
        for thing in self._things.values():
            thing.number = 0
        self._start()
        self._require_tree(self._loop.run(self._tree))

    def _find_out(self) -> None:
        """What was done of that which failed without an answer."""
        self._close_all()
        going, self._unknown = self._unknown, []
        self.log.append(f"  find out: {[op.what for op in going]}")
        self._loop.passes(LONG)
        self._loop.run(self._mount.settle)
        self._adopt(going, crashed=False)

    def _close_all(self) -> None:
        self._heal()
        self._wait()
        while self._opened:
            self.close_one()
            self._wait()

    def _adopt(self, going: list[Operation], *, crashed: bool) -> None:
        """What is there is what is right from now on, if it may be so."""
        for thing in self._things.values():
            thing.number = 0
        tree = self._loop.run(self._tree)
        could, new, replaced = self._places(going)
        before, self._things = self._things, {}
        gone = [op.subject for op in going if op.what.startswith(("unlink", "rmdir"))]
        for path, thing in before.items():
            if any(one is thing for one in gone) or path in replaced:
                continue
            places = [place for place, things in could.items() if any(one is thing for one in things)]
            tests = [self._wrong(thing, tree.get(place), crashed=crashed) for place in places]
            if all(tests):
                raise Wrong(f"{path} is not as it may be: {dict(zip(places, tests, strict=True))}")
        for path, found in tree.items():
            things = could.get(path, [])
            fitting = [thing for thing in things if not self._wrong(thing, found, crashed=crashed)]
            if not fitting and path not in new:
                wrong = [self._wrong(thing, found, crashed=crashed) for thing in things]
                raise Wrong(f"{path} is {found}, and is none of {wrong}")
            fitting = [
                thing.replaced if crashed and thing.replaced and not thing.replaced.may_be(found) else thing
                for thing in fitting
            ]
            self._things[path] = adopted(found, fitting, path)

    def _wrong(self, thing: Thing, found: Mapping[str, Any] | None, *, crashed: bool) -> str:
        return thing.may_be(found) if crashed else thing.differs(found)

    def _places(self, going: list[Operation]) -> tuple[dict[str, list[Thing]], set[str], set[str]]:
        """What may be at each path, with what is under way done or not; what may be new; what may be replaced."""
        moves = [(self._path(op.subject), self._at(op)) for op in going if op.what.startswith("rename") and op.subject]
        could: dict[str, list[Thing]] = {}
        for path, thing in self._things.items():
            for place in sorted(ways_of(path, moves)):
                could.setdefault(place, []).append(thing)
                if "type" in thing.now:
                    thing.set("type", thing.now["type"] | retyped(thing, split(path)[1], split(place)[1]))
        new = {
            place
            for op in going
            if op.into is not None and not op.what.startswith("rename")
            for place in ways_of(self._at(op), moves)
        }
        return could, new, {place for _, there in moves for place in ways_of(there, moves)}

    # The end

    def _end(self) -> None:
        self._close_all()
        if self._unknown:
            self._find_out()
        self._loop.passes(LONG)
        self._loop.run(self._mount.settle)
        self._require_tree(self._loop.run(self._tree))
        self._require_bucket()
        rest = [self._mount.parts.pending, self._mount._journal.rows, self._mount._journal.damage.lines]
        if any(rest):
            raise Wrong(f"there is left {rest}")

    def _require_tree(self, tree: Mapping[str, Mapping[str, Any]]) -> None:
        if set(tree) != set(self._things):
            raise Wrong(f"there are {sorted(tree)} instead of {sorted(self._things)}")
        for path, thing in self._things.items():
            if wrong := thing.differs(tree[path]):
                raise Wrong(f"{path}: {wrong}")

    def _require_bucket(self) -> None:
        keys = {f"{path}/" if thing.is_folder else path: thing for path, thing in self._things.items()}
        if set(keys) != set(self._store._stored):
            raise Wrong(f"the bucket has {sorted(self._store._stored)} instead of {sorted(keys)}")
        for key, thing in keys.items():
            if wrong := thing.differs(self._object(key)):
                raise Wrong(f"the object {key}: {wrong}")

    def _object(self, key: str) -> dict[str, Any]:
        """What the bucket has."""
        stored = self._store._stored[key]
        properties = stored.object.properties
        kind = stat.S_IFDIR if key.endswith("/") else stat.S_IFREG
        posix = user_metadata.read(properties.metadata, kind=kind)
        is_folder = key.endswith("/")
        found: dict[str, Any] = {
            "mode": posix.mode, "uid": posix.uid, "gid": posix.gid, "rdev": posix.rdev or 0, "body": stored.body,
            "mtime": None if is_folder else posix.mtime_ns,
            "acl": named(stored.acl), "class": properties.storage_class,
        }  # fmt: skip
        if stat.S_ISREG(posix.mode or 0):
            found["type"] = properties.headers.content_type.encode()
        for name, attribute in HEADERS.items():
            if name != MIME_TYPE and (value := getattr(properties.headers, attribute)):
                found[name.decode()] = value.encode()
        for entry, text in properties.metadata.items():
            if (shown := xattr_encoding.shown(entry)) is not None:
                found[f"user.{shown.decode()}"] = xattr_encoding.from_text(text)
        return found


WEIGHTS: dict[Callable[[Labels], None], int] = {
    Labels.create: 3,
    Labels.make: 3,
    Labels.open: 6,
    Labels.write: 10,
    Labels.close_one: 8,
    Labels.fsync: 2,
    Labels.unlink: 2,
    Labels.rmdir: 1,
    Labels.rename: 6,
    Labels.rename_folder: 3,
    Labels.setattr: 7,
    Labels.fsetattr: 6,
    Labels.setxattr: 7,
    Labels.fsetxattr: 6,
    Labels.removexattr: 4,
    Labels.set_acl: 5,
    Labels.look: 6,
    Labels.pause: 7,
    Labels.hold: 9,
    Labels.let_go: 12,
    Labels.fail: 10,
    Labels.forget: 2,
    Labels.another_client: 1,
    Labels.crash: 3,
    Labels.remount: 1,
}


def names_of(folder: Thing | None) -> str:
    """The kernel's lock of the names in a directory."""
    return f"names of {id(folder) if folder is not None else 'the root'}"


def ways_of(path: str, moves: list[tuple[str | None, str]]) -> set[str]:
    """The paths that something may have with some of these renames done."""
    found = {path}
    for _ in moves:
        for old, new in moves:
            found |= {new + one[len(old) :] for one in found if old is not None and is_at(one, old)}
    return found


def is_at(path: str, top: str) -> bool:
    """Whether a path is another one or below it."""
    return path == top or path.startswith(f"{top}/")


def named(acl: Acl) -> str:
    """The canned name of an ACL."""
    grantees = {grant.grantee for grant in acl.grants} - {OWNER}
    return "private" if not grantees else "public-read" if ANYONE in grantees else "authenticated-read"


def is_excused(error: BaseException) -> bool:
    """Whether it comes of a fault that was made."""
    chain: BaseException | None = error
    while chain is not None:
        if any(one in str(chain) for one in (MADE, NOT_TOLD)):
            return True
        chain = chain.__cause__
    return False


@contextmanager
def labels(seed: int, durability: Durability, base: Path) -> Iterator[Labels]:
    """A run that the seed alone decides."""
    with decided_by(seed) as patch:
        lower_thresholds(patch)
        with closing(Labels(seed, durability, base)) as run:
            yield run
