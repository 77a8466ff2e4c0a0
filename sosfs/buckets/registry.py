"""The buckets of an account: which are served, since when, and for how long.

    listed -> entered (served, with numbers of its own) -> removed
                 `-- fails: EACCES and the like for whoever asked, and tried again for the next one

A bucket is entered with the first request for something in it, or because an earlier mount left work in its
journal, and stays so to the end. Each has a state directory of its own below that of the account.

Concurrency: trio thread only.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from sosfs.buckets.bucket_list import BucketList
from sosfs.buckets.commands import works
from sosfs.buckets.member import MOST, Member, index_of
from sosfs.concurrency.backoff import Doubling
from sosfs.concurrency.tasks import Background, each
from sosfs.config.credentials import CredentialSource
from sosfs.config.parameters import Settings
from sosfs.config.zones import Place
from sosfs.disk.damage import Damage, entries
from sosfs.disk.free_space import Disk
from sosfs.disk.lock import locked
from sosfs.errors import StoreError, reason
from sosfs.filesystem.bucket import BucketMount, memory_limit
from sosfs.filesystem.memory_limits import Quotas
from sosfs.filesystem.memory_report import Held, by_kind, resident, together
from sosfs.fuse.notifier import KernelNotifier
from sosfs.ipc.pending import Change, Kind, Pending
from sosfs.ipc.status import Status, few
from sosfs.journal.journal import DAMAGED, LeftOver, left_over
from sosfs.log.wording import counted
from sosfs.s3 import bucket_zone, certificate_authorities, reachability
from sosfs.s3.account import Account
from sosfs.s3.capabilities import Capabilities
from sosfs.s3.endpoint import S3Target
from sosfs.s3.limits import Limits
from sosfs.s3.protocol import Bucket, Conditions
from sosfs.s3.reachability import REACH_PATIENCE

if TYPE_CHECKING:
    from pyfuse3 import Operations

log = logging.getLogger(__name__)

PAUSE_FIRST, PAUSE_MAX = 5.0, 300.0  # seconds between tries to take up what an earlier mount left
BUCKETS_AT_ONCE = 8


class BucketRegistry:
    """All buckets of the account. `operations` are given by who composes it."""

    operations: Operations

    may_write = True  # each bucket for itself

    def __init__(
        self,
        settings: Settings,
        source: CredentialSource,
        moment: Callable[[], Status],
        limits: Limits,
        kernel: KernelNotifier,
    ) -> None:
        self.settings = settings
        self.state_dir = settings.state_dir
        self._source = source
        self._moment = moment
        self._kernel = kernel
        self.errands = works(self)
        self._requests: Counter[str] = Counter()
        self._limits = limits
        self.account = Account(S3Target.of(settings, source), self._count, self._limits)
        self._members: list[Member | None] = [None]  # by index
        self._named: dict[str, Member] = {}
        self.bucket_list = BucketList(self.account, ttl=settings.ttl)
        self._able: dict[str, Capabilities] = {}  # by endpoint
        self._waiting: dict[str, LeftOver] = {}  # by state directory
        self._refused: dict[str, str] = {}  # why what waits could not be taken up at the last try, likewise
        self._damage = Damage(self.state_dir / DAMAGED)  # of what is no bucket's
        self._stranded = 0  # changes in journals of buckets that are no longer where they were
        self._lock = -1

    def _count(self, operation: str) -> None:
        self._requests[operation] += 1

    # The life of the mount

    async def reach(self) -> None:
        """Lists the buckets and takes the state directory.

        Raises StoreError with a reason in words, and OSError EBUSY where another mount has the directory.
        """
        try:
            owner = await self.bucket_list.refresh(patience=REACH_PATIENCE)
        except StoreError as error:
            raise reachability.unreachable(error, f"the buckets at {self.settings.endpoint}") from error
        self.state_dir = self.settings.state_dir / hashlib.sha256(owner.encode()).hexdigest()[:12]
        self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = locked(self.state_dir)
        self._quotas = Quotas(self.settings, self.state_dir)

    async def learn(self) -> None:
        """Finds out what the servers of its buckets can do, also of those entered later: it began read-only."""
        self.settings = replace(self.settings, read_only=False)
        await each(BucketMount.learn, self.served, at_once=BUCKETS_AT_ONCE)

    def tell_others(self, *, writes: bool) -> None:
        """Whether what is learned may be put into buckets for others, also into those entered later."""
        self.settings = replace(self.settings, read_only=not writes)
        for served in self.served:
            served.tell_others(writes=writes)

    async def begin(self, background: Background) -> None:
        """Begins to take up what an earlier mount left, whether or not anybody enters those buckets."""
        self._background = background
        for directory in sorted(path for path in self.state_dir.iterdir() if path.is_dir()):
            try:
                left = left_over(directory)
            except OSError as error:
                self._damage.note(f"what an earlier mount left cannot be read: {error}")
                continue
            if left is not None and (left.changes + left.uploads or not left.is_whole):
                self._waiting[directory.name] = left
        if self._waiting:
            background.spawn(self._take_up)

    async def _take_up(self) -> None:
        pauses = Doubling(PAUSE_FIRST, PAUSE_MAX)
        while True:
            await self._try_waiting()
            if not self._waiting:
                return
            await trio.sleep(pauses.take())

    async def _try_waiting(self) -> None:
        for directory, left in list(self._waiting.items()):
            _, name, _ = left.owner.split(" ", 2)
            member = self._named.get(name) or self._join(Bucket(name))
            try:
                await self.entered(member)
            except OSError as error:
                log.error("%d changes to bucket %s still wait: %s", left.changes, name, error)
                self._refused[directory] = reason(error)
                continue
            self._refused.pop(directory, None)
            if self._waiting.pop(directory, None) is not None:  # that of its namesake elsewhere
                self._stranded += left.changes
                log.error("%d changes were for %s, which is not there any more", left.changes, left.owner)

    def earlier(self) -> list[Change]:
        """What an earlier mount left for buckets that nobody has entered, and that could not be taken up yet."""
        found = []
        for directory, left in self._waiting.items():
            bucket = left.owner.split(" ", 2)[1]
            since = (self.state_dir / directory).stat().st_mtime
            error = f"{counted(left.changes, 'change')}: {self._refused.get(directory, 'not taken up yet')}"
            found.append(Change(Pending((bucket.encode(),), Kind.EARLIER, since, error=error), self._try_waiting))
        return found

    @property
    def served(self) -> list[BucketMount]:
        """The buckets that were entered."""
        return [member.served for member in self._members if member is not None and member.served is not None]

    def sweep(self) -> None:
        """Frees what nobody needs any more."""
        self.account.sweep()
        for served in self.served:
            served.sweep()

    async def let_go(self) -> None:
        """Nothing more is said to the kernel unasked; its connection may then go."""
        self._kernel.close()
        for served in self.served:
            await served.let_go()

    async def store_all(self) -> None:
        """Everything is in its bucket afterwards. Raises what is not."""
        await each(BucketMount.store_all, self.served, at_once=BUCKETS_AT_ONCE)

    async def drain(self) -> None:
        """Sends what the buckets lack; what cannot be sent stays in their journals.

        What fails in one, as where its journal cannot be read, keeps no other from being sent. It is raised at last.
        """
        await self._try_waiting()
        await self._in_all(lambda served: served.drain(), at_once=BUCKETS_AT_ONCE)

    async def keep(self) -> None:
        """Whatever the buckets lack is in their journals afterwards. What fails is raised as in `drain`."""
        await self._in_all(lambda served: served.keep(), at_once=1)

    async def _in_all(self, work: Callable[[BucketMount], Awaitable[None]], *, at_once: int) -> None:
        failed: list[OSError] = []

        async def do(served: BucketMount) -> None:
            try:
                await work(served)
            except OSError as error:
                log.error("bucket %s: %s", served.settings.bucket, error)
                failed.append(error)

        await each(do, self.served, at_once=at_once)
        if failed:
            raise failed[0]

    def close(self) -> None:
        """Closes all; no request may be under way or follow."""
        for served in self.served:
            served.close()
        self.account.close()
        if self._lock >= 0:
            os.close(self._lock)

    # Names

    async def find(self, name: str) -> Member:
        """The bucket of this name. Raises ENOENT only where a listing does not show it."""
        return self.known(await self.bucket_list.find(name))

    def known(self, bucket: Bucket) -> Member:
        """A bucket that was listed."""
        return self._named.get(bucket.name) or self._join(bucket)

    def _join(self, bucket: Bucket) -> Member:
        if len(self._members) >= MOST:
            raise OSError(errno.ENFILE, "no numbers are left for another bucket")
        member = Member(len(self._members), bucket)
        self._members.append(member)
        self._named[bucket.name] = member
        return member

    def at(self, number: int) -> Member:
        """Whose a number is. Raises ESTALE for one that was removed."""
        index = index_of(number)
        member = self._members[index] if index < len(self._members) else None
        if member is None or member.is_gone:
            raise OSError(errno.ESTALE, "this bucket was removed")
        return member

    # Buckets come, are entered, and go

    async def make(self, name: str) -> Member:
        """Creates a bucket. EEXIST, EINVAL and EDQUOT with a reason in words."""
        await self.bucket_list.refresh()
        if name in self.bucket_list.listed:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        await self.account.create(name)
        bucket = Bucket(name, time.time(), self.settings.zone)
        self.bucket_list.made(bucket)
        member = self.known(bucket)
        if member.served is None:
            member.bucket, member.place = bucket, None  # one of this name may have been elsewhere
        return member

    async def entered(self, member: Member) -> BucketMount:
        """The bucket, served. Raises why it cannot be entered: EACCES where the key may not list it."""
        async with member.lock:
            if member.is_gone:
                raise OSError(errno.ESTALE, "this bucket was removed")
            if member.served is None:
                await self._enter(member)
            assert member.served is not None
            return member.served

    async def _enter(self, member: Member) -> None:
        settings = self._settings_of(member.name, await self._place(member))
        async with contextlib.AsyncExitStack() as undo:
            served = BucketMount(
                settings,
                self._source,
                self._moment,
                first=member.root,
                share=self._quotas.of(member.name),
                limits=self._limits,
                kernel=self._kernel,
            )
            undo.callback(served.close)
            background = await self._background.part()
            undo.push_async_callback(background.end)
            await served.reach(self._able.get(settings.endpoint))
            await served.begin(background)
            undo.pop_all()
        if served.conditions is not Conditions.UNKNOWN:
            self._able[settings.endpoint] = served.store.capabilities
        if member.bucket.created:
            top = served.parts.inodes.root
            top.mtime_ns = top.ctime_ns = int(member.bucket.created * 1e9)
        self._waiting.pop(settings.state_dir.name, None)
        member.served, member.background = served, background

    def _settings_of(self, name: str, place: Place) -> Settings:
        own = replace(
            self.settings.placed(place, self.settings.naming), bucket=name, mountpoint=self.settings.mountpoint / name
        )
        return replace(own, cache_dir=self.state_dir / replace(own, cache_dir=None).state_dir.name)

    async def _place(self, member: Member) -> Place:
        """Where the bucket's server is. Each zone has its own; `--zone` is only where new buckets are made."""
        here = self.settings.place
        if not here.has_zones:
            return here
        if member.place is None:
            try:
                told = member.bucket.region
                member.place = here.moved(told) if told else await self._asked(here, member.name)
            except (StoreError, ValueError) as error:
                log.info("bucket %s is taken to be in zone %s: %s", member.name, here.zone, error)
        return member.place or here

    async def _asked(self, here: Place, name: str) -> Place | None:
        self._count("HeadBucket")
        return await self._limits.small.run(
            bucket_zone.ask, here, name, certificate_authorities.bundle_of(self.settings)
        )

    async def remove(self, member: Member) -> None:
        """Removes an empty bucket. ENOTEMPTY where it holds anything, here or there."""
        settings = self._settings_of(member.name, await self._place(member))
        if settings.state_dir.name in self._waiting:
            await self.entered(member)
        async with member.lock:
            served = member.served
            if served is not None:
                await served.store_deletes()
            await self.account.remove(member.name, await self._place(member))
            member.is_gone = True
            self._named.pop(member.name, None)
            self.bucket_list.removed(member.name)
            changes = await self._leave(member)
            left = left_over(settings.state_dir) if changes else None
            if left is not None and (left.changes or not left.is_whole):  # told to be safe while the server removed it
                log.error("%d changes were for %s, which was removed meanwhile", left.changes, left.owner)
                self._waiting[settings.state_dir.name] = left
                return
            await trio.to_thread.run_sync(_forget, settings.state_dir)

    async def _leave(self, member: Member) -> int:
        """Serves a bucket no more; how many changes it lacks."""
        if member.served is None or member.background is None:
            return 0
        await member.idle()
        await member.background.end()
        self._requests.update(member.served.requests)
        changes = member.served.pending
        member.served.close()
        member.served = None
        return changes

    # What is told

    @property
    def pending(self) -> int:
        """How many changes the buckets lack."""
        waiting = sum(left.changes for left in self._waiting.values())
        return sum(served.pending for served in self.served) + waiting + self._stranded

    def _damaged(self, each_of: Sequence[Status]) -> tuple[str, ...]:
        """What is damaged of all buckets, of those that nobody has entered too."""
        told = [*self._damage.lines, *(line for one in each_of for line in one.damaged)]
        unread = (left.owner for left in self._waiting.values() if not left.is_whole)
        told += [f"the journal of {owner} is damaged: it waits for its bucket" for owner in unread]
        entered = {served.state_dir for served in self.served}
        others = (path for path in sorted(self.state_dir.iterdir()) if path.is_dir() and path not in entered)
        return (*told, *(line for path in others for line in entries(path / DAMAGED)))

    def status(self) -> Status:
        """This moment of all buckets together."""
        each_of = [served.status() for served in self.served]
        requests = sum((Counter(one.requests) for one in each_of), Counter(self._requests))
        known = {one.conditions for one in each_of}
        silent = [one for one in each_of if one.silent_since]
        held, total = together([Held(changes=self._quotas.changes), *(one.held for one in self.served)]), resident()
        return replace(
            self._moment(),
            pending_files=self.pending,
            pending_bytes=sum(one.pending_bytes for one in each_of),
            waiting=few([f"{one.bucket}: {what}" for one in each_of for what in one.waiting]),
            damaged=self._damaged(each_of),
            sent_bytes=sum(one.sent_bytes for one in each_of),
            received_bytes=sum(one.received_bytes for one in each_of),
            conditions=known.pop() if len(known) == 1 else Conditions.UNKNOWN.value,
            requests=dict(requests),
            memory_bytes=held.total,
            memory=by_kind(held, total),
            resident_bytes=total,
            memory_limit=memory_limit(self.settings, buckets=len(self.served)),
            waiting_writers=sum(one.waiting_writers for one in each_of),
            state_dir=os.fspath(self.state_dir),
            free_bytes=Disk(self.state_dir).room().free,
            buckets={one.bucket: one.pending_files for one in each_of},
            durability=self.settings.durability.value,
            unsynced_changes=sum(one.unsynced_changes for one in each_of),
            unsynced_bytes=sum(one.unsynced_bytes for one in each_of),
            unsynced_since=min((one.unsynced_since for one in each_of if one.unsynced_since), default=0.0),
            uploaded_bytes=sum(one.uploaded_bytes for one in each_of),
            moving_bytes=sum(one.moving_bytes for one in each_of),
            waiting_since=min((one.waiting_since for one in each_of if one.waiting_since), default=0.0),
            silent_since=min((one.silent_since for one in silent), default=0.0),
            silence=silent[0].silence if silent else "",
            retries=self.account.traffic.retries + sum(one.retries for one in each_of),
            failures=self.account.traffic.failures + sum(one.failures for one in each_of),
            caches=_sums(one.caches for one in each_of),
        )


def _sums(counts: Iterable[Mapping[str, Sequence[int]]]) -> dict[str, tuple[int, ...]]:
    """The counts of several buckets' caches together."""
    total: dict[str, tuple[int, ...]] = {}
    for caches in counts:
        for name, numbers in caches.items():
            total[name] = tuple(map(sum, zip(total.get(name, (0,) * len(numbers)), numbers, strict=True)))
    return total


def _forget(directory: Path) -> None:
    """Removes the state of a bucket that is gone, unless something damaged is set aside there for its user."""
    if not entries(directory / DAMAGED):
        shutil.rmtree(directory, ignore_errors=True)
