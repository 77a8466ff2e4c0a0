"""`sosfs umount` beside a daemon that ends at that very moment."""

from __future__ import annotations

import errno
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sosfs.cli import holders, umount
from sosfs.daemon.mountpoint import Mount
from sosfs.ipc import commands, status


def test_a_daemon_that_ends_while_another_namespace_seems_to_keep_it_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def gone(path: Path, *_: Any, **__: Any) -> None:
        asked.append("store")
        raise OSError(errno.ENOTCONN, "the daemon of this mount does not listen", str(path))

    with subprocess.Popen(["sleep", "1"]) as process:
        now = status.Status(process.pid, "b", "", "/nowhere", "http://localhost", status.MountPhase.MOUNTED)
        monkeypatch.setattr(commands, "ask", gone)
        monkeypatch.setattr(holders, "namespace_of", lambda device, pid: "another")
        monkeypatch.setattr(status, "fetch", lambda path, owner: now)
        monkeypatch.setattr(status, "read_last", lambda path, owner: replace(now, state=status.MountPhase.STOPPED))
        monkeypatch.setattr(status, "forget_last", lambda path, owner: None)
        mount = Mount(Path("/nowhere"), "fuse.sosfs", "bucket", 0, "0:1")
        daemon = umount.Daemon(process.pid, os.pidfd_open(process.pid))
        assert umount._drained(Path("/nowhere"), mount, daemon, now, None) == 0
    assert asked
