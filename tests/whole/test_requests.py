"""Speed told by counting: how many requests, and how many bytes, each everyday action costs the server.

The mounts here speak through a recording proxy. A page of a listing beyond the first (Ceph gives short
pages) is no second LIST: what is counted is how often a listing was begun.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Mounter
from tests.support.drive import Drive, digest, eventually, names, sync
from tests.support.faults import Answer, Meet
from tests.support.foreign import Foreign, numbered
from tests.support.proxy import Proxy
from tests.support.traffic import Op, Request, Traffic

MIB = 1 << 20
PART = 8 * MIB
MOMENT = 1_234_567_890_123_456_789
PATIENT = ("--ttl", "300")  # a slow machine must not let a listing grow old in the middle of a count
TRUST = ("--ttl", "600")  # what was listed stays known on a slow machine too
ROUND_TRIP = 0.02  # seconds; what makes "in parallel" visible


def listings(traffic: Traffic) -> int:
    """How many listings were begun."""
    return sum("continuation-token" not in request.query for request in traffic.of("LIST"))


def without_pages(traffic: Traffic) -> dict[str, int]:
    """The tally with the later pages of listings left out."""
    tally = traffic.tally()
    if "LIST" in tally:
        tally["LIST"] = listings(traffic)
    return tally


@contextlib.contextmanager
def side_by_side(proxy: Proxy, count: int) -> Iterator[None]:
    """Of a large file's reads, some are held until `count` are under way, however slow the reader: so many must be."""
    barrier = threading.Barrier(count, timeout=20.0)

    def is_well_in(request: Request) -> bool:
        first = re.match(r"bytes=(\d+)-", request.range)
        return request.op is Op.GET and first is not None and int(first[1]) >= 2 * PART  # it begins with small ones

    with proxy.broken(Meet(barrier), is_well_in, times=count) as rule:
        yield
    assert rule.hits == count
    assert not barrier.broken, f"less than {count} requests side by side"


@pytest.fixture
def known(mounter: Mounter, proxy: Proxy) -> Drive:
    """A mount through the proxy whose (empty) directory `d` is known already."""
    drive = mounter(proxy.endpoint, *PATIENT)
    (drive.here / "d").mkdir()
    assert names(drive.here) == ["d"]
    assert names(drive.here / "d") == []
    proxy.settle()
    return drive


@pytest.mark.parametrize("server", ["ceph"], indirect=True)
def test_ls_of_a_thousand_files_is_one_list(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    bodies = numbered("f", 1000)
    foreign.put_all(bodies)
    drive = mounter(proxy.endpoint, *PATIENT)
    with proxy.recording() as traffic:
        assert drive.run("ls").split() == sorted(bodies)
    assert without_pages(traffic) == {"LIST": 1}, str(traffic)
    with proxy.recording() as traffic:
        drive.run("ls")
    assert without_pages(traffic) == {}, str(traffic)


def test_ls_of_a_directory_asks_nothing_of_its_files(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put_all(numbered("d/f", 50))
    drive = mounter(proxy.endpoint, *PATIENT)
    with proxy.recording() as traffic:
        assert len(drive.run("ls", "d").split()) == 50
    assert listings(traffic) <= 2, str(traffic)  # the root to find `d`, and `d`
    assert [request.key for request in traffic.of("HEAD") if request.key not in ("d", "d/")] == [], str(traffic)
    assert traffic.count("GET") == 0, str(traffic)


def test_creating_a_small_file_is_one_put(known: Drive, proxy: Proxy) -> None:
    with proxy.recording() as traffic:
        (known.here / "d" / "new").write_bytes(b"content")
    assert traffic.tally() == {"PUT": 1}, str(traffic)
    assert traffic.sent() == 7
    with proxy.recording() as traffic:
        assert (known.here / "d" / "new").read_bytes() == b"content"
        assert (known.here / "d" / "new").stat().st_size == 7
        assert names(known.here / "d") == ["new"]
        assert not (known.here / "d" / "none").exists()
    assert set(traffic.tally()) <= {"GET"}, str(traffic)
    assert traffic.count() <= 1, str(traffic)


def test_creating_many_small_files_is_a_put_each(known: Drive, proxy: Proxy) -> None:
    with proxy.recording() as traffic:
        for number in range(50):
            (known.here / "d" / f"f{number}").write_bytes(b"%d" % number)
    assert traffic.tally() == {"PUT": 50}, str(traffic)


def test_cat_of_a_listed_file_is_gets_alone(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put("small", b"small")
    foreign.put("large", bytes(20 * MIB))
    drive = mounter(proxy.endpoint, *PATIENT)
    names(drive.here)
    with proxy.recording() as traffic:
        drive.run("cat", "small")
    assert traffic.tally() == {"GET": 1}, str(traffic)
    with proxy.recording() as traffic:
        subprocess.run(["cat", drive.here / "large"], stdout=subprocess.DEVNULL, check=True)
    assert set(traffic.tally()) == {"GET"}, str(traffic)
    assert traffic.received("GET") == 20 * MIB, str(traffic)


def test_cp_preserving_a_small_file_is_one_put(known: Drive, proxy: Proxy, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    source.chmod(0o640)
    os.utime(source, ns=(MOMENT, MOMENT))
    with proxy.recording() as traffic:
        known.run("cp", "-p", source, "d/copy")
    assert traffic.tally() == {"PUT": 1}, str(traffic)
    metadata = known.foreign.metadata("d/copy")
    assert metadata["mtime"] == "1234567890.123456789"
    assert metadata["mode"] == str(0o100640)


def test_rsync_of_a_small_file_is_three_requests(known: Drive, proxy: Proxy, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    os.utime(source, ns=(MOMENT, MOMENT))
    with proxy.recording() as traffic:
        known.run("rsync", "-a", source, "d/")
    assert traffic.count() <= 3, str(traffic)
    assert traffic.count("PUT") == 1, str(traffic)
    assert known.foreign.get("d/source") == b"content"
    assert known.foreign.files("d/") == ["d/source"]
    assert known.foreign.metadata("d/source")["mtime"] == "1234567890.123456789"


def test_rsync_unchanged_moves_no_bytes(known: Drive, proxy: Proxy, tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / "tree").mkdir(exist_ok=True)
        (tmp_path / "tree" / f"f{number}").write_bytes(b"%d" % number)
    known.run("rsync", "-a", f"{tmp_path}/tree/", "d/")
    sync(known.here)  # the directory's time, which rsync set last, goes up a second later
    proxy.settle()
    with proxy.recording() as traffic:
        assert known.run("rsync", "-ai", f"{tmp_path}/tree/", "d/") == ""
    assert traffic.count("GET", "PUT", "COPY", "HEAD") == 0, str(traffic)


@pytest.mark.parametrize("server", ["ceph"], indirect=True)
def test_removing_a_thousand_files(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put_all(numbered("d/f", 1000))
    drive = mounter(proxy.endpoint, *PATIENT)
    assert len(names(drive.here / "d")) == 1000
    proxy.latency = ROUND_TRIP
    with proxy.recording() as traffic:
        drive.run("rm", "-r", "d")
        sync(drive.here)
    assert traffic.count("HEAD", "GET") <= 3, str(traffic)  # until a walk that removes is told from one that looks
    assert traffic.count("DELETE_MANY") >= 1 or traffic.peak("DELETE") >= 8, str(traffic)
    assert traffic.count("DELETE") <= 20 or traffic.peak("DELETE") >= 8, str(traffic)
    assert listings(traffic) <= 3, str(traffic)
    assert foreign.keys("d") == []
    assert names(drive.here) == []


@pytest.mark.parametrize("server", ["ceph"], indirect=True)
def test_removing_a_tree_of_directories_without_markers(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    """What another tool stored has no markers: none is made of a directory that is about to go."""
    foreign.put_all({f"t/a{number % 5}/b{number % 25}/f{number}": b"" for number in range(200)})
    drive = mounter(proxy.endpoint, *PATIENT)
    with proxy.recording() as traffic:
        drive.run("rm", "-r", "t")
        sync(drive.here)
    assert traffic.count("PUT", "COPY") == 0, str(traffic)
    assert traffic.count("DELETE") <= 2, str(traffic)  # the first tells whether the key may; one more may be alone
    assert traffic.count("HEAD", "GET") <= 60, str(traffic)  # until the streak is seen
    assert listings(traffic) <= 8, str(traffic)
    assert traffic.count("DELETE_MANY") <= 6, str(traffic)
    assert foreign.keys("t") == []
    assert names(drive.here) == []


@pytest.mark.parametrize("server", ["ceph"], indirect=True)
def test_renaming_a_directory_of_a_thousand_files(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    bodies = numbered("old/f", 1000)
    foreign.put_all(bodies)
    drive = mounter(proxy.endpoint, *PATIENT)
    assert names(drive.here) == ["old"]
    proxy.latency = ROUND_TRIP
    with proxy.recording() as traffic:
        (drive.here / "old").rename(drive.here / "new")
    assert 1000 <= traffic.count("COPY") <= 1001, traffic.tally()  # the marker may be one more
    assert traffic.peak("COPY") >= 8, traffic.peak("COPY")
    assert traffic.count("HEAD", "GET", "UPLOAD_PART") == 0, traffic.tally()
    assert traffic.count("DELETE_MANY") >= 1, traffic.tally()
    assert traffic.count("DELETE_MANY", "DELETE") <= 5, traffic.tally()
    assert foreign.keys("old") == []
    assert foreign.files("new/") == [key.replace("old/", "new/") for key in sorted(bodies)]
    assert foreign.get("new/f0999") == bodies["old/f0999"]


def test_renaming_a_file_is_a_copy_and_a_delete(known: Drive, proxy: Proxy) -> None:
    path = known.here / "d" / "file"
    path.write_bytes(b"content")
    with proxy.recording() as traffic:
        path.rename(known.here / "d" / "moved")
    assert traffic.count("COPY") == 1, str(traffic)
    assert traffic.count("DELETE", "DELETE_MANY") == 1, str(traffic)
    assert traffic.count() == 2, str(traffic)


def test_a_large_file_goes_up_once_and_in_parallel(known: Drive, proxy: Proxy) -> None:
    body = random.Random(11).randbytes(64 * MIB)
    proxy.latency = ROUND_TRIP
    with proxy.recording() as traffic:
        (known.here / "d" / "large").write_bytes(body)
    tally = traffic.tally()
    assert tally.pop("HEAD", 0) <= 1  # where the server ignores conditions on the completion
    assert tally == {"CREATE_MULTIPART": 1, "UPLOAD_PART": 64 * MIB // PART, "COMPLETE": 1}, str(traffic)
    assert traffic.sent("UPLOAD_PART") == 64 * MIB
    assert traffic.peak("UPLOAD_PART") >= 3
    assert digest(known.foreign.get("d/large")) == digest(body)


def test_a_large_file_comes_down_once_and_in_parallel(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    body = random.Random(12).randbytes(48 * MIB)
    foreign.put("large", body)
    drive = mounter(proxy.endpoint, *PATIENT)
    names(drive.here)
    with side_by_side(proxy, 3), proxy.recording() as traffic:
        assert digest(drive.here / "large") == digest(body)
    assert set(traffic.tally()) == {"GET"}, str(traffic)
    assert traffic.received("GET") == 48 * MIB, str(traffic)


def test_a_changed_large_file_is_read_in_parallel_too(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    body = bytearray(random.Random(12).randbytes(48 * MIB))
    foreign.put("large", bytes(body))
    drive = mounter(proxy.endpoint, *PATIENT)
    names(drive.here)
    with (drive.here / "large").open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"changed", 40 * MIB)
        body[40 * MIB : 40 * MIB + 7] = b"changed"
        with side_by_side(proxy, 3), proxy.recording() as traffic:
            assert digest(file.read()) == digest(bytes(body))
    assert traffic.count("GET") <= 20, str(traffic)
    assert traffic.received("GET") <= 50 * MIB, str(traffic)


def test_reading_a_little_of_a_large_file_moves_little(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    body = random.Random(13).randbytes(64 * MIB)
    foreign.put("large", body)
    drive = mounter(proxy.endpoint, *PATIENT)
    names(drive.here)
    with proxy.recording() as traffic, (drive.here / "large").open("rb", buffering=0) as file:
        for at in (50 * MIB, 10 * MIB, 33 * MIB, 0, 63 * MIB):
            file.seek(at)
            assert file.read(4096) == body[at : at + 4096]
    assert set(traffic.tally()) == {"GET"}, str(traffic)
    assert traffic.received("GET") <= 10 * MIB, str(traffic)


def test_attributes_of_an_old_file_are_one_copy(known: Drive, proxy: Proxy) -> None:
    path = known.here / "d" / "file"
    path.write_bytes(b"content")
    proxy.settle()
    with proxy.recording() as traffic:
        path.chmod(0o600)
        os.utime(path, ns=(MOMENT, MOMENT))
        os.setxattr(path, "user.author", b"me")
        sync(path)
    assert traffic.tally() == {"COPY": 1}, str(traffic)


def test_making_a_directory_is_one_put(known: Drive, proxy: Proxy) -> None:
    with proxy.recording() as traffic:
        (known.here / "d" / "new").mkdir()
    assert traffic.tally() == {"PUT": 1}, str(traffic)


def test_removing_a_file_is_one_delete(known: Drive, proxy: Proxy) -> None:
    path = known.here / "d" / "file"
    path.write_bytes(b"content")
    proxy.settle()
    with proxy.recording() as traffic:
        path.unlink()
        sync(known.here / "d")
    assert traffic.count() == traffic.count("DELETE", "DELETE_MANY") == 1, str(traffic)


def test_a_file_of_two_parts_is_one_put(known: Drive, proxy: Proxy) -> None:
    with proxy.recording() as traffic:
        (known.here / "d" / "file").write_bytes(bytes(2 * PART))
    assert traffic.tally() == {"PUT": 1}, str(traffic)


def test_a_first_walk_asks_for_each_file_once(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put_all(numbered("d/f", 60))
    drive = mounter(proxy.endpoint, *PATIENT)
    names(drive.here)
    with proxy.recording() as traffic:
        drive.run("ls", "-l", "d")
        drive.run("ls", "-l", "d")
    asked = [request.key for request in (*traffic.of("HEAD"), *traffic.of("GET")) if request.key != "d/"]
    assert sorted(asked) == sorted(numbered("d/f", 60)), str(traffic)


def test_chmod_right_after_a_write_goes_up_with_it(known: Drive, proxy: Proxy) -> None:
    with proxy.recording() as traffic, (known.here / "d" / "file").open("wb") as file:
        file.write(b"content")
        os.fchmod(file.fileno(), 0o600)
        os.utime(file.fileno(), ns=(MOMENT, MOMENT))
    assert traffic.tally() == {"PUT": 1}, str(traffic)


def test_a_file_that_is_removed_before_its_close_is_never_sent(known: Drive, proxy: Proxy) -> None:
    with proxy.recording() as traffic, (known.here / "d" / "temporary").open("wb") as file:
        file.write(b"x" * 100_000)
        (known.here / "d" / "temporary").unlink()
    assert traffic.sent() < 2000, str(traffic)
    assert traffic.count("PUT") == 0, str(traffic)


def test_an_idle_mount_asks_nothing(known: Drive, proxy: Proxy) -> None:
    with proxy.recording(settle=1.0) as traffic:
        pass
    assert traffic.tally() == {}, str(traffic)


def test_a_second_mount_lists_all_attributes_without_a_question(
    foreign: Foreign, mounter: Mounter, proxy: Proxy
) -> None:
    drive = mounter(proxy.endpoint, *PATIENT)
    for number in range(40):
        folder = drive.here / f"d{number % 4}"
        folder.mkdir(exist_ok=True)
        (folder / f"f{number}").write_bytes(b"x" * number)
    (drive.here / "d1" / "f1").chmod(0o640)
    drive.run("ls", "-lR")
    before = drive.run("ls", "-lR")
    drive.mount.remount()
    with proxy.recording() as traffic:
        assert drive.run("ls", "-lR") == before
    assert set(traffic.tally()) == {"LIST"}, traffic
    assert traffic.count("LIST") <= 3, traffic  # the root, its first directory, and then all at once


def test_shell_redirection_is_one_put(known: Drive, proxy: Proxy) -> None:
    with proxy.recording() as traffic:
        known.run("sh", "-c", "echo one > d/one; (echo two; echo more) > d/two; echo again > d/one")
    assert traffic.count("PUT") == 3, traffic
    assert known.foreign.get("d/one") == b"again\n"
    assert known.foreign.get("d/two") == b"two\nmore\n"


def test_touch_is_one_put(known: Drive, proxy: Proxy) -> None:
    with proxy.recording() as traffic:
        known.run("touch", "-d", "2001-02-03 04:05:06", "d/new")
        assert known.foreign.head("d/new")["Metadata"]["mtime"].startswith("981173106")
    assert traffic.count("PUT", "COPY") == 1, traffic


@pytest.mark.parametrize("server", ["moto"], indirect=True)  # Ceph's pages are as long as it likes
def test_the_next_page_is_asked_for_while_this_one_is_read(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    long = "x" * 200  # getdents(2) brings 140 such names at a time
    foreign.put_all({f"d/{number:04d}{long}": b"" for number in range(2500)})
    drive = mounter(proxy.endpoint, *PATIENT)

    def of_d() -> int:
        return sum(request.query.get("prefix") == "d/" for request in proxy.requests if request.op is Op.LIST)

    with os.scandir(drive.here / "d") as entries:
        found = [next(entries).name for _ in range(300)]
        proxy.settle()
        assert of_d() == 1, "who looks at a few names has one page listed"
        found += [next(entries).name for _ in range(450)]
        eventually(lambda: of_d() == 2)
        found += [next(entries).name for _ in range(400)]
        eventually(lambda: of_d() == 3)  # who has come to the second page reads on
        found += [entry.name for entry in entries]
    assert of_d() == 3
    assert found == sorted(found)
    assert len(found) == 2500


def test_a_page_asked_for_ahead_that_fails_is_asked_for_again(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put_all({f"d/{number:04d}": b"" for number in range(1500)})
    drive = mounter(proxy.endpoint, *PATIENT)
    proxy.inject(Answer(403, "AccessDenied"), lambda request: "continuation-token" in request.query, times=1)
    assert len(names(drive.here / "d")) == 1500


def test_files_read_side_by_side_are_fetched_once(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    bodies = {f"f{number}": random.Random(number).randbytes(16 * MIB) for number in range(5)}
    foreign.put_all(bodies)
    drive = mounter(proxy.endpoint, *PATIENT, "--memory", "32M")
    with contextlib.ExitStack() as stack, proxy.recording() as traffic:
        files = {name: stack.enter_context((drive.here / name).open("rb", buffering=0)) for name in bodies}
        seen = dict.fromkeys(bodies, b"")
        for _ in range(0, 16 * MIB, MIB // 2):
            for name, file in files.items():
                seen[name] += file.read(MIB // 2)
    assert seen == bodies
    assert traffic.received("GET") <= 88 * MIB, traffic


def test_a_walk_through_a_tree_lists_it_at_once(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put_all({f"t/d{number // 3:02d}/f{number}": b"%d" % number for number in range(120)})
    drive = mounter(proxy.endpoint, *PATIENT)
    with proxy.recording() as traffic:
        found = drive.run("find", "t", "-type", "f").split()
    assert sorted(found) == sorted(f"t/d{number // 3:02d}/f{number}" for number in range(120))
    assert traffic.count("LIST") <= 6, traffic
    cold = mounter(proxy.endpoint, *PATIENT)
    proxy.latency = ROUND_TRIP
    with proxy.recording() as traffic:
        cold.run("ls", "-lR", "t")
    assert traffic.count("LIST") <= 6, traffic
    assert traffic.peak("HEAD") >= 8, traffic
