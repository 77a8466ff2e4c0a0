"""Uploads that fail: close() and fsync() tell it, the old object stays whole, the new bytes stay for the next try."""

from __future__ import annotations

import os
import random

import pytest

from tests.support.drive import Drive, digest, fails, names, sync
from tests.support.faults import BROKEN, FAILED, Answer
from tests.support.foreign import Foreign
from tests.support.proxy import Proxy
from tests.support.traffic import on

MIB = 1 << 20
LOOKS = ("HEAD", "LIST")
UPLOADS = ("PUT", "CREATE_MULTIPART", "UPLOAD_PART", "COMPLETE")

pytestmark = pytest.mark.parametrize("server", ["ceph"], indirect=True)  # the proxy breaks every server alike


@pytest.mark.promise(2)
@pytest.mark.parametrize(
    ("fault", "ending"), [*((fault, "close") for fault in BROKEN), ("503", "fsync"), ("403", "fsync")]
)
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
        sync(path)
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
    sync(path)
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
    sync(frail.here / "moved")
    assert foreign.get("moved") == b"precious"
    assert not foreign.exists("new")


@pytest.mark.parametrize(("step", "status"), [*((step, 500) for step in UPLOADS[1:]), ("COMPLETE", 200)])
def test_a_large_upload_that_fails_at_any_step(
    frail: Drive, foreign: Foreign, proxy: Proxy, step: str, status: int
) -> None:
    body = random.Random(18).randbytes(20 * MIB)
    file = (frail.here / "big").open("wb", buffering=0)
    with proxy.broken(Answer(status, "InternalError"), on(step)):
        with fails(*FAILED):
            file.write(body)
            file.close()
        assert not foreign.exists("big")
    sync(frail.here / "big")
    assert digest(foreign.get("big")) == digest(body)
    assert foreign.uploads() == []
