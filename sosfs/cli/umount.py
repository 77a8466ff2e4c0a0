"""`sosfs umount`: detach a mount and wait until its changes are stored.

    mounted -> detached (the tree is free) -> the daemon drains -> it ends, leaving its last status

Clean is a daemon that has ended and said that nothing is left, and nothing damaged. Whatever else happens is told and
gives exit code 3, for then nobody may take it that every change is in the bucket. Blocking; one call a process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sosfs.cli import holders, progress
from sosfs.cli.progress import Progress, Step
from sosfs.cli.status import server
from sosfs.daemon import launch, mountpoint
from sosfs.daemon.launch import Exit
from sosfs.daemon.mountpoint import Detach, Mount, MountState
from sosfs.ipc import status
from sosfs.ipc.status import SILENCE_SECONDS, MountPhase, Status
from sosfs.log.escaping import printable, printable_lines
from sosfs.log.wording import counted

LOOK_SECONDS = 0.2  # between two looks at the daemon's status
NAMED = 20  # lines
BUSY_SECONDS = 2.0  # a hold that nobody is seen to have (a file just closed) is waited for this long


class _Ending(Exception):
    """The daemon hears no more: it is about to end, and its last status shows the rest."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """The process of a mount: a pidfd, which stays its own however often its pid is used again."""

    pid: int
    pidfd: int

    def ended_within(self, seconds: float) -> bool:
        """Whether it has ended, waiting for that up to `seconds`."""
        return bool(select.select([self.pidfd], [], [], seconds)[0])


def run(path: Path, *, seconds: float | None = None) -> int:
    """Unmounts (absolute, links resolved) and waits up to `seconds` for the drain. Returns the exit code.

    Raises OSError where nothing of ours is mounted, or EBUSY with who holds it.
    """
    mount = mountpoint.at(path)
    if mount is not None and mount.type != mountpoint.TYPE:
        raise OSError(errno.EINVAL, "not a mount of sosfs", str(path))
    try:
        now = _asked(path, mount)
    except OSError as error:
        return _unknown(launch.one_line(error))
    if mount is None and now is None:
        raise OSError(errno.EINVAL, "nothing of sosfs is mounted there", str(path))
    with _process(now) as process:
        if mount is not None:
            _detach(path)
        if now is None or process is None:
            return _unknown("the daemon is gone or does not answer")
        return _drained(path, mount, process, now, seconds)


def lazily(path: Path) -> int:
    """Takes a mount off the tree at once, even while it is in use, and says what its daemon goes on with.

    The daemon sends its changes and ends when nobody has anything open any more. Raises OSError where nothing of ours
    is mounted.
    """
    mount = mountpoint.at(path)
    if mount is None or mount.type != mountpoint.TYPE:
        raise OSError(errno.EINVAL, "nothing of sosfs is mounted there", str(path))
    now = _asked(path, mount)
    mountpoint.detach(path, Detach.LAZY)
    if now is not None and now.pending_files:
        _say(f"detached; the daemon (pid {now.pid}) goes on sending {_pending(now)}")
    return Exit.OK


def _asked(path: Path, mount: Mount | None) -> Status | None:
    """What the daemon says. Raises OSError where one is there that does not, and there is no mount to take off."""
    try:
        return status.fetch(path, owner=mount.owner if mount else None)
    except OSError as error:
        if mount is None:
            raise
        _say(launch.one_line(error))
        return None


@contextlib.contextmanager
def _process(now: Status | None) -> Iterator[Daemon | None]:
    """The daemon's process, taken before the unmount so that its end cannot be missed; None where it has ended."""
    try:
        pidfd = os.pidfd_open(now.pid) if now else -1
    except ProcessLookupError:
        pidfd = -1
    try:
        yield Daemon(now.pid, pidfd) if now and pidfd >= 0 else None
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def _detach(path: Path) -> None:
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            mountpoint.detach(path, Detach.WHEN_FREE)
        except OSError as error:
            # Asked only now: a daemon that hangs would hold the question, and that the mount.
            if mountpoint.state(path) is MountState.DEAD:
                mountpoint.detach(path, Detach.LAZY)
                return
            if error.errno != errno.EBUSY:
                raise
            found = [str(holder) for holder in holders.of(path)]
            found += [printable(f"{below} is mounted in it") for below in holders.mounts_below(path)]
            if not found and time.monotonic() < deadline:
                time.sleep(LOOK_SECONDS)
                continue
            raise OSError(
                errno.EBUSY, "busy: " + ("; ".join(found) or "by whom is not to be seen"), str(path)
            ) from error
        return


def _drained(path: Path, mount: Mount | None, process: Daemon, now: Status, seconds: float | None) -> int:
    owner = mount.owner if mount else None
    heard = time.monotonic()
    deadline = None if seconds is None else heard + seconds
    with progress.of_bytes() as shown:
        show = _Queue(shown)
        while not process.ended_within(LOOK_SECONDS if deadline is None else min(LOOK_SECONDS, _left(deadline))):
            if deadline is not None and not _left(deadline):
                return _told(f"time ran out: {_pending(now)} not in the bucket yet; the daemon goes on sending")
            try:
                answer = status.fetch(path, owner=owner)
                heard = time.monotonic()
            except OSError as error:
                answer = None
                if time.monotonic() >= heard + SILENCE_SECONDS:
                    return _unknown(launch.one_line(error))
            told = _of(process, answer)
            now = told or now
            show.tell(now)
            if mount is None or now.state is not MountPhase.MOUNTED:
                continue
            if told is not None and (elsewhere := holders.elsewhere(mount.device)):
                with contextlib.suppress(_Ending):
                    return _stored(path, mount.owner, process, elsewhere)
            if told is not answer and (elsewhere := _left_elsewhere(mount)):
                return _unknown(f"the mount stays {elsewhere}, and a later one at its place answers for it")
    last = status.read_last(path, owner=owner)
    if last is None or last.pid != process.pid:
        return _unknown("the daemon ended without a word")
    code = _verdict(last)
    if code is Exit.OK:
        if shown.was_shown and show.sent:
            _say(f"all is in the bucket: {show.sent}")
        status.forget_last(path, owner=owner)
    return code


def _of(process: Daemon, told: Status | None) -> Status | None:
    """What a daemon says of itself; None where it has closed its socket, or a later mount has the place."""
    return told if told is not None and told.pid == process.pid else None


def _left_elsewhere(mount: Mount) -> str:
    """As `holders.elsewhere`, where a later mount has the place; "" also where that has the number of the device."""
    later = mountpoint.at(mount.mountpoint)
    return "" if later is not None and later.device == mount.device else holders.elsewhere(mount.device)


def _verdict(last: Status) -> Exit:
    """Tells what the bucket lacks and what was damaged; the exit code."""
    if last.pending_files:
        _say(f"{_pending(last)} not in the bucket" + _indented(list(dict.fromkeys((*last.waiting, *last.errors)))))
    if last.damaged:
        count = "1 file or change was" if len(last.damaged) == 1 else f"{len(last.damaged)} files and changes were"
        _say(f"{count} damaged; remove what is set aside to be told no more" + _indented(last.damaged))
    return Exit.LEFT_OVER if last.pending_files or last.damaged else Exit.OK


def _stored(path: Path, owner: int, process: Daemon, elsewhere: str) -> int:
    """The mount is `elsewhere` too, which keeps the daemon: what is waited for is that all is in the bucket."""
    from sosfs.ipc import commands  # noqa: PLC0415 - trio with it

    try:
        commands.ask(path, "store", (), owner=owner, news=lambda _: None)
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise _Ending from error  # that has gone since it was seen, or its mount was another one
        return _told(f"not everything is in the bucket: {launch.one_line(error)}")
    try:
        now = _of(process, status.fetch(path, owner=owner))
    except OSError as error:
        return _unknown(launch.one_line(error))
    if now is None:
        raise _Ending
    if _verdict(now) is not Exit.OK:
        return Exit.LEFT_OVER
    _say(f"all is in the bucket; the mount stays {elsewhere}, and its daemon with it")
    return Exit.OK


def _indented(lines: Sequence[str]) -> str:
    more = [f"and {len(lines) - NAMED} more"] if len(lines) > NAMED else []
    return "".join(f"\n  {printable(line)}" for line in [*lines[:NAMED], *more])


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _pending(now: Status) -> str:
    from rich import filesize  # noqa: PLC0415  only where there is something to tell

    return f"{_files(now)} ({filesize.decimal(now.pending_bytes)})"


def _files(now: Status) -> str:
    return counted(now.pending_files, "file")


class _Queue:
    """What is told of the queue while it empties. It may grow meanwhile, so the most there was stands for the whole."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._files = 0
        self._bytes = 0

    def tell(self, now: Status) -> None:
        """Shows how far it is, bytes in parts of unfinished uploads included."""
        self._files = max(self._files, now.pending_files)
        self._bytes = max(self._bytes, now.pending_bytes)
        if not now.pending_files:
            self._shown.tell(Step("all is sent; waiting for the daemon to end", 0, None))
        else:
            up = self._bytes - now.pending_bytes + now.uploaded_bytes
            silent = f"; the server {server(now)}" if now.silent_since else ""
            self._shown.tell(Step(f"sending, {_files(now)} left{silent}", up, self._bytes))

    @property
    def sent(self) -> str:
        """How much there was; "" for nothing."""
        if not self._files:
            return ""
        from rich import filesize  # noqa: PLC0415  only where there is something to tell

        return f"{counted(self._files, 'file')}, {filesize.decimal(self._bytes)}"


def _unknown(why: str) -> int:
    return _told(f"{why}: whether every change is in the bucket is unknown")


def _told(text: str) -> int:
    _say(text)
    return Exit.LEFT_OVER


def _say(text: str) -> None:
    print(f"sosfs: {printable_lines(text)}", file=sys.stderr)
