"""O_EXCL and mkdir have one winner among hosts at the call itself, where that is asked for, in both modes."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from sosfs.config.parameters import Durability, Exclusive
from sosfs.namespace.exclusive_create import ExclusiveCreate
from tests.conftest import Mounter
from tests.support.drive import Drive, fails
from tests.support.foreign import Foreign
from tests.support.proxy import Proxy

RACES = 6
ALWAYS = ("--exclusive", "always")
MODES = [(), ("--durability", "journal")]


@pytest.mark.parametrize("durability", Durability)
def test_what_is_claimed_when(durability: Durability) -> None:
    """`locks` claims what looks like one; `always` all; `close` nothing but directories with `bucket`."""
    lock, plain = b"x.lock", b"plain"
    create = os.O_CREAT | os.O_EXCL
    is_bucket = durability is Durability.BUCKET
    table = {
        Exclusive.LOCKS: ((True, False), (True, is_bucket)),
        Exclusive.ALWAYS: ((True, True), (True, True)),
        Exclusive.CLOSE: ((False, False), (is_bucket, is_bucket)),
    }
    for choice, (files, directories) in table.items():
        claims = ExclusiveCreate(choice, durability)
        assert (claims.at_open(lock, create), claims.at_open(plain, create)) == files
        assert (claims.at_mkdir(lock), claims.at_mkdir(plain)) == directories
        assert not claims.at_open(lock, os.O_CREAT), "nobody asked for it"


def create(path: Path, text: bytes) -> None:
    """Claims a name at open; the bytes follow."""
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        os.write(file, text)
    finally:
        os.close(file)


def race(mounts: list[Drive], name: str, *, directory: bool) -> list[int]:
    """Which of the mounts have won a name that all of them claim at one time."""
    start = Barrier(len(mounts))

    def claim(number: int) -> bool:
        path = mounts[number].here / name
        start.wait()
        try:
            if directory:
                path.mkdir()
            else:
                create(path, b"%d" % number)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(len(mounts)) as pool:
        won = list(pool.map(claim, range(len(mounts))))
    return [number for number, is_ours in enumerate(won) if is_ours]


def check_one_winner(mounter: Mounter, foreign: Foreign, options: tuple[str, ...]) -> None:
    mounts = [mounter("", *ALWAYS, *options) for _ in range(2)]
    winners = {}
    for number in range(RACES):
        (winners[f"file{number}"],) = race(mounts, f"file{number}", directory=False)
        assert len(race(mounts, f"d{number}", directory=True)) == 1
    for drive in mounts:
        drive.mount.stop()
    for name, winner in winners.items():
        assert foreign.get(name) == b"%d" % winner, "who won at open has its bytes there"
    assert foreign.keys() == sorted([*winners, *(f"d{number}/" for number in range(RACES))]), "and nobody lost any"


@pytest.mark.promise(4)
@pytest.mark.parametrize("options", MODES, ids=["bucket", "journal"])
@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_always_has_one_winner_at_open(mounter: Mounter, foreign: Foreign, options: tuple[str, ...]) -> None:
    check_one_winner(mounter, foreign, options)


@pytest.mark.promise(4)
@pytest.mark.parametrize("server", ["ceph"], indirect=True)
def test_always_has_one_winner_at_open_with_the_journal_on_ceph(mounter: Mounter, foreign: Foreign) -> None:
    check_one_winner(mounter, foreign, MODES[1])


@pytest.mark.promise(4)
@pytest.mark.parametrize("options", MODES, ids=["bucket", "journal"])
@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_a_name_that_is_not_listed_yet_is_refused_at_open(
    mounter: Mounter, foreign: Foreign, proxy: Proxy, options: tuple[str, ...]
) -> None:
    """Another host has just made it: what this one remembers of the directory is out of date."""
    drive = mounter(proxy.endpoint, *ALWAYS, "--ttl", "60", *options)
    assert os.listdir(drive.here) == []
    foreign.put_all({"theirs": b"theirs", "dir/": b"", "removed": b"theirs"})
    with fails(errno.EEXIST):
        create(drive.here / "theirs", b"ours")
    with fails(errno.EEXIST):
        (drive.here / "dir").mkdir()
    assert foreign.get("theirs") == b"theirs"
    with proxy.recording() as traffic:
        create(drive.here / "ours", b"ours")
        (drive.here / "ours").unlink()
        create(drive.here / "ours", b"again")
    claims = [request for request in traffic.of("PUT") if request.headers.get("if-none-match") == "*"]
    assert len(claims) == 2, str(traffic)
    drive.mount.stop()
    assert foreign.get("ours") == b"again"


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_with_the_journal_a_plain_name_is_claimed_by_its_upload(
    mounter: Mounter, foreign: Foreign, proxy: Proxy
) -> None:
    """As the README says of the default: both calls succeed, one file has the name, the other lies beside it."""
    mounts = [mounter(proxy.endpoint, *MODES[1], "--ttl", "0") for _ in range(2)]
    for number, drive in enumerate(mounts):
        drive.mount.allow_log("another client|conflict|not in the bucket|could not be sent")
        create(drive.here / "plain", b"%d" % number)
    with fails(errno.EEXIST):
        for drive in mounts:
            create(drive.here / "a.lock", b"lock")
    for drive in mounts:
        drive.mount.stop()
    keys = foreign.keys()
    assert [key.split(".conflict-")[0] for key in keys] == ["a.lock", "plain", "plain"]
    assert sorted(foreign.get(key) for key in keys[1:]) == [b"0", b"1"]
