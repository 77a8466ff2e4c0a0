"""Several mounts of one bucket at work at once: none loses what another wrote, none costs more for the others."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Mounter
from tests.support.drive import Drive, eventually
from tests.support.foreign import Foreign
from tests.support.proxy import Proxy

MOUNTS, FILES, COUNTS = 3, 20, 10
TTL = 1.0  # seconds
BEATEN = (errno.ESTALE, errno.ENOENT)  # what the slower of two writers is told

pytestmark = pytest.mark.parametrize("server", ["ceph"], indirect=True)


@pytest.fixture
def drives(mounter: Mounter, proxy: Proxy) -> list[Drive]:
    """Mounts of one bucket through one proxy."""
    found = [mounter(proxy.endpoint, "--ttl", str(TTL)) for _ in range(MOUNTS)]
    for drive in found:
        drive.mount.allow_log(r"WARNING|ERROR")  # of who is beaten
    return found


def side_by_side(drives: Sequence[Drive], work: Callable[[int, Drive], None]) -> None:
    """Does `work` with each mount in a thread of its own, and raises what one raises."""
    errors: list[BaseException] = []

    def run(number: int, drive: Drive) -> None:
        try:
            work(number, drive)
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=each) for each in enumerate(drives)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_work_of_their_own_costs_as_much_as_with_one(drives: list[Drive], proxy: Proxy) -> None:
    def work(number: int, drive: Drive) -> None:
        here = drive.here / f"own{number}"
        here.mkdir()
        for file in range(FILES):
            (here / f"f{file}").write_bytes(b"%d of %d" % (file, number))
        for file in range(FILES):
            assert (here / f"f{file}").read_bytes() == b"%d of %d" % (file, number)

    with proxy.recording() as alone:
        side_by_side(drives[:1], work)
    with proxy.recording() as traffic:
        side_by_side(drives[1:], lambda number, drive: work(number + 1, drive))
    assert alone.tally()["PUT"] >= FILES
    for kind, count in traffic.tally().items():
        assert count <= (MOUNTS - 1) * (alone.tally().get(kind, 0) + 2), f"{traffic}\nwith one: {alone}"


def add_one(path: Path) -> bool:
    """Reads a number and writes the next one; False where another mount was faster."""
    try:
        with path.open("r+b", buffering=0) as file:
            number = int(file.read())
            file.seek(0)
            file.write(b"%06d" % (number + 1))
    except OSError as error:
        if error.errno not in BEATEN:
            raise
        return False
    return True


@pytest.mark.promise(4)
def test_each_number_is_counted_once(drives: list[Drive], foreign: Foreign) -> None:
    foreign.put("count", b"%06d" % 0)
    done = [0] * len(drives)

    def work(number: int, drive: Drive) -> None:
        while done[number] < COUNTS:
            done[number] += add_one(drive.here / "count")

    side_by_side(drives, work)
    eventually(lambda: int(foreign.get("count")) == sum(done), seconds=10)


def test_what_one_has_written_the_others_see_within_the_ttl(drives: list[Drive]) -> None:
    first, *others = drives
    for number in range(5):
        (first.here / "shown").write_bytes(b"%d" % number)
        for drive in others:
            eventually(partial(shows, drive.here / "shown", b"%d" % number), seconds=TTL + 5)
    assert all("shown" in os.listdir(drive.here) for drive in others)


def shows(path: Path, body: bytes) -> bool:
    try:
        return path.read_bytes() == body
    except OSError as error:
        if error.errno not in BEATEN:
            raise
        return False
