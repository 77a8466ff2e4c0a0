"""What is locked in a bucket (Object Lock): seen and set as attributes, kept from who would write or remove it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sosfs.attributes.shared.table import MAGIC
from tests.conftest import Mounter
from tests.control.test_protection_files import CEPH, MOTO, changing, errors, lockable, setting
from tests.support.drive import Drive, eventually, fails, names, status, sync
from tests.support.faults import Answer, Hang
from tests.support.foreign import Foreign
from tests.support.mounting import run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import Op, Request

RETENTION, HOLD = "user.sos.retention", "user.sos.legal-hold"
YEAR = "2100-01-01T00:00:00Z"
FAR = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture
def foreign(server: Server) -> Foreign:
    """A bucket whose objects can be locked."""
    return lockable(server)


@pytest.fixture
def drive(mounter: Mounter, proxy: Proxy) -> Drive:
    """A mount of it through the proxy."""
    return mounter(proxy.endpoint)


def retained(foreign: Foreign, key: str, until: datetime = FAR, mode: Any = "GOVERNANCE") -> None:
    """Another client locks what is current."""
    foreign.client.put_object_retention(
        Bucket=foreign.bucket, Key=key, Retention={"Mode": mode, "RetainUntilDate": until}
    )


def held(foreign: Foreign, key: str, state: Any = "ON") -> None:
    foreign.client.put_object_legal_hold(Bucket=foreign.bucket, Key=key, LegalHold={"Status": state})


def lock_of(foreign: Foreign, key: str) -> tuple[object, object, bool]:
    """The lock of what is current, as another client sees it."""
    found = foreign.head(key)
    until = found.get("ObjectLockRetainUntilDate")
    return found.get("ObjectLockMode"), until, found.get("ObjectLockLegalHoldStatus") == "ON"


def versions(foreign: Foreign, key: str) -> list[str]:
    """The ids of all versions and markers of a key, the newest first."""
    answer = foreign.client.list_object_versions(Bucket=foreign.bucket, Prefix=key)
    found = [one for one in (*answer.get("Versions", ()), *answer.get("DeleteMarkers", ())) if one["Key"] == key]
    return [one["VersionId"] for one in sorted(found, key=lambda one: one["IsLatest"], reverse=True)]


# As attributes


def test_a_lock_is_set_and_seen(drive: Drive, foreign: Foreign) -> None:
    file = drive.here / "f"
    file.write_bytes(b"x")
    with fails(errno.ENODATA):
        os.getxattr(file, RETENTION)
    assert os.getxattr(file, HOLD) == b"OFF"
    drive.run("setfattr", "-n", RETENTION, "-v", "governance 2099-12-31", file, environment={"TZ": "UTC"})
    os.setxattr(file, RETENTION, f"GOVERNANCE {YEAR}".encode())
    os.setxattr(file, HOLD, b"on")
    assert lock_of(foreign, "f") == ("GOVERNANCE", FAR, True)
    assert os.getxattr(file, RETENTION).decode() == f"GOVERNANCE {YEAR}"
    assert os.getxattr(file, HOLD) == b"ON"
    assert [name for name in os.listxattr(file) if "sos" in name] == []  # so `cp -a` spreads no lock
    os.removexattr(file, HOLD)
    assert lock_of(foreign, "f") == ("GOVERNANCE", FAR, False)
    with fails(errno.ENODATA):
        os.removexattr(file, HOLD)
    assert errors(drive) == []


def test_a_file_is_stored_before_it_is_locked(mounter: Mounter, foreign: Foreign) -> None:
    drive = mounter("", "--durability", "journal")
    file = drive.here / "f"
    file.write_bytes(b"bytes")
    file.chmod(0o640)
    os.setxattr(file, HOLD, b"ON")
    assert foreign.get("f") == b"bytes"
    assert int(foreign.metadata("f")["mode"]) & 0o777 == 0o640
    assert lock_of(foreign, "f")[2]
    assert len(versions(foreign, "f")) == 1


def test_bad_locks_are_one_line_and_send_nothing(drive: Drive, foreign: Foreign, proxy: Proxy) -> None:
    foreign.put_all({"f": b"x", "g": b"x"})
    retained(foreign, "g", mode="COMPLIANCE")
    file = drive.here / "f"
    with proxy.recording() as traffic:
        for name, value, number in (
            (RETENTION, "GOVERNANCE 2020-01-01T00:00:00Z", errno.EINVAL),
            (RETENTION, "GOVERNANCE yesterday", errno.EINVAL),
            (RETENTION, "GOVERN 2099-01-01", errno.EINVAL),
            (RETENTION, "2099-01-01", errno.EINVAL),
            (HOLD, "perhaps", errno.EINVAL),
        ):
            with fails(number):
                os.setxattr(file, name, value.encode())
        for value in ("COMPLIANCE 2099-01-01", f"GOVERNANCE {YEAR}"):  # shorter, and not as firm
            with fails(errno.EPERM):
                os.setxattr(drive.here / "g", RETENTION, value.encode())
        with fails(errno.EPERM):
            os.removexattr(drive.here / "g", RETENTION)
        os.setxattr(drive.here / "g", RETENTION, f"COMPLIANCE {YEAR}".encode())  # is so already
    assert changing(traffic) == []
    lines = errors(drive)
    assert len(lines) == 8, lines
    assert "retention of f: '2020-01-01T00:00:00Z' is in the past" in lines[0]
    assert f"retention of g: locked until {YEAR} (COMPLIANCE): it can only be locked longer" in lines[5]
    assert f"locked until {YEAR} (COMPLIANCE): sosfs takes none off" in lines[7]


def test_what_is_being_written_is_not_locked(drive: Drive, foreign: Foreign) -> None:
    file = drive.here / "f"
    with file.open("wb") as writer:
        writer.write(b"half")
        writer.flush()
        with fails(errno.EBUSY):
            os.setxattr(file, HOLD, b"ON")
    os.setxattr(file, HOLD, b"ON")
    assert lock_of(foreign, "f")[2]


# What is locked stays


def refusing(path: Path, other: Path) -> Iterator[Callable[[], object]]:
    """All ways to write or remove a file; `other` is an unlocked one beside it."""
    yield lambda: path.write_bytes(b"y")
    yield lambda: path.open("ab")
    yield lambda: path.open("r+b")
    yield lambda: os.close(os.open(path, os.O_RDONLY | os.O_TRUNC))
    yield lambda: os.truncate(path, 0)
    yield lambda: path.unlink()
    yield lambda: path.rename(path.with_name("elsewhere"))
    yield lambda: other.rename(path)


@pytest.mark.parametrize("durability", ["bucket", "journal"])
@pytest.mark.parametrize("by", ["retention", "hold"])
def test_what_is_locked_is_neither_written_nor_removed(
    mounter: Mounter, proxy: Proxy, foreign: Foreign, by: str, durability: str
) -> None:
    foreign.put_all({"d/f": b"kept", "d/other": b"other", "d/free": b"free"})
    if by == "retention":
        retained(foreign, "d/f")
    else:
        held(foreign, "d/f")
    drive = mounter(proxy.endpoint, "--durability", durability)
    file, here = drive.here / "d/f", drive.here / "d"
    assert len(names(here)) == 3
    with proxy.recording() as traffic:
        attempts = list(refusing(file, here / "other"))
        for attempt in attempts:
            with fails(errno.EPERM):
                attempt()
        with fails(errno.EPERM):
            here.rename(drive.here / "e")
    assert changing(traffic) == []
    assert file.read_bytes() == foreign.get("d/f") == b"kept"
    assert len(versions(foreign, "d/f")) == 1
    assert names(here) == ["f", "free", "other"]
    why = f"locked until {YEAR} (GOVERNANCE)" if by == "retention" else "under legal hold"
    (drive.here / "new").write_bytes(b"new")  # with the journal the bucket lacks it, and nothing is to be copied
    with fails(errno.EPERM):
        (drive.here / "new").rename(file)
    lines = errors(drive)
    assert len(lines) == len(attempts) + 2
    assert all(f"d/f: {why}, and was not " in line for line in lines), lines
    (here / "free").unlink()
    (here / "other").rename(here / "renamed")
    (here / "renamed").write_bytes(b"more")


@pytest.mark.parametrize("denied", ["versioning", "object-lock"])
def test_a_key_that_may_not_ask_about_the_bucket_heeds_locks(
    mounter: Mounter, proxy: Proxy, foreign: Foreign, denied: str
) -> None:
    foreign.put_all({"f": b"kept", "g": b"free", "h": b"free"})
    held(foreign, "f")
    with proxy.broken(Answer(403, "AccessDenied"), lambda request: denied in request.query) as rule:
        drive = mounter(proxy.endpoint)
        assert rule.hits
        with fails(errno.EPERM):
            (drive.here / "f").unlink()
        (drive.here / "g").unlink()
        (drive.here / "h").write_bytes(b"changed")
    assert foreign.get("f") == b"kept"


def test_a_lock_that_is_over_lets_go(drive: Drive, foreign: Foreign) -> None:
    """By the server's clock."""
    foreign.put("f", b"x")
    held(foreign, "f")
    until = datetime.now(UTC) + timedelta(seconds=5)
    retained(foreign, "f", until)
    with fails(errno.EPERM):
        (drive.here / "f").unlink()
    held(foreign, "f", "OFF")
    with fails(errno.EPERM):
        (drive.here / "f").unlink()
    time.sleep(max(0.0, (until - datetime.now(UTC)).total_seconds()) + 1.1)
    (drive.here / "f").write_bytes(b"y")
    (drive.here / "f").unlink()
    assert not foreign.exists("f")


def test_a_locked_marker_keeps_its_directory(drive: Drive, foreign: Foreign) -> None:
    (drive.here / "d").mkdir()
    held(foreign, "d/")
    with fails(errno.EPERM):
        (drive.here / "d").rmdir()
    with fails(errno.EPERM):
        (drive.here / "d").rename(drive.here / "e")
    (drive.here / "d/f").write_bytes(b"x")
    (drive.here / "d/f").unlink()
    held(foreign, "d/", "OFF")
    (drive.here / "d").rmdir()


def test_what_was_opened_before_is_written_and_the_locked_version_stays(drive: Drive, foreign: Foreign) -> None:
    file = drive.here / "f"
    file.write_bytes(b"one")
    (before,) = versions(foreign, "f")
    with file.open("r+b") as writer:
        held(foreign, "f")
        with fails(errno.EPERM):
            file.open("ab")
        writer.write(b"two")
    assert foreign.get("f") == b"two"
    after, kept = versions(foreign, "f")
    assert kept == before != after
    answer = foreign.client.get_object_legal_hold(Bucket=foreign.bucket, Key="f", VersionId=before)
    assert answer["LegalHold"]["Status"] == "ON"


def test_attributes_change_and_the_lock_goes_along(drive: Drive, foreign: Foreign) -> None:
    file, folder = drive.here / "f", drive.here / "d"
    file.write_bytes(b"x")
    folder.mkdir()
    for key in ("f", "d/"):
        retained(foreign, key)
        held(foreign, key)
    file.chmod(0o640)
    os.setxattr(file, "user.sos.cache-control", b"no-store")
    folder.chmod(0o710)
    os.utime(folder, ns=(10**18, 10**18))
    sync(drive.here)
    for key, mode in (("f", 0o640), ("d/", 0o710)):
        assert int(foreign.metadata(key)["mode"]) & 0o777 == mode
        assert len(versions(foreign, key)) == 2
        assert lock_of(foreign, key) == ("GOVERNANCE", FAR, True)
    assert foreign.head("f")["CacheControl"] == "no-store"
    with fails(errno.EPERM):
        file.unlink()


def test_after_a_crash_the_lock_goes_along(mounter: Mounter, foreign: Foreign) -> None:
    foreign.put("f", b"x", {"mode": str(0o100644)})
    retained(foreign, "f")
    held(foreign, "f")
    drive = mounter("", "--durability", "journal")
    (drive.here / "f").chmod(0o600)
    drive.mount.kill()
    assert int(foreign.metadata("f")["mode"]) == 0o100644
    drive.mount.start()
    eventually(lambda: int(foreign.metadata("f")["mode"]) & 0o777 == 0o600)
    assert lock_of(foreign, "f") == ("GOVERNANCE", FAR, True)


@CEPH  # it does not heed what a copy says of its lock, which is then set by itself
def test_after_a_crash_between_copy_and_lock_it_is_locked(mounter: Mounter, proxy: Proxy, foreign: Foreign) -> None:
    foreign.put("f", b"x", {"mode": str(0o100644)})
    retained(foreign, "f")
    drive = mounter(proxy.endpoint, "--timeout", "60")

    def locks(request: Request) -> bool:
        return request.method == "PUT" and "retention" in request.query

    with proxy.broken(Hang(), locks):
        (drive.here / "f").chmod(0o600)
        eventually(lambda: lock_of(foreign, "f")[0] is None)
        eventually(lambda: any(locks(request) for request in proxy.traffic.requests))
        drive.mount.kill()
    drive.mount.start()
    eventually(lambda: lock_of(foreign, "f") == ("GOVERNANCE", FAR, False))
    assert int(foreign.metadata("f")["mode"]) & 0o777 == 0o600


def test_old_versions_that_are_locked_are_not_pruned(drive: Drive, foreign: Foreign) -> None:
    for key in ("locked", "free"):
        foreign.put(key, b"1")
        if key == "locked":
            retained(foreign, key)
        foreign.put(key, b"2")
    done = run_sosfs(["versions", "--prune", "1", "--yes", drive.mount.path], drive.mount.environment)
    assert done.returncode == 1
    assert f"locked: locked until {YEAR} (GOVERNANCE)" in done.stderr
    assert len(versions(foreign, "locked")) == 2
    assert len(versions(foreign, "free")) == 1
    assert "locked, version" in errors(drive)[-1]


def test_of_shared_attributes_what_is_locked_stays_and_the_rest_goes(drive: Drive, foreign: Foreign) -> None:
    index = [".sosfs-attributes/v1", f".sosfs-attributes/v1-{'0' * 32}", f".sosfs-attributes/v1-{'1' * 32}"]
    foreign.put_all(dict.fromkeys(index, MAGIC))
    held(foreign, index[1])
    asked = ["clean", foreign.bucket, "--shared-attributes", "--endpoint", drive.mount.access.endpoint]
    done = run_sosfs(asked, drive.mount.environment)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and index[1] in done.stderr
    assert done.stdout == f"shared attributes of {foreign.bucket}: 2 objects removed\n"
    assert [len(versions(foreign, key)) for key in index] == [0, 1, 0]


def test_restore_leaves_what_is_locked(drive: Drive, foreign: Foreign) -> None:
    for key in ("locked", "gone"):
        foreign.put(key, b"1")
        foreign.put(key, b"2")
        retained(foreign, key)
    foreign.delete("gone")
    done = run_sosfs(["restore", drive.mount.path / "locked"], drive.mount.environment)
    assert done.returncode == 1
    assert f"locked until {YEAR} (GOVERNANCE)" in done.stderr
    assert foreign.get("locked") == b"2"
    assert run_sosfs(["restore", drive.mount.path / "gone"], drive.mount.environment).returncode == 0
    assert (drive.here / "gone").read_bytes() == b"2"


# Where new files are locked by themselves


@pytest.fixture
def worm(foreign: Foreign) -> Foreign:
    """The same bucket, which locks what is stored for a day."""
    rule: Any = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}
    foreign.client.put_object_lock_configuration(
        Bucket=foreign.bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
    )
    return foreign


def test_files_are_written_once(worm: Foreign, mounter: Mounter, tmp_path: Path) -> None:
    drive = mounter("", "--part-size", "5M")
    source = tmp_path / "tree"
    (source / "d").mkdir(parents=True)
    (source / "d/small").write_bytes(b"small")
    (source / "d/large").write_bytes(os.urandom(11 << 20))
    (source / "d/small").chmod(0o640)
    drive.run("cp", "-a", source, drive.here)
    sync(drive.here)
    drive.run("diff", "-r", source, drive.here / "tree")
    assert worm.head("tree/d/small")["ObjectLockMode"] == "GOVERNANCE"
    assert (drive.here / "tree/d/small").stat().st_mode & 0o777 == 0o640
    with fails(errno.EPERM):
        (drive.here / "tree/d/small").write_bytes(b"again")
    with fails(errno.EPERM):
        (drive.here / "tree/d/small").unlink()
    drive.shell("echo a > log; exec 3>once; echo one >&3; sync once; echo two >&3; exec 3>&-")
    assert worm.get("once") == b"one\ntwo\n"
    with fails(errno.EPERM):
        (drive.here / "log").open("ab")
    lock = os.open(drive.here / "x.lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY)  # is stored when it is opened
    os.write(lock, b"mine")
    os.close(lock)
    assert worm.get("x.lock") == b"mine"


def test_in_journal_mode_what_is_not_stored_yet_can_be_renamed(worm: Foreign, mounter: Mounter, tmp_path: Path) -> None:
    drive = mounter("", "--durability", "journal")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/f").write_bytes(b"x")
    drive.run("rsync", "-a", f"{tmp_path}/tree", f"{drive.here}/")
    eventually(lambda: status(drive).pending_files == 0)
    assert worm.get("tree/f") == b"x"
    with fails(errno.EPERM):
        (drive.here / "tree/f").rename(drive.here / "tree/g")


# What it costs


@MOTO  # Ceph is asked whether an object is still the same, since it has no condition for that where versions are kept
def test_a_bucket_without_object_lock_is_asked_nothing(server: Server, mounter: Mounter, proxy: Proxy) -> None:
    plain = Foreign(lockable(server).client, f"plain-{os.urandom(8).hex()}")
    plain.client.create_bucket(Bucket=plain.bucket)
    plain.keep_versions()
    drive = mounter(proxy.endpoint, source=plain.bucket)
    (drive.here / "f").write_bytes(b"x")
    (drive.here / "g").write_bytes(b"x")
    with proxy.recording() as traffic:
        (drive.here / "f").write_bytes(b"y")
        (drive.here / "f").rename(drive.here / "h")
        (drive.here / "g").unlink()
        (drive.here / "h").unlink()
    without = traffic.count(Op.HEAD)
    with fails(errno.EOPNOTSUPP):
        os.setxattr(_made(drive.here / "i"), HOLD, b"ON")
    with fails(errno.ENODATA):
        os.getxattr(drive.here / "i", HOLD)
    assert without == 0
    assert "legal hold of i: the bucket has no Object Lock" in errors(drive)[-1]


def _made(path: Path) -> Path:
    path.write_bytes(b"x")
    return path


def test_the_doctor_names_the_default_retention(worm: Foreign, drive: Drive) -> None:
    asked = ["doctor", worm.bucket, "--read-only", "--endpoint", drive.mount.access.endpoint]
    done = run_sosfs(asked, drive.mount.environment)
    assert "new files are locked by themselves: GOVERNANCE 1 day" in done.stdout
    setting(drive, "object-lock").write_text("")
    done = run_sosfs(asked, drive.mount.environment)
    assert "enabled: what is locked can be neither changed nor removed" in done.stdout
