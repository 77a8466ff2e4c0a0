"""`sosfs warm` and `sosfs drop`: what is local after the one and asked for again after the other, told by counting."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import trio

from sosfs.ipc import commands, status
from tests.conftest import Mounter
from tests.support.drive import Drive, eventually, fails, names, tree
from tests.support.faults import Answer
from tests.support.foreign import Foreign, numbered
from tests.support.mounting import SOSFS, run_sosfs
from tests.support.proxy import Proxy
from tests.support.traffic import Op, on

MIB = 1 << 20
DISK = ("--cache-size", "256M")
PATIENT = ("--ttl", "600")  # only a drop makes it ask again
LARGE = random.Random(21).randbytes(20 * MIB + 12345)
DATA = (Op.GET, Op.HEAD)
MOTO = pytest.mark.parametrize("server", ["moto"], indirect=True)  # where the server makes no difference


def command(drive: Drive, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run_sosfs(arguments, drive.mount.environment)


def warm(drive: Drive, *paths: Path) -> str:
    done = command(drive, "warm", *paths)
    told = [line for line in done.stderr.splitlines() if not line.startswith("sosfs: warming, ")]  # where it takes long
    assert (done.returncode, told) == (0, [])
    return done.stdout


def drop(drive: Drive, *paths: Path) -> str:
    done = command(drive, "drop", *paths)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# Warming


def test_what_was_warmed_is_read_without_a_request_also_by_the_next_mount(
    foreign: Foreign, mounter: Mounter, proxy: Proxy
) -> None:
    bodies = {**numbered("t/d/f", 60), "t/large": LARGE, "t/empty": b"", "other": b"not asked for"}
    foreign.put_all(bodies)
    foreign.put("t/d/run", b"#!", {"mode": "33261", "mtime": "1000000000"})
    foreign.put("t/link", b"large", {"mode": "41471"})
    drive = mounter(proxy.endpoint, *DISK, *PATIENT)
    with proxy.recording() as traffic:
        told = warm(drive, drive.here / "t")
    assert told.startswith("64 files: 21.0 MB fetched, 0 bytes were here already"), told
    assert {request.key for request in traffic.of(Op.HEAD)} <= {"t/", "t/empty"}, "one GET brings bytes and attributes"
    assert traffic.received(Op.GET) == len(LARGE) + 60 * 2 + 50 + 2 + 5, traffic
    assert traffic.peak(Op.GET) > 4
    for _ in "again", "after a remount":
        with proxy.recording() as traffic:
            assert tree(drive.here / "t")["large"] == LARGE
            assert (drive.here / "t/link").readlink() == Path("large")
            assert (drive.here / "t/d/run").stat().st_mtime == 1_000_000_000
            assert os.access(drive.here / "t/d/run", os.X_OK)
        asked = {request.key for request in traffic.of(*DATA)}
        assert asked <= {"t/", "t/d/"}, str(traffic)  # directories without a marker, which nothing can be known of
        drive.mount.remount()
    with proxy.recording() as traffic:
        assert "64 files: 0 bytes fetched, 21.0 MB were here already" in warm(drive, drive.here / "t")
    assert traffic.count(Op.GET) == 0, str(traffic)
    with proxy.recording() as traffic:
        assert (drive.here / "other").read_bytes() == bodies["other"]
    assert traffic.count(Op.GET) == 1, "it was in no cache"


@MOTO
def test_without_a_disk_cache_attributes_are_warmed(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put_all(numbered("t/f", 40, b"x" * 5000))
    drive = mounter(proxy.endpoint, *PATIENT)
    with proxy.recording() as traffic:
        told = warm(drive, drive.here)
    assert told.startswith("40 files: attributes only"), told
    assert "--cache-size" in told
    assert traffic.tally() == {"LIST": traffic.count(Op.LIST), "HEAD": 40}, str(traffic)
    with proxy.recording() as traffic:
        assert {path.stat().st_size for path in (drive.here / "t").iterdir()} == {5001, 5002}
    assert traffic.count(*DATA) == 0, str(traffic)


@pytest.mark.promise(11)
@MOTO
def test_what_does_not_fit_is_told_and_the_cache_holds_the_rest(
    foreign: Foreign, mounter: Mounter, proxy: Proxy
) -> None:
    body = random.Random(3).randbytes(3 * MIB)
    foreign.put_all({f"f{number}": body for number in range(5)})
    drive = mounter(proxy.endpoint, "--cache-size", "10M", *PATIENT)
    with proxy.recording() as traffic:
        done = command(drive, "warm", drive.here)
    assert done.returncode == 1
    assert done.stdout.startswith("3 files: 9.4 MB fetched")
    assert "no room for 2 files (6.3 MB): the disk cache is of 10.5 MB" in done.stderr
    assert traffic.received(Op.GET) == 9 * MIB
    unfit = set(re.findall(r"/(f\d)$", done.stderr, re.MULTILINE))
    assert len(unfit) == 2
    drive.mount.remount()
    with proxy.recording() as traffic:
        for path in drive.here.iterdir():
            if path.name not in unfit:
                assert path.read_bytes() == body
    assert traffic.count(Op.GET) == 0, str(traffic)


@MOTO
def test_warming_that_is_called_off_stops_and_goes_on_later(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    bodies = numbered("f", 400, b"x" * 1000)
    foreign.put_all(bodies)
    drive = mounter(proxy.endpoint, *DISK, *PATIENT)
    proxy.latency = 0.3
    process = subprocess.Popen(
        [*SOSFS, "warm", str(drive.here)],
        env=drive.mount.environment,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    eventually(lambda: proxy.count(Op.GET) > 40)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in out + err
    proxy.settle()
    asked = proxy.count(Op.GET)
    assert asked < 400
    proxy.latency = 0.0
    assert warm(drive, drive.here).startswith("400 files")
    assert proxy.count(Op.GET) <= 400 + 64, "what had come was fetched again"
    with proxy.recording() as traffic:
        assert tree(drive.here) == bodies
    assert traffic.count(*DATA) == 0


@MOTO
def test_warming_goes_on_past_a_file_that_fails(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put_all(numbered("f", 50))
    drive = mounter(proxy.endpoint, *DISK, *PATIENT)
    with proxy.broken(Answer(403, "AccessDenied"), on("GET", "HEAD", key="f0007")):
        done = command(drive, "warm", drive.here)
    assert done.returncode == 1
    assert done.stdout.startswith("49 files: ")
    assert "sosfs: 1 file failed\n" in done.stderr
    assert f"  {drive.here}/f0007: " in done.stderr
    assert "AccessDenied" in done.stderr
    with proxy.recording() as traffic:
        tree(drive.here)
    assert {request.key for request in traffic.of(*DATA)} == {"f0007"}


@MOTO
def test_a_file_that_is_replaced_while_it_is_warmed(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put_all({"f": b"old", "gone": b"gone"})
    drive = mounter(proxy.endpoint, *DISK, *PATIENT)
    assert names(drive.here) == ["f", "gone"]
    foreign.put("f", b"new" * 3000)
    foreign.delete("gone")
    assert warm(drive, drive.here).startswith("1 file: 9.0 kB fetched")
    with proxy.recording() as traffic:
        assert tree(drive.here) == {"f": b"new" * 3000}
    assert traffic.count(*DATA) == 0, str(traffic)


# Dropping


@pytest.mark.parametrize("shown", ["exact", "listed"])
def test_after_a_drop_the_bucket_is_asked(foreign: Foreign, mounter: Mounter, proxy: Proxy, shown: str) -> None:
    foreign.put_all({"t/d/a": b"old" * 1000, "t/d/gone": b"gone", "t/b": b"same", "t/large": LARGE})
    drive = mounter(proxy.endpoint, *DISK, *PATIENT, "--attributes", shown)
    top = drive.here / "t"
    assert len(tree(top)) == 4
    assert not (top / "d/new").exists()
    with proxy.recording() as traffic:
        tree(top)
    assert traffic.count() == 0, "it is not cached at all: the test shows nothing"
    foreign.put("t/d/a", b"new!" * 2000, {"mode": "33261"})
    foreign.put("t/d/new", b"it came")
    foreign.delete("t/d/gone")
    assert (top / "d/a").read_bytes() == b"old" * 1000
    assert re.match(r"4 files forgotten: 2\d\.\d MB in memory, 2\d\.\d MB on disk\n$", drop(drive, top))
    with proxy.recording() as traffic:
        assert (top / "d/a").stat().st_size == 8000
        assert not (top / "d/gone").exists()
        assert (top / "d/new").read_bytes() == b"it came"
        assert tree(top) == {"d/a": b"new!" * 2000, "d/new": b"it came", "b": b"same", "large": LARGE}
        assert os.access(top / "d/a", os.X_OK)
    assert traffic.received(Op.GET) == 8000 + 7 + 4 + len(LARGE), str(traffic)


@MOTO
def test_one_file_is_dropped_and_its_neighbours_stay(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put_all({"d/a": b"a1" * 5000, "d/b": b"b1" * 5000, "d/ab": b"ab" * 5000})
    drive = mounter(proxy.endpoint, *DISK, *PATIENT)
    here = drive.here / "d"
    for _ in range(2):
        assert len(tree(here)) == 3
    foreign.put_all({"d/a": b"a2" * 5000, "d/b": b"b2" * 5000})
    assert drop(drive, here / "a").startswith("1 file forgotten: 10.0 kB in memory, 10.0 kB on disk")
    with proxy.recording() as traffic:
        assert (here / "a").read_bytes() == b"a2" * 5000
        assert (here / "ab").read_bytes() == b"ab" * 5000
    assert {request.key for request in traffic.of(*DATA)} == {"d/a"}, str(traffic)


@MOTO
def test_a_name_that_came_to_be_is_seen_after_a_drop_of_it(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put("d/a", b"a")
    drive = mounter(proxy.endpoint, *PATIENT)
    assert not (drive.here / "d/new").exists()
    foreign.put("d/new", b"new")
    assert not (drive.here / "d/new").exists(), "the absence is not cached: the test shows nothing"
    drop(drive, drive.here / "d/new")
    assert (drive.here / "d/new").read_bytes() == b"new"


@MOTO
def test_blocks_of_an_earlier_mount_are_dropped_before_anybody_looks(
    foreign: Foreign, mounter: Mounter, proxy: Proxy
) -> None:
    foreign.put_all({"t/a": b"a" * 8192, "t/b": b"b" * 8192, "u": b"u" * 8192})
    drive = mounter(proxy.endpoint, *DISK, *PATIENT)
    assert len(tree(drive.here)) == 3
    drive.mount.remount()
    with proxy.recording() as traffic:
        assert drop(drive, drive.here / "t") == "2 files forgotten: 0 bytes in memory, 16.4 kB on disk\n"
    assert traffic.count(Op.GET) == 0
    with proxy.recording() as traffic:
        assert len(tree(drive.here)) == 3
    assert {request.key for request in traffic.of(Op.GET)} == {"t/a", "t/b"}
    drive.mount.remount()
    assert "24.6 kB on disk" in drop(drive, drive.here)
    assert list((drive.mount.cache).rglob("*.data")) == []


@MOTO
@pytest.mark.promise(2)
@pytest.mark.parametrize("durability", ["bucket", "journal"])
def test_what_the_bucket_lacks_is_kept(foreign: Foreign, mounter: Mounter, proxy: Proxy, durability: str) -> None:
    foreign.put_all({"d/changed": b"x" * 10_000, "d/attributes": b"attributes", "d/clean": b"clean"})
    drive = mounter(proxy.endpoint, *DISK, *PATIENT, "--durability", durability)
    here = drive.here / "d"
    assert len(tree(here)) == 3
    with (here / "changed").open("r+b") as changed, (here / "new").open("wb") as new:
        changed.write(b"y" * 5000)
        changed.flush()
        new.write(b"new")
        new.flush()
        (here / "attributes").chmod(0o600)
        told = drop(drive, drive.here)
        assert (here / "changed").read_bytes() == b"y" * 5000 + b"x" * 5000
        assert (here / "new").read_bytes() == b"new"
        assert (here / "attributes").stat().st_mode & 0o777 == 0o600
    assert re.search(r"^[23] files kept: ", told, re.MULTILINE), told  # a slow machine may have sent the mode by then
    drop(drive, drive.here)
    expected = {"changed": b"y" * 5000 + b"x" * 5000, "new": b"new", "attributes": b"attributes", "clean": b"clean"}
    assert tree(here) == expected
    drive.mount.remount()
    assert {key: foreign.get(f"d/{key}") for key in expected} == expected
    assert (here / "attributes").stat().st_mode & 0o777 == 0o600


@MOTO
@pytest.mark.promise(5)
def test_an_open_file_stays_one_version_over_a_drop(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put("f", LARGE)
    drive = mounter(proxy.endpoint, *DISK, *PATIENT)
    path = drive.here / "f"
    with path.open("rb", buffering=0) as file:
        assert file.read(1000) == LARGE[:1000]
        drop(drive, path)
        assert os.pread(file.fileno(), 1000, 19 * MIB) == LARGE[19 * MIB :][:1000]
        foreign.put("f", LARGE[::-1])
        drop(drive, path)
        with fails(116):
            os.pread(file.fileno(), 1000, 10 * MIB)
    assert path.read_bytes() == LARGE[::-1]


@MOTO
def test_who_stands_in_a_directory_stays_there(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put("d/e/f", b"f")
    drive = mounter(proxy.endpoint)
    script = 'cd d/e; "$@" >/dev/null; pwd -P; cat f; cat ../e/f'
    done = drive.run("sh", "-euc", script, "sh", *SOSFS, "drop", drive.here, environment=drive.mount.environment)
    assert done == f"{drive.here}/d/e\nff"


# Whom it serves


@pytest.mark.parametrize("what", ["warm", "drop"])
@MOTO
def test_what_is_said_of_paths_that_are_not_there(shared: Drive, what: str) -> None:
    elsewhere = command(shared, what, "/etc/passwd")
    assert (elsewhere.returncode, elsewhere.stderr) == (1, "sosfs: /etc/passwd: not in a mount of sosfs\n")
    absent = command(shared, what, shared.here / "no/such")
    if what == "warm":
        assert (absent.returncode, absent.stderr) == (1, "sosfs: no/such: No such file or directory\n")
    else:
        assert (absent.returncode, absent.stdout) == (0, "0 files forgotten: 0 bytes in memory, 0 bytes on disk\n")


ASK = """
import os, socket, sys
os.setuid(12345)
with socket.socket(socket.AF_UNIX) as client:
    client.connect(sys.argv[1])
    client.sendall(b'{"do": "drop", "paths": []}\\n')
    print(client.recv(4096).decode())
"""


def test_only_the_owner_and_root_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory of the socket is closed to others; here it is open, and the daemon asks who it is."""
    asked: list[Sequence[commands.Names]] = []
    answers: list[str] = []

    async def work(paths: Sequence[commands.Names], tell: commands.Tell, options: commands.Options) -> commands.Told:
        asked.append(paths)
        return {"fine": True}

    def ask() -> commands.Told:
        return commands.ask(Path("/mnt/x"), "drop", [(b"a", b"\xff")], owner=os.geteuid(), news=lambda _: None)

    def ask_as_another() -> str:
        return subprocess.check_output([sys.executable, "-c", ASK, str(path)], text=True)

    async def scene() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(commands.serve, path, {"drop": work}))
            assert await trio.to_thread.run_sync(ask) == {"fine": True}
            path.chmod(0o777)
            directory.chmod(0o755)
            answers.append(await trio.to_thread.run_sync(ask_as_another))
            nursery.cancel_scope.cancel()

    with tempfile.TemporaryDirectory(prefix="sosfs-") as name:
        directory = Path(name)
        monkeypatch.setattr(status, "_runtime_dirs", lambda uid: iter([directory]))
        path = commands.socket_path(Path("/mnt/x"))
        trio.run(scene)
    assert asked == [[(b"a", b"\xff")]]
    assert "only who mounted it" in answers[0]
