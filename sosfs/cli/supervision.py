"""Give up on a command when the daemon of a mount that it works in hangs.

The kernel holds whoever asks a daemon that is stopped or stuck, and who waits for a question that the daemon has read
already cannot even be killed. So a command that looks into mounts works in a child, and the process that the user has
started waits for both, the child's end and the daemons' word:

    parent: the end of the child, signals, and in a thread a look at each daemon; gives up and leaves the child behind
    child:  the command, with the terminal; pipes it gets through the parent, which whoever reads them need not wait for

A daemon that answers in between is not hung, however long it takes: each answer begins the wait anew.

Concurrency: forks while the process has one thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sosfs.cli import location
from sosfs.cli.standard_output import UNREAD, until_unread
from sosfs.daemon import launch, mountpoint
from sosfs.daemon.launch import Exit
from sosfs.daemon.mountpoint import Mount
from sosfs.ipc import status

LOOK_SECONDS = 1.0  # between two looks at a daemon, and before the first: most commands have ended by then
POLL_SECONDS = 0.1
UNANSWERED = 3  # looks in a row at least, within `status.SILENCE_SECONDS`: this process may itself have been stopped
HEEDED = {signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
OF_KERNEL = 0x80  # si_code of a signal that the terminal has sent, to all processes that it runs
PR_SET_PDEATHSIG = 1
CLEARED = "\r\x1b[K\x1b[?25h"  # the line of a progress bar is gone, and the cursor there


def run(work: Callable[[], int], given: Sequence[str]) -> int:
    """Does `work`, whose paths are `given`, and returns its exit code; gives up with one line where a mount hangs."""
    mounts = _mounts(given)
    if not mounts:
        return work()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED)
    relays = [_Relay(number) for number in (1, 2) if _is_pipe(number)]
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        for relay in relays:
            relay.of_child()
        _end_with(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _exit(work)
    for relay in relays:
        relay.start()
    try:
        return _awaited(child, mounts, relays)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _mounts(given: Sequence[str]) -> list[Mount]:
    """The mounts that paths are in, found without asking them."""
    table, found = mountpoint.table(), dict[Mount, None]()
    for path in given:
        with contextlib.suppress(OSError):  # the command tells it
            if place := location.holding(path, table):
                found[place.mount] = None
    return list(found)


def _exit(work: Callable[[], int]) -> None:
    """The end of the child: as that of the interpreter, but that nothing of the parent's is run."""
    code = int(Exit.FAILED)
    try:
        code = until_unread(work)
    except OSError as error:
        code = launch.report(error)
    except BaseException:  # noqa: BLE001 - of a process
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)


def _end_with(parent: int) -> None:
    """The child is told to end when its parent is gone."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(Exit.FAILED)


def _awaited(child: int, mounts: Sequence[Mount], relays: Sequence[_Relay]) -> int:
    hung: list[Path] = []
    for mount in mounts:
        threading.Thread(target=_watch, args=(mount, hung), daemon=True).start()
    while True:
        received = signal.sigtimedwait(HEEDED, POLL_SECONDS)
        pid, ended = os.waitpid(child, os.WNOHANG)
        if pid:
            for relay in relays:
                relay.join()
            code = os.waitstatus_to_exitcode(ended)
            if code == 0 and any(relay.is_unread and relay.number == 1 for relay in relays):
                return UNREAD
            return code if code >= 0 else 128 - code  # as a shell says it
        if received is not None and received.si_signo != signal.SIGCHLD and received.si_code != OF_KERNEL:
            os.kill(child, received.si_signo)
        if hung:
            os.kill(child, signal.SIGKILL)
            if sys.stderr.isatty():
                sys.stderr.write(CLEARED)
            return launch.report(OSError(errno.ETIMEDOUT, status.NO_ANSWER, str(hung[0])))


def _watch(mount: Mount, hung: list[Path]) -> None:
    """Looks at a daemon until it hangs."""
    unanswered, heard = 0, time.monotonic()
    while unanswered < UNANSWERED or time.monotonic() < heard + status.SILENCE_SECONDS:
        time.sleep(LOOK_SECONDS)
        if _answers(mount):
            unanswered, heard = 0, time.monotonic()
        else:
            unanswered += 1
    hung.append(mount.mountpoint)


def _answers(mount: Mount) -> bool:
    """Whether a daemon says anything. Of one that is gone the kernel tells who waits for it."""
    try:
        status.fetch(mount.mountpoint, owner=mount.owner)
    except TimeoutError:
        return False
    except PermissionError:  # another user's, which answers what everybody may ask
        with contextlib.suppress(OSError):
            command = ["stat", "--file-system", "--", str(mount.mountpoint)]
            try:
                subprocess.run(command, capture_output=True, timeout=status.ANSWER_SECONDS, check=False)
            except subprocess.TimeoutExpired:
                return False
    except OSError:
        pass
    return True


def _is_pipe(number: int) -> bool:
    try:
        mode = os.fstat(number).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


class _Relay:
    """Brings what the child writes to a descriptor of the parent's, so that the child does not hold that itself."""

    def __init__(self, number: int) -> None:
        self.is_unread = False  # whether who read it went before all was written
        self.number = number
        self._reader, self._writer = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def of_child(self) -> None:
        """In the child: it writes here."""
        os.dup2(self._writer, self.number)
        os.close(self._writer)
        os.close(self._reader)

    def start(self) -> None:
        """In the parent: begins."""
        os.close(self._writer)
        self._thread.start()

    def join(self) -> None:
        """All that the child has written is there, unless a process of its own still writes."""
        self._thread.join()

    def _run(self) -> None:
        try:
            while data := os.read(self._reader, 1 << 16):
                while data:
                    data = data[os.write(self.number, data) :]
        except OSError:
            self.is_unread = True  # so is told the child
        os.close(self._reader)
