"""`sosfs umount`: what it waits for and what not, and beside a daemon that ends at that very moment."""

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
from tests.conftest import Mounter
from tests.support.drive import eventually
from tests.support.faults import Hang
from tests.support.foreign import Foreign, numbered
from tests.support.proxy import Proxy
from tests.support.traffic import Op


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


@pytest.mark.promise(11)
@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_what_is_asked_ahead_for_nobody_is_not_waited_for(mounter: Mounter, foreign: Foreign, proxy: Proxy) -> None:
    """The server hangs for longer than the test waits; nothing is pending."""
    foreign.put_all(numbered("t/f", 60))
    drive = mounter(proxy.endpoint, "--timeout", "300", "--ttl", "600")
    drive.mount.allow_log("WARNING")
    names = sorted(path.name for path in (drive.here / "t").iterdir())
    rule = proxy.inject(Hang(), lambda request: request.op in (Op.HEAD, Op.GET) and request.key[2:] in names[10:])
    for name in names[:8]:
        (drive.here / "t" / name).stat()
    eventually(lambda: rule.hits > 0)
    drive.mount.stop()
