"""ACLs as text, and that the server goes by them: on Ceph, which enforces them, seen by a second user and by nobody."""

from __future__ import annotations

import errno
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as some

from sosfs.config.choices import Canned
from sosfs.control import acl_text
from sosfs.control.rejected_texts import BadText
from sosfs.s3.protocol import (
    Acl,
    Grant,
)
from tests.conftest import Mounter
from tests.support.drive import Drive, eventually, fails
from tests.support.faults import Hang
from tests.support.foreign import Foreign, numbered
from tests.support.mounting import Access, Mount, run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server, client_of
from tests.support.traffic import Op, on

MIB = 1 << 20


@pytest.fixture(scope="module")
def server(ceph: Server) -> Server:
    """Only where ACLs are enforced is there something to see."""
    return ceph


# The grammar

GRANTEES = some.one_of(
    some.sampled_from(
        [acl_text.ALL_USERS, acl_text.AUTHENTICATED_USERS, "http://acs.amazonaws.com/groups/s3/LogDelivery"]
    ),
    some.from_regex(r"[A-Za-z0-9$:@.-]{1,40}", fullmatch=True).filter(lambda text: not text.startswith("http")),
)
GRANTS = some.builds(Grant, GRANTEES, some.sampled_from(acl_text.PERMISSIONS))


@given(grants=some.lists(GRANTS, max_size=6, unique=True))
def test_what_is_shown_is_read_back(grants: list[Grant]) -> None:
    held = Acl("me", (Grant("me", "FULL_CONTROL"), *[grant for grant in grants if grant.grantee != "me"]))
    assert acl_text.parse(acl_text.shown(held), owner="me") == held
    assert acl_text.parse(acl_text.help_text(acl_text.OF_OBJECTS) + acl_text.shown(held), owner="me") == held


@pytest.mark.parametrize("canned", Canned)
def test_a_canned_name_stands_alone(canned: Canned) -> None:
    assert acl_text.parse(f"# mine\n\n  {canned.value}  # all\n", owner="me") is canned
    assert acl_text.parse(canned.value.upper(), owner="me") is canned
    for other in ("owner me", "all-users READ", canned.value):
        with pytest.raises(BadText, match=r"line 2: .* stands alone") as refused:
            acl_text.parse(f"# x\n{canned.value}\n{other}", owner="me")
        assert refused.value.line == 2


def test_order_case_and_comments_say_nothing() -> None:
    one = acl_text.parse("owner me\nuser bob READ\nall-users READ\n", owner="me")
    other = acl_text.parse("# hello\nALL-USERS read\n\n  user bob read # a reader\nuser bob READ", owner="me")
    assert isinstance(one, Acl)
    assert isinstance(other, Acl)
    assert acl_text.same(one, other)


def test_the_owner_keeps_control_when_nobody_else_has_it() -> None:
    assert acl_text.parse("user bob READ", owner="me") == Acl("me", (Grant("me", "FULL_CONTROL"), Grant("bob", "READ")))
    assert acl_text.parse("owner me", owner="me") == Acl("me", (Grant("me", "FULL_CONTROL"),))
    given_away = Acl("me", (Grant("bob", "FULL_CONTROL"),))
    assert acl_text.parse("user bob full-control", owner="me") == given_away


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("", 0, "at least one line"),
        ("# only\n# comments\n", 0, "at least one line"),
        ("user bob READ\npublic-reed\n", 2, "did you mean public-read?"),
        ("usr bob READ", 1, "did you mean user?"),
        ("user bob", 1, "write: user ID PERMISSION"),
        ("user", 1, "write: user ID PERMISSION"),
        ("all-users", 1, "write: all-users PERMISSION"),
        ("all-users READ WRITE", 1, "write: all-users PERMISSION"),
        ("\n\nuser bob DELETE", 3, "'DELETE' is none of READ"),
        ("user bob READ\nowner bob", 2, "the owner is me and cannot be changed"),
        ("owner", 1, "write: owner ID"),
        ("group bob READ", 1, "a group is named by a URI"),
        ("user http://x READ", 1, "a group is named by a URI"),
    ],
)
def test_a_bad_text_is_told_with_its_line(text: str, line: int, reason: str) -> None:
    with pytest.raises(BadText) as refused:
        acl_text.parse(text, owner="me")
    assert (refused.value.line, refused.value.errno) == (line, errno.EINVAL)
    assert reason in refused.value.reason


def test_a_bucket_has_fewer_canned_ones() -> None:
    assert acl_text.parse("public-read", owner="me", canned=acl_text.OF_BUCKETS) is Canned.PUBLIC_READ
    with pytest.raises(BadText):
        acl_text.parse("bucket-owner-read", owner="me", canned=acl_text.OF_BUCKETS)


# What it does


def anonymous(drive: Drive, path: Path, *, method: str = "GET") -> int:
    """What somebody without a key is answered for an object."""
    url = os.getxattr(path, "user.sos.url").decode()
    request = urllib.request.Request(url, method=method, data=b"written" if method == "PUT" else None)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def second(drive: Drive, server: Server, path: Path) -> int:
    """What the second user is answered for an object."""
    client = client_of(server, key=server.key2, secret=server.secret2)
    try:
        client.get_object(Bucket=drive.foreign.bucket, Key=drive.key(path))
    except ClientError as error:
        return int(error.response["ResponseMetadata"]["HTTPStatusCode"])
    return 200


def setting(drive: Drive, path: Path) -> Path:
    return drive.mount.path / ".sosfs/acl" / drive.key(path)


def new(drive: Drive, name: str = "file", body: bytes = b"body") -> Path:
    path = drive.here / name
    path.write_bytes(body)
    return path


def lines(text: str) -> set[str]:
    return {line for line in text.splitlines() if not line.startswith("#")}


PRIVATE = {"owner alice", "user alice FULL_CONTROL"}
PUBLIC = PRIVATE | {"all-users READ"}


def test_a_new_object_is_private_and_a_line_makes_it_public(drive: Drive, server: Server) -> None:
    path = new(drive)
    assert lines(setting(drive, path).read_text()) == PRIVATE
    assert (anonymous(drive, path), second(drive, server, path)) == (403, 403)
    drive.shell(f"echo all-users READ >> '{setting(drive, path)}'")
    assert lines(setting(drive, path).read_text()) == PUBLIC
    assert (anonymous(drive, path), second(drive, server, path)) == (200, 200)
    drive.shell(f"echo private > '{setting(drive, path)}'")
    assert (anonymous(drive, path), second(drive, server, path)) == (403, 403)


def test_one_user_is_let_in(drive: Drive, server: Server) -> None:
    path = new(drive)
    setting(drive, path).write_text(f"user {server.user2} READ\n")
    assert (anonymous(drive, path), second(drive, server, path)) == (403, 200)
    text = setting(drive, path).read_text()
    assert lines(text) == PRIVATE | {f"user {server.user2} READ"}
    setting(drive, path).write_text(text.replace(f"user {server.user2} READ\n", ""))
    assert second(drive, server, path) == 403
    setting(drive, path).write_text("authenticated-users READ\n")
    assert (anonymous(drive, path), second(drive, server, path)) == (403, 200)


def test_the_attribute_is_the_same_text(drive: Drive, server: Server) -> None:
    path = new(drive)
    os.setxattr(path, "user.sos.acl", b"public-read")
    assert anonymous(drive, path) == 200
    assert lines(os.getxattr(path, "user.sos.acl").decode()) == PUBLIC
    assert os.listxattr(path) == []  # a copy of the file must not become public by it
    os.setxattr(path, "user.sos.acl", b"owner alice\n")
    assert anonymous(drive, path) == 403
    with fails(errno.EINVAL):
        os.setxattr(path, "user.sos.acl", b"public-reed")
    assert "public-reed" in (drive.mount.path / ".sosfs/errors").read_text()


def test_a_file_that_is_not_in_the_bucket_yet(drive: Drive) -> None:
    path = drive.here / "new"
    with path.open("wb") as file:
        file.write(b"bytes")
        file.flush()
        os.setxattr(file.fileno(), "user.sos.acl", b"public-read")
        assert anonymous(drive, path) == 200
        file.write(b" and more")
    assert anonymous(drive, path) == 200
    assert drive.stored(path) == b"bytes and more"


def test_an_unknown_user_is_refused_by_the_server_and_told(drive: Drive) -> None:
    path = new(drive)
    with fails(errno.EINVAL):
        setting(drive, path).write_text("user nobody-of-this-name READ\n")
    assert lines(setting(drive, path).read_text()) == PRIVATE
    assert drive.key(path) in (drive.mount.path / ".sosfs/errors").read_text().splitlines()[-1]


@pytest.mark.promise(7)
def test_nothing_takes_an_acl_away(mounter: Mounter, server: Server) -> None:
    drive = mounter("", "--part-size", "5M")
    path, moved = new(drive), drive.here / "moved"
    setting(drive, path).write_text("public-read\n")
    path.write_bytes(b"overwritten")
    assert anonymous(drive, path) == 200
    with path.open("r+b") as file:
        file.write(b"O")
    path.chmod(0o640)
    os.setxattr(path, "user.color", b"blue")
    os.setxattr(path, "user.sos.cache-control", b"no-store")
    eventually(lambda: os.getxattr(path, "user.sos.state") == b"clean")
    assert drive.foreign.metadata("file")["color"] == "blue"
    assert anonymous(drive, path) == 200
    path.rename(moved)
    assert anonymous(drive, moved) == 200
    (drive.here / "d").mkdir()
    moved.rename(drive.here / "d/moved")
    (drive.here / "d").rename(drive.here / "e")
    moved = drive.here / "e/moved"
    assert anonymous(drive, moved) == 200
    moved.write_bytes(os.urandom(12 * MIB))  # a multipart upload
    assert anonymous(drive, moved) == 200
    drive.mount.remount()
    os.truncate(moved, 11 * MIB)
    assert anonymous(drive, moved) == 200
    assert lines(setting(drive, moved).read_text()) == PUBLIC


def test_changes_at_the_same_time_keep_the_acl(mounter: Mounter, proxy: Proxy) -> None:
    drive = mounter(proxy.endpoint)
    proxy.latency = 0.05
    for number in range(8):
        path = new(drive, f"f{number}")
        path.chmod(0o600)
        time.sleep(1.0 - 0.1 * number / 8)  # near the moment when the change goes up
        os.setxattr(path, "user.sos.acl", b"public-read")
        path.chmod(0o640)
    for number in range(8):
        path = drive.here / f"f{number}"
        eventually(lambda: os.getxattr(path, "user.sos.state") == b"clean")  # noqa: B023
        found = drive.foreign.client.get_object_acl(Bucket=drive.foreign.bucket, Key=drive.key(path))["Grants"]
        assert "AllUsers" in str(found), number


# New objects


def test_canned_acl_of_new_objects(mounter: Mounter) -> None:
    drive = mounter("", "--acl", "public-read", "--part-size", "5M")
    small, large, link = new(drive, "small"), new(drive, "large", os.urandom(12 * MIB)), drive.here / "link"
    link.symlink_to("small")
    assert [anonymous(drive, path) for path in (small, large)] == [200, 200]
    assert "AllUsers" in str(drive.foreign.client.get_object_acl(Bucket=drive.foreign.bucket, Key="link")["Grants"])
    small.rename(drive.here / "renamed")
    assert anonymous(drive, drive.here / "renamed") == 200


def test_canned_acl_is_for_new_objects_only(mounter: Mounter) -> None:
    drive = mounter("", "--acl", "public-read")
    path = drive.here / "secret"
    drive.foreign.put("secret", b"private before")
    assert path.read_bytes() == b"private before"
    assert anonymous(drive, path) == 403
    path.write_bytes(b"private after")
    assert anonymous(drive, path) == 403
    path.chmod(0o600)
    eventually(lambda: drive.foreign.metadata("secret").get("mode") == str(0o100600))
    assert anonymous(drive, path) == 403
    path.rename(drive.here / "moved")
    assert anonymous(drive, drive.here / "moved") == 403
    (drive.here / "moved").write_bytes(b"again")
    assert anonymous(drive, drive.here / "moved") == 403


# The bucket


def test_acl_of_the_bucket(mounter: Mounter, server: Server) -> None:
    drive = mounter()
    new(drive)
    bucket = drive.mount.path / ".sosfs/bucket/acl"
    client = client_of(server, key=server.key2, secret=server.secret2)

    def may_list() -> bool:
        try:
            client.list_objects_v2(Bucket=drive.foreign.bucket)
        except ClientError as error:
            assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 403
            return False
        return True

    assert not may_list()
    drive.shell(f"echo user {server.user2} READ >> {bucket}")
    assert may_list()
    bucket.write_text("private\n")
    assert not may_list()
    with fails(errno.EINVAL):
        bucket.write_text("bucket-owner-read\n")
    assert lines(bucket.read_text()) == PRIVATE


def test_a_key_that_may_not_read_acls_is_told_so(server: Server, drive: Drive) -> None:
    path = new(drive)
    client = drive.foreign.client
    client.put_bucket_acl(Bucket=drive.foreign.bucket, GrantRead=f"id={server.user2}", GrantFullControl="id=alice")
    client.put_object_acl(
        Bucket=drive.foreign.bucket, Key=drive.key(path), GrantRead=f"id={server.user2}", GrantFullControl="id=alice"
    )
    base = drive.mount.base / "second"
    access = Access(server.endpoint, server.key2, server.secret2)
    with Mount(access, drive.foreign.bucket, base, drive.mount.watchdog, ["--read-only"]) as mount:
        seen = mount.path / drive.key(path)
        assert seen.read_bytes() == b"body"
        for refused in (
            lambda: os.getxattr(seen, "user.sos.acl"),
            lambda: (mount.path / ".sosfs/acl" / drive.key(path)).read_text(),
            lambda: (mount.path / ".sosfs/bucket/acl").read_text(),
            lambda: (mount.path / ".sosfs/bucket/cors").read_text(),
            lambda: (mount.path / ".sosfs/bucket/policy").read_text(),
        ):
            with fails(errno.EACCES):
                refused()
        assert os.listxattr(seen) == []
        assert (mount.path / ".sosfs/status").read_text()
        assert seen.read_bytes() == b"body"


# The command


def test_acl_command_for_a_tree(mounter: Mounter, proxy: Proxy) -> None:
    drive = mounter(proxy.endpoint)
    drive.foreign.put_all({**numbered("t/a", 40), **numbered("t/d/b", 40)})
    (drive.here / "t/link").symlink_to("a0000")
    proxy.latency = 0.02
    with proxy.recording() as traffic:
        done = run_sosfs(["acl", "set", "-r", "all-users READ", drive.here / "t"], drive.mount.environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert traffic.count(Op.PUT_ACL) == 81
    assert traffic.peak(Op.PUT_ACL) > 4
    for key in ("t/a0007", "t/d/b0039", "t/link"):
        found = drive.foreign.client.get_object_acl(Bucket=drive.foreign.bucket, Key=key)["Grants"]
        assert "AllUsers" in str(found)
    shown = run_sosfs(["acl", "get", "-r", drive.here / "t/d"], drive.mount.environment).stdout
    assert shown.count("all-users READ") == 40
    assert f"# file: {drive.here}/t/d/b0003\n" in shown
    one = run_sosfs(["acl", "get", drive.here / "t/a0001"], drive.mount.environment).stdout
    assert set(one.splitlines()) == PUBLIC


def test_acl_command_tells_what_failed(mounter: Mounter, server: Server) -> None:
    drive = mounter()
    drive.foreign.put_all(numbered("t/f", 30))
    environment = drive.mount.environment
    done = run_sosfs(["acl", "set", "-r", "user nobody-of-this-name READ", drive.here / "t"], environment)
    assert done.returncode == 1
    assert "30 of 30 files not changed" in done.stderr
    assert "and 10 more" in done.stderr
    bad = run_sosfs(["acl", "set", "public-reed", drive.here / "t/f0000"], environment)
    assert bad.returncode == 1
    assert "line 1" in bad.stderr
    assert "did you mean public-read?" in bad.stderr
    directory = run_sosfs(["acl", "set", "private", drive.here / "t"], environment)
    assert directory.returncode == 1
    assert "-r" in directory.stderr
    elsewhere = run_sosfs(["acl", "get", "/etc/passwd"], environment)
    assert "not in a mount of sosfs" in elsewhere.stderr


@pytest.mark.promise(3)
def test_a_file_that_was_removed_after_its_acl_was_changed_stays_removed(
    mounter: Mounter, proxy: Proxy, foreign: Foreign
) -> None:
    """Its Last-Modified is another one since, which is no sign of another client's bytes."""
    foreign.put_all({"one": b"1", "file": b"bytes"})
    drive = mounter(proxy.endpoint)
    assert (drive.here / "file").stat().st_size == 5
    time.sleep(1.1)  # Last-Modified has whole seconds
    os.setxattr(drive.here / "file", "user.sos.acl", b"public-read")
    with proxy.broken(Hang(), on("DELETE", "DELETE_MANY", prefix="file")):
        (drive.here / "one").unlink()
        (drive.here / "file").unlink()
        drive.mount.kill()
    assert foreign.keys("") == ["file"]
    drive.mount.start()
    assert foreign.keys("") == []
