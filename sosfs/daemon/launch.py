"""Start the process of a mount: fork, readiness, where it logs.

    caller                       daemon
      |---- fork ------------------>|  own session, then the heavy imports and the threads
      | waits on a pipe             |  serve(..., ready=...)
      |<--- "ready" or an error ----|  from here on without a terminal
      exit code                     ... until unmounted and drained

The caller returns when the mount is usable, or says in one line why it is not. Nothing imported here starts
a thread, and `sosfs.daemon.mount` is imported only after the fork: a lock held by a thread of the parent would stay
locked for ever in the child.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import logging
import logging.handlers
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from sosfs.config.credentials import CredentialSource
from sosfs.config.parameters import Settings
from sosfs.daemon import readiness
from sosfs.daemon.mountpoint import LastingError, StartError
from sosfs.ipc import status
from sosfs.log import level
from sosfs.log.escaping import printable, printable_lines
from sosfs.tracing.requests import current_number

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1  # prctl(2)
SYSTEM_LOG = Path("/dev/log")
SLOW_SECONDS = 3.0  # after which who waits for a mount is told what for
FALLBACK_LOG_BYTES = 1 << 20  # it lies in memory (/run), so it is kept short
# Variables that name what is read again while it runs: the files of keys and of certificates.
FILES_NAMED = frozenset(
    {
        "EXOSCALE_CONFIG",
        "S3CMD_CONFIG",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_CONFIG_FILE",
        "XDG_CONFIG_HOME",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CA_BUNDLE",
        "SSL_CERT_FILE",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
    }
)
_FORMAT = "%(asctime)s %(levelname)s [%(request)s] %(name)s: %(message)s"


class _Lines(logging.Formatter):
    """One line a record, whatever names it speaks of; a traceback follows in lines of its own.

    `request` is the number of the kernel request that it is about, as in the access log; - for none.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.request = current_number() or "-"
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return printable_lines(super().formatException(ei))


class Exit(IntEnum):
    """The exit codes of the program."""

    OK = 0
    FAILED = 1
    USAGE = 2
    LEFT_OVER = 3  # umount: changes are not in the bucket yet
    LASTING = 78  # EX_CONFIG of sysexits.h: mounting fails until somebody changes what it was asked for


class Serve(Protocol):
    """What runs a mount: blocks until it is unmounted and drained, returns the exit code."""

    def __call__(self, settings: Settings, source: CredentialSource, *, ready: Callable[[], None]) -> int:
        """Raises `StartError` or OSError for a mount that could not begin."""


def serve(settings: Settings, source: CredentialSource, *, ready: Callable[[], None]) -> int:
    """The real one, imported when it is called."""
    from sosfs.daemon import mount  # noqa: PLC0415  after the fork

    return mount.serve(settings, source, ready=ready)


def run(settings: Settings, source: CredentialSource, *, serve: Serve = serve) -> int:
    """Mounts in the foreground (returns at the end) or in the background (returns when ready).

    Returns the exit code. Raises `StartError` for a mount that could not begin.
    """
    return _foreground(settings, source, serve) if settings.foreground else _background(settings, source, serve)


def _foreground(settings: Settings, source: CredentialSource, serve: Serve) -> int:
    _log_to(logging.StreamHandler() if settings.log_file is None else _file(settings.log_file), _FORMAT, settings)
    faulthandler.enable()  # a service manager ends a daemon that hangs with SIGABRT: its log then tells where it hung
    slow = threading.Timer(SLOW_SECONDS, _tell_connecting, [settings])
    slow.daemon = True
    slow.start()

    def ready() -> None:
        slow.cancel()
        readiness.ready(_summary(settings))

    try:
        return serve(settings, source, ready=ready)
    except OSError as error:
        raise StartError(one_line(error)) from error
    finally:
        slow.cancel()


def _background(settings: Settings, source: CredentialSource, serve: Serve) -> int:
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    # A Ctrl-C while it forks would be lost in what Python does after a fork, or leave the child without a parent.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    caller = os.getpid()
    child = os.fork()
    if child == 0:
        _end_with(caller)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(reader)
        os._exit(_daemon(settings, source, serve, writer))
    os.close(writer)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        with os.fdopen(reader, encoding="utf-8") as pipe:
            if not select.select([pipe], [], [], SLOW_SECONDS)[0]:
                _tell_connecting(settings)
            answer = pipe.read()
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    if not answer:
        raise StartError(f"the mount process ended before it was ready ({_end_of(child)}); see {log_place(settings)}")
    told = json.loads(answer)
    if error := told["error"]:
        os.waitpid(child, 0)
        raise LastingError(error) if told["lasting"] else StartError(error)
    return Exit.OK


def _tell_connecting(settings: Settings) -> None:
    print(f"sosfs: connecting to {printable(urlsplit(settings.endpoint).netloc)} ...", file=sys.stderr, flush=True)


def _end_of(child: int) -> str:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _daemon(settings: Settings, source: CredentialSource, serve: Serve, writer: int) -> int:
    """The life of the child. Whatever happens in it ends here and never in the caller's code after the fork."""
    os.setsid()
    is_waited_for = True

    def tell(answer: dict[str, Any]) -> None:
        nonlocal is_waited_for
        is_waited_for = False
        with contextlib.suppress(BrokenPipeError):  # the caller has just been killed
            os.write(writer, json.dumps(answer).encode())
        os.close(writer)

    def ready() -> None:
        _leave_terminal()
        _end_with(None)
        tell({"error": None})

    try:
        _log_to(*_daemon_handler(settings), settings)
        return serve(settings, source, ready=ready)
    except (StartError, OSError) as error:
        if is_waited_for:
            tell({"error": one_line(error), "lasting": isinstance(error, LastingError)})
        else:
            log.exception("The mount has failed")
    except BaseException:  # of a process: what is not logged here is seen by nobody
        log.exception("The mount has failed")
    return Exit.FAILED


def _end_with(caller: int | None) -> None:
    """From here on this process gets a SIGTERM when its caller ends; with None no longer.

    Who has been killed while it waited for a mount (`timeout 10 sosfs mount ...`) would else get it later on.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM if caller is not None else 0)
    if caller not in (None, os.getppid()):
        os._exit(Exit.FAILED)


def _leave_terminal() -> None:
    for name in FILES_NAMED & os.environ.keys():
        if os.environ[name] and not os.environ[name].startswith("~"):
            os.environ[name] = str(Path(os.environ[name]).absolute())
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _daemon_handler(settings: Settings) -> tuple[logging.Handler, str]:
    if settings.log_file is not None:
        return _file(settings.log_file), _FORMAT
    if SYSTEM_LOG.exists():
        # The system log adds the time itself.
        return logging.handlers.SysLogHandler(
            str(SYSTEM_LOG)
        ), f"sosfs[{os.getpid()}]: %(levelname)s [%(request)s] %(message)s"
    path = status.log_path(settings.mountpoint)
    return logging.handlers.RotatingFileHandler(path, maxBytes=FALLBACK_LOG_BYTES, backupCount=1), _FORMAT


def _file(path: Path) -> logging.Handler:
    return logging.handlers.WatchedFileHandler(path, encoding="utf-8")  # logrotate may move it away


def _log_to(handler: logging.Handler, form: str, settings: Settings) -> None:
    logging.raiseExceptions = False  # a full disk under the log stops nothing, and prints no tracebacks
    handler.setFormatter(_Lines(form))
    logging.basicConfig(handlers=[handler], force=True)
    level.put(settings.log_level)


def log_place(settings: Settings) -> str:
    """Where a user finds the log of a mount in the background."""
    if settings.log_file is not None:
        return str(settings.log_file)
    if SYSTEM_LOG.exists():
        return "the system log ('journalctl -t sosfs')"
    return str(status.log_path(settings.mountpoint))


def _summary(settings: Settings) -> str:
    return f"{settings.source} at {settings.mountpoint}"


def one_line(error: BaseException) -> str:
    """An error as one line for the user: without an errno's number, with the file it speaks of."""
    if not isinstance(error, OSError) or error.strerror is None:
        return printable(" ".join(str(error).split())) or type(error).__name__
    name = error.filename  # of a descriptor its number
    named = f"{printable(os.fsdecode(name) if isinstance(name, bytes) else str(name))}: " if name else ""
    return named + printable(" ".join(error.strerror.split()))


def report(error: BaseException) -> Exit:
    """Tells the user what failed, in one line on standard error; the exit code for it."""
    with contextlib.suppress(BrokenPipeError):
        print(f"sosfs: {one_line(error)}", file=sys.stderr)
    return Exit.LASTING if isinstance(error, LastingError) else Exit.FAILED
