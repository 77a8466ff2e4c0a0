"""The program with a stand-in for the file system: `python -m tests.support.standin` is `sosfs` with an empty mount.

For tests of what is around the file system: it is a real kernel mount with a real status socket, and does at
its start, its drain and its end what the JSON in `STANDIN` says (the fields of `Orders`).
"""

from __future__ import annotations

import errno
import functools
import json
import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyfuse3
import trio

from sosfs.cli import main, mount_helper
from sosfs.config.credentials import CredentialSource
from sosfs.config.parameters import Settings
from sosfs.daemon import launch, mountpoint
from sosfs.daemon.mountpoint import StartError
from sosfs.ipc import sockets, status
from sosfs.ipc.status import MountPhase, Status

LIFE_SECONDS = 120  # then it dies, should the test that began it have been killed


@dataclass(frozen=True)
class Orders:
    """What the stand-in is to do."""

    refuse: str = ""  # at the start, with a StartError of this text
    error: int = 0  # at the start, with an OSError of this number
    die: int = 0  # at the start, by this signal
    bug: str = ""  # at the start, by an exception nobody foresaw
    hang: str = ""  # at the start, writing its pid into this file
    gate: str = ""  # drain as long as this file exists
    left: int = 0  # files that are left at the end
    silent: bool = False  # end without a last status
    interrupt: bool = False  # the program, while it forks
    slow: float = 60.0  # seconds after which who waits is told what for; a busy machine takes longer than a user would


def ordered() -> Orders:
    """What this run is to do."""
    return Orders(**json.loads(os.environ.get("STANDIN", "{}")))


class Empty(pyfuse3.Operations):
    """A file system with nothing in it."""

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o755)
        entry.st_nlink = 2
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        return entry

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        return pyfuse3.FileHandleT(1)

    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        return


class Mounted:
    """One mount of the stand-in."""

    def __init__(self, settings: Settings, orders: Orders) -> None:
        self.settings = settings
        self.orders = orders
        self.state = MountPhase.MOUNTING

    def status(self) -> Status:
        pending = self.orders.left or (1 if self.orders.gate else 0)
        return Status(
            os.getpid(),
            self.settings.bucket,
            self.settings.prefix,
            str(self.settings.mountpoint),
            self.settings.endpoint,
            self.state,
            pending_files=pending if self.state is not MountPhase.STOPPED else self.orders.left,
            pending_bytes=pending << 20 if self.state is not MountPhase.STOPPED else self.orders.left << 20,
            errors=("a.txt: AccessDenied",) if self.orders.left else (),
        )

    async def run(self, ready: Callable[[], None]) -> None:
        path = self.settings.mountpoint
        mountpoint.clear(path)
        pyfuse3.init(Empty(), str(path), {*pyfuse3.default_options, f"fsname={self.settings.source}", "subtype=sosfs"})
        async with trio.open_nursery() as nursery:
            await nursery.start(sockets.tell, status.socket_path(path), self.status)
            self.state = MountPhase.MOUNTED
            ready()
            await pyfuse3.main()
            self.state = MountPhase.DRAINING
            while self.orders.gate and Path(self.orders.gate).exists():
                await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
        self.state = MountPhase.STOPPED
        pyfuse3.close(unmount=False)


def serve(settings: Settings, source: CredentialSource, *, ready: Callable[[], None]) -> int:
    """Stands in for `sosfs.daemon.mount.serve`."""
    signal.alarm(LIFE_SECONDS)
    orders = ordered()
    source.current()
    if orders.hang:
        Path(orders.hang).write_text(str(os.getpid()))
        time.sleep(300)
    if orders.die:
        os.kill(os.getpid(), orders.die)
        signal.pause()
    if orders.refuse:
        raise StartError(orders.refuse)
    if orders.error:
        raise OSError(orders.error, os.strerror(orders.error), "the endpoint")
    if orders.bug:
        raise ZeroDivisionError(orders.bug)
    mounted = Mounted(settings, orders)
    trio.run(mounted.run, ready)
    if not orders.silent:
        status.write_last(mounted.status())
    return launch.Exit.LEFT_OVER if orders.left else launch.Exit.OK


if __name__ == "__main__":
    launch.run = functools.partial(launch.run, serve=serve)
    launch.SLOW_SECONDS = ordered().slow
    if ordered().interrupt:
        os.register_at_fork(after_in_parent=lambda: signal.raise_signal(signal.SIGINT))
    program, *arguments = sys.argv
    sys.exit(mount_helper.main(arguments[1:]) if arguments[:1] == ["mount.sosfs"] else main.main(arguments))
