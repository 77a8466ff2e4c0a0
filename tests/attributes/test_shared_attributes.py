"""`--shared-attributes`: what one mount has asked, a first walk on another machine need not ask again."""

from __future__ import annotations

import json
import re
import stat
import threading
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from sosfs.attributes.shared.table import MAGIC, decoded
from tests.conftest import Mounter, access_to
from tests.support.drive import Drive, names, status
from tests.support.faults import Action, Answer, Page
from tests.support.foreign import Foreign
from tests.support.mounting import run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import Op, Request, Traffic, on

BOTH = pytest.mark.parametrize("server", ["moto", "ceph"], indirect=True)
SHARING = ("--shared-attributes", "--ttl", "300")
TOP = ".sosfs-attributes/"
MTIME = 1_234_567_890


def posix(mode: int, *, uid: int = 1234, gid: int = 2345, mtime: int = MTIME) -> dict[str, str]:
    """Attributes as s3fs stores them."""
    return {"mode": str(mode), "uid": str(uid), "gid": str(gid), "mtime": str(mtime)}


def fill(foreign: Foreign, prefix: str = "") -> None:
    """A tree with all that `stat` tells apart; some directories have a marker, others none."""
    for number in range(12):
        foreign.put(f"{prefix}plain/f{number:02}", b"x" * number, posix(stat.S_IFREG | 0o640, mtime=MTIME + number))
        foreign.put(f"{prefix}marked/deep/g{number:02}", b"y" * 5000, posix(stat.S_IFREG | 0o400, uid=number))
    foreign.put(f"{prefix}marked/", b"", posix(stat.S_IFDIR | 0o750))
    foreign.put(f"{prefix}marked/empty/", b"", posix(stat.S_IFDIR | 0o700))
    foreign.put(f"{prefix}link", b"plain/f01", posix(stat.S_IFLNK | 0o777))
    foreign.put(f"{prefix}pipe", b"", posix(stat.S_IFIFO | 0o600))
    foreign.put(f"{prefix}bare", b"without metadata")


def look(drive: Drive) -> list[str]:
    """What `find` tells: type, mode, owner, time, size and where links lead.

    The time is left out of directories that have no marker: it is when they were mounted.
    """
    lines = drive.run("find", ".", "-printf", "%P %M %U %G %T@ %s %l\n").splitlines()
    return sorted(re.sub(r"\S+ 0 $", "", line) if re.search(r" drwxr-xr-x ", line) else line for line in lines)


def asked(traffic: Traffic) -> list[str]:
    """The keys beside the index of which more than a listing was asked; those of links are read for what is in them."""
    keys = {request.key for request in traffic.of(Op.HEAD, Op.GET)}
    return sorted(key for key in keys - {"link"} if not key.startswith(TOP))


def foreign_keys(foreign: Foreign) -> list[str]:
    """The keys in the bucket but for the index."""
    return [key for key in foreign.keys() if not key.startswith(TOP)]  # noqa: SIM118 - no mapping


def is_of_index(request: Request) -> bool:
    return TOP in request.key


def told(mounter: Mounter, proxy: Proxy, *options: str, source: str = "") -> list[str]:
    """What a mount sees that walks through the tree, tells it, and ends."""
    drive = mounter(proxy.endpoint, *SHARING, *options, source=source)
    seen = look(drive)
    drive.mount.stop()
    return seen


@BOTH
@pytest.mark.promise(8)
def test_a_first_walk_on_another_machine_asks_for_no_file(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    fill(foreign)
    seen = told(mounter, proxy)
    assert foreign.keys(TOP) == [f"{TOP}v1"], "one object, and nothing else"

    for walk in (("ls", "-lR"), ("rsync", "-ain", "./", "/nowhere/"), ("find", ".", "-type", "f", "-perm", "640")):
        other = mounter(proxy.endpoint, *SHARING)
        with proxy.recording() as traffic:
            other.run(*walk)
        assert traffic.count(Op.HEAD) == 0, f"{walk}: {traffic}"
        assert asked(traffic) == [], f"{walk}: {traffic}"
        assert sum(map(is_of_index, traffic.of(Op.GET))) == 1, f"{walk}: {traffic}"
        assert look(other) == seen
        assert ".sosfs-attributes" not in names(other.here)
        other.mount.stop()


@BOTH
def test_what_another_client_has_changed_since_is_asked_for_and_shown(
    foreign: Foreign, mounter: Mounter, proxy: Proxy
) -> None:
    fill(foreign)
    told(mounter, proxy)
    foreign.client.copy_object(
        Bucket=foreign.bucket,
        Key="plain/f03",
        CopySource={"Bucket": foreign.bucket, "Key": "plain/f03"},
        Metadata=posix(stat.S_IFREG | 0o604),
        MetadataDirective="REPLACE",
    )
    foreign.put("plain/f04", b"new", posix(stat.S_IFREG | 0o606))
    foreign.put("plain/new", b"new", posix(stat.S_IFREG | 0o660))
    foreign.delete("plain/f05")
    other = mounter(proxy.endpoint, *SHARING)
    with proxy.recording() as traffic:
        other.run("ls", "-lR")
    assert asked(traffic) == ["plain/f03", "plain/f04", "plain/new"], str(traffic)
    shown = {name: oct((other.here / "plain" / name).stat().st_mode & 0o777) for name in ("f03", "f04", "new", "f06")}
    assert shown == {"f03": "0o604", "f04": "0o606", "new": "0o660", "f06": "0o640"}
    assert not (other.here / "plain/f05").exists()


@BOTH
def test_what_a_mount_writes_is_told_as_well(foreign: Foreign, mounter: Mounter, proxy: Proxy, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "d/e").mkdir(parents=True)
    for number in range(20):
        (source / f"d/e/f{number}").write_bytes(b"%d" % number)
        (source / f"d/e/f{number}").chmod(0o600 + number)
    (source / "d/link").symlink_to("e/f1")
    first = mounter(proxy.endpoint, *SHARING)
    first.run("cp", "-a", f"{source}/.", ".")
    (first.here / "passing").write_bytes(b"renamed at once")
    (first.here / "passing").rename(first.here / "renamed")
    (first.here / "passing").write_bytes(b"removed at once")
    (first.here / "passing").unlink()
    with proxy.recording() as traffic:
        first.mount.stop()
    assert sorted(request.key for request in traffic.of(Op.HEAD)) == foreign_keys(foreign), "each once, and no other"
    other = mounter(proxy.endpoint, *SHARING)
    with proxy.recording() as traffic:
        listed = other.run("rsync", "-ain", f"{source}/d", "./")
    assert (listed, traffic.count(Op.HEAD)) == ("", 0), f"{listed}\n{traffic}"


@BOTH
def test_without_the_option_nothing_is_written_or_asked(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    fill(foreign)
    plain = mounter(proxy.endpoint)
    with proxy.recording() as traffic:
        look(plain)
        (plain.here / "new").write_bytes(b"new")
        plain.mount.stop()
    assert not any(map(is_of_index, traffic.requests)), str(traffic)
    told(mounter, proxy)
    with proxy.recording() as traffic:
        plain = mounter(proxy.endpoint)
        assert ".sosfs-attributes" not in names(plain.here)
        look(plain)
        plain.mount.stop()
    assert not any(map(is_of_index, traffic.requests)), str(traffic)


def text() -> bytes:
    return b"a note of somebody's"


def bomb() -> bytes:
    body = zlib.compress(b"\n" * (1 << 30))
    return MAGIC + sha256(body).digest() + body


@pytest.mark.parametrize("junk", [text, bytes, bomb], ids=["text", "empty", "bomb"])
@pytest.mark.parametrize("server", ["ceph"], indirect=True)
def test_what_is_no_index_is_one_line_in_the_log_and_is_replaced(
    foreign: Foreign, mounter: Mounter, proxy: Proxy, junk: Callable[[], bytes]
) -> None:
    fill(foreign)
    foreign.put(f"{TOP}v1", junk())
    drive = mounter(proxy.endpoint, *SHARING)
    seen = look(drive)
    assert any(" -rw-r----- 1234 2345 " in line for line in seen)
    drive.mount.stop()
    assert drive.mount.log.count("no index of attributes") == 1
    assert len(decoded(foreign.get(f"{TOP}v1")).entries) == len(foreign.files()) - 1 + 2  # with two markers
    other = mounter(proxy.endpoint, *SHARING)
    with proxy.recording() as traffic:
        assert look(other) == seen
    assert traffic.count(Op.HEAD) == 0, str(traffic)


@BOTH
def test_an_index_that_cannot_be_read_costs_the_questions_that_it_would_have_saved(
    foreign: Foreign, mounter: Mounter, proxy: Proxy
) -> None:
    fill(foreign)
    seen = told(mounter, proxy)
    other = mounter(proxy.endpoint, *SHARING, "--patience", "0", "--read-only")
    with proxy.broken(Answer(500, "InternalError"), is_of_index) as rule:
        assert look(other) == seen
    assert 1 <= rule.hits <= 3


@BOTH
def test_two_mounts_that_tell_at_once_lose_nothing(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    drives = [mounter(proxy.endpoint, *SHARING) for _ in range(2)]
    for number, drive in enumerate(drives):
        (drive.here / f"d{number}").mkdir()
        for name in range(3):
            (drive.here / f"d{number}/f{name}").write_bytes(b"%d" % number)
    ends = [threading.Thread(target=drive.mount.stop) for drive in drives]
    for end in ends:
        end.start()
    for end in ends:
        end.join()
    other = mounter(proxy.endpoint, *SHARING)
    with proxy.recording() as traffic:
        other.run("ls", "-lR")
    assert traffic.count(Op.HEAD) == 0, str(traffic)
    assert foreign.keys(TOP) == [f"{TOP}v1"]


@BOTH
def test_one_command_removes_all_of_it_and_nothing_else(
    server: Server, foreign: Foreign, mounter: Mounter, proxy: Proxy, tmp_path: Path
) -> None:
    fill(foreign)
    told(mounter, proxy)
    told(mounter, proxy, source=f"{foreign.bucket}/marked")
    foreign.put(f"{TOP}v1-{'0' * 32}", MAGIC + b"left behind")
    for name in ("notes", "v1.txt", "a/v1", "v1-0", "v1", f"v1-{'0' * 32}"):
        foreign.put(f"plain/{TOP}{name}", b"somebody's own")
    everything = foreign.keys()
    kept = [key for key in everything if TOP not in key or key.startswith("plain/")]
    assert len(everything) == len(kept) + 3

    clean = ("clean", foreign.bucket, "--shared-attributes", "--endpoint", server.endpoint)
    environment = access_to(server).environment(tmp_path)
    done = run_sosfs([*clean, "-n"], environment)
    stays = "".join(f"stays: plain/{TOP}{name}: it is no index of attributes\n" for name in ("v1", f"v1-{'0' * 32}"))
    assert (done.returncode, done.stdout) == (
        0, f"{stays}shared attributes of {foreign.bucket}: 3 objects would be removed\n",
    ), done.stderr  # fmt: skip
    assert len(foreign.keys()) == len(kept) + 3
    done = run_sosfs(clean, environment)
    assert (done.returncode, done.stdout) == (0, f"{stays}shared attributes of {foreign.bucket}: 3 objects removed\n")
    assert foreign.keys() == kept
    assert run_sosfs(["clean", "--shared-attributes"], environment).returncode == 2


@BOTH
def test_no_version_of_it_stays_where_versions_are_kept(
    server: Server, foreign: Foreign, mounter: Mounter, proxy: Proxy, tmp_path: Path
) -> None:
    foreign.keep_versions()
    fill(foreign)
    told(mounter, proxy)
    foreign.put("later", b"")
    told(mounter, proxy)
    theirs = f"{TOP}v1-{'0' * 32}"
    foreign.put(theirs, b"somebody's own")
    foreign.delete(theirs)
    command = ["clean", foreign.bucket, "--shared-attributes", "--endpoint", server.endpoint]
    assert run_sosfs(command, access_to(server).environment(tmp_path)).returncode == 0
    left = foreign.client.list_object_versions(Bucket=foreign.bucket, Prefix=TOP)
    assert [found["Key"] for found in left.get("Versions", [])] == [theirs]
    assert [found["Key"] for found in left.get("DeleteMarkers", [])] == [theirs]


@pytest.mark.parametrize(
    "answer",
    [
        Answer(403, "AccessDenied"),
        Page(200, body=b"<DeleteResult><Deleted><Key>other</Key></Deleted></DeleteResult>", media="application/xml"),
    ],
    ids=["a batch is refused", "other keys are told of"],
)
def test_it_is_removed_where_no_batch_may_be(
    foreign: Foreign, proxy: Proxy, server: Server, tmp_path: Path, answer: Action
) -> None:
    """Some servers ask for the right to remove from the whole bucket before they look at the keys."""
    parts = [f"{TOP}v1", f"below/{TOP}v1"]
    foreign.put_all(dict.fromkeys(parts, MAGIC + b"what is told"))
    proxy.inject(answer, on(Op.DELETE_MANY))
    done = run_sosfs(
        ["clean", foreign.bucket, "--shared-attributes", "--endpoint", proxy.endpoint],
        access_to(server).environment(tmp_path),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert foreign.keys() == []


@BOTH
def test_a_key_that_may_not_write_there_only_reads(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    fill(foreign)
    drive = mounter(proxy.endpoint, *SHARING)
    with proxy.broken(Answer(403, "AccessDenied"), on(Op.PUT, prefix=TOP)) as rule:
        look(drive)
        assert status(drive).shared_attributes.startswith("0 files known from others, 0 told")
        drive.mount.stop()
    assert rule.hits == 1
    assert drive.mount.log.count("shared attributes are only read") == 1
    assert not foreign.exists(f"{TOP}v1")


@BOTH
def test_a_read_only_mount_reads_and_tells_nothing(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    fill(foreign)
    look_at = mounter(proxy.endpoint, *SHARING, "--read-only")
    look(look_at)
    look_at.mount.stop()
    assert not foreign.exists(f"{TOP}v1")
    seen = told(mounter, proxy)
    other = mounter(proxy.endpoint, *SHARING, "--read-only")
    with proxy.recording() as traffic:
        assert look(other) == seen
    assert traffic.count(Op.HEAD) == 0, str(traffic)
    assert "only read, as the mount is read-only" in status(other).shared_attributes


@BOTH
@pytest.mark.promise(13)
def test_a_mount_of_a_prefix_keeps_to_it_and_nobody_else_may_read_the_index(
    foreign: Foreign, mounter: Mounter, proxy: Proxy
) -> None:
    fill(foreign, "photos/")
    source = f"{foreign.bucket}/photos"
    seen = told(mounter, proxy, "--acl", "public-read", source=source)
    proxy.reset()
    other = mounter(proxy.endpoint, *SHARING, source=source)
    with proxy.recording() as traffic:
        assert look(other) == seen
    assert traffic.count(Op.HEAD) == 0, str(traffic)
    outside = [
        request for request in traffic.requests
        if not (request.key or request.query.get("prefix", "")).startswith("photos/")
    ]  # fmt: skip
    assert outside == []
    grants = foreign.client.get_object_acl(Bucket=foreign.bucket, Key=f"photos/{TOP}v1")["Grants"]
    assert [grant["Permission"] for grant in grants] == ["FULL_CONTROL"]


@pytest.mark.parametrize("server", ["ceph"], indirect=True)
@pytest.mark.promise(13)
def test_the_index_is_encrypted_with_the_key_of_the_mount(
    foreign: Foreign, mounter: Mounter, proxy: Proxy, tmp_path: Path
) -> None:
    (tmp_path / "key").write_bytes(bytes(range(32)))
    (tmp_path / "key").chmod(0o600)
    options = (*SHARING, "--sse-c-key", str(tmp_path / "key"))
    first = mounter(proxy.endpoint, *options)
    (first.here / "secret").write_bytes(b"secret")
    (first.here / "secret").chmod(0o640)
    first.mount.stop()
    with pytest.raises(ClientError):
        foreign.get(f"{TOP}v1")
    other = mounter(proxy.endpoint, *options)
    with proxy.recording() as traffic:
        assert "-rw-r-----" in other.run("ls", "-l")
    assert traffic.count(Op.HEAD) == 0, str(traffic)


@BOTH
@pytest.mark.promise(9)
def test_the_index_is_not_listed_and_can_be_reached(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    fill(foreign)
    told(mounter, proxy)
    plain = mounter()
    assert ".sosfs-attributes" not in names(plain.here)
    assert names(plain.here / ".sosfs-attributes") == ["v1"]
    plain.run("rm", "-r", ".sosfs-attributes")
    plain.mount.stop()
    assert not foreign.exists(f"{TOP}v1")


@BOTH
def test_what_a_machine_has_known_for_long_is_told_when_it_begins_to_share(
    foreign: Foreign, mounter: Mounter, proxy: Proxy
) -> None:
    fill(foreign)
    drive = mounter(proxy.endpoint, "--ttl", "300")
    seen = look(drive)
    drive.mount.stop()
    drive.mount.options = SHARING
    drive.mount.start()
    assert look(drive) == seen
    drive.mount.stop()
    other = mounter(proxy.endpoint, *SHARING)
    with proxy.recording() as traffic:
        assert look(other) == seen
    assert traffic.count(Op.HEAD) == 0, str(traffic)


@BOTH
def test_status_tells_how_it_goes(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    fill(foreign)
    told(mounter, proxy)
    other = mounter(proxy.endpoint, *SHARING)
    look(other)
    done = run_sosfs(["status", other.mount.path], other.mount.environment)
    assert "known from others" in done.stdout
    told_json = json.loads(run_sosfs(["status", other.mount.path, "--json"], other.mount.environment).stdout)
    assert told_json["shared_attributes"].endswith("0 told to others")
