"""What chmod, chown and utimes do to the root of a mount, which rsync sets as that of any directory."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from sosfs.errors import StoreError
from sosfs.metadata import user_metadata
from sosfs.s3.protocol import Properties
from tests.conftest import Mounter
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import Drive, eventually
from tests.support.foreign import Foreign
from tests.support.held import Held, put_all
from tests.support.servers import Server

MOMENT = 1_234_567_890_123_456_789
ROOT = "top/"


def changed(drive: Drive) -> None:
    drive.mount.path.chmod(0o750)
    os.chown(drive.mount.path, 1234, 5678)
    os.utime(drive.mount.path, ns=(MOMENT, MOMENT))


def seen(drive: Drive) -> tuple[int, int, int, int]:
    found = drive.mount.path.stat()
    return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns


@pytest.mark.parametrize("marked", [False, True])
def test_those_of_a_prefix_stay_over_a_remount(
    mounter: Mounter, server: Server, foreign: Foreign, marked: bool
) -> None:
    foreign.put(f"{ROOT}file", b"x")
    if marked:
        foreign.put(ROOT, b"", {"colour": "blue"})
    drive = mounter(server.endpoint, source=f"{foreign.bucket}/{ROOT}")
    changed(drive)
    assert seen(drive) == (0o750, 1234, 5678, MOMENT)
    drive.mount.remount()
    assert seen(drive) == (0o750, 1234, 5678, MOMENT)
    metadata = foreign.metadata(ROOT)
    assert metadata["mode"] == str(stat.S_IFDIR | 0o750)
    assert metadata.get("colour") == ("blue" if marked else None)
    whole = mounter(server.endpoint)
    found = (whole.mount.path / ROOT).stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_mtime_ns) == (0o750, 1234, MOMENT)


def test_those_of_a_bucket_hold_while_it_is_mounted(mounter: Mounter, server: Server, foreign: Foreign) -> None:
    drive = mounter(server.endpoint)
    before = seen(drive)[:3]
    changed(drive)
    assert seen(drive) == (0o750, 1234, 5678, MOMENT)
    drive.mount.remount()
    assert seen(drive)[:3] == before
    assert foreign.keys() == []


@pytest.mark.parametrize("prefix", ["", ROOT])
def test_rsync_to_the_root_ends_well_and_has_nothing_left_to_do(
    mounter: Mounter, server: Server, foreign: Foreign, tmp_path: Path, prefix: str
) -> None:
    material = tmp_path / "material"
    material.mkdir(mode=0o700)
    (material / "file").write_bytes(b"x")
    os.utime(material, ns=(MOMENT, MOMENT))
    if prefix:
        foreign.put(f"{ROOT}old", b"x")
    drive = mounter(server.endpoint, source=f"{foreign.bucket}/{prefix}")
    again = ("rsync", "-ai", f"{material}/", f"{drive.mount.path}/")
    assert "./" in drive.run(*again)
    eventually(lambda: foreign.exists(f"{prefix}file"))
    assert drive.run(*again) == ""


def rooted(mount: Composed) -> None:
    """Mounts the prefix instead."""
    mount.stop()
    mount._settings = replace(mount._settings, prefix=ROOT)
    mount.start()


def test_a_change_that_was_refused_is_gone_on_with(tmp_path: Path) -> None:
    """At the next mount, too: the root is no name in a directory."""
    store = Held()
    denied = StoreError(errno.EACCES, "put", code="AccessDenied", status=403)

    async def change() -> None:
        root = mount.parts.inodes.root
        root.mode = stat.S_IFDIR | 0o711
        mount.parts.attributes.changed(root, posix=["mode"])

    async def look() -> None:
        root = mount.parts.inodes.root
        assert stat.S_IMODE((await mount.parts.attributes.revalidate(root)).mode) == 0o711

    with composed(store, tmp_path) as mount:
        rooted(mount)
        store.errors["put", ROOT] = [denied] * 3
        mount.loop.run(change)
        mount.loop.passes(2)
        mount.crash()
        mount.start()
        mount.loop.run(look)
        mount.loop.passes(LONG)
        assert user_metadata.read(store._stored[ROOT].object.properties.metadata).mode == stat.S_IFDIR | 0o711


@pytest.mark.parametrize("user", [0, 1000])
def test_who_is_not_root_owns_what_he_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int) -> None:
    store = Held()
    monkeypatch.setattr(os, "geteuid", lambda: user)

    async def look() -> None:
        await store.put(ROOT, b"", Properties(metadata={"mode": str(stat.S_IFDIR | 0o700), "uid": "4321"}))
        await put_all(store, {f"{ROOT}file": b"x"})
        root = await mount.parts.attributes.revalidate(mount.parts.inodes.root)
        assert stat.S_IMODE(root.mode) == 0o700
        assert root.uid == (4321 if user == 0 else mount.parts.inodes.defaults.uid)

    with composed(store, tmp_path) as mount:
        rooted(mount)
        mount.loop.run(look)
