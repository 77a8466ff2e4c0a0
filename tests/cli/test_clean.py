"""What `sosfs clean` removes, and above all what it does not."""

from __future__ import annotations

import errno
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest

from sosfs.cli import clean, shared_index, unfinished_uploads
from sosfs.cli.clean import Wishes
from sosfs.cli.state_directories import StateDirectory
from sosfs.cli.unfinished_uploads import end_of_journal, remove_forgotten
from sosfs.config import parameters
from sosfs.config.credentials import Anonymous, Credentials
from sosfs.journal.journal import Journal, LeftOver, left_over
from sosfs.s3.calls import SignedCalls
from sosfs.s3.endpoint import S3Target
from sosfs.s3.protocol import Part, Upload
from sosfs.s3.scratch_key import PROOF, of_zeros
from sosfs.s3.version_answers import VersionMarker, VersionPage
from tests.conftest import access_to
from tests.journal.test_journal import PROPERTIES, SMALL
from tests.support.drive import eventually, fails
from tests.support.faults import Answer
from tests.support.foreign import Foreign
from tests.support.mounting import SOSFS, Mount, run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.subjects import Fixed
from tests.support.traffic import Op, on
from tests.support.watchdog import Watchdog

MIB = 1 << 20


class Machine:
    """A user with cache directories in the usual place, `caches`."""

    def __init__(self, server: Server, endpoint: str, bucket: Foreign, base: Path, watchdog: Watchdog) -> None:
        self.endpoint, self.bucket = endpoint, bucket
        self.access = access_to(server, endpoint)
        self.base, self.watchdog = base, watchdog
        self.caches = base / "caches"
        self.mounts: list[Mount] = []

    def mount(self, prefix: str = "", *options: str) -> Mount:
        """A mount with its cache directory where `clean` looks."""
        name = f"{self.bucket.bucket}-{len(self.mounts):012x}"
        source = f"{self.bucket.bucket}/{prefix}" if prefix else self.bucket.bucket
        cache = self.caches / name
        mount = Mount(
            self.access,
            source,
            self.base / f"m{len(self.mounts)}",
            self.watchdog,
            (*options, "--cache-dir", str(cache)),
        )
        mount.cache = cache
        mount.start()
        self.mounts.append(mount)
        return mount

    def clean(self, *arguments: str, code: int = 0) -> str:
        done = run_sosfs(["clean", *arguments, "--cache-dir", self.caches], self.access.environment(self.base / "home"))
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    def clean_bucket(self, *arguments: str, code: int = 0) -> str:
        return self.clean(self.bucket.bucket, "--endpoint", self.endpoint, *arguments, code=code)


@pytest.fixture
def machine(server: Server, proxy: Proxy, foreign: Foreign, tmp_path: Path, watchdog: Watchdog) -> Iterator[Machine]:
    machine = Machine(server, proxy.endpoint, foreign, tmp_path, watchdog)
    yield machine
    for mount in machine.mounts:
        mount.clear()


def test_what_nobody_needs_goes_and_a_dry_run_only_tells(machine: Machine) -> None:
    old, live = machine.mount("old", "--cache-size", "10M"), machine.mount("live")
    (old.path / "file").write_bytes(b"x" * 100_000)
    assert (old.path / "file").read_bytes()
    old.stop()
    told = machine.clean("-n")
    assert f"would be removed: {old.cache}" in told and f"stays: {live.cache}: a mount has it" in told
    assert old.cache.is_dir()
    told = machine.clean()
    assert f"removed: {old.cache}" in told and "1 cache directory removed" in told
    assert not old.cache.exists()
    (live.path / "new").write_bytes(b"goes on")
    live.stop()
    assert machine.bucket.get("live/new") == b"goes on"
    assert "0 cache directories removed" in machine.clean("another-bucket", "--endpoint", machine.endpoint)
    assert live.cache.is_dir()
    assert "1 cache directory removed" in machine.clean_bucket()


def test_what_is_not_in_the_bucket_yet_stays(machine: Machine, proxy: Proxy) -> None:
    mount = machine.mount("", "--durability", "journal", "--patience", "1")
    with proxy.broken(Answer(403, "AccessDenied"), on(Op.PUT, key="kept")):
        (mount.path / "kept").write_bytes(b"only here")
        mount.kill()
        for told in (machine.clean(), machine.clean_bucket()):
            assert f"stays: {mount.cache}: 1 change is not in the bucket: mount {machine.bucket.bucket} of" in told
            assert "0 cache directories removed" in told
    mount.start()
    eventually(lambda: machine.bucket.exists("kept"))
    mount.stop()
    assert machine.bucket.get("kept") == b"only here"
    assert "1 cache directory removed" in machine.clean()


@pytest.mark.parametrize("what", ["damaged/20260101T000000Z-1/what", "spool/1-1.spool", "notes.txt"])
def test_what_is_damaged_or_unknown_stays(machine: Machine, what: str) -> None:
    mount = machine.mount()
    mount.stop()
    strange = mount.cache / what
    strange.parent.mkdir(parents=True, exist_ok=True)
    strange.write_text("a file of the user's\n")
    assert f"stays: {mount.cache}: " in machine.clean()
    assert strange.read_text() == "a file of the user's\n"


def test_a_journal_that_cannot_be_read_stays(machine: Machine) -> None:
    mount = machine.mount()
    mount.stop()
    for path in mount.cache.glob("journal.sqlite*"):
        path.write_bytes(b"no database" * 1000)
    assert f"stays: {mount.cache}: its journal is damaged" in machine.clean()


def begin(machine: Machine, key: str, size: int = 6 * MIB) -> str:
    client, bucket = machine.bucket.client, machine.bucket.bucket
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=bytes(size))
    return upload


def test_only_uploads_of_mounts_here_are_ended_unless_all_are_meant(machine: Machine) -> None:
    begin(machine, "others/large")
    told = machine.clean_bucket("--uploads", "-n")
    assert "6.3 MB      1 parts  others/large" in told and "1 unfinished upload in" in told
    assert len(machine.bucket.uploads()) == 1
    assert "none was ended" in machine.clean_bucket("--uploads")  # nobody can be asked
    machine.clean_bucket()
    assert len(machine.bucket.uploads()) == 1
    begin(machine, "others/more")
    assert "2 unfinished uploads ended" in machine.clean_bucket("--uploads", "--yes")
    assert machine.bucket.uploads() == []


@pytest.mark.parametrize(("answer", "left"), [(b"n\n", 1), (b"\n", 1), (b"y\n", 0)])
def test_who_can_be_asked_is(machine: Machine, answer: bytes, left: int) -> None:
    begin(machine, "others/large")
    master, slave = pty.openpty()
    try:
        os.write(master, answer)
        done = subprocess.run(
            [*SOSFS, "clean", machine.bucket.bucket, "--uploads", "--endpoint", machine.endpoint],
            env=machine.access.environment(machine.base / "home"), stdin=slave, capture_output=True, text=True,
            timeout=60, check=True, cwd="/",
        )  # fmt: skip
    finally:
        os.close(master)
        os.close(slave)
    assert "End them all? [y/N]" in done.stdout
    assert len(machine.bucket.uploads()) == left


def test_an_upload_that_a_mount_here_goes_on_with_is_no_left_over(machine: Machine) -> None:
    mount = machine.mount("", "--part-size", "5M")
    with (mount.path / "large").open("wb") as file:
        for _ in range(20):
            file.write(os.urandom(5 * MIB))
        eventually(lambda: bool(machine.bucket.uploads()))
        begin(machine, "others/large")
        assert "1 unfinished upload ended" in machine.clean_bucket("--uploads", "--yes")
    mount.stop()
    assert machine.bucket.head("large")["ContentLength"] == 100 * MIB


def test_uploads_that_a_mount_left_are_ended_before_its_directory_goes(machine: Machine) -> None:
    """A mount that was killed while a file was being written: the file was promised to nobody, its parts cost money."""
    mount = machine.mount("", "--part-size", "5M")
    write = f"f = open({str(mount.path / 'large')!r}, 'wb'); [f.write(b'x' * {5 * MIB}) for _ in range(20)]"
    writer = subprocess.Popen([sys.executable, "-c", f"{write}; import time; time.sleep(300)"])
    eventually(lambda: bool(machine.bucket.uploads()), seconds=60)
    mount.kill()
    writer.kill()
    writer.wait()
    assert machine.bucket.uploads()
    told = machine.clean()
    assert f"stays: {mount.cache}: " in told
    told = machine.clean_bucket()
    if "1 upload of it" in told:
        raise AssertionError(told)


def test_uploads_of_what_a_mount_has_just_left_are_not_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has ended between the look at its journal and the lock: the parts of its files may be nowhere else."""
    owner = "http://server bucket "

    def late(directory: Path) -> LeftOver | None:
        found = left_over(directory)
        with closing(Journal(directory, owner)) as journal:
            journal.save_draft(0, SMALL)
        return found

    with closing(Journal(tmp_path, owner)) as journal:
        journal.add_upload("id", "key", PROPERTIES)
    monkeypatch.setattr(unfinished_uploads, "left_over", late)
    assert end_of_journal(cast(SignedCalls, None), tmp_path, "http://server", "bucket") == (0, 0)
    with closing(Journal(tmp_path, owner)) as journal:
        assert len(journal.uploads()) == 1


OWNER = "http://server bucket "


def left_by_a_mount(directory: Path) -> Path:
    """What a mount leaves that has sent all."""
    directory.mkdir(parents=True, exist_ok=True)
    with closing(Journal(directory, OWNER)):
        (directory / "spool").mkdir(exist_ok=True)
    return directory


def owe(directory: Path, what: str) -> None:
    """Something is left there after all."""
    if what in ("change", "upload", "scratch"):
        with closing(Journal(directory, OWNER)) as journal:
            if what == "change":
                journal.save_draft(0, SMALL)
            elif what == "upload":
                journal.add_upload("id", "key", PROPERTIES)
            else:
                journal.add_scratch("key")
        return
    path = directory / what
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("change", "1 change is not in the bucket: mount bucket of http://server and unmount it"),
        ("upload", "1 upload of it are unfinished in the bucket"),
        ("scratch", "scratch objects of it are in the bucket"),
        ("damaged/one/what", "damaged: "),
        ("spool/1-1.spool", "no journal says of what file"),
        ("letter.txt", "it holds what is not of sosfs: letter.txt"),
    ],
)
@pytest.mark.parametrize("form", ["bucket", "account"])
def test_what_is_owed_or_unknown_keeps_a_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, why: str, form: str
) -> None:
    """That of one bucket, and that of a mount of all of an account."""
    account = tmp_path / f"all-{1:012x}" / f"{2:012x}"
    whole = tmp_path / f"bucket-{0:012x}" if form == "bucket" else account
    place = left_by_a_mount(whole if form == "bucket" else account / f"bucket-{3:012x}")
    owe(place, what)
    assert clean.of_machine(tmp_path, Wishes()) == 0
    assert re.search(rf"^stays: {whole}: .*{why}", capsys.readouterr().out, re.MULTILINE)
    assert place.is_dir()


@pytest.mark.parametrize(
    ("has_mark", "why"), [(True, "its journal is damaged: mount bucket"), (False, "its journal cannot be read: ")]
)
def test_so_does_a_journal_that_is_no_database(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], has_mark: bool, why: str
) -> None:
    place = left_by_a_mount(tmp_path / f"bucket-{0:012x}")
    for path in place.glob("journal.sqlite*"):
        path.write_bytes(b"no database" * 1000)
    if not has_mark:
        (place / "journal.mark").unlink()
    assert clean.of_machine(tmp_path, Wishes()) == 0
    assert f"stays: {place}: {why}" in capsys.readouterr().out
    assert place.is_dir()


def test_so_does_a_mount_that_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = left_by_a_mount(tmp_path / f"bucket-{0:012x}")
    with closing(Journal(place, OWNER)):
        assert clean.of_machine(tmp_path, Wishes()) == 0
        assert capsys.readouterr().out.startswith(f"stays: {place}: a mount has it\n0 cache directories removed")
    assert clean.of_machine(tmp_path, Wishes()) == 0
    assert not place.exists()


@pytest.mark.parametrize("what", ["damaged/one/what", "letter.txt"])
def test_so_does_what_is_the_accounts_own(tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    account = tmp_path / f"all-{1:012x}" / f"{2:012x}"
    place = left_by_a_mount(account / f"bucket-{3:012x}")
    owe(account, what)
    assert clean.of_machine(tmp_path, Wishes()) == 0
    assert f"stays: {account}: " in capsys.readouterr().out
    assert place.is_dir()


def test_a_dry_run_removes_nothing_here_and_ends_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Untouched:
        """The bucket's requests, of which none may come."""

        def __init__(self, *_: object) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr("sosfs.s3.calls.SignedCalls", Untouched)
    place, owing = (left_by_a_mount(tmp_path / f"bucket-{number:012x}") for number in range(2))
    owe(owing, "upload")
    settings = parameters.resolve("bucket", "", tmp_path, [{"endpoint": "http://server", "cache_dir": tmp_path}])
    assert clean.of_bucket(settings, Anonymous(), Wishes(is_dry=True)) == 0
    assert f"would be removed: {place}" in capsys.readouterr().out
    assert place.is_dir() and owing.is_dir()


def test_a_directory_is_of_the_bucket_that_its_journal_names(tmp_path: Path) -> None:
    """Whatever it is called; where there is none, it is as it is called."""
    named = left_by_a_mount(tmp_path / f"another-{0:012x}")
    assert [StateDirectory(named).is_of(bucket) for bucket in ("bucket", "another")] == [True, False]
    bare = tmp_path / f"another-{1:012x}"
    bare.mkdir()
    assert [StateDirectory(bare).is_of(bucket) for bucket in ("bucket", "another")] == [False, True]


def test_uploads_of_another_bucket_or_of_a_mount_that_owes_are_not_ended(tmp_path: Path) -> None:
    place = left_by_a_mount(tmp_path)
    owe(place, "upload")
    nobody = cast(SignedCalls, None)
    assert end_of_journal(nobody, place, "http://another", "bucket") == (0, 0)
    assert end_of_journal(nobody, place, "http://server", "another") == (0, 0)
    with closing(Journal(place, OWNER)):
        assert end_of_journal(nobody, place, "http://server", "bucket") == (0, 0), "a mount has it"
    owe(place, "change")
    assert end_of_journal(nobody, place, "http://server", "bucket") == (0, 0)


@pytest.mark.parametrize("what", ["uploads", "parts", "versions"])
def test_a_listing_that_goes_round_is_not_followed_for_ever(what: str) -> None:
    """Nor taken for a whole one: what is removed is decided by what else is there."""
    ways = iter("abab")

    class Round:
        def list_uploads(self, prefix: str, after: object) -> tuple[list[Upload], tuple[str, str] | None]:
            at = next(ways) if what == "uploads" else ""
            return ([] if at else [Upload("key", "id", 0)]), ((at, "id") if at else None)

        def list_parts(self, *_: object) -> tuple[list[Part], str]:
            return [], next(ways)

        def list_versions(self, *_: object, **options: object) -> VersionPage:
            return VersionPage((), (), VersionMarker(next(ways)))

    calls = cast(SignedCalls, Round())
    with fails(errno.EIO):
        list(
            shared_index._versions(calls, "")
            if what == "versions"
            else unfinished_uploads.listed(calls, "", used=set())
        )


def test_scratch_objects_of_mounts_go(machine: Machine) -> None:
    """That of a mount which has died, told by its journal; and such as no journal knows, once they are old."""

    def scratch() -> list[str]:
        return [key for key in machine.bucket.keys() if "sosfs-zeros" in key]  # noqa: SIM118 - of a bucket

    mount = machine.mount("sub")
    (mount.path / "file").touch()
    os.truncate(mount.path / "file", 40 * MIB)
    mount.kill()
    assert scratch() and scratch()[0].startswith("sub/")
    assert "scratch objects of it are in the bucket" in machine.clean()
    assert "1 scratch object of mounts removed" in machine.clean_bucket()
    assert scratch() == []
    assert not mount.cache.exists()
    machine.bucket.put_all({".sosfs-zeros-mine": b"a file", of_zeros(""): b"a file", f"{of_zeros('')}.txt": b"a file"})
    machine.bucket.put(of_zeros(""), b"\0", PROOF.metadata)
    assert "scratch" not in machine.clean_bucket(), "a mount of another machine may have it"
    source = Fixed(Credentials(machine.access.key, machine.access.secret))
    target = S3Target(machine.bucket.bucket, machine.endpoint, "us-east-1", source)
    with closing(SignedCalls(target, source.current())) as calls:
        assert remove_forgotten(calls, "", before=time.time() + 60) == 1
    assert [machine.bucket.get(key) for key in scratch()] == [b"a file"] * 3
