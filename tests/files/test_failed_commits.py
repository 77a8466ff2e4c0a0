"""After a commit that failed, `stat` and `read` agree however one looks, and show what the promises say.

While the failure lasts the mount shows the new bytes, and the bucket has the old ones, or the new ones where only the
answer was lost; afterwards both have the new ones. Where another writer was there first, both have that one's, and ours
lie beside it. Where this machine's disk was full, both have the old ones.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

from sosfs.config.parameters import Durability
from tests.conftest import Cramped, Mounter, access_to, new_bucket
from tests.support.disks import fill
from tests.support.drive import Drive, eventually, names, status, sync
from tests.support.faults import FAILED, LOGIN, Action, Answer, CutRequest, CutResponse, Moment, Page, Reset
from tests.support.mounting import Mount
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import Op, on
from tests.support.watchdog import Watchdog

MIB = 1 << 20
UPLOADS = (Op.PUT, Op.CREATE_MULTIPART, Op.UPLOAD_PART, Op.COPY_PART, Op.COMPLETE)
THEIRS = b"by another client"

P = ParamSpec("P")
T = TypeVar("T")
pytestmark = pytest.mark.timeout(400)  # dozens of failures, each after a second's patience

# Ways of looking

AT_FDCWD, AT_STATX_FORCE_SYNC, STATX_SIZE = -100, 0x2000, 0x200
STATX_BYTES, STATX_SIZE_AT = 256, 40  # struct statx of statx(2)
libc = ctypes.CDLL(None, use_errno=True)


def asked_size(path: Path) -> int:
    """The size as the daemon tells it, whatever the kernel has in its cache."""
    told = ctypes.create_string_buffer(STATX_BYTES)
    if libc.statx(AT_FDCWD, os.fsencode(path), AT_STATX_FORCE_SYNC, STATX_SIZE, told):
        raise OSError(ctypes.get_errno(), "statx", str(path))
    return int.from_bytes(told.raw[STATX_SIZE_AT : STATX_SIZE_AT + 8], "little")


def listed_sizes(directory: Path) -> dict[str, int]:
    """What a listing with attributes (readdirplus) tells."""
    with os.scandir(directory) as entries:
        return {entry.name: entry.stat().st_size for entry in entries}


def whole(opened: int) -> bytes:
    """All that can be read through a descriptor, past the size that is told, too."""
    pieces, at = [], 0
    while piece := os.pread(opened, 4 * MIB, at):
        pieces.append(piece)
        at += len(piece)
    return b"".join(pieces)


def read_by(path: Path, flags: int) -> tuple[int, bytes]:
    """Size and bytes through a descriptor of its own."""
    opened = os.open(path, os.O_RDONLY | flags)
    try:
        return os.fstat(opened).st_size, whole(opened)
    finally:
        os.close(opened)


def seen(path: Path) -> bytes | None:
    """The file's bytes, None where it is absent; fails where two ways of looking disagree."""
    sizes = {"stat": path.stat().st_size} if path.exists() else {}
    sizes |= {f"listing {name}": size for name, size in listed_sizes(path.parent).items() if name == path.name}
    bodies: dict[str, bytes] = {}
    for way, flags in {"open": 0, "open past the cache": os.O_DIRECT}.items():
        with suppress(FileNotFoundError):
            sizes[f"fstat after {way}"], bodies[way] = read_by(path, flags)
    with suppress(FileNotFoundError):
        sizes["statx"] = asked_size(path)
    assert len(sizes) in (0, 5), f"{path.name} is there only for {sorted(sizes)}"
    assert len({*bodies.values()}) <= 1, f"{path.name}: other bytes by another way, {sizes}"
    body = next(iter(bodies.values()), None)
    told = {way: size for way, size in sizes.items() if body is None or size != len(body)}
    assert not told, f"{path.name}: {told}, and {body and len(body)} bytes are read"
    return body


# What is to be committed


def put_all(opened: int, body: bytes, at: int) -> None:
    """Writes all of `body` at an offset."""
    view = memoryview(body)
    while view:
        count = os.pwrite(opened, view, at)
        view, at = view[count:], at + count


@dataclass(frozen=True, slots=True)
class Change:
    """What a program does to a file: how it opens it, what it does then, and what that makes of the bytes."""

    before: bytes | None  # None: there is no file
    after: bytes
    flags: int
    run: Callable[[int], object]


def changes(old: bytes, new: bytes) -> Mapping[str, Change]:
    """A new file, and each way to change one."""
    half = len(old) // 2
    return {
        "new": Change(None, new, os.O_CREAT | os.O_EXCL, lambda fd: put_all(fd, new, 0)),
        "rewrite": Change(old, new, os.O_TRUNC, lambda fd: put_all(fd, new, 0)),
        "append": Change(old, old + new, 0, lambda fd: put_all(fd, new, len(old))),
        "overwrite": Change(old, old[:9] + new[:50] + old[59:], 0, lambda fd: put_all(fd, new[:50], 9)),
        "cut": Change(old, old[:half], 0, lambda fd: os.ftruncate(fd, half)),
        "grow": Change(old, old + bytes(70_000), 0, lambda fd: os.ftruncate(fd, len(old) + 70_000)),
        "empty": Change(old, b"", os.O_TRUNC, lambda fd: None),
    }


OLD = random.Random(1).randbytes(9_000)
NEW = random.Random(2).randbytes(20_001)
SMALL = changes(OLD, NEW)
LARGE_OLD = random.Random(3).randbytes(10 * MIB + 5)
LARGE_NEW = random.Random(4).randbytes(10 * MIB + 77)
LARGE = {name: changes(LARGE_OLD, LARGE_NEW)[name] for name in ("new", "rewrite", "append", "grow")}
BRIEF = ("--patience", "1")  # nothing hangs here, so that a slow machine may take its time
KNOWING = ("--ttl", "100")  # for so long nothing is asked again: what is shown must be right by itself
PART = ("--part-size", "5M")  # the least; what is larger than two goes up in parts

# What makes it fail


@dataclass(frozen=True, slots=True)
class Failing:
    """An answer to certain requests, and what close and fsync may tell of it (0: it is found out that it was done)."""

    action: Action
    numbers: tuple[int, ...]
    ops: tuple[Op, ...] = UPLOADS


def missing(name: str) -> tuple[int, ...]:
    return (getattr(errno, name),)


KINDS: Mapping[str, Failing] = {
    "503 over patience": Failing(Answer(503, "SlowDown"), FAILED),
    "reset": Failing(Reset(), FAILED),
    "upload cut": Failing(CutRequest(100), FAILED),
    "400": Failing(Answer(400, "InvalidArgument"), missing("EINVAL")),
    "EntityTooLarge": Failing(Answer(400, "EntityTooLarge"), missing("EFBIG")),
    "413 of a gateway": Failing(Page(413, body=LOGIN), missing("EFBIG")),
    "quota": Failing(Answer(403, "QuotaExceeded"), missing("EDQUOT")),
    "expired key": Failing(Answer(400, "ExpiredToken"), missing("EACCES")),
    "404": Failing(Answer(404, "NoSuchKey"), FAILED),
    "409": Failing(Answer(409, "ConditionalRequestConflict"), FAILED),
    "412": Failing(Answer(412, "PreconditionFailed"), FAILED),  # but for a new name, of which it is an S3 server's word
    "login page": Failing(Page(200, body=LOGIN), FAILED),
    "answer lost": Failing(Reset(Moment.AFTER), FAILED),
    "500 though done": Failing(Answer(500, "InternalError", Moment.AFTER), FAILED),
    "403": Failing(Answer(403, "AccessDenied"), missing("EACCES")),
}
IN_PARTS: Mapping[str, Failing] = {
    "begin refused": Failing(Answer(400, "InvalidArgument"), missing("EINVAL"), (Op.CREATE_MULTIPART,)),
    "begin lost": Failing(Reset(Moment.AFTER), FAILED, (Op.CREATE_MULTIPART,)),
    "part refused": Failing(Answer(403, "QuotaExceeded"), missing("EDQUOT"), (Op.UPLOAD_PART, Op.COPY_PART)),
    "part lost": Failing(Reset(Moment.AFTER), FAILED, (Op.UPLOAD_PART, Op.COPY_PART)),
    "part of an upload that is gone": Failing(Answer(404, "NoSuchUpload"), (*FAILED, errno.ENXIO), (Op.UPLOAD_PART,)),
    "complete refused": Failing(Answer(400, "EntityTooLarge"), missing("EFBIG"), (Op.COMPLETE,)),
    "complete fails late": Failing(Answer(200, "InternalError"), FAILED, (Op.COMPLETE,)),
    "complete without a part": Failing(Answer(400, "InvalidPart"), missing("EINVAL"), (Op.COMPLETE,)),
    "complete lost": Failing(Reset(Moment.AFTER), (0,), (Op.COMPLETE,)),
    "complete cut": Failing(CutResponse(40), (0,), (Op.COMPLETE,)),
    "complete at 412": Failing(Answer(412, "PreconditionFailed"), FAILED, (Op.COMPLETE,)),
}


def chosen(among: Mapping[str, T], *which: int) -> dict[str, T]:
    """Which changes are tried in one of the cases that are numbered by `which`: over all cases each with each number.

    A third of all that there are: each waits for a second or more. With `SOSFS_SERVERS=all` it is all.
    """
    if os.environ.get("SOSFS_SERVERS") == "all":
        return dict(among)
    return {name: change for at, (name, change) in enumerate(among.items()) if (sum(which) + at) % 3 == 0}


def number(durability: Durability) -> int:
    """The number of a mode."""
    return list(Durability).index(durability)


@dataclass
class Stage:
    """A mount behind a proxy, for many failures one after the other."""

    drive: Drive
    proxy: Proxy
    durability: Durability

    def key(self, path: Path) -> str:
        return self.drive.key(path)

    def stored(self, path: Path) -> bytes | None:
        """What the bucket has of a file."""
        return self.drive.stored(path) if self.drive.foreign.exists(self.key(path)) else None

    def directory(self, name: str, objects: Mapping[str, bytes]) -> Path:
        """A directory with these files, of which the mount knows all."""
        top = self.drive.here / name.replace(" ", "-")
        top.mkdir()
        for file, body in objects.items():
            (top / file).write_bytes(body)
        sync(top)
        return top


@pytest.fixture(scope="module", params=Durability)
def stage(
    request: pytest.FixtureRequest, moto: Server, watchdog: Watchdog, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """One mount of each mode for all tests that leave the server as it was."""
    durability = request.param
    foreign = new_bucket(moto)
    base = tmp_path_factory.mktemp(durability.value)
    with Proxy(moto.endpoint) as proxy:
        options = (*BRIEF, *PART, *KNOWING, "--durability", durability.value)
        mount = Mount(access_to(moto, proxy.endpoint), foreign.bucket, base, watchdog, options)
        mount.allow_log("WARNING|ERROR")
        with mount:
            yield Stage(Drive(mount, foreign, mount.path), proxy, durability)


def attempt(stage: Stage, change: Change, path: Path, failing: Failing, *, synced: bool) -> None:
    """Changes a file while the store fails, and looks at it; with `synced` also through the open descriptor."""
    opened = os.open(path, os.O_RDWR | change.flags, 0o644)
    told: list[int] = []
    due: bytes | None = change.after
    with stage.proxy.broken(failing.action, on(*failing.ops, key=stage.key(path))):
        try:
            if refused := error_of(change.run, opened):  # a cut, by a key that is known to be refused
                assert refused in failing.numbers
                due = change.before
            if synced:
                told.append(error_of(os.fsync, opened))
                agree(opened, path, due)
        finally:
            told.append(error_of(os.close, opened))
        is_told = stage.durability is Durability.BUCKET and due == change.after
        assert set(told) <= {*(failing.numbers if is_told else (0,))}, [os.strerror(number) for number in told]
        assert seen(path) == due
        if stage.durability is Durability.JOURNAL and due == change.after:
            assert error_of(sync, path.parent) in failing.numbers
            assert seen(path) == due
        assert stage.stored(path) in (change.before, due)
    sync(path.parent)
    assert seen(path) == due
    assert stage.stored(path) == due


@dataclass(frozen=True, slots=True)
class Truncation:
    """A file's length is set by its name: without a writer that is all in one call."""

    before: bytes
    after: bytes
    run: Callable[[Path], object]


TRUNCATIONS: Mapping[str, Truncation] = {
    "cut by name": Truncation(OLD, OLD[:4_500], lambda path: os.truncate(path, 4_500)),
    "grown by name": Truncation(OLD, OLD + bytes(70_000), lambda path: os.truncate(path, 79_000)),
    "emptied by name": Truncation(OLD, b"", lambda path: os.truncate(path, 0)),
    "emptied by a reader": Truncation(OLD, b"", lambda path: os.close(os.open(path, os.O_RDONLY | os.O_TRUNC))),
    "large cut by name": Truncation(LARGE_OLD, LARGE_OLD[:-7], lambda path: os.truncate(path, len(LARGE_OLD) - 7)),
}


BY_NAME = ["503 over patience", "400", "500 though done", "403"]


def error_of(call: Callable[P, object], *args: P.args, **options: P.kwargs) -> int:
    """The errno of a call, 0 where it succeeds."""
    try:
        call(*args, **options)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def agree(opened: int, path: Path, body: bytes | None) -> None:
    """All ways of looking, the open descriptor among them, show these bytes."""
    assert body is not None
    assert (os.fstat(opened).st_size, os.lseek(opened, 0, os.SEEK_END)) == (len(body), len(body))
    assert whole(opened) == body
    assert seen(path) == body


@pytest.mark.promise(2)
@pytest.mark.parametrize("kind", KINDS)
def test_what_could_not_be_stored_is_seen_as_it_was_written(stage: Stage, kind: str) -> None:
    few = chosen(SMALL, list(KINDS).index(kind), number(stage.durability))
    top = stage.directory(kind, {name: change.before for name, change in few.items() if change.before is not None})
    for name, change in few.items():
        if (kind, name) == ("412", "new"):
            continue
        print(name)
        attempt(stage, change, top / name, KINDS[kind], synced=name in ("append", "cut"))


@pytest.mark.promise(2)
@pytest.mark.parametrize("kind", IN_PARTS)
def test_what_could_not_be_stored_in_parts_is_seen_as_it_was_written(stage: Stage, kind: str) -> None:
    few = chosen(LARGE, list(IN_PARTS).index(kind), number(stage.durability))
    top = stage.directory(kind, {name: change.before for name, change in few.items() if change.before is not None})
    for name, change in few.items():
        print(name)
        attempt(stage, change, top / name, IN_PARTS[kind], synced=name == "append")


@pytest.mark.promise(2)
@pytest.mark.parametrize("kind", BY_NAME)
def test_a_length_that_could_not_be_stored_is_seen_as_it_was_set(stage: Stage, kind: str) -> None:
    """Whoever has the file open to read, and has read it, sees it too."""
    failing = KINDS[kind]
    few = chosen(TRUNCATIONS, BY_NAME.index(kind), number(stage.durability))
    top = stage.directory(f"by name {kind}", {name: change.before for name, change in few.items()})
    for name, change in few.items():
        print(name)
        path = top / name
        with path.open("rb", buffering=0) as reader:
            assert reader.read() == change.before
            with stage.proxy.broken(failing.action, on(*UPLOADS, key=stage.key(path))):
                told = error_of(change.run, path)
                is_known = told == errno.EACCES  # that the key may not: then nothing is done, but for the first time
                due = seen(path) if is_known else change.after
                assert due in (change.before, change.after)
                assert told in (failing.numbers if stage.durability is Durability.BUCKET else (0, errno.EACCES))
                agree(reader.fileno(), path, due)
        sync(top)
        assert seen(path) == due
        assert stage.stored(path) == due


# Where another writer was first


@pytest.mark.promise(4)
@pytest.mark.parametrize("theirs", [THEIRS, None], ids=["replaced", "removed"])
@pytest.mark.parametrize("synced", [False, True], ids=["closed", "synced"])
def test_where_another_writer_was_first_theirs_is_seen(stage: Stage, theirs: bytes | None, synced: bool) -> None:
    both = {f"small {name}": change for name, change in SMALL.items()}
    both |= {f"large {name}": change for name, change in LARGE.items()}
    both = chosen(both, 1 + (theirs is None), synced, number(stage.durability))
    before = {name: change.before for name, change in both.items() if change.before is not None}
    top = stage.directory(f"another {'removed' if theirs is None else 'stored'} {synced}", before)
    for name, change in both.items():
        if theirs is not None or change.before is not None:
            print(name)
            lose(stage, change, top / name, theirs, synced=synced)


def lose(stage: Stage, change: Change, path: Path, theirs: bytes | None, *, synced: bool) -> None:
    """Changes a file that another client changes meanwhile; what is seen of it, and of what is kept beside it."""
    opened = os.open(path, os.O_RDWR | change.flags, 0o644)
    is_told = stage.durability is Durability.BUCKET
    due = (errno.ESTALE,) if is_told else (0, errno.ESTALE)  # the upload may have begun
    try:
        change.run(opened)
        if theirs is None:
            stage.drive.foreign.delete(stage.key(path))
        else:
            stage.drive.foreign.put(stage.key(path), theirs)
        if synced:
            assert error_of(os.fsync, opened) in due
            if is_told:
                agree_or_stale(opened, theirs, change.before, change.after)
    finally:
        told = error_of(os.close, opened)
        assert told in (due if not synced else (0, errno.ESTALE))
    eventually(lambda: bool(kept_beside(path)))
    assert error_of(sync, path.parent) in (0, errno.ESTALE)
    if not is_told:  # it is found out in the background, and then the kernel is told
        eventually(lambda: (path.stat().st_size == len(theirs)) if theirs is not None else not path.exists())
    assert seen(path) == theirs == stage.stored(path)
    (beside,) = kept_beside(path)
    kept = seen(beside)
    assert kept == stage.stored(beside)
    assert kept is not None and len(kept) == len(change.after)
    if change.flags & (os.O_TRUNC | os.O_CREAT):  # of others some bytes were in the version that is gone
        assert kept == change.after


def kept_beside(path: Path) -> list[Path]:
    """What is there of the loser of a conflict."""
    return [path.parent / name for name in names(path.parent) if name.startswith(f"{path.name}.conflict-")]


def agree_or_stale(opened: int, *bodies: bytes | None) -> None:
    """An open descriptor shows one of these bodies, or says that its version is gone."""
    try:
        body = whole(opened)
    except OSError as error:
        assert error.errno == errno.ESTALE
        return
    assert os.fstat(opened).st_size == len(body)
    assert body in bodies


# Where this machine's disk is full


@pytest.mark.parametrize("server", ["moto"], indirect=True)
@pytest.mark.parametrize("durability", Durability)
def test_what_found_no_room_is_seen_as_it_was(
    cramped: Cramped, proxy: Proxy, durability: Durability, server: Server
) -> None:
    """The store takes nothing, and the spool has no room for all of what is written."""
    options = (*BRIEF, *KNOWING, *PART, "--memory", "8M", "--durability", durability.value)
    drive = cramped(8 * MIB, *options, endpoint=proxy.endpoint)
    drive.mount.allow_log("WARNING|ERROR")
    body = random.Random(5).randbytes(48 * MIB)  # more than disk and memory hold
    full = {name: change for name, change in changes(OLD, body).items() if len(change.after) > len(body) // 2}
    for name, change in full.items():
        if change.before is not None:
            (drive.here / name).write_bytes(change.before)
    sync(drive.here)
    fill(drive.mount.cache, leave=4 * MIB)
    for name, change in full.items():
        print(name)
        path = drive.here / name
        with proxy.broken(Answer(503, "SlowDown"), on(*UPLOADS)):
            opened = os.open(path, os.O_RDWR | change.flags, 0o644)
            told = [error_of(change.run, opened), error_of(os.fsync, opened)]
            size = os.fstat(opened).st_size
            assert len(whole(opened)) == size == os.lseek(opened, 0, os.SEEK_END)
            told.append(error_of(os.close, opened))
            assert told == [errno.ENOSPC] * 3
            assert seen(path) == change.before
        assert seen(path) == change.before
        assert (drive.stored(path) if drive.foreign.exists(name) else None) == change.before
    assert status(drive).pending_files == 0


# Over a crash


@pytest.mark.promise(3)
@pytest.mark.parametrize("server", ["moto"], indirect=True)
@pytest.mark.parametrize("durability", Durability)
def test_what_could_not_be_stored_is_seen_as_it_was_written_after_a_crash(
    mounter: Mounter, proxy: Proxy, durability: Durability, server: Server
) -> None:
    drive = mounter(proxy.endpoint, *BRIEF, *PART, "--durability", durability.value)
    drive.mount.allow_log("WARNING|ERROR")
    both = {**SMALL, **{f"large {name}": change for name, change in LARGE.items()}}
    both = chosen(both, number(durability))
    drive.foreign.put_all({name: change.before for name, change in both.items() if change.before is not None})
    eventually(lambda: len(names(drive.here)) == sum(change.before is not None for change in both.values()))
    with proxy.broken(Answer(503, "SlowDown"), lambda request: request.op in UPLOADS and "probe" not in request.key):
        for name, change in both.items():
            opened = os.open(drive.here / name, os.O_RDWR | change.flags, 0o644)
            change.run(opened)
            assert error_of(os.close, opened) in (0, *FAILED)
        for _ in range(2):
            assert {name: seen(drive.here / name) for name in both} == {name: both[name].after for name in both}
            drive.mount.kill()
            drive.mount.start()
    sync(drive.here)
    assert {name: drive.stored(drive.here / name) for name in both} == {name: both[name].after for name in both}
    assert {name: seen(drive.here / name) for name in both} == {name: both[name].after for name in both}
