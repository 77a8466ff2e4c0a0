"""Serve a mount: signals, the kernel's requests, the drain at its end.

Whoever asks for the end (umount, SIGTERM, SIGINT) gets the same: the mount point goes, then everything that
is not yet in the bucket is sent, then the process ends with an exit code that says whether something is left.

Concurrency: the one place that opens the mount's nursery; everything runs in its thread but the requests.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from subprocess import DEVNULL

import pyfuse3
import trio

from sosfs.concurrency.tasks import Background
from sosfs.concurrency.threads import LOCAL
from sosfs.config.credentials import CredentialSource
from sosfs.config.parameters import SettingError, Settings
from sosfs.control import nodes
from sosfs.daemon import allocator, mountpoint, privacy, readiness, takeover, task_dump
from sosfs.daemon.bdi import raise_read_ahead
from sosfs.daemon.mountpoint import LastingError, Mount, StartError
from sosfs.daemon.observation import Observation
from sosfs.daemon.remount import Access
from sosfs.daemon.service import Service, service_of
from sosfs.errors import StoreError
from sosfs.fuse.measured import measure
from sosfs.fuse.read_only import Switch
from sosfs.fuse.requests import CALLERS
from sosfs.ipc import commands, metrics_server, sockets, status
from sosfs.log import level as log_level
from sosfs.s3 import bucket_zone, xml
from sosfs.s3.limits import Limits

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
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `_await_signals`: the exception would wait for the server
    allocator.keep_few_heaps()
    allocator.collect_seldom()
    if settings.bucket:
        settings = bucket_zone.located(settings)
    privacy.require_own(settings.state_dir)
    mount = _Mount(settings, source)
    return trio.run(mount.run, ready, instruments=[mount.ages])


# What an S3 server says of a bucket or a key that no restart makes another one.
LASTING = frozenset({"NoSuchBucket", "InvalidBucketName", "InvalidAccessKeyId"})


def _start_error(error: StoreError, settings: Settings, elsewhere: str) -> StartError:
    """What to tell the user of a bucket that cannot be mounted; `elsewhere`: that it is in another zone."""
    if elsewhere:
        return LastingError(elsewhere)
    return (LastingError if error.code in LASTING else StartError)(_in_words(error, settings))


def _in_words(error: StoreError, settings: Settings) -> str:
    """Why a bucket cannot be mounted, in one line for the user."""
    if error.code == "NoSuchBucket":
        return f"no such bucket: {settings.bucket} (asked {settings.endpoint})"
    if not settings.bucket and error.code == "AccessDenied":
        return f"this key may not list the buckets: name the one to mount (asked {settings.endpoint})"
    if error.elsewhere:
        return f"{settings.endpoint} is not an S3 server ({error.detail.replace(xml.NO_S3, '')})"
    if error.status == 0:
        return f"cannot reach {settings.endpoint}: {error.detail or os.strerror(error.errno or errno.EIO)}"
    return f"{settings.source.rstrip('/')} at {settings.endpoint}: {error.detail or error.code or error.strerror}"


def _only(group: BaseExceptionGroup[OSError | StartError]) -> OSError | StartError:
    """The error of a start that failed: the first one, whichever task it came from."""
    first = group.exceptions[0]
    return _only(first) if isinstance(first, BaseExceptionGroup) else first


def _attach(operations: pyfuse3.Operations, path: Path, options: set[str]) -> None:
    """Mounts. Raises `StartError` when the kernel or fusermount3 refuses."""
    try:
        pyfuse3.init(operations, os.fspath(path), options)
    except RuntimeError as error:
        raise StartError(f"cannot mount on {path}: {error}") from error


async def _done(work: Callable[[], Awaitable[None]]) -> bool:
    """Does what is to be done at the end of a mount; what fails is logged, and keeps nothing from what comes after."""
    try:
        await work()
    except OSError as error:
        log.error("the mount ends with an error: %s", error)
        return False
    return True


async def _heartbeat() -> None:
    """Tells the service manager that this loop turns, as often as it wants to know, until cancelled."""
    seconds = readiness.heartbeat_seconds()
    while seconds is not None:
        readiness.alive()
        await trio.sleep(seconds)


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
        self._observation = Observation(settings.mountpoint)
        self._state = status.MountPhase.MOUNTING
        self._draining = trio.CancelScope()
        self._taken_over: Mount | None = None
        self._is_attached = False
        self._is_ending = False  # a signal has asked for it
        self._limits = Limits(
            transfers=settings.transfers, upload_rate=settings.upload_rate, download_rate=settings.download_rate
        )
        self._service: Service = service_of(settings, source, self._moment, self._limits)

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
            self._limits.close()
        return LEFT_OVER if left else 0

    async def _reach(self) -> None:
        try:
            await self._service.reach()
        except StoreError as error:
            elsewhere = ""
            if self._settings.bucket:
                elsewhere = await trio.to_thread.run_sync(bucket_zone.elsewhere, self._settings, error)
            raise _start_error(error, self._settings, elsewhere) from error

    async def _serve(self, ready: Callable[[], None]) -> bool:
        """Serves the kernel until the mount point is gone, then drains; returns whether that left anything."""
        path = self._settings.mountpoint
        mountpoint.prepare(self._settings)  # once more: another mount may have come while the server was waited for
        async with trio.open_nursery() as nursery:
            background = Background(nursery)
            await self._service.begin(background)
            CALLERS.attach(background)
            status.forget_namesake(path)
            await nursery.start(sockets.tell, status.socket_path(path), self._service.status)
            if self._settings.metrics:
                await nursery.start(metrics_server.serve, self._settings.metrics, self._service.status)
            measure(self._service.operations)
            self._switch = Switch(self._service.operations, is_read_only=self._settings.read_only)
            works = {
                **self._service.errands,
                **self._observation.works,
                "store": self._store,
                "limit": self._limit,
                **self._switching(),
            }
            await nursery.start(commands.serve, commands.socket_path(path), works)
            await nursery.start(self._await_signals)
            self._attach()  # last: who sees the mount may ask its daemon for anything, and send it any signal
            nursery.start_soon(self._sweep)
            nursery.start_soon(CALLERS.watch)
            nursery.start_soon(task_dump.watch, self.ages, self._settings.slow_request)
            nursery.start_soon(_heartbeat)
            nursery.start_soon(raise_read_ahead, path)
            nursery.start_soon(self._open_up, nursery, ready)
            try:
                await pyfuse3.main(min_tasks=1, max_tasks=TASKS)
            finally:
                with trio.CancelScope(shield=True):
                    await self._service.let_go()
                self._detach()
            left = await self._drain()
            await self._observation.close()
            nursery.cancel_scope.cancel()
        return left

    def _attach(self) -> None:
        """Mounts, in place of a dead mount where there is one. Raises `StartError` and OSError."""
        path = self._settings.mountpoint
        mount = partial(_attach, self._switch, options=self._options())
        if takeover.is_possible(path):
            takeover.mounted(path, mount)
            self._taken_over = mountpoint.at(path)
        else:
            mountpoint.clear(path)
            mount(path)
        self._is_attached = True
        if self._is_ending:
            pyfuse3.terminate()

    def _detach(self) -> None:
        """Takes the mount off where nobody has done so yet, and ends the kernel's connection."""
        path, taken_over = self._settings.mountpoint, self._taken_over
        self._is_attached = False
        if taken_over is None:
            pyfuse3.close(unmount=True)
            return
        now = mountpoint.at(path)
        if now is not None and now.device == taken_over.device:
            takeover.detach(path)
        pyfuse3.close(unmount=False)  # what it would unmount is where this mount was made, not where it is

    def _options(self) -> set[str]:
        settings = self._settings
        # As fstab has it: by that mount(8) knows what `mount -a` has mounted already.
        name = settings.named or (settings.source.rstrip("/") if settings.bucket else settings.source)
        name = name.replace("\\", r"\\").replace(",", r"\,")
        options = set(pyfuse3.default_options) | {f"fsname={name}", "subtype=sosfs", "default_permissions"}
        if settings.allow_other:
            options.add("allow_other")
        if settings.read_only or not self._service.may_write:
            options.add("ro")
        if settings.noexec:
            options.add("noexec")
        return options

    async def _await_signals(self, *, task_status: trio.TaskStatus[None]) -> None:
        heeded = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1
        with trio.open_signal_receiver(*heeded) as received:
            task_status.started()
            async for number in received:
                if number == signal.SIGHUP:
                    await self._reread()
                    continue
                if number == signal.SIGUSR1:
                    task_dump.report(self.ages)
                    continue
                log.info("%s: unmounting", signal.Signals(number).name)
                if self._state is status.MountPhase.DRAINING:
                    self._draining.cancel()  # the rest stays in the journal, for the next mount
                elif self._is_attached:
                    pyfuse3.terminate()
                self._is_ending = True

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
        if self._state is status.MountPhase.MOUNTING:  # else it was unmounted meanwhile
            self._state = status.MountPhase.MOUNTED
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
        await CALLERS.all_ended()
        await self._service.store_all()
        return {"pending": self._service.pending}

    def _switching(self) -> Mapping[str, commands.Work]:
        """The errands of `mount -o remount`."""

        async def read_only(
            paths: Sequence[commands.Names], tell: commands.Tell, options: commands.Options
        ) -> commands.Told:
            self._switch.read_only()
            self._service.tell_others(writes=False)
            return {}

        async def read_write(
            paths: Sequence[commands.Names], tell: commands.Tell, options: commands.Options
        ) -> commands.Told:
            await self._service.learn()
            self._switch.read_write()
            return {}

        return {Access.RO.value: read_only, Access.RW.value: read_write}

    async def _limit(
        self, changes: Sequence[commands.Names], tell: commands.Tell, options: commands.Options
    ) -> commands.Told:
        """For `sosfs limit`: each change is the name of a limit and its new value."""
        limits = {"upload_rate", "download_rate", "transfers"}
        try:
            asked = {name.decode(): int(value) for name, value in changes}
        except ValueError as error:
            raise OSError(errno.EPROTO, "the request is not understood") from error
        if not asked.keys() <= limits or any(value < 0 for value in asked.values()):
            raise OSError(errno.EOPNOTSUPP, f"this mount knows the limits {', '.join(sorted(limits))}")
        self._limits.change(**asked)
        if asked:
            log.info("limits: %s", ", ".join(f"{name} {value}" for name, value in asked.items()))
        return dataclasses.asdict(self._limits.now)

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(SWEEP)
            self._service.sweep()
            await LOCAL.run(allocator.give_back)

    async def _drain(self) -> bool:
        """Sends what the bucket lacks; what it cannot send stays in the journal. Returns whether anything is wrong."""
        self._state, has_failed = status.MountPhase.DRAINING, False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_manager)
            with self._draining:
                await CALLERS.all_ended()  # a rename would end half done
                has_failed = not await _done(self._service.drain)
            nursery.cancel_scope.cancel()
        has_failed |= not await _done(self._service.keep)
        self._state = status.MountPhase.STOPPED
        last = self._service.status()
        try:
            status.write_last(last)
        except OSError as error:
            log.error("no last word for who unmounts: %s", error)
        if last.pending_files:
            log.error("%d changes are not in the bucket; they are in %s", last.pending_files, self._service.state_dir)
        if last.damaged:
            log.error("%d damaged files and changes are set aside in %s", len(last.damaged), self._service.state_dir)
        return bool(last.pending_files or last.damaged or has_failed)

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
            **dataclasses.asdict(self._limits.now),
        )
