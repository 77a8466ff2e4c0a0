"""A crowd of programs on one tree: dice choose what each does while requests of the others are held back or fail.

As `turmoil`, but of names: several operations are under way at once, as far as the kernel lets them. It serialises what
changes one directory, and asks for a name or reads a directory at any time. A run's seed decides all that happens. The
rules that must hold:

- An operation answers by what there was when it began or came to be meanwhile. What was there all the time is in a
  listing, once, and found; what never was is in none.
- A step may fail with EIO where a fault that was made reached it, and then has changed nothing.
- What another client does shows within the TTL.
- A crash leaves each file that was acknowledged, under its name or one that a rename under way gives it.
- When all has settled the bucket holds exactly the files, and nothing is left here for them.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyfuse3
import trio
import trio.testing

from sosfs.config.parameters import TTL, Durability, Settings
from sosfs.errors import StoreError
from sosfs.filesystem.bucket import _operations
from sosfs.fuse.operations import DOTS
from sosfs.s3.protocol import Properties
from tests.support.composed import LONG, TASK, Composed, Loop, state_in
from tests.support.fake_store import FakeStore
from tests.support.held import HELD, Held, begun, bodies, forget
from tests.support.turmoil import MADE, File, Wrong, decided_by, is_excused, release_one, short

NOT_TOLD = "no answer"
STEPS = 60  # of a run
ATTEMPTS = 200  # of letting the time go by, until an operation counts as hanging
NAMES = ("a", "b", "f", "g")
THEIRS = ("x", "y")  # of another client
DEEP = 3  # directories below each other
AT_ONCE = 4  # operations under way
TICK = 1e-6  # seconds
BATCH = 2  # names that a reader takes at a time
MODES = (0o700, 0o750, 0o644, 0o600)
ONLY_MODE: Any = SimpleNamespace(
    update_mode=True,
    **dict.fromkeys(("update_size", "update_uid", "update_gid", "update_atime", "update_mtime"), False),
)
CALLER: Any = SimpleNamespace(pid=TASK, uid=0, gid=0, umask=0o022)
PAUSES = (0.1, 0.6, 1.5, 7.0, 3 * TTL)  # seconds


@dataclass(eq=False)
class Folder:
    """A directory of the model."""

    entries: dict[str, File | Folder] = field(default_factory=dict)
    unsure: set[str] = field(default_factory=set)  # names that another client has changed lately
    number: int = 0  # by which the kernel knows it; 0: not yet
    mode: int = 0o755  # 0: nobody knows
    is_marked: bool = True  # else it is there as long as something is in it

    def chmod(self, mode: int) -> None:
        """As `File.chmod`."""
        self.mode = mode

    def walk(self, path: str = "") -> Iterator[tuple[str, Folder, str]]:
        """Everything below: its path, and where it is."""
        for name, entry in self.entries.items():
            here = f"{path}/{name}".lstrip("/")
            yield here, self, name
            if isinstance(entry, Folder):
                yield from entry.walk(here)


Place = tuple[Folder, str]


@dataclass(eq=False)
class Operation:
    """What is under way, and how the model takes its answer."""

    what: str
    work: Callable[[], Awaitable[Any]]
    done: Callable[[Any], None]
    places: tuple[Place, ...] = ()  # names that it changes
    locks: tuple[object, ...] = ()  # what nobody else changes meanwhile
    of: Folder | None = None  # whose names it tells of
    about: File | Folder | None = None  # whose attributes it tells
    ways: tuple[Place, ...] = ()  # that the kernel goes by their names
    is_void: bool = False  # it cannot be told what is right
    has_mode: bool = True  # it can be told what mode is right
    must: set[str] = field(default_factory=set)
    may: set[str] = field(default_factory=set)
    answer: Any = None
    error: BaseException | None = None
    is_done: bool = False


class Crowd:
    """One run."""

    def __init__(self, seed: int, durability: Durability, base: Path) -> None:
        self.log: list[str] = []
        self._dice = random.Random(seed)
        self._store = Held(page=self._dice.choice((2, 3, 1000)), hashes=self._dice.random() < 0.8)
        self._store.pins_deletes = self._dice.random() < 0.8
        self._loop = Loop()
        settings = Settings("bucket", "", Path("/"), cache_dir=state_in(base), durability=durability, part_size=8192)
        self._mount = Composed(self._loop, self._store, settings)
        self._root = Folder(number=pyfuse3.ROOT_INODE)
        self._going: list[Operation] = []
        self._opened: list[tuple[int, File, str]] = []
        self._ways: list[Place] = []  # of the operation that is about to begin
        self._unknown: list[Operation] = []  # what failed, and may be done all the same
        self._start()

    def _start(self) -> None:
        self._mount.start()
        self._kernel = _operations(self._mount._settings, self._mount.parts)

    def run(self) -> None:
        """All steps, with a look at everything in the end."""
        for step in self._dice.choices(list(WEIGHTS), list(WEIGHTS.values()), k=STEPS):
            self._ways.clear()
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
            self._mount._end()
            self._loop.close()

    # Operations under way

    def _begin(self, op: Operation) -> None:
        op.ways, self._ways = tuple(self._ways), []
        if len(self._going) >= AT_ONCE:
            return
        locks = {id(lock) for one in self._going for lock in one.locks}
        if any(id(lock) in locks for lock in op.locks):
            return
        self.log.append(f"begin: {op.what}")
        for folder, name in op.places:
            self._touch(folder, name)
        op.has_mode = not any(lock is op.about for one in self._going for lock in one.locks)
        for one in self._going:
            one.has_mode = one.has_mode and not any(lock is one.about for lock in op.locks)
        if op.of is not None:
            touched = {name for one in self._going for folder, name in one.places if folder is op.of}
            op.must = set(op.of.entries) - touched - op.of.unsure
            op.may = set(op.of.entries) | touched | op.of.unsure

        async def run() -> None:
            try:
                op.answer = await self._tried(op)
            except Exception as error:  # noqa: BLE001
                op.error = error
            op.is_done = True

        self._going.append(op)
        self._loop.run(partial(begun, self._mount, run))
        self._collect()

    async def _tried(self, op: Operation) -> Any:
        try:
            return await op.work()
        except pyfuse3.FUSEError as error:
            if error.errno != errno.ESTALE:
                raise
        op.is_void = True  # what has the name by now may be another
        for folder in self._folders():
            if folder is not self._root:
                folder.number = 0
        return await op.work()

    def _touch(self, folder: Folder, name: str) -> None:
        for one in self._going:
            one.is_void = one.is_void or (folder, name) in one.ways
            if one.of is folder:
                one.must.discard(name)
                one.may.add(name)

    def _collect(self) -> None:
        for op in [op for op in self._going if op.is_done]:
            self._going.remove(op)
            if op.error is not None and is_excused(op.error.__cause__ or op.error):
                self.log.append(f"  EIO: {op.what}")
                if op.places and NOT_TOLD in str(op.error.__cause__):
                    self._unknown.append(op)
                continue
            number = op.error.errno if isinstance(op.error, pyfuse3.FUSEError) else None
            if op.error is not None and number is None:
                raise op.error
            self.log.append(f"  done: {op.what}: {errno.errorcode[number] if number else short_of(op.answer)}")
            if op.is_void and op.error is not None:
                continue
            op.done(errno.errorcode[number] if number else op.answer)

    def _wait(self) -> None:
        """Until nothing is under way."""
        for _ in range(ATTEMPTS):
            if not self._going:
                return
            if not self._release_one():
                self._loop.passes(1)
            self._collect()
        raise Wrong(f"it hangs: {[op.what for op in self._going]}")

    def _release_one(self) -> bool:
        return release_one(self._store, self._loop, self._dice, self.log)

    def _heal(self) -> None:
        while self._release_one():
            pass
        self._store.errors.clear()
        self._store.unanswered.clear()
        self._collect()

    # Where things are

    def _folders(self) -> list[Folder]:
        below = [folder.entries[name] for _, folder, name in self._root.walk()]
        return [self._root, *(one for one in below if isinstance(one, Folder))]

    def _path(self, wanted: Folder) -> list[Place]:
        """The way to a folder."""

        def look(here: Folder, way: list[Place]) -> list[Place] | None:
            if here is wanted:
                return way
            for name, entry in here.entries.items():
                if isinstance(entry, Folder) and (found := look(entry, [*way, (here, name)])) is not None:
                    return found
            return None

        found = look(self._root, [])
        assert found is not None
        return found

    def _can_be_had(self, folder: Folder) -> bool:
        """Whether the kernel has a way to it: it is known to be there, and where."""
        if any(name in where.unsure for where, name in self._path(folder)):
            return False
        return bool(folder.number) or not self._is_moving(folder)

    def _is_moving(self, folder: Folder) -> bool:
        """Whether an operation under way may give it another path, or take it away."""
        places = {(id(where), name) for one in self._going for where, name in one.places}
        return any((id(where), name) in places for where, name in self._path(folder))

    def _some_folder(self) -> Folder:
        return self._dice.choice([folder for folder in self._folders() if self._can_be_had(folder)])

    def _quiet(self, *folders: Folder) -> bool:
        """None of them is to be removed, or is being replaced by a rename."""
        return not any(lock is folder for one in self._going for lock in one.locks for folder in folders)

    def _where(self, folder: Folder) -> Callable[[], Awaitable[int]]:
        """The kernel's number of a directory: known, or found from the root on."""
        way = [(where, name) for where, name in self._path(folder)]
        targets = [where.entries[name] for where, name in way]
        is_moving = self._is_moving(folder)
        trusts = is_moving or self._dice.random() < 0.5
        if not (folder.number and trusts):
            self._ways += way

        async def find() -> int:
            if folder.number and trusts:
                return folder.number
            number = pyfuse3.ROOT_INODE
            for (_, name), target in zip(way, targets, strict=True):
                entry = await self._kernel.lookup(number, name.encode(), CALLER)
                if not entry.st_ino:
                    raise pyfuse3.FUSEError(errno.ENOENT)
                number = entry.st_ino
                assert isinstance(target, Folder)
                if target.number != number:
                    target.number = number
            return number

        return find

    # What programs do

    def mkdir(self) -> None:
        folder, name = self._some_folder(), self._dice.choice(NAMES)
        if name in folder.entries or len(self._path(folder)) >= DEEP:
            return
        find = self._where(folder)

        async def go() -> int:
            return (await self._kernel.mkdir(await find(), name.encode(), 0o755, CALLER)).st_ino

        def done(answer: Any) -> None:
            require(isinstance(answer, int), f"mkdir of {name}: {answer}")
            folder.entries[name] = Folder(number=answer)

        self._begin(Operation(f"mkdir {self._told(folder, name)}", go, done, ((folder, name),), (folder,)))

    def _told(self, folder: Folder, name: str) -> str:
        return "/".join([*(part for _, part in self._path(folder)), name])

    def rmdir(self) -> None:
        found = self._some_entry(Folder)
        if found is None:
            return
        folder, name = found
        gone = folder.entries[name]
        assert isinstance(gone, Folder)
        if gone.unsure or any(place is gone for one in self._going for place, _ in one.places):
            return  # what another client has just put there may not be seen yet, and stays: so does the directory
        find = self._where(folder)

        async def go() -> None:
            await self._kernel.rmdir(await find(), name.encode(), CALLER)

        def done(answer: Any) -> None:
            rest = set(gone.entries)
            if answer is None:
                require(not rest, f"rmdir of {name} with {rest}")
                del folder.entries[name]
            else:
                require(answer == "ENOTEMPTY" and bool(rest | gone.unsure), f"rmdir of {name}: {answer} with {rest}")

        what = f"rmdir {self._told(folder, name)}"
        self._void_readers(gone)
        self._begin(Operation(what, go, done, ((folder, name),), (folder, gone)))

    def _void_readers(self, gone: Folder) -> None:
        for one in self._going:
            if one.of is gone:
                one.is_void = True

    def _some_entry(self, kind: type[File] | type[Folder]) -> Place | None:
        places = [
            (folder, name)
            for _, folder, name in self._root.walk()
            if isinstance(folder.entries[name], kind)
            and name not in folder.unsure
            and not (kind is File and name in THEIRS)
            and self._can_be_had(folder)
        ]
        return self._dice.choice(places) if places else None

    def create(self) -> None:
        folder, name = self._some_folder(), self._dice.choice(NAMES)
        if name in folder.entries:
            return
        find = self._where(folder)

        async def go() -> int:
            flags = os.O_CREAT | os.O_RDWR
            info, _ = await self._kernel.create(await find(), name.encode(), 0o644, flags, CALLER)
            return int(info.fh)

        file = File()

        def done(answer: Any) -> None:
            require(isinstance(answer, int), f"create of {name}: {answer}")
            folder.entries[name] = file
            self._opened.append((answer, file, name))

        self._begin(Operation(f"create {self._told(folder, name)}", go, done, ((folder, name),), (folder, file)))

    def open(self) -> None:
        found = self._some_entry(File)
        if found is None or len(self._opened) > 3:
            return
        folder, name = found
        file = folder.entries[name]
        assert isinstance(file, File)
        find = self._where(folder)

        async def go() -> int:
            entry = await self._kernel.lookup(await find(), name.encode(), CALLER)
            if not entry.st_ino:
                raise pyfuse3.FUSEError(errno.ENOENT)
            return int((await self._kernel.open(entry.st_ino, os.O_RDWR, CALLER)).fh)

        def done(answer: Any) -> None:
            require(isinstance(answer, int), f"open of {name}: {answer}")
            self._opened.append((answer, file, name))

        # A name that somebody else is changing meanwhile may be gone by then.
        self._begin(Operation(f"open {self._told(folder, name)}", go, done, (), (folder, file)))

    def write(self) -> None:
        if not self._opened:
            return
        handle, file, name = self._dice.choice(self._opened)
        at = self._dice.choice((0, len(file.body)))
        data = bytes([self._dice.randrange(1, 256)]) * self._dice.choice((10, 3000, 20_000))

        async def go() -> None:
            await self._kernel.write(handle, at, data)

        def done(answer: Any) -> None:
            require(answer is None, f"write to {name}: {answer}")
            file.write(at, data)

        self._begin(Operation(f"write {name} at {at}: {len(data)} times {data[:1]!r}", go, done, (), (file,)))

    def close_one(self) -> None:
        if not self._opened:
            return
        one = self._dice.choice(self._opened)
        handle, file, name = one
        if any(lock is file for op in self._going for lock in op.locks) or len(self._going) >= AT_ONCE:
            return
        self._opened.remove(one)

        async def go() -> None:
            try:
                await self._kernel.flush(handle)
            finally:
                await self._kernel.release(handle)

        def done(answer: Any) -> None:
            require(answer is None, f"close of {name}: {answer}")
            if any(where.entries[at] is file for _, where, at in self._root.walk()):
                file.acknowledged()

        self._begin(Operation(f"close {name}", go, done, (), (file,)))

    def unlink(self) -> None:
        found = self._some_entry(File)
        if found is None:
            return
        folder, name = found
        file, find = folder.entries[name], self._where(folder)

        async def go() -> None:
            await self._kernel.unlink(await find(), name.encode(), CALLER)

        def done(answer: Any) -> None:
            require(answer is None, f"unlink of {name}: {answer}")
            del folder.entries[name]

        self._begin(Operation(f"unlink {self._told(folder, name)}", go, done, ((folder, name),), (folder, file)))

    def rename(self) -> None:
        found = self._some_entry(self._dice.choice((File, Folder, Folder)))
        if found is None:
            return
        old_folder, old = found
        folder, new = self._some_folder(), self._dice.choice(NAMES)
        entry, target = old_folder.entries[old], folder.entries.get(new)
        if entry is target or type(target) not in {type(None), type(entry)}:
            return
        inner = self._below(entry)
        if folder in inner or len(self._path(folder)) >= DEEP:
            return
        if isinstance(target, Folder) and (target.entries or old_folder in self._below(target)):
            return
        if isinstance(entry, Folder) and any(not one.number for one in inner):
            self._know(inner)
            return
        self._rename(old_folder, old, folder, new)

    def _below(self, entry: File | Folder) -> list[Folder]:
        if isinstance(entry, File):
            return []
        return [entry, *(one for _, where, name in entry.walk() if isinstance(one := where.entries[name], Folder))]

    def _know(self, folders: list[Folder]) -> None:
        """The kernel looks them up."""
        for folder in folders:
            if self._can_be_had(folder):
                find = self._where(folder)
                what = f"look up {[name for _, name in self._path(folder)]}"
                self._begin(Operation(what, find, lambda answer: require(isinstance(answer, int), f"lookup: {answer}")))

    def _rename(self, old_folder: Folder, old: str, folder: Folder, new: str) -> None:
        entry, target = old_folder.entries[old], folder.entries.get(new)
        find_old, find_new = self._where(old_folder), self._where(folder)

        async def go() -> None:
            here, there = await find_old(), await find_new()
            await self._kernel.rename(here, old.encode(), there, new.encode(), 0, CALLER)

        def done(answer: Any) -> None:
            if answer == "ENOTEMPTY" and isinstance(target, Folder) and target.unsure | set(target.entries):
                return
            require(answer is None, f"rename of {old}: {answer}")
            require(not isinstance(target, Folder) or not target.entries, f"rename of {old} over one with names")
            if isinstance(entry, File):
                entry.replaced = None if entry.is_kept else target if isinstance(target, File) else entry.replaced
            folder.entries[new] = old_folder.entries.pop(old)

        what = f"rename {self._told(old_folder, old)} to {self._told(folder, new)}"
        across = (self,) if folder is not old_folder else ()
        locks = tuple(one for one in (old_folder, folder, target) if one is not None)
        if isinstance(entry, File):
            locks += (entry,)
        if isinstance(target, Folder):
            self._void_readers(target)
        self._begin(Operation(what, go, done, ((old_folder, old), (folder, new)), (*dict.fromkeys(locks), *across)))

    def read_directory(self) -> None:
        self._read_directory(self._some_folder())

    def _read_directory(self, folder: Folder) -> None:
        find = self._where(folder)
        told = self._told(folder, "")
        batch = self._dice.choice((BATCH, BATCH, 100))

        async def go() -> list[str]:
            handle = await self._kernel.opendir(await find(), CALLER)
            names: list[bytes] = []
            try:
                at = 0
                while True:
                    shown = Reply(batch)
                    await self._kernel.readdir(handle, at, shown)  # type: ignore[arg-type]
                    if not shown.names:
                        return [name.decode() for name in names if name not in DOTS]
                    names += [name for name, _ in shown.names]
                    at = shown.names[-1][1]
            finally:
                await self._kernel.releasedir(handle)

        op = Operation(f"read directory {told}", go, lambda answer: None, of=folder)
        op.done = partial(self._check_listing, op, told)
        self._begin(op)

    def _check_listing(self, op: Operation, told: str, answer: Any) -> None:
        if op.is_void:
            return
        require(isinstance(answer, list), f"listing of {told!r}: {answer}")
        require(len(set(answer)) == len(answer), f"listing of {told!r} twice: {answer}")
        require(op.must <= set(answer), f"listing of {told!r} lacks {op.must - set(answer)}: {answer}")
        require(set(answer) <= op.may, f"listing of {told!r} has {set(answer) - op.may}: {answer}")

    def stat(self) -> None:
        folder, name = self._some_folder(), self._dice.choice(NAMES + THEIRS)
        find, told, entry = self._where(folder), self._told(folder, name), folder.entries.get(name)

        async def go() -> pyfuse3.EntryAttributes | None:
            found = await self._kernel.lookup(await find(), name.encode(), CALLER)
            if not found.st_ino:
                return None
            return await self._kernel.getattr(found.st_ino, CALLER)

        op = Operation(f"stat {told}", go, lambda answer: None, of=folder, about=entry)

        def done(answer: Any) -> None:
            if op.is_void or (name in op.may and name not in op.must):
                return
            is_there = isinstance(answer, pyfuse3.EntryAttributes)
            require(is_there or answer in {None, "ENOENT"}, f"stat of {told}: {answer}")
            require(is_there == (name in op.must), f"stat of {told}: {short_of(answer)}, is there: {name in op.must}")
            if is_there:
                require(stat.S_ISDIR(answer.st_mode) == isinstance(entry, Folder), f"stat of {told}: another kind")
                if entry is not None and entry.mode and op.has_mode:
                    is_right = stat.S_IMODE(answer.st_mode) == entry.mode
                    require(is_right, f"stat of {told}: {answer.st_mode:#o} instead of {entry.mode:#o}")
                if isinstance(entry, File) and not any(lock is entry for one in self._going for lock in one.locks):
                    sizes = {len(body) for body in entry.bodies}
                    require(answer.st_size in sizes, f"stat of {told}: {answer.st_size} of {sizes}")

        op.done = done
        self._begin(op)

    def chmod(self) -> None:
        found = self._some_entry(self._dice.choice((File, Folder)))
        if found is None:
            return
        folder, name = found
        entry, find, mode = folder.entries[name], self._where(folder), self._dice.choice(MODES)

        async def go() -> None:
            there = await self._kernel.lookup(await find(), name.encode(), CALLER)
            if not there.st_ino:
                raise pyfuse3.FUSEError(errno.ENOENT)
            attr: Any = SimpleNamespace(st_mode=stat.S_IFMT(there.st_mode) | mode)
            await self._kernel.setattr(there.st_ino, attr, ONLY_MODE, None, CALLER)

        def done(answer: Any) -> None:
            require(answer is None, f"chmod of {name}: {answer}")
            entry.chmod(mode)

        self._begin(Operation(f"chmod {self._told(folder, name)} to {mode:#o}", go, done, (), (folder, entry)))

    def walk(self) -> None:
        """Somebody reads all directories, one after the other."""
        for folder in self._folders():
            if self._can_be_had(folder):
                self._read_directory(folder)

    # What befalls it

    def pause(self) -> None:
        seconds = self._dice.choice(PAUSES)
        self.log.append(f"{seconds} s go by")
        is_quiet = not self._going and not self._store.before and not self._store.after
        self._loop.passes(seconds)
        self._collect()
        if is_quiet and seconds > 2 * TTL:
            for folder in self._folders():
                folder.unsure.clear()

    def hold(self) -> None:
        what, when = self._dice.choice(sorted(HELD) + ["list"] * 6), self._dice.choice(("before", "after"))
        self.log.append(f"hold each {what} {when} it takes effect")
        {"before": self._store.before, "after": self._store.after}[when].setdefault(what, trio.Event())

    def let_go(self) -> None:
        self._release_one()
        self._collect()

    def fail(self) -> None:
        entries = [path for path, _, _ in self._root.walk()]
        if not entries:
            return
        what, path = self._dice.choice(sorted(HELD)), self._dice.choice(entries)
        key = path + self._dice.choice(("", "/"))
        is_told = self._dice.random() < 0.6
        self.log.append(f"the next {what} of {key} {'fails' if is_told else 'is done without an answer'}")
        error = StoreError(errno.EIO, f"{what} {key!r}", detail=MADE if is_told else NOT_TOLD)
        (self._store.errors if is_told else self._store.unanswered).setdefault((what, key), []).append(error)

    def evict(self) -> None:
        self.log.append("forget")

        async def go() -> None:
            forget(self._mount)

        self._loop.run(go)

    def another_client(self) -> None:
        folder, name = self._dice.choice(self._folders()), self._dice.choice(THEIRS)
        if any(op.places or op.locks for op in self._going):
            return
        if name in folder.entries and folder.is_marked and self._dice.random() < 0.5:
            self._theirs(folder, name, None)
            return
        body = self._dice.randbytes(10) * self._dice.choice((1, 500))
        if len(self._path(folder)) < DEEP and self._dice.random() < 0.3:
            self._touch(folder, "z")
            folder.unsure.add("z")
            below = folder.entries.setdefault("z", Folder(mode=0, is_marked=False))
            assert isinstance(below, Folder)
            folder, name = below, "x"
        self._theirs(folder, name, body)

    def _theirs(self, folder: Folder, name: str, body: bytes | None) -> None:
        key = self._told(folder, name)
        self.log.append(f"another client {'removes' if body is None else 'puts'} {key}")
        self._touch(folder, name)
        folder.unsure.add(name)
        if body is None:
            del folder.entries[name]
            self._loop.run(partial(FakeStore.delete, self._store, key))
        else:
            folder.entries[name] = File(body, is_kept=True)
            self._loop.run(partial(FakeStore.put, self._store, key, body, Properties()))

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
        self._start()
        self._adopt(going)

    def _find_out(self) -> None:
        """What was done of that which failed without an answer."""
        self._close_all()
        going, self._unknown = self._unknown, []
        self.log.append(f"  find out: {[op.what for op in going]}")
        self._adopt(going)

    def _close_all(self) -> None:
        self._heal()
        self._wait()
        while self._opened:
            self.close_one()
            self._wait()

    def _adopt(self, going: list[Operation]) -> None:
        """What is there when all has settled is what is right from now on."""
        self._loop.passes(LONG)
        self._loop.run(self._mount.settle)
        tree = self._loop.run(self._mount.tree)
        self._require_after_crash(going, tree)
        self._root = Folder(number=pyfuse3.ROOT_INODE)
        for path in sorted(tree):
            *above, name = path.split("/")
            folder = self._root
            for part in above:
                below = folder.entries[part]
                assert isinstance(below, Folder)
                folder = below
            found = tree[path]
            is_marked = f"{path}/" in self._store._stored
            folder.entries[name] = Folder(mode=0, is_marked=is_marked) if found is None else File(*found, is_kept=True)

    def _require_after_crash(self, going: list[Operation], tree: dict[str, tuple[bytes, int] | None]) -> None:
        """Each entry is where it was, or where something under way would have brought it."""
        moves = [tuple(self._told(*place) for place in op.places) for op in going if op.what.startswith("rename")]
        going_away = {self._told(*op.places[0]) for op in going if op.what.startswith(("unlink", "rmdir"))}
        coming = {self._told(*op.places[0]) for op in going if op.what.startswith(("create", "mkdir"))}
        explained = set(coming)
        for path, folder, name in list(self._root.walk()):
            entry = folder.entries[name]
            places = {path} | {
                new + path[len(old) :] for old, new in moves if path == old or path.startswith(old + "/")
            }
            explained |= places
            if path in going_away or any(new == path for _, new in moves):
                continue
            if isinstance(entry, Folder):
                require(any(tree.get(place, b"") is None for place in places), f"{path} is gone: {sorted(tree)}")
            elif not any(entry.may_be(tree.get(place)) for place in places):
                was = short((entry.body, entry.mode))
                found = {place: short(tree.get(place)) for place in places}
                raise Wrong(f"{path} is after the crash {found}, and was {was}, or has other bytes")
        require(set(tree) <= explained, f"after the crash there are {set(tree) - explained}")

    # The end

    def _end(self) -> None:
        self._close_all()
        if self._unknown:
            self._find_out()
        self._loop.passes(LONG)
        self._loop.run(self._mount.settle)
        tree = self._loop.run(self._mount.tree)
        model = {path: folder.entries[name] for path, folder, name in self._root.walk()}
        require(set(tree) == set(model), f"there are {sorted(tree)} instead of {sorted(model)}")
        for path, entry in model.items():
            found = tree[path]
            require((found is None) == isinstance(entry, Folder), f"{path} is of another kind")
            if isinstance(entry, File):
                is_right = found == (entry.body, entry.mode)
                require(is_right, f"{path} is {short(found)} instead of {short((entry.body, entry.mode))}")
        self._require_bucket(model)

    def _require_bucket(self, model: dict[str, File | Folder]) -> None:
        objects = {key: body for key, body in bodies(self._store).items() if not key.endswith("/")}
        files = {path: entry.body for path, entry in model.items() if isinstance(entry, File)}
        require(objects == files, f"the bucket has {sorted(objects)} instead of {sorted(files)}, or other bytes")
        markers = {key[:-1] for key in bodies(self._store) if key.endswith("/")}
        folders = {path for path, entry in model.items() if isinstance(entry, Folder)}
        require(markers <= folders, f"the bucket has markers of {markers - folders}")
        rest = [self._mount.parts.pending, self._mount._journal.rows, self._mount._journal.damage.lines]
        require(not any(rest), f"there is left {rest}")


class Reply:
    """What readdir is answered with: names and the offsets that follow them."""

    def __init__(self, most: int) -> None:
        self.names: list[tuple[bytes, int]] = []
        self.most = most


def reply(shown: Reply, name: bytes, _: Any, after: int) -> bool:
    """What the kernel does with a name of a directory."""
    if len(shown.names) == shown.most:
        return False
    shown.names.append((name, after))
    return True


WEIGHTS: dict[Callable[[Crowd], None], int] = {
    Crowd.mkdir: 5,
    Crowd.rmdir: 3,
    Crowd.create: 5,
    Crowd.open: 2,
    Crowd.write: 3,
    Crowd.close_one: 6,
    Crowd.unlink: 3,
    Crowd.rename: 8,
    Crowd.read_directory: 8,
    Crowd.walk: 2,
    Crowd.chmod: 4,
    Crowd.stat: 6,
    Crowd.pause: 8,
    Crowd.hold: 8,
    Crowd.let_go: 8,
    Crowd.fail: 3,
    Crowd.evict: 3,
    Crowd.another_client: 4,
    Crowd.crash: 1,
}


def require(is_so: bool, what: str) -> None:
    """Raises Wrong."""
    if not is_so:
        raise Wrong(what)


def short_of(answer: Any) -> str:
    """An answer in a few words."""
    return "attributes" if isinstance(answer, pyfuse3.EntryAttributes) else repr(answer)


def ticking(current_time: Callable[[trio.testing.MockClock], float]) -> Callable[[trio.testing.MockClock], float]:
    """No two moments are the same, as on a machine."""

    def tick(clock: trio.testing.MockClock) -> float:
        clock.jump(TICK)
        return current_time(clock)

    return tick


@contextmanager
def crowd(seed: int, durability: Durability, base: Path) -> Iterator[Crowd]:
    """A run that the seed alone decides."""
    with decided_by(seed) as patch:
        patch.setattr(pyfuse3, "readdir_reply", reply)
        patch.setattr("sosfs.namespace.namespace.RELIST_MAX", random.Random(seed).choice((1, 200)))
        patch.setattr(trio.testing.MockClock, "current_time", ticking(trio.testing.MockClock.current_time))
        with closing(Crowd(seed, durability, base)) as run:
            yield run
