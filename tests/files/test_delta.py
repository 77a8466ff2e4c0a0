"""What a change costs, told by counting the bytes and requests that go to the server.

On Ceph alone: moto copies a whole object to serve a range of it.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import Mounter
from tests.support.drive import Drive, digest, eventually, fails, names
from tests.support.faults import Delay, Hang
from tests.support.foreign import Foreign
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import Op, Request
from tests.support.waiting import until

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PART = 8 * MIB
JOURNAL = ("--durability", "journal")
BODIES = (Op.PUT, Op.UPLOAD_PART)


@pytest.fixture
def server(ceph: Server) -> Server:
    """Where ranges and copies cost what they move."""
    return ceph


@pytest.fixture
def large(foreign: Foreign) -> bytes:
    """The object `large`, of 40 MiB and a bit: five parts, the last one short."""
    body = random.Random(1).randbytes(40 * MIB + 12_345)
    foreign.put("large", body)
    return body


@pytest.fixture
def vast(tmp_path: Path) -> Iterator[Path]:
    """A file of 1 GiB of which no MiB is like another."""
    path = tmp_path / "vast"
    dice = random.Random(2)
    with path.open("wb") as file:
        for _ in range(GIB // (64 * MIB)):
            file.write(dice.randbytes(64 * MIB))
    yield path
    path.unlink()


def parts(proxy: Proxy, key: str = "file") -> list[Request]:
    """The parts of a file that are up; the probe at the start of a mount sends one of its own."""
    return [request for request in proxy.traffic.of("UPLOAD_PART") if request.key == key and request.status == 200]


@pytest.mark.promise(6)
@pytest.mark.timeout(280)
def test_rsync_of_one_changed_mib_in_a_gib_moves_two_percent(
    mounter: Mounter, proxy: Proxy, foreign: Foreign, vast: Path
) -> None:
    foreign.client.upload_file(str(vast), foreign.bucket, "vast")
    drive = mounter(proxy.endpoint)
    with vast.open("r+b") as file:
        file.seek(600 * MIB + 4321)
        file.write(random.Random(3).randbytes(MIB))
    with proxy.recording() as traffic:
        drive.run("rsync", "--inplace", "--no-whole-file", "--ignore-times", vast, "vast")
    assert traffic.sent(*BODIES) <= GIB // 50, traffic.tally()
    assert traffic.count("COPY_PART") >= 1, traffic.tally()
    with vast.open("rb") as expected:
        stored = foreign.client.get_object(Bucket=foreign.bucket, Key="vast")["Body"]
        while piece := stored.read(16 * MIB):
            assert piece == expected.read(len(piece))
        assert expected.read(1) == b""
    foreign.delete("vast")


@pytest.mark.promise(6)
def test_an_append_moves_at_most_one_part(mounter: Mounter, proxy: Proxy, foreign: Foreign, large: bytes) -> None:
    drive = mounter(proxy.endpoint)
    names(drive.here)
    with proxy.recording() as traffic, (drive.here / "large").open("ab") as file:
        file.write(b"a" * KIB)
    assert traffic.sent(*BODIES) <= PART, traffic.tally()
    assert traffic.received("GET") <= PART, traffic.tally()
    assert digest(foreign.get("large")) == digest(large + b"a" * KIB)


def test_each_append_asks_for_what_makes_it_and_once_whether_it_may(
    mounter: Mounter, proxy: Proxy, foreign: Foreign, large: bytes
) -> None:
    drive = mounter(proxy.endpoint, "--ttl", "300")
    log = drive.here / "large"
    with log.open("ab", buffering=0) as file:  # fetches the end that is there
        file.write(b"a" * KIB)
    with proxy.recording() as traffic:
        for _ in range(3):
            with log.open("ab", buffering=0) as file:
                file.write(b"b" * KIB)
    once = {"CREATE_MULTIPART": 3, "COPY_PART": 3 * 5, "UPLOAD_PART": 3, "HEAD": 3, "COMPLETE": 3}
    assert traffic.tally() == once, str(traffic)
    assert digest(foreign.get("large")) == digest(large + b"a" * KIB + 3 * (b"b" * KIB))


def test_what_another_puts_while_the_old_is_copied_is_not_mixed_in(
    mounter: Mounter, proxy: Proxy, foreign: Foreign, large: bytes
) -> None:
    drive = mounter(proxy.endpoint, "--ttl", "300")
    names(drive.here)
    drive.mount.allow_log("changed by another client|not in the bucket|are lost with")
    proxy.inject(Delay(2), lambda request: request.op is Op.COPY_PART and request.key == "large")
    theirs = large[::-1]
    file = (drive.here / "large").open("ab", buffering=0)
    file.write(b"a" * KIB)
    with ThreadPoolExecutor(1) as aside:
        closing = aside.submit(file.close)
        until(lambda: [r for r in proxy.traffic.of("COPY_PART") if r.key == "large"], "the copy is under way")
        foreign.put("large", theirs)
        with fails(errno.ESTALE):
            closing.result()
    assert digest(foreign.get("large")) == digest(theirs)


@pytest.mark.promise(6)
def test_one_byte_in_the_middle_moves_one_part(mounter: Mounter, proxy: Proxy, foreign: Foreign, large: bytes) -> None:
    drive = mounter(proxy.endpoint)
    names(drive.here)
    at = 20 * MIB
    with proxy.recording() as traffic, (drive.here / "large").open("r+b") as file:
        file.seek(at)
        file.write(b"!")
    assert traffic.sent(*BODIES) <= PART, traffic.tally()
    assert traffic.received("GET") <= PART + MIB, traffic.tally()
    assert digest(foreign.get("large")) == digest(large[:at] + b"!" + large[at + 1 :])


def test_a_truncated_file_moves_at_most_one_part(
    mounter: Mounter, proxy: Proxy, foreign: Foreign, large: bytes
) -> None:
    drive = mounter(proxy.endpoint)
    names(drive.here)
    with proxy.recording() as traffic:
        os.truncate(drive.here / "large", 30 * MIB)
    assert traffic.sent(*BODIES) <= PART, traffic.tally()
    assert digest(foreign.get("large")) == digest(large[: 30 * MIB])


def test_reading_the_head_of_a_file_opened_for_writing_is_no_download(
    mounter: Mounter, proxy: Proxy, large: bytes
) -> None:
    drive = mounter(proxy.endpoint)
    names(drive.here)
    with (drive.here / "large").open("r+b", buffering=0) as file:
        with proxy.recording() as traffic:
            file.seek(0, os.SEEK_END)
            file.write(b"end")
            file.seek(0)
            assert file.read(4 * KIB) == large[: 4 * KIB]
        assert traffic.received("GET") <= PART, traffic.tally()
        assert set(traffic.tally()) <= {"GET"}, traffic.tally()


def test_parts_go_up_behind_the_writer(mounter: Mounter, proxy: Proxy, foreign: Foreign) -> None:
    drive = mounter(proxy.endpoint)
    dice, expected = random.Random(4), b""
    with (drive.here / "file").open("wb", buffering=0) as file:
        for _ in range(15):
            piece = dice.randbytes(PART)
            expected += piece
            file.write(piece)
        until(lambda: len(parts(proxy)) >= 14, "all but the part that is being written are up")
        assert not foreign.exists("file")
    assert sorted(int(part.query["partNumber"]) for part in parts(proxy)) == list(range(1, 16)), "none twice"
    assert digest(foreign.get("file")) == digest(expected)


def test_a_part_that_was_written_over_is_sent_again(mounter: Mounter, proxy: Proxy, foreign: Foreign) -> None:
    drive = mounter(proxy.endpoint)
    expected = bytearray(random.Random(5).randbytes(12 * PART))
    with (drive.here / "file").open("wb", buffering=0) as file:
        for at in range(0, len(expected), MIB):
            file.write(expected[at : at + MIB])
        until(lambda: len(parts(proxy)) >= 11, "all but the part that is being written are up")
        for at in (5, 3 * PART - 2, 12 * PART - 4):
            expected[at : at + 4] = b"over"
            file.seek(at)
            file.write(b"over")
    assert len(parts(proxy)) - 12 <= 3, "the first, the third and the fourth go up again"
    assert digest(foreign.get("file")) == digest(bytes(expected))


def wait_for_the_bucket(drive: Drive) -> None:
    """Everything that is to be sent was sent."""
    directory = os.open(drive.here, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def journalling(mounter: Mounter, proxy: Proxy) -> Drive:
    """A mount in journal mode whose names are known."""
    drive = mounter(proxy.endpoint, *JOURNAL)
    names(drive.here)
    proxy.settle()
    return drive


def test_a_file_renamed_before_its_upload_goes_up_once_under_its_last_name(
    mounter: Mounter, proxy: Proxy, foreign: Foreign
) -> None:
    drive = journalling(mounter, proxy)
    with proxy.recording() as traffic:
        (drive.here / "first").write_bytes(b"content")
        (drive.here / "first").rename(drive.here / "second")
        (drive.here / "second").rename(drive.here / "third")
        wait_for_the_bucket(drive)
    assert traffic.tally() == {"PUT": 1}, str(traffic)
    assert foreign.files() == ["third"]
    assert foreign.get("third") == b"content"


def test_a_file_removed_before_its_upload_is_never_sent(mounter: Mounter, proxy: Proxy, foreign: Foreign) -> None:
    drive = journalling(mounter, proxy)
    with proxy.recording() as traffic:
        (drive.here / "file").write_bytes(b"content")
        (drive.here / "file").unlink()
        wait_for_the_bucket(drive)
    assert traffic.tally() == {}, str(traffic)
    assert foreign.keys() == []


def test_a_file_written_again_and_again_is_sent_once(mounter: Mounter, proxy: Proxy, foreign: Foreign) -> None:
    drive = journalling(mounter, proxy)
    with proxy.recording() as traffic:
        for number in range(5):
            (drive.here / "file").write_bytes(b"content %d" % number)
        (drive.here / "file").chmod(0o600)
        wait_for_the_bucket(drive)
    assert traffic.tally() == {"PUT": 1}, str(traffic)
    assert foreign.get("file") == b"content 4"
    assert foreign.metadata("file")["mode"] == str(0o100600)


def test_an_editor_saves_with_one_request(mounter: Mounter, proxy: Proxy, foreign: Foreign) -> None:
    """Written beside and renamed over: in journal mode the new bytes go up once, over the old ones."""
    foreign.put("file", b"as it was")
    drive = journalling(mounter, proxy)
    with proxy.recording() as traffic:
        (drive.here / "file.tmp").write_bytes(b"as it is")
        (drive.here / "file.tmp").rename(drive.here / "file")
        wait_for_the_bucket(drive)
    assert traffic.sent("PUT") == len(b"as it is")
    assert traffic.count("COPY", "DELETE", "DELETE_MANY") == 0, str(traffic)
    assert foreign.files() == ["file"]
    assert foreign.get("file") == b"as it is"


@pytest.mark.promise(3)
def test_an_upload_goes_on_after_a_kill_with_the_parts_that_were_up(
    mounter: Mounter, proxy: Proxy, foreign: Foreign
) -> None:
    body = random.Random(6).randbytes(9 * PART)
    drive = mounter(proxy.endpoint, *JOURNAL)
    proxy.inject(Hang(), lambda request: request.op == "UPLOAD_PART" and int(request.query["partNumber"]) > 4)
    (drive.here / "file").write_bytes(body)
    until(lambda: len(parts(proxy)) >= 4, "four parts are up")
    first = {part.query["uploadId"] for part in parts(proxy)}
    drive.mount.kill()
    proxy.heal()
    proxy.reset()
    drive.mount.start()
    assert digest(drive.here / "file") == digest(body)
    eventually(lambda: foreign.exists("file"), seconds=60)
    sent = parts(proxy)
    assert {request.query["uploadId"] for request in sent} == first, "the same upload"
    assert sorted(int(request.query["partNumber"]) for request in sent) == [5, 6, 7, 8, 9], "the missing parts alone"
    assert [request.key for request in proxy.traffic.of("CREATE_MULTIPART") if request.key == "file"] == []
    assert digest(foreign.get("file")) == digest(body)
    until(lambda: foreign.uploads() == [], "nothing is left of it")
    remembered = float(foreign.metadata("file")["mtime"])
    assert abs(remembered - (drive.here / "file").stat().st_mtime) < 1e-3, "what the mount shows is in the bucket"
