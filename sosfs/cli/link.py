"""`sosfs link`: a link to a file, for others.

The mount makes it (`filesystem.links`). Nothing is looked up in the mount on the way there, for that would ask the
bucket. Blocking, one call a process.
"""

from __future__ import annotations

import errno
import sys
import time

from sosfs.cli import location, progress
from sosfs.config import moments, values
from sosfs.config.parameters import SettingError
from sosfs.control import nodes
from sosfs.daemon import mountpoint
from sosfs.daemon.launch import Exit
from sosfs.filesystem.links import LinkKind, Readers
from sosfs.ipc import commands
from sosfs.ipc.commands import Told
from sosfs.log.wording import clock, lasting
from sosfs.s3.object_urls import Addressing


def lifetime(text: str) -> int:
    """How many seconds a link is to last: `15m`, `7d`, `3600`. Raises `SettingError`."""
    try:
        seconds = int(text) if text.isascii() and text.isdigit() else int(moments.span(text))
    except ValueError as error:
        raise SettingError(f"--expires: {text!r} is no length of time; write it as 15m, 12h or 7d") from error
    if not 1 <= seconds <= values.LIFETIME_MAX:
        raise SettingError(f"--expires: {text!r} is not from 1 second to 7 days, as long as a link can last")
    return seconds


def run(given: str, kind: LinkKind, addressing: Addressing, *, expires: int | None) -> int:
    """Prints the link on standard output, and what there is to know about it on standard error. Raises OSError."""
    place = location.holding(given, mountpoint.table())
    if place is None:
        raise OSError(errno.EINVAL, "not in a mount of sosfs", given)
    if not place.names or given.endswith("/"):
        raise OSError(errno.EISDIR, "a directory, which has no link", given)
    if place.names[0] == nodes.NAME:
        raise OSError(errno.EINVAL, "a control file, which is not in the bucket", given)
    options = {"kind": kind.value, "addressing": addressing.value}
    if expires is not None:
        options["expires"] = str(expires)
    mount = place.mount
    with progress.waiting("asking the mount for the link"):
        told = commands.ask(
            mount.mountpoint, "link", [place.names], owner=mount.owner, news=lambda _: None, options=options
        )
    _, link = told["links"][0]
    print(link["url"])
    for line in _remarks(link, kind):
        print(f"sosfs: {line}", file=sys.stderr)
    return Exit.OK


def _remarks(link: Told, kind: LinkKind) -> list[str]:
    lines = [_readers(Readers(link["readers"]))] if kind is LinkKind.PUBLIC else [_until(link["lifetime"], kind)]
    if link["is_unsent"]:
        lines.append("the file is changed, and not in the bucket yet: until then the link shows what is there")
    return lines


def _readers(readers: Readers) -> str:
    return {
        Readers.ANYBODY: "anybody may read it, by its ACL",
        Readers.NOBODY: "its ACL lets nobody read it without a key ('sosfs acl set public-read' does)",
        Readers.UNKNOWN: "whether anybody may read it is not known: this key may not read its ACL",
    }[readers]


def _until(seconds: int, kind: LinkKind) -> str:
    now = time.time()
    what = "upload it" if kind is LinkKind.UPLOAD else "read it"
    return f"whoever has the link may {what} until {clock(now + seconds, now=now)} ({lasting(seconds)})"
