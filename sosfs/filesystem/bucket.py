"""Serve one bucket: reach it, build its parts, drain and close it.

    opened (its journal is ours) -> reached (the bucket answers) -> begun (parts, recovery) -> drained -> closed

A mount of one bucket has one of these; where all buckets of an account are mounted, each gets its own with the
first request for it, its numbers (`first`) and its share of the memory.

Concurrency: trio thread only; background work runs in what is given to `begin`.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from sosfs.attributes.protection import Act
from sosfs.attributes.shared.publication import PERIOD_OF_VERSIONS
from sosfs.cache.blocks import Spawn
from sosfs.concurrency.tasks import Background
from sosfs.config.credentials import CredentialSource
from sosfs.config.parameters import Settings
from sosfs.control import nodes
from sosfs.control.layout import tree_of
from sosfs.control.nodes import Tree
from sosfs.control.object_acl import ObjectAcls
from sosfs.control.object_retention import ObjectRetentions
from sosfs.control.past import PastFolder, VersioningRequired
from sosfs.control.rejected_texts import Rejections
from sosfs.control.versions import Shelf
from sosfs.disk.free_space import Disk
from sosfs.errors import StoreError
from sosfs.files.debounce import VERSIONED_DELAY
from sosfs.filesystem.composition import Filesystem, assemble
from sosfs.filesystem.drop import DropCommand
from sosfs.filesystem.links import LinkCommand
from sosfs.filesystem.memory_limits import DRAFTS, NAME, NAMES, UPLOADS, Quota, whole
from sosfs.filesystem.memory_report import Held, by_kind, resident, together
from sosfs.filesystem.past import Past
from sosfs.filesystem.pending_changes import PendingChanges
from sosfs.filesystem.restore import RestoreCommand
from sosfs.filesystem.usage import UsageCommand
from sosfs.filesystem.version_paths import VersionPaths
from sosfs.filesystem.versions import VersionsCommand
from sosfs.filesystem.warm import IN_FLIGHT, WarmCommand
from sosfs.fuse.control_tree import ControlOperations
from sosfs.fuse.notifier import KernelNotifier
from sosfs.fuse.operations import Operations
from sosfs.fuse.past_operations import ReadOnlyOperations
from sosfs.fuse.provisional_attributes import ProvisionalAttributes
from sosfs.fuse.routing import Routing
from sosfs.fuse.xattrs import Xattrs
from sosfs.ipc.commands import Work
from sosfs.ipc.status import Status, few
from sosfs.journal.journal import Journal
from sosfs.s3 import scratch_key
from sosfs.s3.bucket import S3Store
from sosfs.s3.bucket_settings import BucketSettings
from sosfs.s3.capabilities import Capabilities
from sosfs.s3.endpoint import S3Target
from sosfs.s3.limits import Limits
from sosfs.s3.object_lock import ObjectLocks
from sosfs.s3.object_urls import Links
from sosfs.s3.past_store import PastStore
from sosfs.s3.protection_settings import ProtectionSettings
from sosfs.s3.protocol import Conditions, ObjectStore
from sosfs.s3.version_changes import VersionChanges
from sosfs.s3.version_history import VersionHistory
from sosfs.tree.inodes import ROOT


def memory_limit(settings: Settings, *, buckets: int) -> int:
    """How many bytes of memory a mount takes for data, names and changes, with this many buckets in use."""
    return (1 + NAMES * buckets) * settings.memory + DRAFTS + UPLOADS + IN_FLIGHT


def _operations(settings: Settings, parts: Filesystem) -> Operations:
    return Operations(
        parts.inodes,
        parts.namespace,
        parts.creations,
        parts.renames,
        parts.file_io,
        parts.commits,
        parts.attributes,
        parts.deletions,
        parts.pages,
        ProvisionalAttributes(parts.attributes, settings.attributes, ttl=settings.ttl),
        ttl=settings.ttl,
    )


def _sharing(store: ObjectStore, parts: Filesystem) -> ObjectAcls:
    return ObjectAcls(parts.inodes, store, parts.attributes, parts.commits, parts.subtree_lock)


class BucketMount:
    """A bucket, or a prefix of it. `moment` is what the mount says of itself, into which a bucket puts its figures.

    Numbers of inodes and handles begin at `first`, those of the control tree as far above `nodes.FIRST`;
    `kernel` is what can be said to it unasked.
    """

    parts: Filesystem
    operations: Routing
    errands: Mapping[str, Work]

    def __init__(
        self,
        settings: Settings,
        source: CredentialSource,
        moment: Callable[[], Status],
        *,
        first: int = ROOT,
        share: Quota | None = None,
        limits: Limits | None = None,
        kernel: KernelNotifier,
    ) -> None:
        """Takes its journal. Raises OSError EBUSY where another mount has it."""
        self.settings = settings
        self._moment = moment
        self._first = first
        self._share = share
        self._kernel = kernel
        self._begun = False
        self._rejections = Rejections()
        self._requests: Counter[str] = Counter()
        self._target = S3Target.of(settings, source)
        self._links = Links(self._target, int(settings.link_lifetime))
        self.store = S3Store(
            self._target, on_request=self._count, new_acl=settings.acl, limits=limits, verify=settings.verify
        )
        self._bucket_settings = BucketSettings(self._target, self.store.dispatcher)
        self._versioning = VersioningRequired(self._bucket_settings)
        self._locks = ObjectLocks(self.store)
        self._journal = Journal(settings.state_dir, f"{settings.endpoint} {settings.bucket} {settings.prefix}")

    @property
    def requests(self) -> Mapping[str, int]:
        """How many requests of each S3 operation were sent."""
        return self._requests

    def _count(self, operation: str) -> None:
        self._requests[operation] += 1

    @property
    def state_dir(self) -> Path:
        """Where its journal is."""
        return self.settings.state_dir

    @property
    def may_write(self) -> bool:
        """Whether the mount may change anything: without a key only where anybody may write."""
        return not self.settings.anonymous or not self.store.denied

    async def reach(self, known: Capabilities | None = None) -> None:
        """Finds out whether the bucket can be used and, where that is not `known`, what its server can do.

        Raises StoreError with a reason in words.
        """
        await self.store.reach(self.settings.prefix)
        if known is not None:
            self.store.capabilities = known
        elif not self.settings.read_only:
            await self._probe()
        if not self.settings.read_only:
            await self._locks.look()

    async def learn(self) -> None:
        """Finds out what the server can do, where that was spared because nothing was to be changed."""
        if not self.store.capabilities.known:
            await self._probe()
        await self._locks.look()
        self.tell_others(writes=True)

    def tell_others(self, *, writes: bool) -> None:
        """Whether what is learned may be put into the bucket for others, where it is shared."""
        if self._begun and self.parts.shared is not None:
            self.parts.shared.writes = writes

    async def _probe(self) -> None:
        """Finds out what the server can. Raises EPROTO where it would not store what this mount is to store."""
        settings = self.settings
        try:
            await self.store.probe_conditions(scratch_key.key(settings.prefix), storage_class=settings.storage_class)
        except StoreError as error:
            wishes = ["--sse-c-key"] if settings.sse_c_key else []
            wishes += [f"--storage-class {settings.storage_class}"] if settings.storage_class else []
            if not wishes or error.errno not in (errno.EINVAL, errno.EPROTO):
                raise
            why = f"the server refuses {' or '.join(wishes)}: {error.detail or error.code}"
            raise OSError(errno.EPROTO, why) from error

    async def begin(self, background: Background) -> None:
        """Builds the parts and takes up what an earlier mount left. Raises what the bucket answers."""
        spawn = background.spawn
        self._share = self._share or whole(self.settings)
        self.parts = assemble(
            self.settings,
            self.store,
            self._journal,
            spawn,
            first=self._first,
            share=self._share,
            kernel=self._kernel,
        )
        self.past = Past(self.settings, self.store, spawn, self._share, self._operations_at, first=self._first)
        self._begun = True
        if self.store.keeps_versions:
            self.parts.commits.debounce.delay = VERSIONED_DELAY
            if self.parts.shared is not None:
                self.parts.shared.publication.period = PERIOD_OF_VERSIONS
        self.store.dispatcher.on_new_key = self.parts.retries.hurry
        self.parts.attributes.permissions.add(self.store.denied)
        self.parts.attributes.protection.begin(self._locks, self._locked)
        self.operations = self._routing(spawn)
        await self.parts.recover()

    def _locked(self, path: str, error: OSError, act: Act) -> None:
        self._rejections.add(path, error, outcome=act.value)

    def _routing(self, spawn: Spawn) -> Routing:
        files, sharing = _operations(self.settings, self.parts), _sharing(self.store, self.parts)
        self._do_errands(files)
        tree = self._control(sharing, spawn)
        xattrs = self._xattrs(self.store, self.parts, sharing)
        return Routing(files, ControlOperations(tree), self.parts.inodes, xattrs, self.past)

    def _xattrs(self, store: ObjectStore, parts: Filesystem, sharing: ObjectAcls) -> Xattrs:
        retentions = ObjectRetentions(
            parts.inodes, store, self._locks, parts.attributes, parts.commits, parts.subtree_lock
        )
        return Xattrs(
            parts.inodes, parts.attributes, sharing, retentions, self._links, self._rejections,
            kept=parts.conflicts.kept
        )  # fmt: skip

    def _operations_at(
        self, store: PastStore, settings: Settings, parts: Filesystem
    ) -> tuple[Operations, ReadOnlyOperations]:
        """What the kernel may ask of the bucket as it was."""
        files = _operations(settings, parts)
        return files, ReadOnlyOperations(files, parts.inodes, self._xattrs(store, parts, _sharing(store, parts)))

    def _do_errands(self, files: Operations) -> None:
        parts = self.parts
        self.warming = WarmCommand(parts.inodes, parts.namespace, parts.attributes, parts.blocks)
        dropping = DropCommand(
            parts.inodes, parts.cache, parts.blocks, parts.commits, parts.pages, files.negative_entries, self._kernel
        )
        self.changes = PendingChanges(parts, self.settings.prefix, self._target.traffic.moved)
        history = VersionHistory(self.store.dispatcher)
        paths, changes = (
            VersionPaths(history, self.settings.prefix),
            VersionChanges(self.store, parts.attributes.acls.are_kept),
        )
        versions = VersionsCommand(paths, changes, self._versioning, self._rejections)
        linking = LinkCommand(parts.inodes, parts.namespace.listings, paths, self.store, self._links, self.changes)
        usage = UsageCommand(self.store, history, paths, self._bucket_settings, self.changes.changes)
        self.errands = {
            "warm": self.warming.run,
            "drop": dropping.run,
            "pending": self.changes.tell,
            "retry": self.changes.retry,
            "restore": RestoreCommand(parts, paths, changes, self._versioning, dropping).run,
            "versions": versions.list,
            "prune": versions.prune,
            "usage": usage.run,
            "link": linking.run,
        }

    def _control(self, sharing: ObjectAcls, spawn: Spawn) -> Tree:
        """The control tree beside the files."""
        bucket, rejections = self._bucket_settings, self._rejections
        versions = Shelf(bucket, spawn).folder(self.settings.prefix)
        past = PastFolder(self.past, self._versioning, rejections)
        rules_changed = self.parts.attributes.acls.rules_changed
        protection = ProtectionSettings(bucket, on_lock=self._locks.appeared, on_ownership=rules_changed)
        top = tree_of(self.parts.namespace, sharing, bucket, protection, rejections, versions, past, self.status)
        return Tree(top, first=nodes.FIRST + self._first - ROOT)

    def sweep(self) -> None:
        """Frees what nobody needs any more; to be called now and then."""
        self.parts.namespace.sweep()
        self.parts.eviction.look()
        self.parts.cache.flush()
        self.store.dispatcher.sweep()
        self._bucket_settings.sweep()
        self.past.sweep()

    async def let_go(self) -> None:
        """Nothing more is said to the kernel unasked; its connection may then go."""
        self._kernel.close()
        await self.parts.pages.close()

    async def store_all(self) -> None:
        """Everything is in the bucket afterwards. Raises what is not."""
        await self.parts.commits.commit_under(self.parts.inodes.root)
        await self.parts.deletions.wait_under("")

    async def store_deletes(self) -> None:
        """What was deleted is gone from the bucket afterwards, and nothing else is on its way there.

        Raises ENOTEMPTY where a file or a new directory is, EBUSY where one that was unlinked is still open, and what
        keeps a delete from being sent.
        """
        parts = self.parts
        await parts.deletions.wait_under("")
        if parts.pending:
            raise OSError(errno.ENOTEMPTY, "what is in it is not stored yet")
        inodes = map(parts.inodes.find, parts.inodes.numbers())
        if any(inode is not None and inode.opens for inode in inodes):
            raise OSError(errno.EBUSY, "files that were in it are still open")

    async def drain(self) -> None:
        """Sends what the bucket lacks; what cannot be sent stays in the journal."""
        await self.parts.drain()

    async def keep(self) -> None:
        """Whatever the bucket lacks is in the journal afterwards, and nothing more is read."""
        await self.parts.commits.record_all()
        self.store.dispatcher.abandon_reads()
        await self.parts.sync()

    def close(self) -> None:
        """Lets others have the journal; no request may be under way or follow."""
        self.store.close()
        self._bucket_settings.close()
        if not self._begun:
            self._journal.withdraw()
            return
        self.past.close()
        self.parts.cache.close()
        self._journal.close()

    @property
    def conditions(self) -> Conditions:
        """How its server treats conditional writes."""
        return self.store.conditions

    @property
    def pending(self) -> int:
        """How many changes the bucket lacks."""
        return self.parts.pending

    @property
    def held(self) -> Held:
        """What it holds in memory by itself: no changes, for whose memory all buckets of a mount have one budget."""
        names = NAME * (len(self.parts.inodes) + self.past.inodes) + self.operations.packed_names
        names += self.parts.inodes.lent_size
        return Held(self.parts.blocks.held + self.past.held + self.warming.budget.used, names)

    def status(self) -> Status:
        """This moment of the bucket."""
        parts, settings, traffic = self.parts, self.settings, self._target.traffic
        silence, moved, unsynced = traffic.silence, traffic.moved(), parts.unsynced
        assert self._share is not None
        held, total = together([self.held, Held(changes=self._share.changes)]), resident()
        return dataclasses.replace(
            self._moment(),
            bucket=settings.bucket,
            prefix=settings.prefix,
            endpoint=settings.endpoint,
            pending_files=parts.pending,
            pending_bytes=parts.commits.pending[1],
            waiting=few(parts.waiting),
            damaged=self._journal.damage.lines,
            sent_bytes=parts.uploader.sent_bytes,
            received_bytes=parts.blocks.received_bytes,
            conditions=self.conditions.value,
            keeps_versions=self.store.keeps_versions,
            locks_objects=self.store.locks,
            requests=dict(self._requests),
            memory_bytes=held.total,
            memory=by_kind(held, total),
            resident_bytes=total,
            memory_limit=memory_limit(settings, buckets=1),
            waiting_writers=parts.file_io.writeback.waiting,
            state_dir=os.fspath(self.state_dir),
            free_bytes=Disk(self.state_dir).room().free,
            durability=settings.durability.value,
            unsynced_changes=unsynced.changes,
            unsynced_bytes=unsynced.size,
            unsynced_since=unsynced.since,
            uploaded_bytes=parts.commits.uploaded(moved),
            moving_bytes=sum(moved.values()),
            waiting_since=parts.oldest,
            silent_since=silence.since if silence else 0.0,
            silence=silence.why if silence else "",
            retries=traffic.retries,
            failures=traffic.failures,
            caches=parts.caches,
            shared_attributes=parts.shared.words if parts.shared else "",
        )
