"""A mount whose cache directory has no room left: what programs are told, what the bucket has, and that it goes on."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.conftest import Cramped, access_to
from tests.support.disks import fill, free, small_disk, take_inodes
from tests.support.drive import eventually, fails, names, status, sync, tree
from tests.support.faults import BROKEN, Delay
from tests.support.foreign import Foreign
from tests.support.mounting import run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import on

MIB = 1 << 20
SMALL = 24 * MIB
OLD = {"d/old": b"old" * 1000, "d/other": b"other", "d/large": bytes(range(256)) * (4 << 12), "e/alone": b"alone"}
CHANGES: Mapping[str, Callable[[Path], object]] = {
    "chmod": lambda top: (top / "d" / "old").chmod(0o600),
    "chmod a directory": lambda top: (top / "d").chmod(0o700),
    "chown": lambda top: os.chown(top / "d" / "old", 5, 5),
    "utime": lambda top: os.utime(top / "d" / "old", (1, 1)),
    "setxattr": lambda top: os.setxattr(top / "d" / "old", "user.color", b"blue"),
    "set a header": lambda top: os.setxattr(top / "d" / "old", "user.sos.cache-control", b"no-store"),
    "mkdir": lambda top: (top / "new directory").mkdir(),
    "mkfifo": lambda top: os.mkfifo(top / "fifo"),
    "symlink": lambda top: (top / "link").symlink_to("d/old"),
    "rename": lambda top: (top / "d" / "old").rename(top / "d" / "moved"),
    "rename over": lambda top: (top / "d" / "moved").rename(top / "d" / "other"),
    "rename a directory": lambda top: (top / "d").rename(top / "moved"),
    "truncate": lambda top: os.truncate(top / "moved" / "large", 100),
    "append": lambda top: (top / "moved" / "other").open("ab").write(b"more"),
}

pytestmark = pytest.mark.parametrize("server", ["moto"], indirect=True)


def attempts(top: Path, *, told: set[int]) -> list[str]:
    """Tries all changes until each is done; those that were refused, with an errno of `told`."""
    refused = []
    for name, change in CHANGES.items():
        before = everything(top)
        try:
            change(top)
        except OSError as error:
            assert error.errno in told, (name, error)
            assert everything(top) == before, name
            refused.append(name)
    return refused


def everything(top: Path) -> dict[str, tuple[object, ...]]:
    """What is shown of all files and directories."""
    return {os.fspath(path): attributes(path) for path in (top, *top.rglob("*")) if not path.is_symlink()}


def attributes(path: Path) -> tuple[object, ...]:
    state = path.stat()
    return state.st_mode, state.st_uid, state.st_mtime_ns, state.st_size, os.listxattr(path)


# Beginning


def mount_on(cache: Path, server: Server, foreign: Foreign, base: Path) -> subprocess.CompletedProcess[str]:
    (base / "mnt").mkdir(exist_ok=True)
    environment = access_to(server).environment(base)
    return run_sosfs(
        ["mount", foreign.bucket, base / "mnt", "--endpoint", server.endpoint, "--cache-dir", cache], environment
    )


def test_a_mount_on_a_full_disk_is_refused_in_one_line(server: Server, foreign: Foreign, tmp_path: Path) -> None:
    def says(cache: Path, *words: str) -> None:
        done = mount_on(cache, server, foreign, tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        lines = done.stderr.splitlines()
        assert len(lines) == 1, done.stderr
        assert all(word in lines[0] for word in ("sosfs: ", str(cache), *words)), lines
        assert not (tmp_path / "mnt").is_mount()

    with small_disk(tmp_path / "disk", SMALL) as disk:
        ballast = fill(disk)
        says(disk)
        says(disk / "below")
        ballast.unlink()
        assert mount_on(disk / "cache", server, foreign, tmp_path).returncode == 0
        assert run_sosfs(["umount", tmp_path / "mnt"], access_to(server).environment(tmp_path)).returncode == 0
        fill(disk)
        says(disk / "cache")
        assert not list((disk / "cache").glob("*damaged*"))
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        says(disk / "cache", "ead-only")
    with small_disk(tmp_path / "disk", SMALL, inodes=20) as disk:
        take_inodes(disk)
        says(disk / "below")
    (tmp_path / "file").write_bytes(b"")
    says(tmp_path / "file")


# While it is full


@pytest.mark.promise(4)
@pytest.mark.parametrize("durability", ["bucket", "journal"])
def test_everything_on_a_full_disk(cramped: Cramped, foreign: Foreign, durability: str) -> None:
    foreign.put_all(OLD)
    drive = cramped(SMALL, "--durability", durability, "--cache-size", "8M", "--patience", "3")
    drive.mount.allow_log("stays in the journal until there is room|attribute cache cannot be written")
    top = drive.here
    names(top / "d")
    ballast = fill(drive.mount.cache)
    assert free(drive.mount.cache) == 0
    # What is there can be read, also what was never looked at.
    assert (top / "d" / "old").read_bytes() == OLD["d/old"]
    assert (top / "d" / "large").read_bytes() == OLD["d/large"]
    # Small files need no disk.
    for number in range(20):
        (top / f"small {number}").write_bytes(b"small" * number)
    assert foreign.get("small 3") == b"small" * 3
    # Changes are done or refused; what was refused changed nothing.
    assert "rename a directory" in attempts(top, told={errno.ENOSPC, errno.ENOENT})
    # Names can be removed.
    for number in range(20):
        (top / f"small {number}").unlink()
    (top / "e" / "alone").unlink()
    (top / "e").rmdir()
    assert "e" not in names(top)
    # There is room again, and all works without a new mount.
    ballast.unlink()
    attempts(top, told={errno.EEXIST, errno.ENOENT})
    (top / "again").write_bytes(bytes(MIB))
    sync(top)
    assert names(top) == sorted(["again", "fifo", "link", "moved", "new directory"])
    expected = {"large": OLD["d/large"][:100], "other": OLD["d/old"] + b"more"}
    assert tree(top / "moved") == expected
    assert stat.S_IMODE((top / "moved" / "other").stat().st_mode) == 0o600
    # It ends on a full disk, too.
    fill(drive.mount.cache)
    (top / "last").write_bytes(b"last")
    drive.mount.stop()
    assert foreign.get("last") == b"last"
    assert {key: foreign.get(f"moved/{key}") for key in expected} == expected
    assert foreign.metadata("moved/other")["color"] == "blue"
    assert foreign.get("again") == bytes(MIB)
    assert not foreign.keys("e/")


def write_all(path: Path, size: int, *, mode: str = "wb") -> int:
    """Writes until it fails or is done; how many bytes were taken. Closes, and tells what that says (0: nothing)."""
    taken = 0
    file = os.open(path, os.O_WRONLY | (os.O_CREAT | os.O_TRUNC if mode == "wb" else 0))
    try:
        while taken < size:
            taken += os.write(file, bytes([taken >> 20]) * MIB)
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        with fails(errno.ENOSPC):
            os.fsync(file)
        with fails(errno.ENOSPC):
            os.close(file)
        return taken
    os.close(file)
    return taken


def test_a_write_that_fails_leaves_the_file_as_it_was(cramped: Cramped, foreign: Foreign, proxy: Proxy) -> None:
    """The store takes nothing and the disk is full."""
    foreign.put_all(OLD)
    drive = cramped(SMALL, "--patience", "1", "--timeout", "2", endpoint=proxy.endpoint)
    top = drive.here
    names(top / "d")
    before = attributes(top / "d" / "old")
    action, _ = BROKEN["503"]
    with proxy.broken(action, on("PUT", "CREATE_MULTIPART", "UPLOAD_PART", "COMPLETE")):
        assert 8 * MIB < write_all(top / "d" / "new", 100 * MIB) < 100 * MIB
        assert names(top / "d") == ["large", "old", "other"]
        assert not (top / "d" / "new").exists()
        assert write_all(top / "d" / "old", 100 * MIB) < 100 * MIB
        assert attributes(top / "d" / "old") == before
        assert (top / "d" / "old").read_bytes() == OLD["d/old"]
        assert write_all(top / "d" / "large", 100 * MIB, mode="r+") < 100 * MIB
        assert (top / "d" / "large").read_bytes() == OLD["d/large"]
        assert status(drive).pending_files == 0
        assert free(drive.mount.cache) > SMALL - 4 * MIB, "what failed takes no room"
    assert {key: foreign.get(key) for key in foreign.keys("")} == OLD
    assert write_all(top / "d" / "new", 50 * MIB) == 50 * MIB
    drive.mount.stop()
    assert len(foreign.get("d/new")) == 50 * MIB
    assert foreign.uploads() == []


def test_a_writer_that_makes_good_what_failed_has_a_whole_file(
    cramped: Cramped, foreign: Foreign, proxy: Proxy
) -> None:
    drive = cramped(SMALL, "--patience", "1", "--timeout", "2", endpoint=proxy.endpoint)
    action, _ = BROKEN["503"]
    bodies = [bytes([number]) * MIB for number in range(60)]
    for name, ends in {"again": True, "cut": False}.items():
        file = os.open(drive.here / name, os.O_WRONLY | os.O_CREAT)
        with proxy.broken(action, on("PUT", "CREATE_MULTIPART", "UPLOAD_PART", "COMPLETE")):
            taken = 0
            with fails(errno.ENOSPC):
                for body in bodies:
                    taken += os.write(file, body)
        if ends:
            for body in bodies[taken // MIB :]:
                os.write(file, body)
        else:
            os.ftruncate(file, taken)
        os.close(file)
        assert foreign.get(name) == b"".join(bodies)[: None if ends else taken]
    drive.mount.stop()


def test_writers_wait_for_room_and_status_tells(cramped: Cramped, foreign: Foreign, proxy: Proxy) -> None:
    drive = cramped(SMALL, endpoint=proxy.endpoint)
    with proxy.broken(Delay(4), on("UPLOAD_PART"), times=4):
        command = ["dd", "if=/dev/zero", f"of={drive.here / 'file'}", "bs=1M", "count=40", "status=none"]
        program = subprocess.Popen(command)
        eventually(lambda: status(drive).waiting_writers == 1)
        shown = run_sosfs(["status", drive.mount.path], drive.mount.environment).stdout
        assert f"1 writer waits for room in {drive.mount.cache}" in shown
        assert program.wait(60) == 0
    assert status(drive).waiting_writers == 0
    drive.mount.stop()
    assert foreign.get("file") == bytes(40 * MIB)
