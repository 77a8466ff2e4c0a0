"""`--durability writeback`: close does not wait for the disk, and a power loss takes no more than the last second.

What the disk holds then is drawn by lot (`tests.support.power`). What was fsynced is there, and what is older than a
second; of the rest each file is as one of its closes has left it, whole.
"""

from __future__ import annotations

import errno
import logging
import os
import random
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from sosfs.config.parameters import Durability
from sosfs.errors import StoreError
from sosfs.files.spool import MANY
from sosfs.recovery.replay import Replay
from sosfs.s3.protocol import Properties
from tests.support.composed import Composed, composed
from tests.support.drive import fails
from tests.support.fake_store import FakeStore
from tests.support.held import Held, bodies, opened
from tests.support.power import PAGE, Machine

WRITEBACK = Durability.WRITEBACK
SEEDS = int(os.environ.get("SOSFS_POWER_RUNS", "30"))
SMALL, LARGE = 1000, 300_000  # bytes: in its row, in a spool
sizes = pytest.mark.parametrize("size", [SMALL, LARGE], ids=["in its row", "in the spool"])
logs = pytest.mark.parametrize("newest_log", [False, True], ids=["old log", "new log"])
pytestmark = pytest.mark.promise(2)


async def write(mount: Composed, name: str, body: bytes, *, at: int = 0, flags: int = 0, sync: bool = False) -> None:
    """open, write, fsync if wanted, close."""
    handle = await mount._opened(mount.parts.inodes.root, name.encode(), flags | os.O_CREAT | os.O_WRONLY)
    await mount.parts.file_io.write(handle, handle.inode.size if flags & os.O_APPEND else at, body)
    if sync:
        await mount.parts.file_io.fsync(handle.inode)
    await mount.parts.file_io.flush(handle)
    await mount.parts.file_io.release(handle)
    mount.parts.namespace.forget(handle.inode, 0)


def shown(mount: Composed) -> dict[str, bytes]:
    """All files of the mount."""
    tree = mount.loop.run(mount.tree)
    return {name: found[0] for name, found in tree.items() if found is not None}


class Story:
    """Programs that change files, and what each file may be when the power goes."""

    def __init__(self, mount: Composed, machine: Machine, seed: int) -> None:
        self._mount = mount
        self._machine = machine
        self._dice = random.Random(seed)
        self._names = ["a", "b", "c"]
        self.states: dict[str, list[bytes | None]] = {name: [None] for name in self._names}
        self.torn: set[str] = set()  # written to in place since they were last safe
        self.trail: list[str] = []

    def run(self) -> None:
        """Some steps, a power loss, and a look; several times."""
        for _ in range(3):
            for _ in range(self._dice.randrange(1, 14)):
                self._dice.choice((self._write, self._write, self._append, self._overwrite, self._move, self._time))()
            self._machine.loses_power()
            self._mount.start()
            self._look()
            self.trail.clear()

    def _now(self, name: str) -> bytes | None:
        return self.states[name][-1]

    def _is(self, name: str, body: bytes | None, *, safe: bool = False) -> None:
        if safe:
            self.states[name].clear()
            self.torn.discard(name)
        self.states[name].append(body)

    def _body(self) -> bytes:
        return self._dice.randbytes(self._dice.choice((10, SMALL, LARGE, LARGE + PAGE)))

    def _do(self, what: str, step: Callable[[], Awaitable[None]]) -> None:
        self.trail.append(what)
        self._mount.loop.run(step)

    def _write(self) -> None:
        name, body, sync = self._dice.choice(self._names), self._body(), self._dice.random() < 0.3
        step = partial(write, self._mount, name, body, flags=os.O_TRUNC, sync=sync)
        self._do(f"write {len(body)} to {name}, fsync {sync}", step)
        self._is(name, body, safe=sync)

    def _append(self) -> None:
        name, body, sync = self._dice.choice(self._names), self._body(), self._dice.random() < 0.3
        step = partial(write, self._mount, name, body, flags=os.O_APPEND, sync=sync)
        self._do(f"append {len(body)} to {name}, fsync {sync}", step)
        self._is(name, (self._now(name) or b"") + body, safe=sync)

    def _overwrite(self) -> None:
        name, sync = self._dice.choice(self._names), self._dice.random() < 0.3
        before = self._now(name)
        if before is None:
            return
        at, piece = self._dice.randrange(len(before) // PAGE + 1) * PAGE, self._dice.randbytes(PAGE)
        step = partial(write, self._mount, name, piece, at=at, sync=sync)
        self._do(f"write {PAGE} at {at} of {name}, fsync {sync}", step)
        self.torn.add(name)
        self._is(name, before[:at].ljust(at, b"\0") + piece + before[at + PAGE :], safe=sync)

    def _move(self) -> None:
        old, new = self._dice.sample(self._names, 2)
        body = self._now(old)
        if body is None:
            return
        if self._dice.random() < 0.5:
            self._do(f"unlink {old}", partial(self._mount.unlink, old))
        else:
            self._do(f"rename {old} to {new}", partial(self._mount.rename, old, new))
            self.torn |= {new} if old in self.torn else set()
            self.states[new] += [state for state in self.states[old] if state is not None]  # it brings what it was
        self._is(old, None)

    def _time(self) -> None:
        seconds = self._dice.choice((0.2, 0.6, 3.0))
        self.trail.append(f"{seconds} s")
        self._mount.loop.passes(seconds)
        if seconds > 2:
            for name in self._names:
                self._is(name, self._now(name), safe=True)

    def _look(self) -> None:
        found = shown(self._mount)
        why = "\n  ".join([*self.trail, f"damage: {self._mount._journal.damage.lines}", f"names: {sorted(found)}"])
        assert self._mount._journal.damage.lines == (), why
        assert found.keys() <= set(self._names), why
        for name in self._names:
            assert self._may_be(name, found.get(name)), f"{name} is {_told(found.get(name))}\n  {why}"
            self._is(name, found.get(name), safe=True)

    def _may_be(self, name: str, body: bytes | None) -> bool:
        """Whether a file is as a close has left it; one that was written to in place may have pages of several."""
        states = self.states[name]
        if body in states:
            return True
        if body is None or name not in self.torn:
            return False
        whole = [state for state in states if state is not None]
        pages = range(0, len(body), PAGE)
        return any(len(body) == len(state) for state in whole) and all(
            any(body[at : at + PAGE] == state[at : at + PAGE] for state in whole) for at in pages
        )


def _told(body: bytes | None) -> str:
    return "absent" if body is None else f"{len(body)} bytes, {body.count(0)} of them zero"


@pytest.mark.promise(3)
@pytest.mark.parametrize("is_away", [False, True], ids=["server answers", "server is away"])
def test_a_power_loss_takes_the_last_second_at_most(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, is_away: bool
) -> None:
    for seed in range(SEEDS):
        with (
            monkeypatch.context() as patch,
            composed(store := Held(), tmp_path_factory.mktemp("power"), durability=WRITEBACK) as mount,
        ):
            if is_away:
                store.errors = {("put", name): [StoreError(errno.EIO, "put")] * 1000 for name in "abc"}
            story = Story(mount, Machine(mount, patch, seed), seed)
            try:
                story.run()
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {error}") from error
            finally:
                mount.loop.run(store.release)


@sizes
@logs
def test_what_was_synced_is_there_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, newest_log: bool
) -> None:
    """The safe way to replace a file: write another, fsync it, rename it, fsync the directory."""
    store, body = FakeStore(), b"n" * size

    async def main(mount: Composed) -> None:
        await write(mount, "file", b"old")
        await write(mount, "file.tmp", body, sync=True)
        await mount.rename("file.tmp", "file")
        await mount.settle()
        await mount.parts.commits.done_for_good()
        await write(mount, "later", body)

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        machine.loses_power(newest_log=newest_log, spools="synced")
        mount.start()
        assert mount._journal.damage.lines == ()
        found = shown(mount)
        assert found.pop("file") == body
        assert found in ({}, {"later": body})


@logs
def test_of_a_file_synced_before_only_what_came_later_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newest_log: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Small when it was synced, and too large for its row since then."""
    store, safe = Held(), b"s" * SMALL

    async def main(mount: Composed) -> None:
        store.before["put"] = trio.Event()
        await write(mount, "file", safe, sync=True)
        await write(mount, "file", b"l" * LARGE, flags=os.O_APPEND)

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        machine.loses_power(newest_log=newest_log, spools="synced")
        mount.start()
        mount.loop.run(store.release)
        assert shown(mount) == {"file": safe}
        assert ("file: what was written just before" in caplog.text) == newest_log


@logs
def test_a_file_that_was_not_synced_is_as_the_bucket_has_it_and_that_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newest_log: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"stored", Properties())
        store.before["put"] = trio.Event()
        await write(mount, "file", b"n" * LARGE, flags=os.O_TRUNC)
        await write(mount, "new", b"n" * LARGE)

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        machine.loses_power(newest_log=newest_log, spools="synced")
        mount.start()
        assert mount._journal.damage.lines == ()
        assert mount.parts.pending == 0
        assert shown(mount) == {"file": b"stored"}
        assert [*(mount._settings.state_dir / "spool").iterdir()] == []
        told = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
        assert len(told) == (2 if newest_log else 0), told
        mount.loop.run(store.release)


@sizes
@logs
def test_a_rename_over_a_file_leaves_the_old_one_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, newest_log: bool
) -> None:
    """Neither is in the bucket, and nobody has synced the new one: with the record of the old one its bytes go."""
    store, new = Held(), b"n" * size

    async def main(mount: Composed) -> None:
        store.before["put"] = trio.Event()
        await write(mount, "file", b"o" * LARGE, sync=True)
        await write(mount, "new", new)
        await mount.rename("new", "file")

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        machine.loses_power(newest_log=newest_log, spools="synced")
        mount.start()
        mount.loop.run(store.release)
        assert mount._journal.damage.lines == ()
        assert shown(mount)["file"] == (new if newest_log else b"o" * LARGE)


@pytest.mark.parametrize("durability", [Durability.JOURNAL, WRITEBACK])
@pytest.mark.parametrize("spools", ["synced", "written"])
def test_a_file_that_is_emptied_and_written_anew_is_never_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability, spools: str
) -> None:
    """The kernel wrote new bytes out, and not yet the journal's log, which has the old row."""
    store, old, new = Held(), b"o" * LARGE, b"n" * (LARGE - PAGE)

    async def main(mount: Composed) -> None:
        store.before["put"] = trio.Event()
        await write(mount, "file", old, sync=True)
        handle = await opened(mount, os.O_WRONLY | os.O_TRUNC)
        await mount.parts.file_io.write(handle, 0, new)
        if durability is WRITEBACK:
            await mount.parts.file_io.flush(handle)

    for newest_log in (False, True):
        (base := tmp_path / str(newest_log)).mkdir()
        with composed(store, base, durability=durability) as mount:
            machine = Machine(mount, monkeypatch, 1)
            mount.loop.run(partial(main, mount))
            machine.loses_power(newest_log=newest_log, spools=spools)
            mount.start()
            mount.loop.run(store.release)
            assert mount._journal.damage.lines == ()
            assert shown(mount) == {"file": old}
        store = Held()


@sizes
def test_after_a_second_all_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    store, body = Held(), b"n" * size

    async def main(mount: Composed) -> None:
        store.before["put"] = trio.Event()
        for number in range(MANY + 2):
            await write(mount, f"file{number}", body)
        await mount.unlink("file1")
        await mount.rename("file0", "moved")

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        assert mount.parts.unsynced.changes >= MANY
        assert mount.parts.unsynced.size >= MANY * size
        mount.loop.passes(2)
        assert mount.parts.unsynced == (0, 0, 0.0)
        machine.loses_power(newest_log=False, spools="synced")
        mount.start()
        mount.loop.run(store.release)
        assert mount._journal.damage.lines == ()
        assert shown(mount) == {"moved": body} | {f"file{number}": body for number in range(2, MANY + 2)}


def test_one_sync_is_enough_for_what_was_closed_before_it(tmp_path: Path) -> None:
    """The records that vouch for the bytes are on the disk with these."""
    with composed(Held(), tmp_path, durability=WRITEBACK) as mount:
        mount.loop.run(partial(mount.write, "file", b"n" * 300_000, flags=os.O_CREAT))
        assert mount.parts.unsynced.changes > 0
        assert mount.parts.delayed_sync is not None
        mount.loop.run(mount.parts.delayed_sync.now)
        assert mount.parts.unsynced.changes == 0


@sizes
@pytest.mark.promise(3)
def test_the_death_of_the_process_takes_nothing(tmp_path: Path, size: int) -> None:
    store, body = Held(), b"n" * size

    async def main(mount: Composed) -> None:
        store.before["put"] = trio.Event()
        await write(mount, "file", b"o" * LARGE, sync=True)
        await write(mount, "file", body, flags=os.O_TRUNC)
        await write(mount, "file", b"more", flags=os.O_APPEND)
        await write(mount, "renamed", body)
        await mount.rename("renamed", "new")
        await mount.mkdir("folder")

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.loop.run(store.release)
        mount.start()
        assert mount._journal.damage.lines == ()
        assert shown(mount) == {"file": body + b"more", "new": body}
        assert mount.loop.run(mount.tree)["folder"] is None


@sizes
def test_closes_cost_a_handful_of_syncs_and_fsync_what_it_costs_with_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        store.before["put"] = trio.Event()
        for number in range(200):
            await write(mount, f"file{number}", b"n" * size)

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.passes(2)
        machine.syncs = 0
        mount.loop.run(partial(main, mount))
        assert machine.syncs == 0
        mount.loop.passes(2)
        assert 0 < machine.syncs <= 4
        machine.syncs = 0
        mount.loop.run(partial(write, mount, "last", b"n" * size, sync=True))
        assert machine.syncs == 1 + (size == LARGE)
        mount.loop.run(store.release)


def test_what_was_renamed_is_not_renamed_again_when_the_power_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rename did not wait for the disk; what then takes the old name must not follow it."""
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("log", b"old lines", Properties())
        await mount.rename("log", "log.1")
        await write(mount, "log", b"new lines")
        await mount.parts.commits.commit(await mount._walk("log"))
        assert bodies(store) == {"log": b"new lines", "log.1": b"old lines"}

    for newest_log in (False, True):
        (base := tmp_path / str(newest_log)).mkdir()
        with composed(store, base, durability=WRITEBACK) as mount:
            machine = Machine(mount, monkeypatch, 1)
            mount.loop.run(partial(main, mount))
            machine.loses_power(newest_log=newest_log)
            mount.start()
            mount.loop.passes(5)
            assert bodies(store) == {"log": b"new lines", "log.1": b"old lines"}
        store = Held()


@pytest.mark.parametrize("durability", [Durability.JOURNAL, WRITEBACK])
@pytest.mark.parametrize("tries", [1, 2], ids=["", "also where the first mount does not begin"])
def test_a_file_that_went_up_just_before_is_no_conflict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability, tries: int
) -> None:
    """The record is on the disk, and not what it says of the upload. The network comes after the mount, as it may."""
    store = Held()

    async def unreachable(_: Replay) -> None:
        raise OSError(errno.EIO, "no answer")

    async def main(mount: Composed, machine: Machine) -> None:
        await write(mount, "file", b"bytes")
        await mount.parts.file_io.fsync(await mount._walk("file"))

    with composed(store, tmp_path, durability=durability) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount, machine))
        mount.loop.passes(0.7)
        assert bodies(store) == {"file": b"bytes"}
        machine.loses_power(newest_log=False)
        for _ in range(tries - 1):
            with monkeypatch.context() as patch, fails(errno.EIO):
                patch.setattr(Replay, "run", unreachable)
                mount.start()
            mount.crash()
        mount.start()
        assert not mount._journal.has_lost_power, "all is taken up"
        mount.loop.passes(5)
        assert bodies(store) == {"file": b"bytes"}


def test_a_disk_that_refuses_is_told_to_the_next_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As of a local disk: close has returned, and the kernel has given up the bytes."""
    store = Held()
    caplog.set_level(logging.ERROR)

    async def refuse(*_: object) -> list[OSError]:
        return [OSError(5, "Input/output error")]

    async def main(mount: Composed) -> None:
        store.before["put"] = trio.Event()
        await write(mount, "file", b"n" * LARGE)

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        mount.loop.run(partial(main, mount))
        with monkeypatch.context() as patch:
            patch.setattr("sosfs.files.spool.SpoolArea.sync", refuse)
            mount.loop.passes(2)
        assert "file cannot be synced: " in caplog.text
        assert mount.parts.unsynced.changes

        async def fsync() -> None:
            await mount.parts.file_io.fsync(await mount._walk("file"))

        with pytest.raises(OSError, match="Input/output error"):
            mount.loop.run(fsync)
        mount.loop.run(fsync)
        mount.loop.passes(12)
        assert mount.parts.unsynced.changes == 0
        mount.loop.run(store.release)
