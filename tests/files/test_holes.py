"""Files with holes on a real mount: what is sent, what is fetched, and what is there afterwards.

On Ceph, which copies ranges without holding whole objects in memory.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Mounter
from tests.support.drive import Drive, eventually, names
from tests.support.faults import Answer, Delay
from tests.support.foreign import Foreign
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import Op, Traffic, on

MIB = 1 << 20
SIZE = 160 * MIB + 12_345
MOVED = 20 * MIB  # of a file of any size whose holes are copied
BODIES = (Op.PUT, Op.UPLOAD_PART)
DATA = random.Random(8).randbytes(MIB)
PLACES = (3, 100 * MIB - 7, 140 * MIB)


@pytest.fixture
def server(ceph: Server) -> Server:
    """Where copies cost the client nothing."""
    return ceph


def is_zero(foreign: Foreign, key: str, size: int, data: dict[int, bytes] | None = None) -> bool:
    """Whether an object is zeros all through, but for some data."""
    body = bytearray(foreign.get(key))
    for at, piece in (data or {}).items():
        assert body[at : at + len(piece)] == piece, at
        body[at : at + len(piece)] = bytes(len(piece))
    return len(body) == size and not any(body)


def scratch(foreign: Foreign) -> list[str]:
    return [key for key in foreign.keys("") if "sosfs" in key]


def read_through(path: Path) -> int:
    """Reads a file to its end; how many of its bytes are no zeros."""
    found = 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(4 * MIB):
            found += len(piece) - piece.count(0)
    return found


def has_sent(proxy: Proxy, size: int) -> bool:
    return proxy.traffic.sent(Op.UPLOAD_PART) > size


def fetched(traffic: Traffic) -> int:
    return traffic.received(Op.GET)


@pytest.mark.parametrize("durability", ["bucket", "journal"])
def test_a_hole_is_never_sent_nor_fetched(mounter: Mounter, proxy: Proxy, foreign: Foreign, durability: str) -> None:
    drive = mounter(proxy.endpoint, "--durability", durability)
    with proxy.recording() as traffic:
        drive.run("truncate", "-s", str(SIZE), "file")
        eventually(lambda: foreign.exists("file"))
    assert traffic.sent(*BODIES) < MOVED, traffic.tally()
    assert traffic.count() < 100, traffic.tally()
    assert foreign.head("file")["ContentLength"] == SIZE
    assert names(drive.here) == ["file"]
    with proxy.recording() as traffic:
        assert read_through(drive.here / "file") == 0
        drive.run("chmod", "600", "file")
        drive.run("mv", "file", "moved")
        assert read_through(drive.here / "moved") == 0
    assert fetched(traffic) < MIB, traffic.tally()
    assert (drive.here / "moved").stat().st_size == SIZE
    assert (drive.here / "moved").stat().st_blocks * 512 < MIB
    assert is_zero(foreign, "moved", SIZE)
    drive.mount.stop()
    assert scratch(foreign) == []
    assert foreign.uploads() == []


def test_data_here_and_there_is_sent_and_the_rest_copied(mounter: Mounter, proxy: Proxy, foreign: Foreign) -> None:
    drive = mounter(proxy.endpoint)
    with proxy.recording() as traffic, (drive.here / "file").open("wb", buffering=0) as file:
        file.truncate(SIZE)
        for at in PLACES:
            os.pwrite(file.fileno(), DATA, at)
        assert os.fstat(file.fileno()).st_blocks * 512 < 4 * MIB
    assert traffic.sent(*BODIES) < MOVED + 4 * 8 * MIB, traffic.tally()
    assert is_zero(foreign, "file", SIZE, dict.fromkeys(PLACES, DATA))
    with proxy.recording() as traffic:
        assert drive.run("cmp", "file", "file") == ""
        assert read_through(drive.here / "file") == 3 * (MIB - DATA.count(0))
    assert fetched(traffic) < 3 * 2 * MIB, traffic.tally()
    with proxy.recording() as traffic, (drive.here / "file").open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), DATA, 150 * MIB)
        os.ftruncate(file.fileno(), 2 * SIZE)
    assert traffic.sent(*BODIES) < MOVED + 4 * 8 * MIB, traffic.tally()
    assert is_zero(foreign, "file", 2 * SIZE, dict.fromkeys((*PLACES, 150 * MIB), DATA))
    with proxy.recording() as traffic:
        assert read_through(drive.here / "file") == 4 * (MIB - DATA.count(0))
    assert fetched(traffic) < 4 * 2 * MIB, traffic.tally()


def test_preallocation_sends_nothing(mounter: Mounter, proxy: Proxy, foreign: Foreign) -> None:
    drive = mounter(proxy.endpoint)
    with proxy.recording() as traffic:
        with (drive.here / "allocated").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 40 * MIB)
        with (drive.here / "ended").open("wb") as file:
            os.pwrite(file.fileno(), b"\0", 100 * MIB)
    assert traffic.sent(*BODIES) < MOVED, traffic.tally()
    assert is_zero(foreign, "allocated", 40 * MIB)
    assert is_zero(foreign, "ended", 100 * MIB + 1)


def test_a_sparse_copy_is_as_sparse(mounter: Mounter, proxy: Proxy, foreign: Foreign, tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(SIZE)
        for at in PLACES:
            os.pwrite(file.fileno(), DATA, at)
    drive = mounter(proxy.endpoint)
    with proxy.recording() as traffic:
        drive.run("cp", "--sparse=always", source, "copy")
    assert traffic.sent(*BODIES) < MOVED + 4 * 8 * MIB, traffic.tally()
    assert is_zero(foreign, "copy", SIZE, dict.fromkeys(PLACES, DATA))


@pytest.mark.promise(3)
@pytest.mark.parametrize("durability", ["bucket", "journal"])
def test_a_crash_in_the_middle_loses_nothing_and_leaves_nothing(
    mounter: Mounter, proxy: Proxy, foreign: Foreign, durability: str
) -> None:
    drive = mounter(proxy.endpoint, "--durability", durability)
    drive.mount.allow_log("WARNING")
    copying = threading.Event()

    def is_copy(request: object) -> bool:
        found = on(Op.COPY_PART, key="file")(request)  # type: ignore[arg-type]
        if found:
            copying.set()
        return found

    proxy.inject(Delay(1.0), is_copy)
    descriptor = os.open(drive.here / "file", os.O_CREAT | os.O_WRONLY)
    try:
        os.ftruncate(descriptor, SIZE)
        os.pwrite(descriptor, DATA, PLACES[1])
        fsync = threading.Thread(target=_synced, args=(descriptor,))
        fsync.start()
        assert copying.wait(30)
        drive.mount.kill()
        fsync.join()
        left = set(scratch(foreign))
    finally:
        with suppress(OSError):
            os.close(descriptor)
    proxy.heal()
    drive.mount.start()
    if durability == "journal":
        eventually(lambda: foreign.exists("file"), seconds=30)
        assert is_zero(foreign, "file", SIZE, {PLACES[1]: DATA})
    else:
        assert names(drive.here) == []
    assert left and not left & set(scratch(foreign)), "those of the mount that died are gone"
    drive.mount.stop()
    assert scratch(foreign) == []
    assert foreign.uploads() == []


def _synced(file: int) -> None:
    with suppress(OSError):
        os.fsync(file)


def test_where_no_parts_are_copied_zeros_are_sent_until_the_file_is_removed(
    mounter: Mounter, proxy: Proxy, foreign: Foreign
) -> None:
    proxy.inject(Answer(501, "NotImplemented"), on(Op.COPY_PART))
    drive = mounter(proxy.endpoint)
    with (drive.here / "small").open("wb", buffering=0) as file:
        file.truncate(40 * MIB)
        os.pwrite(file.fileno(), DATA, 20 * MIB)
    assert is_zero(foreign, "small", 40 * MIB, {20 * MIB: DATA})
    proxy.inject(Delay(0.2), on(Op.UPLOAD_PART))

    def truncate() -> None:
        try:
            drive.run("truncate", "-s", "100G", "vast")
        except AssertionError:
            return  # what it made was removed

    for end in ("unlink", "cut"):
        writer = threading.Thread(target=truncate)
        with proxy.recording() as traffic:
            before = proxy.traffic.sent(Op.UPLOAD_PART)
            writer.start()
            eventually(partial(has_sent, proxy, before + 60 * MIB))
            before = proxy.traffic.sent(Op.UPLOAD_PART)
            if end == "cut":
                os.truncate(drive.here / "vast", 5)
            else:
                (drive.here / "vast").unlink()
            writer.join(30)
            assert not writer.is_alive()
        assert proxy.traffic.sent(Op.UPLOAD_PART) < before + 200 * MIB, (end, traffic.tally())
    assert (drive.here / "vast").read_bytes() == bytes(5)
    drive.mount.stop()
    assert foreign.get("vast") == bytes(5)
    assert foreign.uploads() == []
    assert scratch(foreign) == []


def test_two_mounts_and_a_prefix_show_none_of_it(mounter: Mounter, foreign: Foreign) -> None:
    one, other = mounter("", "--ttl", "0"), mounter("", "--ttl", "0", source=f"{foreign.bucket}/below")
    whole = mounter("", "--ttl", "0")
    (one.here / "below").mkdir(exist_ok=True)
    for drive in (one, other):
        drive.run("truncate", "-s", str(100 * MIB), "file")
    assert len(scratch(foreign)) >= 2, "they stay for a while"
    assert names(whole.here) == ["below", "file"]
    assert names(whole.here / "below") == ["file"]
    other.mount.stop()
    assert [key for key in scratch(foreign) if key.startswith("below/")] == []
    one.run("truncate", "-s", str(100 * MIB), "again")
    one.mount.stop()
    assert scratch(foreign) == []
    for key in ("file", "again", "below/file"):
        assert is_zero(foreign, key, 100 * MIB)


def test_nothing_stays_where_versions_are_kept(mounter: Mounter, foreign: Foreign) -> None:
    foreign.keep_versions()
    drive = mounter("")
    drive.run("truncate", "-s", str(100 * MIB), "file")
    drive.mount.stop()
    found = foreign.client.list_object_versions(Bucket=foreign.bucket)
    entries = [*found.get("Versions", ()), *found.get("DeleteMarkers", ())]
    assert {entry["Key"] for entry in entries} == {"file"}
    assert is_zero(foreign, "file", 100 * MIB)


@pytest.fixture
def encrypted(mounter: Mounter, proxy: Proxy, tmp_path: Path) -> Iterator[Drive]:
    """A mount with a key of its own."""
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    yield mounter(proxy.endpoint, "--sse-c-key", str(key))


def test_holes_of_encrypted_files(encrypted: Drive, proxy: Proxy, foreign: Foreign) -> None:
    with proxy.recording() as traffic, (encrypted.here / "file").open("wb", buffering=0) as file:
        file.truncate(100 * MIB)
        os.pwrite(file.fileno(), DATA, 50 * MIB)
    assert traffic.sent(*BODIES) < MOVED + 16 * MIB, traffic.tally()
    encrypted.mount.remount()
    with closing(os.fdopen(os.open(encrypted.here / "file", os.O_RDONLY), "rb")) as back:
        body = bytearray(back.read())
    assert body[50 * MIB : 51 * MIB] == DATA
    body[50 * MIB : 51 * MIB] = bytes(MIB)
    assert len(body) == 100 * MIB and not any(body)
    assert scratch(foreign) == []
