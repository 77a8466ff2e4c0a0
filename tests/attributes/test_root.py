"""What chmod, chown and utimes do to the root of a mount, which rsync sets as that of any directory."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio

from sosfs.attributes.revalidation import GLANCE
from sosfs.errors import StoreError
from sosfs.filesystem.bucket import _operations
from sosfs.metadata import user_metadata
from sosfs.s3.protocol import Properties
from tests.conftest import Mounter
from tests.support.composed import LONG, TASK, Composed, composed
from tests.support.drive import Drive, eventually, status
from tests.support.faults import Moment, Reset
from tests.support.foreign import Foreign
from tests.support.held import Held, begun, put_all, settled, silence
from tests.support.mounting import run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server

MOMENT = 1_234_567_890_123_456_789
ROOT = "top/"
CALLER: Any = SimpleNamespace(pid=TASK, uid=0, gid=0, umask=0o022)


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


def setting(**values: int) -> tuple[Any, Any]:
    """What chmod and chown tell of what is to be set."""
    entry = pyfuse3.EntryAttributes()
    for name, value in values.items():
        setattr(entry, f"st_{name}", value)
    names = ("size", "mode", "uid", "gid", "atime", "mtime")
    return entry, SimpleNamespace(**{f"update_{name}": name in values for name in names})


@pytest.mark.parametrize("user", [0, 1000])
def test_who_is_not_root_owns_what_he_mounts_and_changes_nothing_of_whose_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int
) -> None:
    store = Held()
    monkeypatch.setattr(os, "geteuid", lambda: user)

    async def look() -> None:
        kernel, number = _operations(mount._settings, mount.parts), mount.parts.inodes.root.number
        owned = {"mode": str(stat.S_IFDIR | 0o700), "uid": "4321", "gid": "8765"}
        await store.put(ROOT, b"", Properties(metadata=owned))
        await put_all(store, {f"{ROOT}file": b"x"})
        root = await kernel.getattr(number, CALLER)
        assert stat.S_IMODE(root.st_mode) == 0o700
        owner = 4321 if user == 0 else mount.parts.inodes.defaults.uid
        assert (root.st_uid, root.st_gid) == (owner, 8765)
        root = await kernel.setattr(number, *setting(mode=stat.S_IFDIR | 0o711), None, CALLER)
        assert (root.st_uid, root.st_gid) == (owner, 8765)

    with composed(store, tmp_path) as mount:
        rooted(mount)
        mount.loop.run(look)
        mount.loop.passes(2)
    metadata = store._stored[ROOT].object.properties.metadata
    assert (metadata["mode"], metadata["uid"], metadata["gid"]) == (str(stat.S_IFDIR | 0o711), "4321", "8765")


def test_who_looks_at_the_root_does_not_wait_for_a_bucket_that_does_not_answer(tmp_path: Path) -> None:
    """umount(8) and df(1) do; only the first of them waits, for a moment."""
    store = Held()
    shown: list[int] = []

    async def look() -> None:
        kernel = _operations(mount._settings, mount.parts)
        shown.append(stat.S_IMODE((await kernel.getattr(mount.parts.inodes.root.number, CALLER)).st_mode))

    async def begin() -> None:
        await store.put(ROOT, b"", Properties(metadata={"mode": str(stat.S_IFDIR | 0o700)}))
        store.before["head", ROOT] = trio.Event()
        await begun(mount, look)
        assert ("head", ROOT) in store.reached

    async def answer() -> None:
        store.errors["head", ROOT] = [silence("head")]
        await settled(store.before["head", ROOT])
        await look()

    with composed(store, tmp_path) as mount:
        rooted(mount)
        guess = stat.S_IMODE(mount.parts.inodes.root.mode)
        mount.loop.run(begin)
        assert shown == []
        mount.loop.passes(GLANCE)
        assert shown == [guess]
        mount.loop.run(look)
        assert shown == [guess, guess]
        mount.loop.run(answer)
        assert shown == [guess, guess, 0o700]


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_a_mounted_prefix_is_seen_and_unmounted_while_its_server_is_away(
    mounter: Mounter, server: Server, foreign: Foreign, proxy: Proxy
) -> None:
    foreign.put(f"{ROOT}file", b"x")
    drive = mounter(proxy.endpoint, source=f"{foreign.bucket}/{ROOT}")
    with proxy.broken(Reset(Moment.BEFORE), lambda request: True):
        assert str(drive.mount.path) in drive.run("df", os.fspath(drive.mount.path))
        assert status(drive).memory_bytes >= 0
        assert stat.S_ISDIR(drive.mount.path.stat().st_mode)
        assert run_sosfs(["umount", os.fspath(drive.mount.path)], drive.mount.environment).returncode == 0
