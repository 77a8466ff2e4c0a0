"""The composition root of a mount: builds the parts, serves the kernel, drains at the end.

Whoever asks for the end (umount, SIGTERM, SIGINT) gets the same: the mount point goes, then everything that
is not yet in the bucket is sent, then the process ends with an exit code that says whether something is left.

Concurrency: the one place that opens the mount's nursery; everything runs in its thread but the requests.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import DEVNULL

import pyfuse3
import trio

from sosfs.concurrency.tasks import Background
from sosfs.concurrency.threads import LOCAL
from sosfs.config.credentials import CredentialSource
from sosfs.config.parameters import SettingError, Settings
from sosfs.control import nodes
from sosfs.daemon import allocator, privacy, readiness, task_dump
from sosfs.daemon.bdi import raise_read_ahead
from sosfs.daemon.mountpoint import StartError
from sosfs.daemon.service import Service, service_of
from sosfs.errors import StoreError
from sosfs.fuse.requests import CALLERS
from sosfs.ipc import commands, sockets, status
from sosfs.log import level as log_level
from sosfs.s3 import bucket_zone

log = logging.getLogger(__name__)

TASKS = 400  # requests under way; slowness is limited at the store, not here
PRIMING = 5.0  # seconds that a mount is not called ready because the kernel has not asked yet
SWEEP = 60.0  # seconds between looks for listings nobody needs
GRACE = 60.0  # seconds that the service manager is asked for at a time
ERRORS_KEPT = 10
LEFT_OVER = 3  # exit code, as `sosfs umount` gives it


def serve(settings: Settings, source: CredentialSource, *, ready: Callable[[], None]) -> int:
    """Mounts, serves until unmounted and returns the exit code: 0, or 3 when changes are left over or damaged.

    Raises `StartError` or OSError when the mount could not begin.
    """
    privacy.protect_process()
    privacy.require_own(settings.state_dir)
    allocator.keep_few_heaps()
    allocator.collect_seldom()
    if settings.bucket:
        settings = bucket_zone.located(settings)
    mount = _Mount(settings, source)
    return trio.run(mount.run, ready, instruments=[mount.ages])


def _in_words(error: StoreError, settings: Settings) -> str:
    """Why a bucket cannot be mounted, in one line for the user."""
    if error.code == "NoSuchBucket":
        return f"no such bucket: {settings.bucket} (asked {settings.endpoint})"
    if not settings.bucket and error.code == "AccessDenied":
        return f"this key may not list the buckets: name the one to mount (asked {settings.endpoint})"
    if error.status == 0:
        return f"cannot reach {settings.endpoint}: {error.strerror}"
    return error.strerror or str(error)


def _only(group: BaseExceptionGroup[OSError | StartError]) -> OSError | StartError:
    """The error of a start that failed: the first one, whichever task it came from."""
    first = group.exceptions[0]
    return _only(first) if isinstance(first, BaseExceptionGroup) else first


def _attach(operations: pyfuse3.Operations, mountpoint: Path, options: set[str]) -> None:
    """Mounts. Raises `StartError` when the kernel or fusermount3 refuses."""
    try:
        pyfuse3.init(operations, os.fspath(mountpoint), options)
    except RuntimeError as error:
        raise StartError(f"cannot mount on {mountpoint}: {error}") from error


class _Errors(logging.Handler):
    """The last errors of the log, for `sosfs status`."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.last: deque[str] = deque(maxlen=ERRORS_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        self.last.append(record.getMessage())


class _Mount:
    """One mount, from the first request to the last."""

    def __init__(self, settings: Settings, source: CredentialSource) -> None:
        self._settings = settings
        self._source = source
        self.ages = task_dump.Ages()
        self._errors = _Errors()
        self._state = status.State.MOUNTING
        self._draining = trio.CancelScope()
        self._service: Service = service_of(settings, source, self._moment)

    async def run(self, ready: Callable[[], None]) -> int:
        """The life of the mount."""
        logging.getLogger("sosfs").addHandler(self._errors)
        try:
            await self._reach()
            left = await self._serve(ready)
        except* (OSError, StartError) as group:
            raise _only(group) from group
        finally:
            self._service.close()
        return LEFT_OVER if left else 0

    async def _reach(self) -> None:
        try:
            await self._service.reach()
        except StoreError as error:
            elsewhere = ""
            if self._settings.bucket:
                elsewhere = await trio.to_thread.run_sync(bucket_zone.elsewhere, self._settings, error)
            raise StartError(elsewhere or _in_words(error, self._settings)) from error

    async def _serve(self, ready: Callable[[], None]) -> bool:
        """Serves the kernel until the mount point is gone, then drains; returns whether that left anything."""
        mountpoint = self._settings.mountpoint
        async with trio.open_nursery() as nursery:
            background = Background(nursery)
            await self._service.begin(background)
            CALLERS.attach(background)
            await nursery.start(sockets.tell, status.socket_path(mountpoint), self._service.status)
            _attach(self._service.operations, mountpoint, self._options())
            works = {**self._service.errands, "store": self._store}
            await nursery.start(commands.serve, commands.socket_path(mountpoint), works)
            nursery.start_soon(self._await_signals)
            nursery.start_soon(self._sweep)
            nursery.start_soon(CALLERS.watch)
            nursery.start_soon(raise_read_ahead, mountpoint)
            nursery.start_soon(self._open_up, nursery, ready)
            try:
                await pyfuse3.main(min_tasks=1, max_tasks=TASKS)
            finally:
                with trio.CancelScope(shield=True):
                    await self._service.let_go()
                pyfuse3.close(unmount=True)
            left = await self._drain()
            nursery.cancel_scope.cancel()
        return left

    def _options(self) -> set[str]:
        settings = self._settings
        # As fstab has it: by that mount(8) knows what `mount -a` has mounted already.
        name = settings.source.rstrip("/") if settings.bucket else settings.source
        options = set(pyfuse3.default_options) | {f"fsname={name}", "subtype=sosfs", "default_permissions"}
        if settings.allow_other:
            options.add("allow_other")
        if settings.read_only:
            options.add("ro")
        if settings.noexec:
            options.add("noexec")
        return options

    async def _await_signals(self) -> None:
        heeded = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1
        with trio.open_signal_receiver(*heeded) as received:
            async for number in received:
                if number == signal.SIGHUP:
                    await self._reread()
                    continue
                if number == signal.SIGUSR1:
                    for line in task_dump.lines(self.ages):
                        log.warning("%s", line)
                    continue
                log.info("%s: unmounting", signal.Signals(number).name)
                if self._state is status.State.DRAINING:
                    self._draining.cancel()  # the rest stays in the journal, for the next mount
                else:
                    pyfuse3.terminate()

    async def _reread(self) -> None:
        """SIGHUP: the key and the log level are read again; what cannot be read stays as it was."""
        try:
            await LOCAL.run(self._source.refresh)
            level = await LOCAL.run(log_level.again)
        except (OSError, SettingError) as error:
            log.error("not read again: %s", error)
            return
        log.info("the key was read again, and the log level%s", f": {level.value}" if level else "")

    async def _open_up(self, nursery: trio.Nursery, ready: Callable[[], None]) -> None:
        primed = trio.Event()
        nursery.start_soon(self._prime, primed)
        with trio.move_on_after(PRIMING):
            await primed.wait()
        self._state = status.State.MOUNTED
        ready()

    async def _prime(self, primed: trio.Event) -> None:
        """Lets the kernel know the names that it need not ask for again, before a server can hang.

        Another process looks them up: a thread of this one that waits for its own mount would keep /dev/fuse open past
        a `kill -9`, and with that everybody who waits in the mount, for ever.
        """
        path = self._settings.mountpoint / nodes.NAME.decode() / "status"
        with contextlib.suppress(OSError):  # no `stat` here: then the first who looks asks
            await trio.run_process(["stat", "--", path], check=False, stdout=DEVNULL, stderr=DEVNULL)
        primed.set()

    async def _store(
        self, paths: Sequence[commands.Names], tell: commands.Tell, options: commands.Options
    ) -> commands.Told:
        """For `sosfs umount`, where another mount namespace keeps the mount: everything is in the bucket afterwards."""
        await self._service.settle()
        return {"pending": self._service.pending}

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(SWEEP)
            self._service.sweep()

    async def _drain(self) -> bool:
        """Sends what the bucket lacks; what it cannot send stays in the journal. Returns whether anything is wrong."""
        self._state = status.State.DRAINING
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_manager)
            with self._draining:
                await self._service.drain()
            nursery.cancel_scope.cancel()
        await self._service.keep()
        self._state = status.State.STOPPED
        last = self._service.status()
        status.write_last(last)
        if last.pending_files:
            log.error("%d changes are not in the bucket; they are in %s", last.pending_files, self._service.state_dir)
        if last.damaged:
            log.error("%d damaged files and changes are set aside in %s", len(last.damaged), self._service.state_dir)
        return bool(last.pending_files or last.damaged)

    async def _tell_manager(self) -> None:
        """Asks the service manager for time, as long as there is something to send."""
        while True:
            readiness.stopping(f"sending {self._service.pending} changes", seconds=GRACE)
            await trio.sleep(GRACE / 6)

    def _moment(self) -> status.Status:
        """What is true of the mount, whatever it serves."""
        return status.Status(
            pid=os.getpid(),
            bucket="",
            prefix="",
            mountpoint=os.fspath(self._settings.mountpoint),
            endpoint=self._settings.endpoint,
            state=self._state,
            errors=tuple(self._errors.last),
        )
