"""Bad servers: each failure has a clear errno, the mount lives on, nothing is lost, truncated or taken for absent."""

from __future__ import annotations

import errno
import random

import pytest

from tests.conftest import LARGE
from tests.support.drive import Drive, attempt, digest, eventually, fails, names, tree
from tests.support.faults import BROKEN, FAILED, PASSING, REFUSED, Action, Answer, CutResponse
from tests.support.foreign import Foreign, numbered
from tests.support.proxy import Proxy
from tests.support.traffic import on

MIB = 1 << 20
LOOKS = ("HEAD", "LIST", "GET")
UPLOADS = ("PUT", "CREATE_MULTIPART", "UPLOAD_PART", "COMPLETE")

pytestmark = pytest.mark.parametrize("server", ["ceph"], indirect=True)  # the proxy breaks every server alike


@pytest.mark.promise(1)
@pytest.mark.parametrize("fault", ["500", "503", "403", "reset", "hang"])
def test_a_failing_look_is_never_an_absence(frail: Drive, proxy: Proxy, fault: str) -> None:
    action, numbers = BROKEN[fault]
    with proxy.broken(action, on(*LOOKS)):
        with fails(*numbers):
            (frail.here / "d" / "small").stat()
        with fails(*numbers):
            names(frail.here)
    assert names(frail.here / "d") == ["large", "other", "small"]
    assert (frail.here / "d" / "small").read_bytes() == b"small" * 1000


def test_a_bucket_that_is_gone_is_no_absence_of_its_files(frail: Drive, proxy: Proxy) -> None:
    action, numbers = BROKEN["no bucket"]
    with proxy.broken(action, on("LIST", "GET")), fails(*numbers):
        names(frail.here / "d")
    assert names(frail.here / "d") == ["large", "other", "small"]


@pytest.mark.parametrize(
    ("mode", "fault"), [("wb", "503"), ("ab", "503"), ("r+b", "503"), ("xb", "503"), ("ab", "403"), ("wb", "reset")]
)
def test_opening_to_write_under_failing_looks_changes_nothing(
    frail: Drive, foreign: Foreign, proxy: Proxy, mode: str, fault: str
) -> None:
    action, numbers = BROKEN[fault]
    with proxy.broken(action, on(*LOOKS)), fails(*numbers):
        (frail.here / "d" / "small").open(mode).close()
    assert foreign.get("d/small") == b"small" * 1000
    assert (frail.here / "d" / "small").read_bytes() == b"small" * 1000


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_is_not_seen(frail: Drive, foreign: Foreign, proxy: Proxy, fault: str) -> None:
    for operation in (*LOOKS, *UPLOADS, "COPY", "DELETE", "DELETE_MANY"):
        proxy.inject(PASSING[fault], on(operation), times=1)
    body = random.Random(17).randbytes(20 * MIB)
    assert names(frail.here / "d") == ["large", "other", "small"]
    assert (frail.here / "d" / "small").read_bytes() == b"small" * 1000
    assert digest(frail.here / "d" / "large") == digest(LARGE)
    (frail.here / "d" / "new").write_bytes(b"new")
    (frail.here / "d" / "big").write_bytes(body)
    (frail.here / "d" / "other").rename(frail.here / "d" / "moved")
    (frail.here / "d" / "small").unlink()
    eventually(lambda: foreign.files() == ["d/big", "d/large", "d/moved", "d/new"])
    assert foreign.get("d/new") == b"new"
    assert foreign.get("d/moved") == b"other"
    assert digest(foreign.get("d/big")) == digest(body)


@pytest.mark.parametrize("fault", ["500", "503", "403", "reset", "hang"])
def test_a_failing_read_is_an_error_and_then_right(frail: Drive, proxy: Proxy, fault: str) -> None:
    names(frail.here / "d")
    action, numbers = BROKEN[fault]
    with proxy.broken(action, on("GET")), fails(*numbers):
        (frail.here / "d" / "small").read_bytes()
    assert (frail.here / "d" / "small").read_bytes() == b"small" * 1000


@pytest.mark.promise(1)
@pytest.mark.parametrize("name", ["small", "large"])
def test_a_body_cut_short_is_never_a_short_file(frail: Drive, proxy: Proxy, name: str) -> None:
    body = LARGE if name == "large" else b"small" * 1000
    names(frail.here / "d")
    with proxy.broken(CutResponse(0), on("GET")), fails(*FAILED):
        (frail.here / "d" / name).read_bytes()
    seen: list[bytes] = []
    with proxy.broken(CutResponse(1000), on("GET")):  # a client may go on where it was cut
        attempt(lambda: seen.append((frail.here / "d" / name).read_bytes()))
    assert [digest(data) for data in seen] == [digest(body)] * len(seen)
    assert digest(frail.here / "d" / name) == digest(body)


def test_a_listing_cut_short_is_never_a_short_directory(frail: Drive, foreign: Foreign, proxy: Proxy) -> None:
    foreign.put_all(numbered("many/f", 100))
    with proxy.broken(CutResponse(5000), on("LIST")), fails(*FAILED):
        names(frail.here / "many")
    assert len(names(frail.here / "many")) == 100


def test_a_failing_second_page_is_never_a_short_directory(frail: Drive, foreign: Foreign, proxy: Proxy) -> None:
    foreign.put_all(numbered("many/f", 1500))

    with proxy.broken(Answer(503, "SlowDown"), lambda r: "continuation-token" in r.query), fails(*FAILED):
        names(frail.here / "many")
    assert len(names(frail.here / "many")) == 1500


@pytest.mark.parametrize("action", [BROKEN["503"][0], Answer(200, "InternalError"), BROKEN["403"][0]])
def test_a_rename_that_fails_leaves_the_file_where_it_was(
    frail: Drive, foreign: Foreign, proxy: Proxy, action: Action
) -> None:
    with proxy.broken(action, on("COPY")), fails(*FAILED, errno.EACCES):
        (frail.here / "d" / "small").rename(frail.here / "d" / "other")
    assert names(frail.here / "d") == ["large", "other", "small"]
    assert foreign.get("d/small") == b"small" * 1000
    assert foreign.get("d/other") == b"other"
    assert (frail.here / "d" / "other").read_bytes() == b"other"
    (frail.here / "d" / "small").rename(frail.here / "d" / "other")
    assert foreign.get("d/other") == b"small" * 1000


def test_a_directory_rename_that_fails_in_the_middle_loses_no_file(
    frail: Drive, foreign: Foreign, proxy: Proxy
) -> None:
    bodies = numbered("old/f", 40)
    foreign.put_all(bodies)
    stuck = on("COPY", key="new/f0017")
    with proxy.broken(Answer(503, "SlowDown"), stuck), fails(*FAILED):
        (frail.here / "old").rename(frail.here / "new")
    for key, body in bodies.items():
        twins = [name for name in (key, key.replace("old/", "new/")) if foreign.exists(name)]
        assert twins
        assert {foreign.get(name) for name in twins} == {body}
    assert tree(frail.here / "old") == {key.removeprefix("old/"): body for key, body in bodies.items()}
    drive_names = names(frail.here)
    if "new" in drive_names:
        frail.run("rm", "-r", "new")
    (frail.here / "old").rename(frail.here / "new")
    assert sorted(tree(frail.here / "new").values()) == sorted(bodies.values())
    eventually(lambda: foreign.files("old/") == [])


def test_a_removal_that_fails_is_told_or_done_later(frail: Drive, foreign: Foreign, proxy: Proxy) -> None:
    names(frail.here / "d")
    told = False
    with proxy.broken(Answer(503, "SlowDown"), on("DELETE", "DELETE_MANY")):
        try:
            (frail.here / "d" / "small").unlink()
        except OSError as error:
            assert error.errno in FAILED
            told = True
    if told:
        assert (frail.here / "d" / "small").read_bytes() == b"small" * 1000
    else:
        assert not (frail.here / "d" / "small").exists()
        frail.mount.stop()
        assert not foreign.exists("d/small")


def test_a_removal_that_is_forbidden_is_told(frail: Drive, foreign: Foreign, proxy: Proxy) -> None:
    names(frail.here / "d")
    with proxy.broken(Answer(403, "AccessDenied"), on("DELETE", "DELETE_MANY")), fails(*REFUSED):
        (frail.here / "d" / "small").unlink()
    assert (frail.here / "d" / "small").read_bytes() == b"small" * 1000
    assert names(frail.here / "d") == ["large", "other", "small"]


def test_a_server_that_restarts_is_not_noticed(frail: Drive, foreign: Foreign, proxy: Proxy) -> None:
    for number in range(5):
        (frail.here / f"f{number}").write_bytes(b"%d" % number)
        proxy.drop_connections()
        assert (frail.here / "d" / "small").read_bytes() == b"small" * 1000
    assert foreign.files("f") == [f"f{number}" for number in range(5)]
