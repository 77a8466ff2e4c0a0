"""The composition root of a mount: builds the parts, serves the kernel, drains at the end.

Whoever asks for the end (umount, SIGTERM, SIGINT) gets the same: the mount point goes, then everything that
is not yet in the bucket is sent, then the process ends with an exit code that says whether something is left.

Concurrency: the one place that opens the mount's nursery; everything runs in its thread but the requests.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

import pyfuse3
import trio

from . import allocator, bucket_zone, errands, readiness, scratch, status
from .blocks import Spawn
from .bucket_settings import BucketSettings
from .composition import UPLOADS, Parts, assemble
from .config import Settings
from .control import Tree
from .control_files import tree_of
from .control_operations import ControlOperations
from .credentials import CredentialSource
from .dropping import Dropping
from .errors import StoreError
from .exclusive import Claims
from .guesses import Guesses
from .journal import Journal
from .kernel import raise_read_ahead
from .kernel_cache import KernelCache
from .links import Links
from .mountpoint import StartError
from .operations import Operations
from .rejected import Rejections
from .routing import Routing
from .s3 import S3Store, S3Target
from .sharing import Sharing
from .tasks import Background
from .versions import Shelf
from .warming import IN_FLIGHT, Warming
from .xattrs import Xattrs

log = logging.getLogger(__name__)

TASKS = 400  # requests under way; slowness is limited at the store, not here
SWEEP = 60.0  # seconds between looks for listings nobody needs
GRACE = 60.0  # seconds that the service manager is asked for at a time
ERRORS_KEPT = 10
LEFT_OVER = 3  # exit code, as `sosfs umount` gives it


def serve(settings: Settings, source: CredentialSource, *, ready: Callable[[], None]) -> int:
    """Mounts, serves until unmounted and returns the exit code: 0, or 3 when changes are left over.

    Raises `StartError` or OSError when the mount could not begin.
    """
    allocator.keep_few_heaps()
    return trio.run(_Mount(bucket_zone.located(settings), source).run, ready)


def _in_words(error: StoreError, settings: Settings) -> str:
    """Why a bucket cannot be mounted, in one line for the user."""
    if error.code == "NoSuchBucket":
        return f"no such bucket: {settings.bucket} (asked {settings.endpoint})"
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
        self._requests: Counter[str] = Counter()
        self._errors = _Errors()
        self._parts: Parts
        self._kernel = KernelCache()
        self._state = status.State.MOUNTING
        self._draining = trio.CancelScope()
        self._target = S3Target.of(settings, source)
        self._store = S3Store(self._target, on_request=self._count, new_acl=settings.acl)

    def _count(self, operation: str) -> None:
        self._requests[operation] += 1

    async def run(self, ready: Callable[[], None]) -> int:
        """The life of the mount."""
        logging.getLogger("sosfs").addHandler(self._errors)
        settings = self._settings
        self._journal = Journal(settings.state_dir, f"{settings.endpoint} {settings.bucket} {settings.prefix}")
        try:
            await self._store.reach(settings.prefix)
        except StoreError as error:
            elsewhere = await trio.to_thread.run_sync(bucket_zone.elsewhere, settings, error)
            raise StartError(elsewhere or _in_words(error, settings)) from error
        if not settings.read_only:
            await self._probe()
        try:
            left = await self._serve(ready)
        except* (OSError, StartError) as group:
            raise _only(group) from group
        finally:
            self._store.close()
            self._journal.close()
        return LEFT_OVER if left else 0

    async def _probe(self) -> None:
        """Finds out what the server can; `StartError` where it would not store what this mount is to store."""
        settings = self._settings
        try:
            await self._store.probe_conditions(scratch.key(settings.prefix), storage_class=settings.storage_class)
        except StoreError as error:
            wishes = ["--sse-c-key"] if settings.sse_c_key else []
            wishes += [f"--storage-class {settings.storage_class}"] if settings.storage_class else []
            if not wishes or error.errno not in (errno.EINVAL, errno.EPROTO):
                raise
            raise StartError(f"the server refuses {' or '.join(wishes)}: {error.detail or error.code}") from error

    async def _serve(self, ready: Callable[[], None]) -> int:
        """Serves the kernel until the mount point is gone, then drains; returns how many changes are left."""
        mountpoint = self._settings.mountpoint
        async with trio.open_nursery() as nursery:
            self._build(Background(nursery))
            await self._parts.recover()
            await nursery.start(status.serve, status.socket_path(mountpoint), self._status)
            _attach(self._operations, mountpoint, self._options())
            await nursery.start(errands.serve, errands.socket_path(mountpoint), self._errands)
            nursery.start_soon(self._await_signals)
            nursery.start_soon(self._sweep)
            nursery.start_soon(raise_read_ahead, mountpoint)
            self._state = status.State.MOUNTED
            ready()
            try:
                await pyfuse3.main(min_tasks=1, max_tasks=TASKS)
            finally:
                self._kernel.close()
                with trio.CancelScope(shield=True):
                    await self._parts.pages.close()
                pyfuse3.close(unmount=True)
            left = await self._drain()
            nursery.cancel_scope.cancel()
        return left

    def _options(self) -> set[str]:
        settings = self._settings
        options = set(pyfuse3.default_options) | {
            f"fsname=sosfs:{settings.bucket}/{settings.prefix}".rstrip("/"),
            "subtype=sosfs",
            "default_permissions",
        }
        if settings.allow_other:
            options.add("allow_other")
        if settings.read_only:
            options.add("ro")
        return options

    def _build(self, background: Background) -> None:
        settings = self._settings
        parts = self._parts = assemble(
            settings, self._store, self._journal, background.spawn, give=pyfuse3.notify_store
        )
        parts.attributes.refusals.add(self._store.denied)
        files = Operations(
            parts.inodes,
            parts.namespace,
            parts.renames,
            parts.contents,
            parts.commits,
            parts.attributes,
            parts.deletions,
            parts.pages,
            Claims(settings.exclusive),
            Guesses(parts.attributes, settings.attributes, ttl=settings.ttl),
            ttl=settings.ttl,
        )
        sharing = Sharing(parts.inodes, self._store, parts.attributes, parts.commits, parts.gate)
        self._operations = self._with_control(files, sharing, background.spawn)
        self._warming = Warming(parts.inodes, parts.namespace, parts.attributes, parts.blocks)
        dropping = Dropping(
            parts.inodes,
            parts.cache,
            parts.blocks,
            parts.commits,
            parts.pages,
            files.absences,
            self._kernel.forget,
        )
        self._errands = {"warm": self._warming.run, "drop": dropping.run}

    def _with_control(self, files: Operations, sharing: Sharing, spawn: Spawn) -> Routing:
        """The control tree and the extended attributes beside the files."""
        settings, parts = self._settings, self._parts
        rejections = Rejections()
        bucket = BucketSettings(self._target, self._store.sender)
        versions = Shelf(bucket, spawn).folder(settings.prefix)
        tree = Tree(tree_of(parts.namespace, sharing, bucket, rejections, versions, self._status))
        xattrs = Xattrs(
            parts.inodes,
            self._store,
            parts.attributes,
            sharing,
            Links(self._target, int(settings.link_lifetime)),
            rejections,
            kept=parts.conflicts.kept,
        )
        return Routing(files, ControlOperations(tree, uid=settings.uid, gid=settings.gid), parts.inodes, xattrs)

    async def _await_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            async for number in received:
                log.info("%s: unmounting", signal.Signals(number).name)
                if self._state is status.State.DRAINING:
                    self._draining.cancel()  # the rest stays in the journal, for the next mount
                else:
                    pyfuse3.terminate()

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(SWEEP)
            self._parts.namespace.sweep()
            self._parts.cache.flush()

    async def _drain(self) -> int:
        """Sends what the bucket lacks; what it cannot send stays in the journal. Returns how much that is."""
        self._state = status.State.DRAINING
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_manager)
            with self._draining:
                await self._parts.drain()
            nursery.cancel_scope.cancel()
        await self._parts.commits.record_all()
        self._parts.cache.close()
        left = self._parts.pending
        self._state = status.State.STOPPED
        status.write_last(self._status())
        if left:
            log.error("%d changes are not in the bucket; they are in %s", left, self._settings.state_dir)
        return left

    async def _tell_manager(self) -> None:
        """Asks the service manager for time, as long as there is something to send."""
        while True:
            readiness.stopping(f"sending {self._parts.pending} changes", seconds=GRACE)
            await trio.sleep(GRACE / 6)

    def _status(self) -> status.Status:
        return status.Status(
            pid=os.getpid(),
            bucket=self._settings.bucket,
            prefix=self._settings.prefix,
            mountpoint=os.fspath(self._settings.mountpoint),
            endpoint=self._settings.endpoint,
            state=self._state,
            pending_files=self._parts.pending,
            pending_bytes=self._parts.commits.pending[1],
            sent_bytes=self._parts.uploader.sent_bytes,
            received_bytes=self._parts.blocks.received_bytes,
            errors=tuple(self._errors.last),
            conditions=self._store.conditions.value,
            requests=dict(self._requests),
            memory_bytes=self._parts.blocks.used + self._parts.uploader.budget.used + self._warming.budget.used,
            memory_limit=self._settings.memory + UPLOADS + IN_FLIGHT,
        )
