"""Which close of a process is its last one of a file, and what is sent at the others."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from sosfs.files import duplicate_descriptors
from sosfs.files.open_file import Handle
from tests.support.composed import Composed
from tests.support.held import Held, bodies


@pytest.fixture
def held(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a file that this process has open."""
    descriptor = os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


def test_a_duplicate_is_told_from_the_last_descriptor(tmp_path: Path, held: int) -> None:
    path = str(tmp_path / "file")
    duplicate = os.dup(held)
    assert duplicate_descriptors.holds(os.getpid(), path)
    os.close(duplicate)
    assert duplicate_descriptors.holds(os.getpid(), path), "the other one"
    assert not duplicate_descriptors.holds(os.getpid(), f"{path}2")
    assert not duplicate_descriptors.holds(os.getpid(), str(tmp_path))


def test_what_another_process_has_open_is_not_this_ones(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with subprocess.Popen(["sleep", "60"]) as other:
        with path.open("w"):
            assert duplicate_descriptors.holds(os.getpid(), str(path))
            assert not duplicate_descriptors.holds(other.pid, str(path))
        assert not duplicate_descriptors.holds(os.getpid(), str(path))
        other.kill()
    assert not duplicate_descriptors.holds(other.pid, str(path)), "nothing is told of who is gone: it is sent"


def test_a_descriptor_that_is_closed_meanwhile_is_none(
    tmp_path: Path, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(path: str) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "readlink", gone)
    assert not duplicate_descriptors.holds(os.getpid(), str(tmp_path / "file"))


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize("body", [b"", b"bytes", bytes(9)])
def test_an_empty_file_waits_for_the_last_close_and_bytes_do_not(
    mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch, holds: bool, body: bytes
) -> None:
    """`> file` of a shell closes a duplicate first; whoever has written gets its promise at any close."""
    monkeypatch.setattr(duplicate_descriptors, "holds", lambda task, path: holds and (task, path) == (1, "/file"))

    async def main() -> Handle:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_WRONLY)
        if any(body):
            await mount.parts.file_io.write(handle, 0, body)
        elif body:
            await mount.parts.file_io.truncate(handle.inode, len(body))
        await mount.parts.file_io.flush(handle)
        return handle

    handle = mount.loop.run(main)
    assert bodies(store) == ({} if holds and not body else {"file": body})
    mount.loop.run(partial(mount.parts.file_io.release, handle))
    mount.loop.passes(10)
    assert bodies(store) == {"file": body}, "the last one is never held back"
