"""Bad servers: each failure has a clear errno, the mount lives on, nothing is lost, truncated or taken for absent.

The mounts here speak through a breaking proxy and give up soon. `mounter` ends each test with an unmount
that must be clean, so a fault that leaves the daemon or its queues stuck fails the test too.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Mounter
from tests.drive import Drive, digest, eventually, fails, names, tree
from tests.faults import Action, Answer, CutRequest, CutResponse, Hang, Moment, Reset
from tests.foreign import Foreign, numbered
from tests.proxy import Proxy
from tests.servers import Server
from tests.traffic import on

MIB = 1 << 20
HURRY = ("--patience", "2", "--timeout", "2")
LOOKS = ("HEAD", "LIST")
UPLOADS = ("PUT", "CREATE_MULTIPART", "UPLOAD_PART", "COMPLETE")
FAILED = (errno.EIO, errno.ETIMEDOUT)

BROKEN: dict[str, tuple[Action, tuple[int, ...]]] = {
    "500": (Answer(500, "InternalError"), FAILED),
    "503": (Answer(503, "SlowDown"), FAILED),
    "503 without a body": (Answer(503), FAILED),
    "403": (Answer(403, "AccessDenied"), (errno.EACCES, errno.EPERM)),
    "no bucket": (Answer(404, "NoSuchBucket"), (*FAILED, errno.ENXIO)),
    "reset": (Reset(), FAILED),
    "hang": (Hang(), FAILED),
}
LOST: dict[str, Action] = {
    "500": Answer(500, "InternalError", Moment.AFTER),
    "503": Answer(503, "SlowDown", Moment.AFTER),
    "reset": Reset(Moment.AFTER),
    "hang": Hang(Moment.AFTER),
}
PASSING: dict[str, Action] = {
    "500": Answer(500, "InternalError"),
    "503": Answer(503, "SlowDown"),
    "429": Answer(429, "TooManyRequests"),
    "reset": Reset(),
    "cut answer": CutResponse(100),
    "cut upload": CutRequest(10),
}

both = pytest.mark.parametrize("server", ["moto", "ceph"], indirect=True)
broken = pytest.mark.parametrize("fault", BROKEN)


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Server:
    """Ceph alone where a test does not ask for `both`: the proxy breaks every server in the same way."""
    found: Server = request.getfixturevalue(getattr(request, "param", "ceph"))
    return found


@pytest.fixture
def frail(mounter: Mounter, proxy: Proxy, foreign: Foreign) -> Drive:
    """A mount through the proxy on a bucket that has `d/small`, `d/other` and `d/large`; nothing was looked at yet."""
    foreign.put_all({"d/small": b"small" * 1000, "d/other": b"other", "d/large": LARGE})
    drive = mounter(proxy.endpoint, *HURRY)
    drive.mount.allow_log(r"WARNING|ERROR")
    return drive


LARGE = random.Random(16).randbytes(20 * MIB)


def attempt(action: Callable[[], object]) -> bool:
    """Whether an action succeeded; it may fail with the errnos of a bad server alone."""
    try:
        action()
    except OSError as error:
        assert error.errno in FAILED, error
        return False
    return True


def try_again(path: Path) -> None:
    """Opens, syncs and closes a file: whatever of it is unsent goes up."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


@broken
def test_a_failing_look_is_never_an_absence(frail: Drive, proxy: Proxy, fault: str) -> None:
    action, numbers = BROKEN[fault]
    with proxy.broken(action, on(*LOOKS)):
        with fails(*numbers):
            (frail.here / "d" / "small").stat()
        with fails(*numbers):
            names(frail.here)
    assert names(frail.here / "d") == ["large", "other", "small"]
    assert (frail.here / "d" / "small").read_bytes() == b"small" * 1000


@pytest.mark.parametrize("fault", ["503", "403", "reset"])
@pytest.mark.parametrize("mode", ["wb", "ab", "r+b", "xb"])
def test_opening_to_write_under_failing_looks_changes_nothing(
    frail: Drive, foreign: Foreign, proxy: Proxy, fault: str, mode: str
) -> None:
    with proxy.broken(BROKEN[fault][0], on(*LOOKS, "GET")), fails(*BROKEN[fault][1]):
        (frail.here / "d" / "small").open(mode).close()
    assert foreign.get("d/small") == b"small" * 1000
    assert (frail.here / "d" / "small").read_bytes() == b"small" * 1000


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_is_not_seen(frail: Drive, foreign: Foreign, proxy: Proxy, fault: str) -> None:
    for operation in (*LOOKS, "GET", *UPLOADS, "COPY", "DELETE", "DELETE_MANY"):
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


@broken
@pytest.mark.parametrize("ending", ["close", "fsync"])
def test_a_failing_upload_is_told_and_the_bytes_stay(
    frail: Drive, foreign: Foreign, proxy: Proxy, fault: str, ending: str
) -> None:
    names(frail.here / "d")
    action, numbers = BROKEN[fault]
    path = frail.here / "d" / "new"
    with proxy.broken(action, on(*UPLOADS)):
        file = path.open("wb", buffering=0)
        file.write(b"precious")
        with fails(*numbers):
            file.close() if ending == "close" else os.fsync(file.fileno())
        assert path.read_bytes() == b"precious"
        assert path.stat().st_size == 8
    if ending == "close":
        try_again(path)
    else:
        file.close()
    assert foreign.get("d/new") == b"precious"


@pytest.mark.parametrize("fault", ["503", "403"])
def test_a_failing_rewrite_leaves_the_old_object_whole(
    frail: Drive, foreign: Foreign, proxy: Proxy, fault: str
) -> None:
    action, numbers = BROKEN[fault]
    path = frail.here / "d" / "small"
    with proxy.broken(action, on(*UPLOADS)):
        file = path.open("r+b", buffering=0)
        file.write(b"SMALL")
        with fails(*numbers):
            file.close()
        assert foreign.get("d/small") == b"small" * 1000
        assert path.read_bytes() == b"SMALL" + b"small" * 999
    try_again(path)
    assert foreign.get("d/small") == b"SMALL" + b"small" * 999


def test_what_could_not_be_sent_goes_up_at_the_unmount(frail: Drive, foreign: Foreign, proxy: Proxy) -> None:
    file = (frail.here / "new").open("wb", buffering=0)
    with proxy.broken(Answer(503, "SlowDown"), on(*UPLOADS)):
        file.write(b"precious")
        with fails(*FAILED):
            file.close()
    frail.mount.stop()
    assert foreign.get("new") == b"precious"


def test_what_could_not_be_sent_moves_with_a_rename(frail: Drive, foreign: Foreign, proxy: Proxy) -> None:
    file = (frail.here / "new").open("wb", buffering=0)
    with proxy.broken(Answer(503, "SlowDown"), on(*UPLOADS)):
        file.write(b"precious")
        with fails(*FAILED):
            file.close()
    (frail.here / "new").rename(frail.here / "moved")
    try_again(frail.here / "moved")
    assert foreign.get("moved") == b"precious"
    assert not foreign.exists("new")


@pytest.mark.parametrize(("step", "status"), [*((step, 500) for step in UPLOADS[1:]), ("COMPLETE", 200)])
def test_a_large_upload_that_fails_at_any_step(
    frail: Drive, foreign: Foreign, proxy: Proxy, step: str, status: int
) -> None:
    body = random.Random(18).randbytes(20 * MIB)
    file = (frail.here / "big").open("wb", buffering=0)
    with proxy.broken(Answer(status, "InternalError"), on(step)), fails(*FAILED):
        file.write(body)
        file.close()
    assert not foreign.exists("big")
    try_again(frail.here / "big")
    assert digest(foreign.get("big")) == digest(body)
    assert foreign.uploads() == []


@both
@pytest.mark.parametrize("fault", LOST)
def test_a_lost_answer_to_a_write_is_neither_a_failure_nor_a_conflict(
    frail: Drive, foreign: Foreign, proxy: Proxy, fault: str
) -> None:
    names(frail.here / "d")
    rule = proxy.inject(LOST[fault], on("PUT"), times=1)
    (frail.here / "d" / "new").write_bytes(b"new")
    assert rule.hits == 1
    rule = proxy.inject(LOST[fault], on("PUT"), times=1)
    (frail.here / "d" / "other").write_bytes(b"other, rewritten")
    assert rule.hits == 1
    rule = proxy.inject(LOST[fault], on("COMPLETE"), times=1)
    (frail.here / "d" / "large").write_bytes(LARGE[::-1])
    assert rule.hits == 1
    assert foreign.files() == ["d/large", "d/new", "d/other", "d/small"]
    assert foreign.get("d/new") == b"new"
    assert foreign.get("d/other") == b"other, rewritten"
    assert digest(foreign.get("d/large")) == digest(LARGE[::-1])


@both
@pytest.mark.parametrize("fault", LOST)
def test_a_lost_answer_to_a_rename_or_removal(frail: Drive, foreign: Foreign, proxy: Proxy, fault: str) -> None:
    for operation in ("COPY", "DELETE", "DELETE_MANY"):
        proxy.inject(LOST[fault], on(operation), times=1)
    (frail.here / "d" / "small").rename(frail.here / "d" / "moved")
    (frail.here / "d" / "other").unlink()
    assert names(frail.here / "d") == ["large", "moved"]
    eventually(lambda: foreign.files() == ["d/large", "d/moved"])
    assert foreign.get("d/moved") == b"small" * 1000


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
    with proxy.broken(Answer(403, "AccessDenied"), on("DELETE", "DELETE_MANY")), fails(errno.EACCES, errno.EPERM):
        (frail.here / "d" / "small").unlink()
    assert (frail.here / "d" / "small").read_bytes() == b"small" * 1000
    assert names(frail.here / "d") == ["large", "other", "small"]


def test_a_server_that_restarts_is_not_noticed(frail: Drive, foreign: Foreign, proxy: Proxy) -> None:
    for number in range(5):
        (frail.here / f"f{number}").write_bytes(b"%d" % number)
        proxy.drop_connections()
        assert (frail.here / "d" / "small").read_bytes() == b"small" * 1000
    assert foreign.files("f") == [f"f{number}" for number in range(5)]


@both
@pytest.mark.parametrize("seed", range(2))
def test_in_a_storm_what_was_acknowledged_is_true(frail: Drive, foreign: Foreign, proxy: Proxy, seed: int) -> None:
    dice = random.Random(seed)
    storm: list[Action] = [*LOST.values(), *PASSING.values()]
    storm = [action for action in storm if not isinstance(action, Hang)]
    names(frail.here / "d")
    for number, action in enumerate(storm):
        proxy.inject(action, chance=0.05, seed=seed * 100 + number)
    possible: dict[str, set[bytes]] = {}
    for number in range(80):
        name = f"f{dice.randrange(12)}"
        path, body = frail.here / "d" / name, b"%d " % number * dice.randrange(1, 20_000)
        before = possible.get(name, set())
        if attempt(lambda path=path, body=body: path.write_bytes(body)):  # type: ignore[misc]
            possible[name] = {body}
        else:  # the old bytes, the new ones, or none where the file was only just truncated
            possible[name] = before | {body, b""}
        seen: list[bytes] = []
        attempt(lambda path=path, seen=seen: seen.append(path.read_bytes()))  # type: ignore[misc]
        assert possible[name].issuperset(seen)
    proxy.heal()
    for name, bodies in possible.items():
        if (frail.here / "d" / name).exists():
            assert (frail.here / "d" / name).read_bytes() in bodies
    frail.mount.stop()
    for name, bodies in possible.items():
        if len(bodies) == 1:
            assert foreign.get(f"d/{name}") in bodies, name
    assert [key for key in foreign.files() if "conflict" in key] == []
