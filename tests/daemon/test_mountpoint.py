"""What a mount point is taken for, and what is done to it: tables and answers of the kernel that a test has made."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sosfs.config import parameters
from sosfs.daemon import mountpoint
from sosfs.daemon.mountpoint import Detach, LastingError, MountState, StartError

BASE = "25 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"


def line(path: Path, *, number: int, kind: str = "fuse.sosfs", options: str = "rw,nosuid") -> str:
    place = str(path).replace(" ", "\\040")
    return f"{number} 25 0:{number} / {place} {options} shared:9 - {kind} bucket\\040one rw,user_id=7,group_id=7"


class Kernel:
    """What the kernel says of mounts."""

    def __init__(self, patch: pytest.MonkeyPatch, base: Path) -> None:
        self._table = base / "mountinfo"
        self.answer: int | None = None  # the errno of what is asked of a mount
        self.detached: list[tuple[Path, Detach]] = []
        self.lines: list[str] = []
        patch.setattr(mountpoint, "MOUNT_TABLE", self._table)
        patch.setattr(os, "statvfs", self._statvfs)
        patch.setattr(mountpoint, "detach", self._detach)
        self.mount()

    def mount(self, *lines: str) -> None:
        """The mount table has these."""
        self.lines = [BASE, *lines]
        self._table.write_text("".join(f"{each}\n" for each in self.lines))

    def _statvfs(self, path: Path) -> None:
        if self.answer is not None:
            raise OSError(self.answer, os.strerror(self.answer), str(path))

    def _detach(self, path: Path, how: Detach) -> None:
        self.detached.append((path, how))
        self.mount(*self.lines[1:-1])


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Kernel:
    return Kernel(monkeypatch, tmp_path)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    path = tmp_path / "a place"
    path.mkdir()
    return path


def test_the_one_on_top_is_what_is_there(kernel: Kernel, here: Path) -> None:
    kernel.mount(line(here, number=40), line(here / "below", number=41), line(here, number=42, options="ro,noexec"))
    found = mountpoint.at(here)
    assert found is not None
    assert (found.device, found.type, found.source, found.owner) == ("0:42", "fuse.sosfs", "bucket one", 7)
    assert found.options == ("ro", "noexec")
    assert mountpoint.at(here.parent) is None


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (None, MountState.LIVE),
        (errno.ENOTCONN, MountState.DEAD),
        (errno.ECONNABORTED, MountState.DEAD),
        (errno.EACCES, MountState.LIVE),  # another user's
        (errno.EIO, MountState.LIVE),
    ],
)
def test_a_mount_is_dead_only_where_the_kernel_says_so(
    kernel: Kernel, here: Path, answer: int | None, state: MountState
) -> None:
    kernel.mount(line(here, number=40))
    kernel.answer = answer
    assert mountpoint.state(here) is state


def test_a_mount_of_another_kind_may_be_mounted_over(kernel: Kernel, here: Path) -> None:
    kernel.answer = errno.ENOTCONN
    kernel.mount(line(here, number=40, kind="tmpfs"))
    assert mountpoint.state(here) is MountState.FREE


@pytest.mark.promise(12)
def test_a_dead_mount_is_taken_off_and_nothing_else(kernel: Kernel, here: Path) -> None:
    kernel.mount(line(here, number=40))
    with pytest.raises(StartError, match="has a mount already"):
        mountpoint.clear(here)
    assert kernel.detached == []
    kernel.answer = errno.ENOTCONN
    mountpoint.clear(here)
    assert kernel.detached == [(here, Detach.LAZY)]
    mountpoint.clear(here)
    assert len(kernel.detached) == 1


def test_nothing_is_mounted_over_what_lay_below_a_dead_mount(kernel: Kernel, here: Path) -> None:
    kernel.answer = errno.ENOTCONN
    kernel.mount(line(here, number=40), line(here, number=41))
    with pytest.raises(StartError, match="another mount below the dead one"):
        mountpoint.clear(here)
    kernel.mount(line(here, number=40))
    (here / "precious").touch()
    with pytest.raises(LastingError, match="'precious'"):
        mountpoint.clear(here)


def test_before_it_begins_a_dead_mount_stays(kernel: Kernel, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parameters.resolve("b", "", here, [])
    monkeypatch.setattr(mountpoint, "_check_fuse", lambda settings: None)
    kernel.mount(line(here, number=40))
    with pytest.raises(StartError, match="has a mount already"):
        mountpoint.prepare(settings)
    kernel.answer = errno.ENOTCONN
    mountpoint.prepare(settings)
    assert kernel.detached == []
    kernel.mount()
    (here / "precious").touch()
    with pytest.raises(LastingError, match="'precious'"):
        mountpoint.prepare(settings)
