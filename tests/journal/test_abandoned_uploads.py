"""Uploads that were begun and whose id nobody was told: none stays in the bucket, and no other client's goes."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from tests.conftest import Mounter
from tests.support.drive import eventually, fails
from tests.support.faults import FAILED, Hang, Moment
from tests.support.foreign import Foreign
from tests.support.proxy import Proxy
from tests.support.traffic import on

LARGE = bytes(20 << 20)

pytestmark = pytest.mark.parametrize("server", ["ceph"], indirect=True)  # moto's uploads all began in 2010


def write_in_vain(path: Path) -> None:
    """A program whose daemon is killed."""
    with fails(errno.ENOTCONN, errno.ECONNABORTED, errno.EIO):
        path.write_bytes(LARGE)


@pytest.mark.promise(3)
def test_an_upload_whose_id_nobody_was_told_is_aborted(mounter: Mounter, proxy: Proxy, foreign: Foreign) -> None:
    """The daemon dies between the creation of an upload and the answer that has its id."""
    foreign.client.create_multipart_upload(Bucket=foreign.bucket, Key="oursel")
    drive = mounter(proxy.endpoint)
    proxy.inject(Hang(Moment.AFTER), on("CREATE_MULTIPART"))
    writer = threading.Thread(target=write_in_vain, args=[drive.here / "ours"])
    writer.start()
    eventually(lambda: sorted(foreign.uploads()) == ["ours", "oursel"])
    drive.mount.kill()
    writer.join()
    proxy.heal()
    proxy.drop_connections()
    assert sorted(foreign.uploads()) == ["ours", "oursel"]
    drive.mount.start()
    assert sorted(foreign.uploads()) == ["oursel"], "that of another key is none of ours"
    proxy.reset()
    drive.mount.remount()
    listed = [request.query["prefix"] for request in proxy.traffic.of("LIST_UPLOADS")]  # the probe lists its own key
    assert "ours" not in listed, "it is forgotten when it is gone"


def test_the_unmount_aborts_an_upload_whose_id_was_lost(mounter: Mounter, proxy: Proxy, foreign: Foreign) -> None:
    drive = mounter(proxy.endpoint, "--patience", "1", "--timeout", "2")
    drive.mount.allow_log("not in the bucket")
    rule = proxy.inject(Hang(Moment.AFTER), on("CREATE_MULTIPART"))
    with fails(*FAILED):
        (drive.here / "ours").write_bytes(LARGE)
    assert rule.hits
    proxy.heal()
    drive.mount.stop()
    assert foreign.keys("") == ["ours"]
    assert sorted(foreign.uploads()) == []
