"""The composition root of a mount: builds the parts, serves the kernel, drains at the end.

Whoever asks for the end (umount, SIGTERM, SIGINT) gets the same: the mount point goes, then everything that
is not yet in the bucket is sent, then the process ends with an exit code that says whether something is left.

Concurrency: the one place that opens the mount's nursery; everything runs in its thread but the requests.
"""

from __future__ import annotations

import logging
import os
import signal
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable

import pyfuse3
import trio

from . import status
from .attributes import Attributes
from .blocks import Blocks
from .budget import Budget
from .commits import Commits
from .config import Settings
from .conflict import Conflicts
from .contents import Contents
from .credentials import CredentialSource
from .deletions import Deletions
from .directory import Merger
from .errors import StoreError
from .exclusive import Claims
from .gate import Gate
from .inodes import Defaults, Inodes
from .journal import Journal
from .kernel import raise_read_ahead
from .mountpoint import StartError
from .namespace import Namespace
from .operations import Operations
from .recovery import Adoption, Replay
from .rename import Renames
from .s3 import S3Store, S3Target
from .spool import SpoolArea
from .tasks import Background
from .upload import PartPlan, Uploader

log = logging.getLogger(__name__)

TASKS = 400  # requests under way; slowness is limited at the store, not here
UPLOADS = 96 << 20  # bytes of bodies on their way up
SWEEP = 60.0  # seconds between looks for listings nobody needs
ERRORS_KEPT = 10
LEFT_OVER = 3  # exit code, as `sosfs umount` gives it


def serve(settings: Settings, source: CredentialSource, *, ready: Callable[[], None]) -> int:
    """Mounts, serves until unmounted and returns the exit code: 0, or 3 when changes are left over.

    Raises `StartError` or OSError when the mount could not begin.
    """
    return trio.run(_Mount(settings, source).run, ready)


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
        self._state = status.State.MOUNTING
        target = S3Target(settings.bucket, settings.endpoint, settings.region, source)
        self._store = S3Store(target, on_request=self._count)

    def _count(self, operation: str) -> None:
        self._requests[operation] += 1

    async def run(self, ready: Callable[[], None]) -> int:
        """The life of the mount."""
        logging.getLogger("sosfs").addHandler(self._errors)
        settings = self._settings
        self._journal = Journal(settings.state_dir, f"{settings.endpoint} {settings.bucket} {settings.prefix}")
        try:
            await self._store.reach(self._settings.prefix)
        except StoreError as error:
            raise StartError(error.strerror or str(error)) from error
        if not self._settings.read_only:
            await self._store.probe_conditions(f"{self._settings.prefix}.sosfs-probe-{uuid.uuid4()}")
        async with trio.open_nursery() as nursery:
            self._build(Background(nursery))
            await self._recover()
            await nursery.start(status.serve, status.socket_path(self._settings.mountpoint), self._status)
            pyfuse3.init(self._operations, os.fspath(self._settings.mountpoint), self._options())
            nursery.start_soon(self._await_signals)
            nursery.start_soon(self._sweep)
            raise_read_ahead(self._settings.mountpoint)
            self._state = status.State.MOUNTED
            ready()
            try:
                await pyfuse3.main(min_tasks=1, max_tasks=TASKS)
            finally:
                pyfuse3.close(unmount=True)
            left = await self._drain()
            nursery.cancel_scope.cancel()
        self._store.close()
        self._journal.close()
        return LEFT_OVER if left else 0

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
        settings, store, spawn = self._settings, self._store, background.spawn
        ttl = settings.ttl
        journal = self._journal
        self._inodes = inodes = Inodes(settings.prefix, Defaults(settings.uid, settings.gid, settings.umask, time.time_ns()))
        self._merger = merger = Merger(inodes)
        gate = Gate(inodes)
        self._blocks = Blocks(store, spawn, capacity=settings.memory)
        self._deletions = Deletions(store, spawn, journal)
        self._attributes = Attributes(inodes, store, self._blocks, merger, gate, journal, spawn, ttl=ttl)
        self._uploader = Uploader(store, spawn, Budget(UPLOADS), PartPlan(settings.part_size), journal)
        self._spools = SpoolArea(settings.state_dir / "spool")
        self._conflicts = Conflicts(inodes, self._uploader, self._attributes.properties)
        self._commits = Commits(
            inodes,
            self._blocks,
            self._uploader,
            self._attributes,
            self._deletions,
            gate,
            self._conflicts,
            journal,
            spawn,
            durability=settings.durability,
        )
        self._contents = Contents(
            inodes,
            self._blocks,
            self._spools,
            self._uploader,
            self._attributes,
            self._commits,
            dirty_limit=settings.dirty_limit,
        )
        self._namespace = Namespace(
            inodes, store, merger, self._attributes, self._contents, self._deletions, ttl=ttl
        )
        self._operations = Operations(
            inodes,
            self._namespace,
            Renames(self._namespace, store, self._attributes, self._contents, self._deletions, gate, journal),
            self._contents,
            self._commits,
            self._attributes,
            self._deletions,
            Claims(settings.exclusive),
            ttl=ttl,
        )

    async def _recover(self) -> None:
        """Takes up what an earlier mount of this bucket left."""
        replay = Replay(self._journal, self._store, self._attributes)
        adoption = Adoption(
            self._journal,
            self._namespace,
            self._merger,
            self._commits,
            self._conflicts,
            self._attributes,
            self._blocks,
            self._spools,
            self._uploader,
        )
        await replay.run()
        await replay.abort_uploads(keep=await adoption.run())

    async def _await_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            async for number in received:
                log.info("%s: unmounting", signal.Signals(number).name)
                pyfuse3.terminate()

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(SWEEP)
            self._namespace.sweep()

    async def _drain(self) -> int:
        """Sends what the bucket lacks; returns how much is left."""
        self._state = status.State.DRAINING
        left = await self._commits.drain()
        left += len(await self._attributes.drain())
        left += await self._deletions.drain()
        self._state = status.State.STOPPED
        status.write_last(self._status())
        if left:
            log.error("%d changes are not in the bucket", left)
        return left

    def _status(self) -> status.Status:
        files, size = self._commits.pending
        return status.Status(
            pid=os.getpid(),
            bucket=self._settings.bucket,
            prefix=self._settings.prefix,
            mountpoint=os.fspath(self._settings.mountpoint),
            endpoint=self._settings.endpoint,
            state=self._state,
            pending_files=files + len(self._attributes.dirty) + self._deletions.pending,
            pending_bytes=size,
            sent_bytes=self._uploader.sent_bytes,
            received_bytes=self._blocks.received_bytes,
            errors=tuple(self._errors.last),
            conditions=self._store.conditions.value,
            requests=dict(self._requests),
            memory_bytes=self._blocks.used + self._uploader.budget.used,
            memory_limit=self._settings.memory + UPLOADS,
        )
