"""No name or path that a command shows does anything to a terminal, or forges a line; programs get it as it is."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sosfs.log.escaping import printable
from tests.conftest import access_to, new_bucket
from tests.support.drive import Drive, eventually, status
from tests.support.faults import Answer
from tests.support.mounting import SOSFS, Mount
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import Op, on
from tests.support.watchdog import Watchdog

EVIL = "ä  \x1b]0;title\x07b\nFORGED\u202e[red]"
PLACE = EVIL.replace("\n", " ")  # the tests' watchdog is told mount points by lines
RAW = ("\x1b]0;", "\x07", "\nFORGED", "\r\nFORGED", "\u202e")
REFUSED = Answer(403, "AccessDenied")


@pytest.fixture
def evil(ceph: Server, watchdog: Watchdog, tmp_path: Path) -> Iterator[Drive]:
    """A mount in journal mode at an evil place, with evil names in it, through a proxy that refuses uploads."""
    foreign = new_bucket(ceph)
    foreign.keep_versions()
    foreign.put_all({f"{EVIL}/{EVIL}": b"old"})
    foreign.put_all({f"{EVIL}/{EVIL}": b"new"})
    with Proxy(ceph.endpoint) as proxy:
        options = ("--durability", "journal", "--patience", "1")
        mount = Mount(access_to(ceph, proxy.endpoint), foreign.bucket, tmp_path / PLACE, watchdog, options)
        mount.allow_log("WARNING|ERROR")
        mount.start()
        try:
            proxy.inject(REFUSED, on(Op.PUT, Op.PUT_ACL, Op.COPY, key="waits/"))
            yield Drive(mount, foreign, mount.path)
        finally:
            mount.clear()


def shown(drive: Drive, *arguments: str | Path) -> tuple[int, str]:
    """The exit code of a command, and what it writes to a terminal that is wide enough."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*SOSFS, *map(str, arguments)],
        env={**drive.mount.environment, "TERM": "xterm", "COLUMNS": "1000", "LINES": "50"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        cwd="/",
    )
    os.close(theirs)
    parts = []
    with open(ours, "rb", buffering=0) as screen:
        try:
            while part := screen.read(1 << 16):
                parts.append(part)
        except OSError:
            pass  # EIO: the other side is closed
    return process.wait(60), b"".join(parts).decode(errors="surrogateescape")


def clean(told: str, arguments: Sequence[object]) -> None:
    """Fails where something of the name was written as it is."""
    assert not [raw for raw in RAW if raw in told], (arguments, told)


def test_of_no_command(evil: Drive) -> None:
    tree, there, base = evil.here / EVIL, evil.here / EVIL / EVIL, evil.mount.base
    (evil.here / "waits").mkdir()
    eventually(lambda: status(evil).pending_files > 0)
    told: list[tuple[Sequence[str | Path], int | None]] = [
        (("status",), None),  # others' mounts may not answer
        (("status", evil.here), 0),
        (("status", base / "nothing"), 1),
        (("pending",), None),
        (("pending", evil.here), 0),
        (("retry", evil.here), 1),
        (("warm", tree), 0),
        (("warm", base / EVIL), 1),
        (("drop", tree), 0),
        (("acl", "get", "-r", tree), 0),
        (("acl", "get", evil.here / f"no {EVIL}"), 1),
        (("headers", "get", "-r", "--all", tree), 0),
        (("headers", "get", "Expires", there), 1),
        (("metadata", "set", f"{EVIL}=x", there), 2),
        (("du", tree), 0),
        (("du", evil.here / f"no {EVIL}"), 1),
        (("link", evil.here / f"no {EVIL}"), 0),
        (("link", tree), 1),
        (("versions", tree), 0),
        (("restore", "--at", "1 second ago", "-n", tree), 0),
        (("restore", evil.here / f"no {EVIL}"), 1),
        (("limit", evil.here), 0),
        (("log", evil.here, "--access", base / EVIL), 0),
        (("log", evil.here, "--access", "off"), 0),
        (("doctor", evil.foreign.bucket, evil.here, "--endpoint", evil.mount.access.endpoint), 0),
        (("clean", "-n", "--cache-dir", base), 0),
        (("bench", base / f"no {EVIL}"), 1),
        (("mount", evil.foreign.bucket, base / f"no {EVIL}"), 78),
        (("mount", EVIL, evil.here, "--zone", EVIL), 1),
        (("umount", base / f"no {EVIL}"), 1),
        (("help", EVIL), 2),
        (("acl", "get", there, f"--{EVIL.replace(' ', '')}"), 2),
        ((EVIL,), 2),
    ]
    for arguments, code in told:
        done, text = shown(evil, *arguments)
        clean(text, arguments)
        assert code is None or done == code, (arguments, text)
    with (tree / "open\nFORGED").open("wb"):
        done, text = shown(evil, "umount", evil.here)
    clean(text, "umount")
    assert (done, "open\\nFORGED open" in text) == (1, True), text
    done, text = shown(evil, "umount", evil.here)
    clean(text, "umount")
    assert done == 3, text


def test_a_program_gets_them_as_they_are(evil: Drive) -> None:
    for arguments, read in (
        (("du", "--json", evil.here / EVIL), lambda document: document[0]["path"]),
        (("versions", "--json", evil.here / EVIL), lambda document: document[0]["path"].rpartition("/")[0]),
        (("status", "--json", evil.here), lambda document: f"{document['mountpoint']}/{EVIL}"),
    ):
        done = subprocess.run(
            [*SOSFS, *map(str, arguments)], env=evil.mount.environment, capture_output=True, text=True, check=True
        )
        path = read(json.loads(done.stdout))
        assert path.startswith(str(evil.here)) and EVIL in path, path
    assert printable(EVIL) not in done.stdout
