"""What `--durability journal` promises, and what the journal refuses, on a server that misbehaves."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import Mounter, new_bucket
from tests.support.drive import Drive, eventually, names, status
from tests.support.faults import Delay, Hang
from tests.support.foreign import Foreign, numbered
from tests.support.mounting import complaints, run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import Op, on
from tests.support.waiting import until

MIB = 1 << 20
JOURNAL = ("--durability", "journal")
LATE = "not in the bucket"


@pytest.fixture
def server(moto: Server) -> Server:
    """One server is enough: what is tested here happens before it."""
    return moto


@pytest.fixture
def drive(mounter: Mounter, proxy: Proxy) -> Drive:
    """A mount in journal mode through the proxy."""
    return mounter(proxy.endpoint, *JOURNAL)


def recover(proxy: Proxy) -> None:
    """The server is well again."""
    proxy.heal()
    proxy.drop_connections()


@pytest.mark.promise(2)
def test_close_returns_while_the_server_hangs(drive: Drive, proxy: Proxy, foreign: Foreign) -> None:
    proxy.inject(Hang(), on("PUT"))
    (drive.here / "file").write_bytes(b"content")
    with (drive.here / "file").open("ab") as file:
        file.write(b" and more")
        file.flush()
        os.fsync(file.fileno())
    assert (drive.here / "file").read_bytes() == b"content and more"
    until(lambda: proxy.count("PUT"), "the upload has begun")
    assert not foreign.exists("file")
    now = status(drive)
    assert (now.pending_files, now.pending_bytes) == (1, 16)
    drive.mount.allow_log(LATE)
    recover(proxy)
    eventually(lambda: foreign.exists("file") and foreign.get("file") == b"content and more")
    until(lambda: status(drive).pending_files == 0, "nothing is pending")


@pytest.mark.promise(2)
def test_a_file_that_cannot_go_up_stays_listed(mounter: Mounter, proxy: Proxy, foreign: Foreign) -> None:
    foreign.put("other")
    drive = mounter(proxy.endpoint, *JOURNAL, "--ttl", "0.2")
    drive.mount.allow_log(LATE)
    proxy.inject(Hang(), on("PUT"))
    (drive.here / "file").write_bytes(b"content")
    begun = proxy.count("LIST")
    until(lambda: names(drive.here) and proxy.count("LIST") >= begun + 2, "the bucket was listed again")
    assert names(drive.here) == ["file", "other"]
    recover(proxy)


def test_in_bucket_mode_close_waits(mounter: Mounter, proxy: Proxy, foreign: Foreign) -> None:
    drive = mounter(proxy.endpoint)
    proxy.inject(Delay(0.3), on("PUT"))
    (drive.here / "file").write_bytes(b"content")
    assert foreign.get("file") == b"content"


@pytest.mark.promise(2)
def test_fsync_of_the_directory_waits_for_the_bucket(drive: Drive, proxy: Proxy, foreign: Foreign) -> None:
    (drive.here / "d" / "deep").mkdir(parents=True)
    proxy.inject(Delay(0.3), on("PUT"))
    bodies = numbered("d/deep/f", 5)
    for key, body in bodies.items():
        (drive.here / key).write_bytes(body)
    (drive.here / "d" / "gone").write_bytes(b"x")
    (drive.here / "d" / "gone").unlink()
    directory = os.open(drive.here / "d", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    assert {key: foreign.get(key) for key in foreign.files("d/")} == bodies


@pytest.mark.promise(2)
def test_umount_waits_for_the_bucket(drive: Drive, proxy: Proxy, foreign: Foreign) -> None:
    proxy.inject(Delay(0.3), on("PUT"))
    bodies = numbered("f", 20)
    for key, body in bodies.items():
        (drive.here / key).write_bytes(body)
    drive.mount.stop()
    assert {key: foreign.get(key) for key in foreign.files()} == bodies


def test_a_signal_to_end_drains(drive: Drive, proxy: Proxy, foreign: Foreign) -> None:
    proxy.inject(Delay(0.3), on("PUT"))
    bodies = numbered("f", 20)
    for key, body in bodies.items():
        (drive.here / key).write_bytes(body)
    assert drive.mount.terminate() == 0
    assert {key: foreign.get(key) for key in foreign.files()} == bodies


def test_a_second_signal_leaves_the_rest_to_the_next_mount(mounter: Mounter, proxy: Proxy, foreign: Foreign) -> None:
    drive = mounter(proxy.endpoint, *JOURNAL)
    drive.mount.allow_log(LATE)
    proxy.inject(Hang(), on("PUT"))
    (drive.here / "file").write_bytes(b"content")
    os.kill(drive.mount.pid, signal.SIGTERM)
    until(lambda: "unmounting" in drive.mount.log or status(drive).state.value == "draining", "it drains")
    until(lambda: proxy.count("PUT"), "the upload has begun")
    assert not foreign.exists("file")
    ending = threading.Timer(0.5, recover, [proxy])  # a request under way is waited for
    ending.start()
    os.kill(drive.mount.pid, signal.SIGTERM)
    code = drive.mount._process.wait(60)  # type: ignore[union-attr]
    ending.join()
    assert code in (0, 3)
    drive.mount.clear()
    drive.mount.start()
    eventually(lambda: foreign.exists("file"))
    assert foreign.get("file") == b"content"
    assert (drive.here / "file").read_bytes() == b"content"


def test_at_the_limit_writers_are_slowed_and_none_fails(mounter: Mounter, proxy: Proxy, foreign: Foreign) -> None:
    drive = mounter(proxy.endpoint, *JOURNAL, "--dirty-limit", "8M")
    drive.mount.allow_log(LATE)
    bodies = {f"f{number}": bytes([number]) * (4 * MIB) for number in range(8)}
    failures: list[OSError] = []
    written: list[str] = []

    def write() -> None:
        for key, body in bodies.items():
            try:
                (drive.here / key).write_bytes(body)
            except OSError as error:
                failures.append(error)
            written.append(key)

    proxy.inject(Hang(), on("PUT"))
    writer = threading.Thread(target=write)
    writer.start()
    until(lambda: status(drive).pending_bytes >= 8 * MIB, "the limit is reached")
    time.sleep(1.0)  # it would go on if nothing held it
    assert writer.is_alive()
    assert len(written) < len(bodies)
    assert status(drive).pending_bytes <= 16 * MIB, "the limit, and the file being written"
    recover(proxy)
    writer.join(60)
    assert failures == []
    drive.mount.stop()
    assert {key: foreign.get(key) for key in foreign.files()} == bodies


def test_a_writer_beside_a_file_that_went_up_is_let_go_on(mounter: Mounter, proxy: Proxy, foreign: Foreign) -> None:
    """The file holds more than the limit itself, and stays open: its writer waits for its upload, not for its close."""
    drive = mounter(proxy.endpoint, *JOURNAL, "--dirty-limit", "1M")
    with (drive.here / "file").open("wb", buffering=0) as file:
        file.write(bytes(2 * MIB))
        os.fsync(file.fileno())
        file.write(b"end")
    drive.mount.stop()
    assert foreign.get("file") == bytes(2 * MIB) + b"end"


def test_our_abandoned_uploads_are_aborted_and_no_others(mounter: Mounter, proxy: Proxy, foreign: Foreign) -> None:
    foreign.client.create_multipart_upload(Bucket=foreign.bucket, Key="foreign")
    drive = mounter(proxy.endpoint)
    proxy.inject(Delay(3.0), on("UPLOAD_PART"))
    writer = threading.Thread(target=_write_in_vain, args=[drive.here / "ours", bytes(20 * MIB)])
    writer.start()
    # Before its first part its id may be in no journal yet, and moto's listing dates it to 2010: see test_abandoned.
    until(lambda: any(one.op is Op.UPLOAD_PART and one.key == "ours" for one in proxy.requests), "its id is known")
    drive.mount.kill()
    writer.join()
    recover(proxy)
    assert sorted(foreign.uploads()) == ["foreign", "ours"]
    drive.mount.start()
    assert foreign.uploads() == ["foreign"]
    assert not (drive.here / "ours").exists()


def _write_in_vain(path: Path, body: bytes) -> None:
    try:
        path.write_bytes(body)
    except OSError:
        return
    raise AssertionError("the daemon was killed before the close could return")


def mount_again(drive: Drive, source: str, where: Path) -> subprocess.CompletedProcess[str]:
    """A second mount on the cache directory of the first."""
    where.mkdir()
    options: list[str | Path] = ["--endpoint", drive.mount.access.endpoint, "--cache-dir", drive.mount.cache]
    return run_sosfs(["mount", source, where, *options], drive.mount.environment)


def test_a_second_mount_on_one_cache_directory_is_refused(drive: Drive, foreign: Foreign, tmp_path: Path) -> None:
    done = mount_again(drive, foreign.bucket, tmp_path / "second")
    assert done.returncode == 1
    assert len(complaints(done.stderr)) == 1, done.stderr
    assert "in use by another mount" in done.stderr
    assert str(drive.mount.cache) in done.stderr
    (drive.here / "file").write_bytes(b"the first goes on")


def test_the_journal_of_another_bucket_is_refused(
    drive: Drive, server: Server, proxy: Proxy, foreign: Foreign, tmp_path: Path
) -> None:
    proxy.inject(Hang(), on("PUT"))
    (drive.here / "file").write_bytes(b"content")
    drive.mount.kill()
    recover(proxy)
    done = mount_again(drive, new_bucket(server).bucket, tmp_path / "second")
    assert done.returncode == 1
    assert len(complaints(done.stderr)) == 1, done.stderr
    assert "another bucket" in done.stderr
    assert foreign.bucket in done.stderr
    drive.mount.start()
    eventually(lambda: foreign.exists("file"))


def test_a_directory_that_lost_its_last_file_is_there_after_a_crash(
    drive: Drive, proxy: Proxy, foreign: Foreign
) -> None:
    """Its marker is written a moment later; until then the journal knows of it."""
    foreign.put("d/only", b"1")
    drive.mount.remount()
    proxy.inject(Hang(), on("PUT"))
    (drive.here / "d" / "only").unlink()
    drive.mount.kill()
    recover(proxy)
    assert not foreign.exists("d/")
    drive.mount.start()
    assert names(drive.here / "d") == []
    assert foreign.exists("d/")
