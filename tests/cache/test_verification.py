"""A bit that changes on the way or on a disk: it is noticed where the server gave the means, and never kept."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.cache.blocks import BLOCK, REQUEST, Blocks, Source, memory_of
from sosfs.cache.disk_blocks import DiskCache
from sosfs.cache.extents import Extents
from sosfs.cache.readahead import Stream
from sosfs.cache.verification import MISSES, WHOLE, Verdict
from sosfs.concurrency.tasks import Background
from sosfs.config.choices import Verify
from sosfs.config.parameters import Durability
from sosfs.errors import StoreError
from sosfs.files.spool import SpoolArea
from sosfs.s3 import checksums
from sosfs.s3.checksums import Checksum
from sosfs.s3.protocol import Condition, Detail, Guard, Object, Properties, Slice, Version
from sosfs.s3.upload_check import DamagedWrite, object_arrived
from tests.conftest import Mounter
from tests.support.composed import composed, inline_threads
from tests.support.drive import Drive, fails
from tests.support.fake_store import FakeStore
from tests.support.faults import Body, Flip
from tests.support.foreign import Foreign
from tests.support.mounting import run_sosfs
from tests.support.proxy import Proxy
from tests.support.traffic import Op, on

MIB = 1 << 20
MOTO = pytest.mark.parametrize("server", ["moto"], indirect=True)  # where the server makes no difference
CEPH = pytest.mark.parametrize("server", ["ceph"], indirect=True)
DISK = ("--cache-size", "256M", "--patience", "1")
SMALL = random.Random(41).randbytes(300_000)
MIDDLE = random.Random(42).randbytes(5 * MIB + 17)
LARGE = random.Random(43).randbytes(20 * MIB + 12345)
READ = {"small": SMALL, "middle": MIDDLE, "large": LARGE}


def cat(path: Path) -> bytes:
    """What `cat` gets; it must not print what it is told to be wrong."""
    with path.open("rb", buffering=0) as file:
        pieces = []
        while piece := file.read(128 << 10):
            pieces.append(piece)
    return b"".join(pieces)


# Reading through a mount


@pytest.fixture
def drive(mounter: Mounter, proxy: Proxy, foreign: Foreign) -> Drive:
    """A mount with a disk cache, through the proxy, of the files `READ`; damage may be in its log."""
    foreign.put_all(READ)
    drive = mounter(proxy.endpoint, *DISK)
    drive.mount.allow_log(
        r"ERROR .*(its bytes came without the checksum|could not be sent)|WARNING .*not in the bucket"
    )
    return drive


@MOTO
@pytest.mark.promise(5)
def test_a_flipped_bit_is_fetched_again_once_then_an_error_and_is_never_kept(drive: Drive, proxy: Proxy) -> None:
    for name in ("small", "middle"):
        file, body = drive.here / name, READ[name]
        with proxy.recording() as traffic, proxy.broken(Flip(Body.RESPONSE, 70_000), on(Op.GET), times=1):
            assert cat(file) == body
        assert traffic.count(Op.GET) == 2, str(traffic)
        run_sosfs(["drop", file], drive.mount.environment)
        with proxy.recording() as traffic, proxy.broken(Flip(Body.RESPONSE, len(body)), on(Op.GET)), fails(errno.EIO):
            cat(file)
        assert traffic.count(Op.GET) % 2 == 0, str(traffic)  # twice for each time that the kernel asks
        assert f"{name}: its bytes came without the checksum" in drive.mount.log
        assert cat(file) == body
        drive.mount.remount()
        with proxy.recording() as traffic:
            assert cat(file) == body
        assert traffic.received(Op.GET) == 0, str(traffic)


@MOTO
def test_no_byte_of_a_small_file_is_handed_out_before_all_were_verified(drive: Drive, proxy: Proxy) -> None:
    with proxy.broken(Flip(Body.RESPONSE, len(SMALL) - 1), on(Op.GET)), (drive.here / "small").open("rb", 0) as file:
        for offset in (0, 200_000, len(SMALL) - 10):
            with fails(errno.EIO):
                os.pread(file.fileno(), 10, offset)
    assert (drive.here / "small").read_bytes() == SMALL


@MOTO
@pytest.mark.parametrize("at", [0, 7 * MIB])
def test_a_large_file_with_a_flipped_bit_ends_in_an_error_and_is_whole_the_next_time(
    drive: Drive, proxy: Proxy, at: int
) -> None:
    file = drive.here / "large"
    with proxy.broken(Flip(Body.RESPONSE, at), on(Op.GET)), fails(errno.EIO):
        cat(file)
    assert cat(file) == LARGE, "neither memory nor disk nor the kernel may have kept it"
    drive.mount.remount()
    assert cat(file) == LARGE
    with proxy.recording() as traffic, proxy.broken(Flip(Body.RESPONSE, at), on(Op.GET)):
        assert cat(file) == LARGE, "verified, and in the kernel"
    assert traffic.count(Op.GET) == 0, str(traffic)


@MOTO
def test_one_wrong_answer_of_many_is_noticed_at_the_end_of_a_large_file(drive: Drive, proxy: Proxy) -> None:
    file = drive.here / "large"

    def late(request: object) -> bool:
        return "bytes=16777216-" in str(request)

    with proxy.broken(Flip(Body.RESPONSE, 1000), late, times=1) as rule, fails(errno.EIO):
        cat(file)
    assert rule.hits == 1
    assert cat(file) == LARGE


@MOTO
def test_a_bit_that_the_disk_flipped_is_fetched_anew(drive: Drive, proxy: Proxy) -> None:
    for name, body in READ.items():
        assert cat(drive.here / name) == body
    drive.mount.stop()
    damaged = list((drive.mount.cache / "blocks").glob("*.data"))
    assert len(damaged) == len(READ)
    for path in damaged:
        found = bytearray(path.read_bytes())
        found[len(found) // 2] ^= 1
        path.write_bytes(found)
    drive.mount.start()
    with proxy.recording() as traffic:
        for name, body in READ.items():
            assert cat(drive.here / name) == body
    assert {request.key for request in traffic.of(Op.GET)} == set(READ)


@MOTO
def test_warm_keeps_no_file_that_came_wrong_and_says_so(drive: Drive, proxy: Proxy) -> None:
    with proxy.broken(Flip(Body.RESPONSE, 1000), on(Op.GET)):
        done = run_sosfs(["warm", drive.here], drive.mount.environment)
    assert done.returncode == 1
    assert all(name in done.stdout + done.stderr for name in READ), done.stdout + done.stderr
    assert not list((drive.mount.cache / "blocks").glob("*.data"))
    assert run_sosfs(["warm", drive.here], drive.mount.environment).returncode == 0
    with proxy.recording() as traffic:
        assert {name: cat(drive.here / name) for name in READ} == READ
    assert traffic.received(Op.GET) == 0, str(traffic)


@MOTO
def test_with_verify_none_bytes_are_taken_as_they_come(mounter: Mounter, proxy: Proxy, foreign: Foreign) -> None:
    foreign.put_all(READ)
    drive = mounter(proxy.endpoint, "--verify", "none")
    with proxy.broken(Flip(Body.RESPONSE), on(Op.GET)):
        for name, body in READ.items():
            got = cat(drive.here / name)
            assert len(got) == len(body)
            assert got != body
    with proxy.broken(Flip(Body.REQUEST, 7), on(Op.PUT)):
        (drive.here / "new").write_bytes(SMALL)
    assert drive.stored(drive.here / "new") != SMALL


@MOTO
@pytest.mark.parametrize(("name", "kind"), [("CRC32", "FULL_OBJECT"), ("CRC64NVME", "FULL_OBJECT")])
@pytest.mark.parametrize("size", [200_000, 6 * MIB])
def test_the_checksum_of_a_multipart_upload_is_means_as_well(
    mounter: Mounter, proxy: Proxy, foreign: Foreign, name: str, kind: str, size: int
) -> None:
    body = random.Random(size).randbytes(size)
    client: Any = foreign.client
    where = {"Bucket": foreign.bucket, "Key": "file"}
    upload = client.create_multipart_upload(**where, ChecksumAlgorithm=name, ChecksumType=kind)["UploadId"]
    parts = []
    for number, at in enumerate(range(0, size, 5 * MIB), 1):
        sent = client.upload_part(**where, UploadId=upload, PartNumber=number, Body=body[at : at + 5 * MIB])
        parts.append({"ETag": sent["ETag"], "PartNumber": number})
    client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})
    assert client.head_object(**where, ChecksumMode="ENABLED")[f"Checksum{name}"], "else this test tests nothing"
    drive = mounter(proxy.endpoint)
    drive.mount.allow_log("ERROR .*its bytes came without the checksum")
    with proxy.broken(Flip(Body.RESPONSE, size), on(Op.GET)), fails(errno.EIO):
        cat(drive.here / "file")
    assert cat(drive.here / "file") == body


# Writing through a mount


@MOTO
def test_what_arrives_damaged_is_sent_again(drive: Drive, proxy: Proxy) -> None:
    with proxy.recording() as traffic, proxy.broken(Flip(Body.REQUEST, 5), on(Op.PUT), times=1):
        (drive.here / "new").write_bytes(SMALL)
    assert drive.stored(drive.here / "new") == SMALL
    assert traffic.count(Op.PUT) == 2, str(traffic)
    with proxy.broken(Flip(Body.REQUEST, 5 * MIB), on(Op.UPLOAD_PART), times=1) as rule:
        (drive.here / "parts").write_bytes(LARGE)
    assert rule.hits == 1
    assert drive.stored(drive.here / "parts") == LARGE


@CEPH
def test_a_part_that_arrives_damaged_is_refused_by_the_server_and_sent_again(mounter: Mounter, proxy: Proxy) -> None:
    drive = mounter(proxy.endpoint, "--part-size", "5M", "--patience", "1")
    with proxy.recording() as traffic, proxy.broken(Flip(Body.REQUEST, MIB), on(Op.UPLOAD_PART), times=1) as rule:
        (drive.here / "parts").write_bytes(LARGE)
    assert rule.hits == 1
    assert [request.status for request in traffic.of(Op.UPLOAD_PART) if request.status != 200] == [400]
    assert traffic.count(Op.UPLOAD_PART) == 6
    assert drive.stored(drive.here / "parts") == LARGE


@MOTO
@pytest.mark.promise(2)
def test_what_always_arrives_damaged_is_an_error_and_goes_up_once_it_can(drive: Drive, proxy: Proxy) -> None:
    for name, op, body in (("new", Op.PUT, SMALL), ("parts", Op.UPLOAD_PART, LARGE)):
        file = os.open(drive.here / name, os.O_WRONLY | os.O_CREAT)
        try:
            with proxy.broken(Flip(Body.REQUEST, 100_000), on(op)):
                os.write(file, body)
                with fails(errno.EIO):
                    os.fsync(file)
            assert (drive.here / name).read_bytes() == body
            os.fsync(file)
        finally:
            os.close(file)
        assert drive.stored(drive.here / name) == body
    assert not drive.foreign.uploads()


@MOTO
@pytest.mark.promise(3)
def test_a_file_that_its_own_damaged_upload_replaced_is_whole_again_and_no_conflict(drive: Drive, proxy: Proxy) -> None:
    file = os.open(drive.here / "middle", os.O_RDWR)
    os.pwrite(file, b"changed", 4 * MIB)
    with proxy.broken(Flip(Body.REQUEST, MIB), on(Op.PUT)), fails(errno.EIO):
        os.fsync(file)
    assert drive.stored(drive.here / "middle") != MIDDLE, "the damaged one stands there"
    drive.mount.kill()  # what is to be sent is in the journal by now
    with fails(errno.ENOTCONN):
        os.close(file)
    drive.mount.start()
    changed = MIDDLE[: 4 * MIB] + b"changed" + MIDDLE[4 * MIB + 7 :]
    assert (drive.here / "middle").read_bytes() == changed
    drive.mount.stop()
    assert drive.foreign.get("middle") == changed
    assert sorted(drive.foreign.files()) == sorted(READ)
    drive.mount.start()


# Over a store in memory


class Crooked(FakeStore):
    """Flips a bit of each answer while `flips` lasts: of the byte at `at` of the object, where the answer has it."""

    def __init__(self, *, hashes: bool = True) -> None:
        super().__init__(hashes=hashes)
        self.flips = 0
        self.at = 0
        self.checksum: Checksum | None = None
        self.opaque = False
        self.tells = True  # whether GET says what HEAD does
        self.cut: int | None = None  # where the object ends for who reads it, in spite of its ETag

    async def get(self, key: str, start: int, stop: int, *, etag: str = "") -> Slice:
        answer = await super().get(key, start, stop if self.cut is None else min(stop, self.cut), etag=etag)
        body = bytearray(answer.body)
        if self.flips and start <= self.at < start + len(body):
            self.flips -= 1
            body[self.at - start] ^= 1
        return Slice(replace(answer.object, is_opaque=self.opaque and self.tells), memoryview(bytes(body)))

    async def head(self, key: str, *, detail: Detail = Detail.USUAL) -> Object:
        found = await super().head(key, detail=detail)
        told = self.checksum if detail is Detail.CHECKSUM else None
        return replace(found, checksum=told, is_opaque=self.opaque)


class Bench:
    """Blocks over a crooked store, in memory for `capacity` bytes, and on disk where there is a directory."""

    def __init__(self, store: Crooked, spawn: Background, base: Path | None, *, capacity: int) -> None:
        self.store = store
        self.spawn = spawn
        disk = DiskCache(base, capacity=1 << 30, block=BLOCK) if base else None
        self.blocks = Blocks(store, spawn.spawn, memory_of(capacity), capacity=capacity, disk=disk, verify=Verify.ALL)
        self.disk = disk

    async def put(self, body: bytes, key: str = "file") -> Source:
        version = await self.store.put(key, body, Properties())
        return Source(key, version.etag, version.size)

    async def read(self, source: Source, stream: Stream | None = None, *, step: int = MIB, begin: int = 0) -> bytes:
        stream, pieces = stream or Stream(), []
        for at in range(begin, source.size, step):
            pieces.append(bytes(await stream.read(self.blocks, source, at, at + step)))
        return b"".join(pieces)


def run(check: object, *, base: Path | None = None, capacity: int = 64 * MIB, hashes: bool = True) -> None:
    """Runs `check(bench)`, where what is done in threads is done at once: a busy machine makes no difference."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            store = Crooked(hashes=hashes)
            await check(Bench(store, Background(nursery), base, capacity=capacity))  # type: ignore[operator]
            nursery.cancel_scope.cancel()

    with inline_threads():
        trio.run(main)


@contextmanager
def wrong() -> Iterator[None]:
    with fails(errno.EIO):
        yield


@pytest.mark.parametrize(
    ("algorithm", "value"),
    [
        ("crc32", "cbf43926"),
        ("crc32c", "e3069283"),
        ("crc64nvme", "ae8b14860a799888"),
        ("sha1", hashlib.sha1(b"123456789").hexdigest()),
        ("sha256", hashlib.sha256(b"123456789").hexdigest()),
        ("md5", hashlib.md5(b"123456789").hexdigest()),
    ],
)
def test_each_algorithm_gives_its_check_value_whole_and_in_pieces(algorithm: str, value: str) -> None:
    assert checksums.of(algorithm, memoryview(b"123456789")).hex() == value
    running = checksums.begun(algorithm)
    running.update(memoryview(b"1234"))
    running.update(memoryview(b"56789"))
    assert running.digest().hex() == value


def test_only_a_checksum_of_the_full_object_is_one() -> None:
    four = b64encode(b"\1\2\3\4").decode()
    plain = {"x-amz-checksum-crc32": four}
    assert checksums.in_headers(plain, "a" * 32) == Checksum("crc32", b"\1\2\3\4")
    assert checksums.in_headers(plain, "a" * 32 + "-2") is None, "of a multipart upload: of what is not told"
    full = {**plain, "x-amz-checksum-type": "FULL_OBJECT"}
    assert checksums.in_headers(full, "a" * 32 + "-2") == Checksum("crc32", b"\1\2\3\4")
    assert checksums.in_headers({**plain, "x-amz-checksum-type": "COMPOSITE"}, "a" * 32) is None
    assert checksums.in_headers({"x-amz-checksum-crc32": f"{four}-2"}, "a" * 32) is None
    assert checksums.in_headers({"x-amz-checksum-crc64nvme": four, **plain}, "a" * 32) == Checksum("crc32", b"\1\2\3\4")


@pytest.mark.parametrize("size", [1, BLOCK, BLOCK + 1, WHOLE])
def test_a_small_version_comes_in_one_request_however_it_is_read(size: int) -> None:
    body = random.Random(size).randbytes(size)

    async def check(bench: Bench) -> None:
        source = await bench.put(body)
        bench.store.flips, bench.store.at = 1, size - 1
        assert bytes(await bench.blocks.read(source, size // 2, size // 2 + 1)) == body[size // 2 : size // 2 + 1]
        assert bench.store.calls["get"] == 2
        bench.blocks.forget(lambda _: True)
        bench.store.flips = 2
        with wrong():
            await bench.blocks.read(source, 0, 1)
        assert bench.blocks.used == 0
        assert await bench.read(source) == body

    run(check)


def test_a_version_that_is_laid_open_in_pieces_is_hashed_in_order() -> None:
    async def check(bench: Bench) -> None:
        source = await bench.put(LARGE)
        assert await bench.read(source) == LARGE
        running = bench.blocks.verifier.of(source)
        assert running is not None
        assert running.verdict is Verdict.RIGHT
        bench.blocks.forget(lambda _: True)
        bench.store.flips, bench.store.at = 1, 3 * MIB
        assert await bench.read(source, begin=2 * MIB) == LARGE[2 * MIB :], "each block is known by now"
        bench.blocks.forget(lambda _: True)
        bench.store.flips = 2
        with wrong():
            await bench.blocks.read(source, 3 * MIB, 3 * MIB + 1)

    run(check)


@pytest.mark.parametrize("at", [0, 12 * MIB, len(LARGE) - 1])
def test_more_than_the_memory_holds_is_hashed_as_well(at: int) -> None:
    async def check(bench: Bench) -> None:
        source = await bench.put(LARGE)
        bench.store.flips, bench.store.at = 1, at
        with wrong():
            await bench.read(source)
        assert await bench.read(source) == LARGE
        bench.store.flips = 1
        assert await bench.read(source) == LARGE, "each block is known by now, and asked for again where it differs"

    run(check, capacity=4 * MIB)


def test_every_open_file_that_had_wrong_bytes_is_told() -> None:
    async def check(bench: Bench) -> None:
        source, other = await bench.put(LARGE), Stream()
        bench.store.flips, bench.store.at = 1, MIB
        await other.read(bench.blocks, source, 0, 2 * MIB)
        with wrong():
            await bench.read(source)
        for _ in range(2):
            with wrong():
                await other.read(bench.blocks, source, 2 * MIB, 3 * MIB)
        assert await bench.read(source) == LARGE

    run(check)


def test_a_part_that_comes_otherwise_the_second_time_is_never_mixed_with_the_first() -> None:
    async def check(bench: Bench) -> None:
        source, stream = await bench.put(LARGE), Stream()
        bench.store.flips, bench.store.at = 1, MIB  # the first time
        await stream.read(bench.blocks, source, 0, 2 * MIB)
        await trio.testing.wait_all_tasks_blocked()
        for place in [place for place in bench.blocks._cached if place[1] == MIB // BLOCK]:
            del bench.blocks._cached[place]
        with wrong():
            await bench.blocks.read(source, MIB, MIB + 1)
        with wrong():
            await stream.read(bench.blocks, source, 2 * MIB, 3 * MIB)
        assert await bench.read(source) == LARGE

    run(check)


def test_what_is_read_in_part_or_from_the_end_waits_for_no_verdict() -> None:
    async def check(bench: Bench) -> None:
        source = await bench.put(LARGE)
        assert bytes(await bench.blocks.read(source, len(LARGE) - 10, len(LARGE))) == LARGE[-10:]
        assert bytes(await Stream().read(bench.blocks, source, 9 * MIB, 9 * MIB + 10)) == LARGE[9 * MIB : 9 * MIB + 10]
        running = bench.blocks.verifier.of(source)
        assert running is not None
        assert running.verdict is Verdict.OPEN

    run(check)


def test_wrong_blocks_on_the_disk_are_not_believed(tmp_path: Path) -> None:
    async def check(bench: Bench) -> None:
        assert bench.disk is not None
        for size in (WHOLE // 2, 3 * REQUEST):
            body = random.Random(size).randbytes(size)
            source = await bench.put(body)
            damaged = bytearray(body)
            damaged[size // 2] ^= 1
            for at in range(0, size, REQUEST):
                piece = memoryview(damaged)[at : at + REQUEST]
                await bench.disk.store(source.key, source.etag, size, at // BLOCK, piece)
            if size > WHOLE:
                with wrong():
                    await bench.read(source)
            assert await bench.read(source) == body
            await trio.testing.wait_all_tasks_blocked()
            bench.blocks.forget(lambda _: True)
            before = bench.store.calls["get"]
            assert await bench.read(source) == body
            assert bench.store.calls["get"] == before, "it is on the disk"

    run(check, base=tmp_path)


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("size", [WHOLE // 2, 3 * REQUEST])
def test_an_etag_that_is_no_hash_is_no_means(size: int, tells: bool) -> None:
    """Encrypted under KMS an ETag looks like a hash, and is none."""
    body = random.Random(size).randbytes(size)

    async def check(bench: Bench) -> None:
        bench.store.tells, bench.store.opaque = tells, True
        source = await bench.put(body)
        bench.store.hashes = True  # as the server was found; this object is another matter
        assert await bench.read(source) == body
        bench.blocks.forget(lambda _: True)
        bench.store.checksum = Checksum("crc32c", checksums.of("crc32c", memoryview(body)))
        bench.blocks.verifier.condemn(source)
        bench.store.flips, bench.store.at = 2, size // 2
        if tells:
            with wrong():
                await bench.read(source)
        bench.store.flips = 0
        assert await bench.read(source) == body

    run(check, hashes=False)


def test_a_server_that_records_no_checksums_is_soon_not_asked_any_more() -> None:
    async def check(bench: Bench) -> None:
        for number in range(3 * MISSES):
            source = await bench.put(b"%d" % number, key=f"file{number}")
            assert await bench.read(source) == b"%d" % number
        assert bench.store.calls["head"] == MISSES

    run(check, hashes=False)


@pytest.mark.parametrize("size", [1000, 200_000])
def test_bytes_that_came_with_the_attributes_are_verified_too(tmp_path: Path, size: int) -> None:
    store, body = Crooked(), random.Random(size).randbytes(size)
    with composed(store, tmp_path, cache_size=64 * MIB) as mount:
        mount.loop.run(lambda: store.put("file", body, Properties()))
        store.flips = 1
        assert mount.loop.run(mount.tree) == {"file": (body, 0o644)}
        assert store.flips == 0


def test_a_base_that_turns_out_wrong_leaves_none_of_its_bytes_in_a_changed_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Crooked()
    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: store.put("file", LARGE[: 15 * MIB], Properties()))
        store.flips, store.at = 1, 2 * MIB
        changed = b"new" + LARGE[3 : 15 * MIB]

        async def change() -> None:
            inode = await mount._walk("file")
            handle = await mount.parts.file_io.open(inode, os.O_RDWR, 1)
            await mount.parts.file_io.write(handle, 0, b"new")
            with wrong():
                for at in range(0, 15 * MIB, MIB):
                    await mount.parts.file_io.read(handle, at, MIB)
                    await trio.testing.wait_all_tasks_blocked()
            await mount.parts.file_io.flush(handle)
            await mount.parts.file_io.release(handle)

        mount.loop.run(change)
        assert bytes(mount.loop.run(lambda: store.get("file", 0, 15 * MIB)).body) == changed
        assert "journal" not in caplog.text, "it has no record of it"


@pytest.mark.promise(5)
@pytest.mark.parametrize("durability", [Durability.JOURNAL, Durability.WRITEBACK])
def test_nor_where_they_were_recorded_and_the_next_mount_sends_it(tmp_path: Path, durability: Durability) -> None:
    store = Crooked()
    changed = b"new" + LARGE[3 : 15 * MIB]

    async def change() -> None:
        await store.put("file", LARGE[: 15 * MIB], Properties())
        handle = await mount.parts.file_io.open(await mount._walk("file"), os.O_RDWR, 1)
        await mount.parts.file_io.write(handle, 0, b"new")
        await mount.parts.file_io.read(handle, MIB, 1)
        await trio.testing.wait_all_tasks_blocked()
        await mount.parts.file_io.flush(handle)
        ((_, saved),) = mount._journal.drafts()
        assert Extents(saved.local).covers(0, 3 * MIB), "what came wrong is in the spool"
        with wrong():
            for at in range(0, 15 * MIB, MIB):
                await mount.parts.file_io.read(handle, at, MIB)
                await trio.testing.wait_all_tasks_blocked()

    with composed(store, tmp_path, durability=durability) as mount:
        store.flips, store.at = 1, 2 * MIB
        mount.loop.run(change)
        mount.crash()
        mount.take_up()
        assert bytes(mount.loop.run(lambda: store.get("file", 0, 15 * MIB)).body) == changed


def test_nor_are_bytes_that_are_in_parts_alone_taken_for_bytes_that_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the base turns out wrong room is short, and of what was written some has been freed."""
    store, new, is_short = Crooked(), random.Random(44).randbytes(4 * MIB), list[bool]()
    changed = b"new" + LARGE[3 : 8 * MIB] + new + LARGE[12 * MIB : 15 * MIB]
    monkeypatch.setattr("tests.support.fake_store.PART_MIN", 1)
    monkeypatch.setattr(SpoolArea, "is_short", property(lambda _: bool(is_short)))
    monkeypatch.setattr(SpoolArea, "is_tight", lambda *_, alone=False: False)

    async def change() -> None:
        await store.put("file", LARGE[: 15 * MIB], Properties())
        io, handle = mount.parts.file_io, await mount.parts.file_io.open(await mount._walk("file"), os.O_RDWR, 1)
        await io.write(handle, 0, b"new")
        await io.read(handle, MIB, 1)
        await trio.testing.wait_all_tasks_blocked()
        is_short.append(True)
        for at in range(0, 4 * MIB, MIB // 2):
            await io.write(handle, 8 * MIB + at, new[at : at + MIB // 2])
            await trio.testing.wait_all_tasks_blocked()
        draft = handle.open_file.draft
        assert draft is not None and draft.away and draft.local.covers(0, 3 * MIB)
        base = draft.base
        assert base is not None
        with wrong():  # who reads the version that it stands on
            for at in range(0, 15 * MIB, MIB):
                await mount.parts.blocks.read(base, at, at + MIB)
                await trio.testing.wait_all_tasks_blocked()
        await io.fsync(handle.inode)
        another = await io.open(handle.inode, os.O_RDONLY, 1)
        assert bytes(await io.read(another, 8 * MIB, 4 * MIB)) == new
        await io.write(handle, 9 * MIB, new[MIB : MIB + 1])
        await io.fsync(handle.inode)

    with composed(store, tmp_path, durability=Durability.BUCKET, part_size=MIB) as mount:
        store.flips, store.at = 1, 2 * MIB
        mount.loop.run(change)
        assert bytes(mount.loop.run(lambda: store.get("file", 0, 15 * MIB)).body) == changed


def test_a_write_to_the_disk_that_had_yet_to_begin_is_not_made_of_wrong_bytes(tmp_path: Path) -> None:
    async def check(bench: Bench) -> None:
        assert bench.disk is not None
        source, spawn = await bench.put(LARGE), bench.blocks._spawn
        late: list[Any] = []

        def hold(work: Any) -> None:
            (late.append if getattr(work, "func", None) == bench.blocks._to_disk else spawn)(work)

        bench.blocks._spawn = hold
        bench.store.flips = 1
        with wrong():
            await bench.read(source)
        assert late
        for work in late:
            await work()
        assert await bench.disk.missing(source.key, source.etag, source.size) == [(0, -(-source.size // BLOCK))]

    run(check, base=tmp_path)


def test_the_beginning_of_a_small_version_that_an_answer_brought_along_is_not_kept() -> None:
    """A listing told a smaller size, so that only a part of what is there now was asked for."""

    async def check(bench: Bench) -> None:
        source = await bench.put(SMALL)
        await bench.blocks.offer_answer(source, await bench.store.get("file", 0, BLOCK))
        assert bench.blocks.used == 0
        assert await bench.read(source) == SMALL

    run(check)


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("hashes", [True, False])
def test_what_is_told_to_have_ended_earlier_is_no_shorter_file(tmp_path: Path, body: bytes, hashes: bool) -> None:
    """As from a cache that has kept the beginning of a file alone, and says that this is all."""

    async def check(bench: Bench) -> None:
        source = await bench.put(body)
        bench.store.cut = len(body) - 1000
        with wrong():
            await bench.read(source)
        bench.store.cut = None
        assert await bench.read(source) == body, "nor is it kept"

    run(check, base=tmp_path, hashes=hashes)


class Sending:
    """A PUT that ends as planned: with the ETag of what arrived, or an error."""

    def __init__(self, *ends: bool | StoreError) -> None:
        self.ends = list(ends)
        self.conditions: list[Condition] = []
        self.opaque = False

    async def put(self, condition: Condition) -> tuple[Version, bool]:
        self.conditions.append(condition)
        end = self.ends.pop(0)
        if isinstance(end, StoreError):
            raise end
        return Version(f"etag {len(self.conditions)}", 5), end

    async def head(self) -> Object:
        return Object("key", Version("etag 2", 5), Properties(), is_opaque=self.opaque)

    def arrived(self, condition: Condition) -> Version:
        async def main() -> Version:
            return await object_arrived("PutObject", self.put, condition, self.head)

        return trio.run(main)


BEFORE = Version("etag 0", 7)


def test_the_second_try_replaces_the_damaged_object_and_no_other() -> None:
    sending = Sending(True, False)
    assert sending.arrived(BEFORE) == Version("etag 2", 5)
    assert sending.conditions == [BEFORE, Version("etag 1", 5)]
    unguarded = Sending(True, False)
    unguarded.arrived(Guard.NONE)
    assert unguarded.conditions == [Guard.NONE, Guard.NONE]
    refused = Sending(StoreError(errno.EIO, "PutObject", code="BadDigest", status=400), False)
    refused.arrived(BEFORE)
    assert refused.conditions == [BEFORE, BEFORE], "nothing was stored by the first"


@pytest.mark.parametrize("second", [True, StoreError(errno.ETIMEDOUT, "PutObject")])
def test_a_write_that_stays_damaged_tells_what_stands_there(second: bool | StoreError) -> None:
    with pytest.raises(DamagedWrite) as caught:
        Sending(True, second).arrived(BEFORE)
    assert caught.value.errno == errno.EIO
    assert caught.value.left == Version("etag 2" if second is True else "etag 1", 5)


def test_another_client_that_came_between_is_a_conflict() -> None:
    with fails(errno.ESTALE):
        Sending(True, StoreError(errno.ESTALE, "PutObject", code="PreconditionFailed", status=412)).arrived(BEFORE)


def test_an_etag_that_is_no_hash_any_more_condemns_no_write() -> None:
    sending = Sending(True, True)
    sending.opaque = True
    assert sending.arrived(BEFORE) == Version("etag 2", 5)
