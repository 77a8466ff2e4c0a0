"""Keys that may not do everything: what can be done works, the rest is EACCES at once, and nothing stays behind."""

from __future__ import annotations

import errno
import itertools
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from sosfs.ipc.status import Status
from tests.conftest import FAILED
from tests.support.drive import Drive, fails, names, tree
from tests.support.faults import Answer
from tests.support.foreign import Foreign
from tests.support.mounting import Access, Mount, run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.watchdog import Watchdog

Statement = Mapping[str, object]
Limited = Callable[..., Drive]

CONTENT = {"file": b"content", "dir/inner": b"inner", "p/in": b"in the prefix", "p/deep/in": b"deep"}
LARGE = bytes(20 << 20)
DENIED = errno.EACCES

pytestmark = pytest.mark.parametrize("server", ["ceph"], indirect=True)  # where bucket policies are enforced


def may(foreign: Foreign, *actions: str, under: str = "*") -> Statement:
    """The second user may do that with the objects of a pattern."""
    return {"Action": [f"s3:{action}" for action in actions], "Resource": f"arn:aws:s3:::{foreign.bucket}/{under}"}


def may_list(foreign: Foreign, prefix: str = "") -> Statement:
    """The second user may list the bucket, or a prefix of it."""
    listing = {"Action": ["s3:ListBucket"], "Resource": f"arn:aws:s3:::{foreign.bucket}"}
    return {**listing, "Condition": {"StringLike": {"s3:prefix": f"{prefix}*"}}} if prefix else listing


def grant(foreign: Foreign, *statements: Statement) -> None:
    """Replaces the bucket's policy: the second user may do this alone."""

    def allow(user: str, statement: Statement) -> Statement:
        return {"Effect": "Allow", "Principal": {"AWS": [f"arn:aws:iam:::user/{user}"]}, **statement}

    # What the second user stores is that one's own: the first, whose bucket it is, may not even read it.
    allowed = [allow("bob", statement) for statement in statements] + [allow("alice", may(foreign, "*"))]
    policy = {"Version": "2012-10-17", "Statement": allowed}
    foreign.client.put_bucket_policy(Bucket=foreign.bucket, Policy=json.dumps(policy))


@pytest.fixture
def limited(
    request: pytest.FixtureRequest, server: Server, foreign: Foreign, watchdog: Watchdog, tmp_path: Path
) -> Iterator[Limited]:
    """Mounts the test's bucket with the second user's key, after `CONTENT` was stored by the first."""
    foreign.put_all(CONTENT)
    with ExitStack() as ending:

        def mount(prefix: str = "", *, endpoint: str = "", start: bool = True) -> Drive:
            access = Access(endpoint or server.endpoint, server.key2, server.secret2)
            mounted = Mount(access, foreign.bucket + prefix, tmp_path / f"limited{next(numbers)}", watchdog)
            if start:
                mounted.start()
            ending.callback(mounted.clear)
            drives.append(Drive(mounted, foreign, mounted.path))
            return drives[-1]

        drives: list[Drive] = []
        numbers = itertools.count()
        yield mount
        for drive in drives:
            if request.node.stash.get(FAILED, True):
                print(f"log:\n{drive.mount.log[-8000:]}")
            elif drive.mount.running:
                drive.mount.stop()


def pending(drive: Drive) -> int:
    """How many changes the mount still has to send."""
    done = run_sosfs(["status", drive.mount.path, "--json"], drive.mount.environment)
    return Status.from_json(done.stdout).pending_files


def connected(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))


CHANGES: Mapping[str, Callable[[Path], object]] = {
    "create": lambda top: (top / "new").open("wb"),
    "create below": lambda top: (top / "dir" / "new").open("xb"),
    "create a lock": lambda top: (top / "new.lock").open("xb"),
    "open to write": lambda top: (top / "file").open("r+b"),
    "open to append": lambda top: (top / "dir" / "inner").open("ab"),
    "open to empty": lambda top: (top / "file").open("wb"),
    "truncate": lambda top: os.truncate(top / "file", 3),
    "mkdir": lambda top: (top / "newdir").mkdir(),
    "symlink": lambda top: (top / "link").symlink_to("file"),
    "mkfifo": lambda top: os.mkfifo(top / "fifo"),
    "socket": lambda top: connected(top / "socket"),
    "unlink": lambda top: (top / "file").unlink(),
    "rename": lambda top: (top / "file").rename(top / "moved"),
    "rename over": lambda top: (top / "file").rename(top / "dir" / "inner"),
    "rename a directory": lambda top: (top / "dir").rename(top / "moved"),
    "chmod": lambda top: (top / "file").chmod(0o600),
    "chmod a directory": lambda top: (top / "dir").chmod(0o700),
    "chown": lambda top: os.chown(top / "file", 5, 5),
    "utime": lambda top: os.utime(top / "file", (1, 1)),
    "setxattr": lambda top: os.setxattr(top / "file", "user.color", b"blue"),
    "removexattr": lambda top: os.removexattr(top / "file", "user.mime_type"),
    "set a header": lambda top: os.setxattr(top / "file", "user.sos.cache-control", b"no-store"),
    "set an ACL": lambda top: os.setxattr(top / "file", "user.sos.acl", b"public-read"),
}


def test_a_key_that_may_only_read_is_refused_every_change_at_once(limited: Limited, foreign: Foreign) -> None:
    grant(foreign, may_list(foreign), may(foreign, "GetObject"))
    drive = limited()
    allowed = {}
    for name, change in CHANGES.items():
        try:
            allowed[name] = change(drive.here)
        except OSError as error:
            assert error.errno == DENIED, (name, error)
    assert allowed == {}
    assert tree(drive.here) == CONTENT
    assert pending(drive) == 0
    drive.mount.stop()  # exit code 0: nothing is left; and no warning in the log
    assert {key: foreign.get(key) for key in foreign.keys("")} == CONTENT
    assert foreign.uploads() == []
    assert list((drive.mount.cache / "spool").iterdir()) == []


def test_a_right_that_is_given_later_is_seen_at_the_next_open(limited: Limited, foreign: Foreign) -> None:
    grant(foreign, may_list(foreign), may(foreign, "GetObject"))
    drive = limited()
    with fails(DENIED):
        (drive.here / "new").write_bytes(b"too early")
    grant(foreign, may_list(foreign), may(foreign, "GetObject", "PutObject", "DeleteObject"))
    (drive.here / "new").write_bytes(b"now")
    (drive.here / "file").chmod(0o600)
    (drive.here / "file").rename(drive.here / "moved")
    drive.mount.stop()
    assert foreign.get("new") == b"now"
    assert (foreign.get("moved"), foreign.exists("file")) == (b"content", False)


@pytest.mark.promise(2)
def test_a_right_that_is_taken_away_is_told_by_close_and_then_by_open(limited: Limited, foreign: Foreign) -> None:
    everything = may(foreign, "GetObject", "PutObject", "DeleteObject")
    grant(foreign, may_list(foreign), everything)
    drive = limited()
    (drive.here / "before").write_bytes(b"allowed")
    file = (drive.here / "during").open("wb", buffering=0)
    file.write(b"begun in time")
    grant(foreign, may_list(foreign), may(foreign, "GetObject"))
    drive.mount.allow_log("not in the bucket yet.*AccessDenied")
    with fails(DENIED):
        file.close()
    for path in (drive.here / "after", drive.here / "before"):
        with fails(DENIED):
            path.open("wb")
    assert (drive.here / "during").read_bytes() == b"begun in time"
    grant(foreign, may_list(foreign), everything)
    drive.mount.stop()
    assert foreign.get("during") == b"begun in time"
    assert foreign.get("before") == b"allowed"


def work_in(top: Path) -> dict[str, bytes]:
    """What programs do in a directory where they may do everything; returns what is there afterwards."""
    (top / "small").write_bytes(b"small")
    (top / "large").write_bytes(LARGE)
    (top / "large").chmod(0o600)
    with (top / "in").open("ab") as file:
        file.write(b", appended")
    (top / "newdir").mkdir()
    (top / "small").rename(top / "newdir" / "moved")
    (top / "deep").rename(top / "deeper")
    os.setxattr(top / "in", "user.color", b"blue")
    (top / "link").symlink_to("in")
    (top / "gone").write_bytes(b"soon gone")
    (top / "gone").unlink()
    appended = b"in the prefix, appended"
    return {"newdir/moved": b"small", "large": LARGE, "in": appended, "deeper/in": b"deep", "link": appended}


def test_a_key_for_one_prefix_works_in_it(limited: Limited, foreign: Foreign) -> None:
    """Outside it, and of what is not there, such a key is told nothing but 403."""
    grant(foreign, may_list(foreign, "p/"), may(foreign, "GetObject", "PutObject", "DeleteObject", under="p/*"))
    drive = limited("/p")
    expected = work_in(drive.here)
    assert tree(drive.here) == expected
    assert not (drive.here / "nothing").exists()
    drive.mount.remount()
    assert tree(drive.here) == expected
    drive.mount.stop()
    assert foreign.keys("p/.sosfs") == []
    assert foreign.uploads() == []
    assert foreign.metadata("p/in")["color"] == "blue"


def test_a_key_that_may_write_in_one_prefix_is_refused_elsewhere(limited: Limited, foreign: Foreign) -> None:
    everything = may(foreign, "GetObject", "PutObject", "DeleteObject", under="p/*")
    grant(foreign, may_list(foreign), may(foreign, "GetObject"), everything)
    drive = limited()
    for change in CHANGES.values():
        with fails(DENIED):
            change(drive.here)
    assert tree(drive.here / "p") == {"in": b"in the prefix", "deep/in": b"deep"}
    expected = work_in(drive.here / "p")
    with fails(DENIED):
        (drive.here / "p" / "in").rename(drive.here / "out")
    assert tree(drive.here / "p") == expected
    drive.mount.stop()
    assert [key for key in foreign.keys("") if not key.startswith("p/")] == ["dir/inner", "file"]


def test_a_key_that_may_not_remove_leaves_no_twins(limited: Limited, foreign: Foreign) -> None:
    grant(foreign, may_list(foreign), may(foreign, "GetObject", "PutObject"))
    drive = limited()
    (drive.here / "new").write_bytes(b"new")
    (drive.here / "file").write_bytes(b"rewritten")
    with fails(DENIED):
        (drive.here / "new").unlink()
    for source in ("new", "dir"):
        with fails(DENIED):
            (drive.here / source).rename(drive.here / "moved")
    expected = {**CONTENT, "new": b"new", "file": b"rewritten"}
    assert tree(drive.here) == expected
    drive.mount.stop()
    assert {key: foreign.get(key) for key in foreign.keys("")} == expected


@pytest.mark.parametrize("prefix", ["", "/p"])
def test_a_key_that_may_not_list_is_told_so(limited: Limited, foreign: Foreign, prefix: str) -> None:
    grant(foreign, may(foreign, "GetObject"))
    with pytest.raises(AssertionError) as caught:
        limited(prefix)
    said = str(caught.value)
    assert "exit code 1" in said
    assert "this key may not list it" in said
    assert "Traceback" not in said


def test_a_mount_of_the_bucket_with_a_key_for_a_prefix_says_what_to_do(limited: Limited, foreign: Foreign) -> None:
    grant(foreign, may_list(foreign, "p/"), may(foreign, "GetObject", under="p/*"))
    with pytest.raises(AssertionError, match="BUCKET/PREFIX"):
        limited()
    drive = limited("/p")
    assert names(drive.here) == ["deep", "in"]


def test_a_key_that_is_replaced_is_read_again(server: Server, foreign: Foreign, proxy: Proxy, limited: Limited) -> None:
    """The server knows the old key no more; what the program was doing goes on with the one that is in the file now."""
    grant(foreign, may_list(foreign), may(foreign, "GetObject", "PutObject", "DeleteObject"))
    drive = limited(endpoint=proxy.endpoint, start=False)
    for name in ("EXOSCALE_API_KEY", "EXOSCALE_API_SECRET"):
        del drive.mount.environment[name]
    profile = drive.mount.home / ".aws" / "credentials"
    profile.parent.mkdir()
    profile.write_text(f"[default]\naws_access_key_id={server.key}\naws_secret_access_key={server.secret}\n")
    drive.mount.start()
    file = (drive.here / "new").open("wb", buffering=0)
    file.write(b"begun with the old key")
    profile.write_text(f"[default]\naws_access_key_id={server.key2}\naws_secret_access_key={server.secret2}\n")
    revoked = Answer(403, "InvalidAccessKeyId")
    rule = proxy.inject(revoked, lambda request: server.key in request.headers.get("authorization", ""))
    file.close()
    assert rule.hits == 1, "the one request that was refused is made again"
    assert tree(drive.here) == {**CONTENT, "new": b"begun with the old key"}
    (drive.here / "large").write_bytes(LARGE)
    drive.mount.stop()
    assert foreign.get("new") == b"begun with the old key"
    assert rule.hits == 1
