"""Put together the parts of a filesystem over one store.

`mount` composes them over a real bucket and the kernel; tests compose the same over a store in memory.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from sosfs.attributes.permissions import KeyPermissions
from sosfs.attributes.shared.index import SharedAttributes
from sosfs.attributes.writeback import AttributeWriteback
from sosfs.cache.attributes import AttributeCache
from sosfs.cache.blocks import Blocks, Spawn
from sosfs.concurrency.backoff import Backoff
from sosfs.config.parameters import Durability, Settings
from sosfs.disk.free_space import NOTHING, Disk
from sosfs.files import pending
from sosfs.files.commits import Commits
from sosfs.files.conflict import Conflicts
from sosfs.files.delayed_sync import DelayedSync, Unsynced
from sosfs.files.failed_writes import FailedWrites
from sosfs.files.file_io import FileIO
from sosfs.files.page_cache import PageCache, PageNotifier
from sosfs.files.part_ranges import PartPlan, fitting
from sosfs.files.spool import SpoolArea
from sosfs.files.upload import Uploader
from sosfs.files.zero_objects import ZeroObjects
from sosfs.filesystem.memory_limits import Quota, whole
from sosfs.journal.journal import Journal
from sosfs.journal.multipart_uploads import MultipartUploads
from sosfs.namespace.creation import Creations
from sosfs.namespace.deletions import Deletions
from sosfs.namespace.eviction import Eviction
from sosfs.namespace.exclusive_create import ExclusiveCreate
from sosfs.namespace.namespace import Namespace
from sosfs.namespace.rename import Renames
from sosfs.namespace.rename_copies import RenameCopies
from sosfs.namespace.rename_rollback import RenameRollback
from sosfs.recovery.directories import KeyDirectories
from sosfs.recovery.refused_changes import RefusedChanges
from sosfs.recovery.replay import Adoption, Replay
from sosfs.recovery.spool import SpoolReplay
from sosfs.s3.protocol import ObjectStore
from sosfs.tree.inodes import ROOT, Defaults, Inodes
from sosfs.tree.listing import Listings
from sosfs.tree.listing_merge import Merger
from sosfs.tree.subtree_lock import SubtreeLock


@dataclass(frozen=True, slots=True)
class Filesystem:
    """The parts of one filesystem."""

    store: ObjectStore
    inodes: Inodes
    blocks: Blocks
    cache: AttributeCache
    listings: Listings
    deletions: Deletions
    attributes: AttributeWriteback
    uploader: Uploader
    conflicts: Conflicts
    commits: Commits
    pages: PageCache
    file_io: FileIO
    namespace: Namespace
    eviction: Eviction
    creations: Creations
    renames: Renames
    rollback: RenameRollback
    subtree_lock: SubtreeLock
    replay: Replay
    adoption: Adoption
    refused_changes: RefusedChanges
    retries: Backoff
    multiparts: MultipartUploads
    shared: SharedAttributes | None
    zeros: ZeroObjects
    delayed_sync: DelayedSync | None  # none where everything is waited for

    async def recover(self) -> None:
        """Takes up what an earlier mount of this bucket left. Raises what the bucket answers."""
        self.adoption.go_back()
        await self.replay.run()
        going_on = await self.adoption.run()
        await self.refused_changes.run()
        await self.multiparts.abort_unused(keep=going_on)
        await self.zeros.clear()
        await self.sync()  # the journal knows from now on, whatever happens, which spools are of this mount

    async def sync(self) -> None:
        """What is not waited for is on the disk afterwards, as far as that takes it."""
        if self.delayed_sync is not None:
            await self.delayed_sync.now()

    async def drain(self) -> None:
        """Sends what the bucket lacks; what cannot be sent stays in the journal."""
        await self.file_io.failed_writes.discard_all()
        await self.commits.drain()
        await self.file_io.failed_writes.discard_all()  # what was looked for, and is lost
        await self.attributes.drain()
        await self.rollback.drain()
        await self.deletions.drain()
        await self.multiparts.abort_unused()
        await self.zeros.drain()
        if self.shared is not None and not self.pending:  # else the server does not take what matters more
            await self.shared.end()
        await self.sync()

    @property
    def unsynced(self) -> Unsynced:
        """What a power cut would take now of what was acknowledged."""
        return self.delayed_sync.unsynced if self.delayed_sync is not None else Unsynced()

    @property
    def pending(self) -> int:
        """How many changes the bucket lacks."""
        return self.commits.pending[0] + len(self.attributes.dirty) + self.deletions.pending + self.rollback.pending

    @property
    def oldest(self) -> float:
        """Since when the oldest change waits, in seconds since the epoch; 0.0 where none does."""
        since = (self.commits.oldest, self.attributes.oldest, self.deletions.oldest, self.rollback.oldest)
        return min(filter(None, since), default=0.0)

    @property
    def caches(self) -> dict[str, tuple[int, int]]:
        """What each cache was asked for: how often it had the answer, and how often in all."""
        fetching = self.blocks.fetching
        caches = {"attributes": (self.attributes.hits, self.attributes.asked)}
        caches |= {"memory": (self.blocks.hits, self.blocks.asked)}
        return caches | ({"disk": (fetching.disk_hits, fetching.disk_asked)} if self.blocks.disk is not None else {})

    @property
    def waiting(self) -> list[str]:
        """What the last try did not bring into the bucket, and why."""
        drafts = pending.waiting(self.commits.drafts)
        return [*drafts, *self.attributes.waiting, *self.deletions.waiting, *self.rollback.waiting]


@dataclass(frozen=True, slots=True)
class _Ground:
    """What everything else stands on."""

    settings: Settings
    store: ObjectStore
    journal: Journal
    spawn: Spawn
    inodes: Inodes
    subtree_lock: SubtreeLock
    blocks: Blocks
    cache: AttributeCache
    merger: Merger
    listings: Listings
    deletions: Deletions
    rollback: RenameRollback
    multiparts: MultipartUploads
    uploader: Uploader
    spools: SpoolArea
    pages: PageCache
    share: Quota
    retries: Backoff


def assemble(
    settings: Settings,
    store: ObjectStore,
    journal: Journal,
    spawn: Spawn,
    *,
    first: int = ROOT,
    share: Quota | None = None,
    kernel: PageNotifier | None = None,
) -> Filesystem:
    """The parts of a filesystem over `store`, with its state in the settings' directory.

    `first` is the number of its root; `share` is what it has of the mount's memory, None for all of it; `kernel` is
    what can be said to the kernel, None where there is none.
    """
    defaults = Defaults(settings.uid, settings.gid, settings.umask, time.time_ns())
    inodes = Inodes(settings.prefix, defaults, first=first)
    share = share or whole(settings)
    cache = AttributeCache(settings.state_dir / "attributes.sqlite")
    merger, subtree_lock, retries = Merger(inodes, cache), SubtreeLock(inodes), Backoff()
    blocks = Blocks(store, spawn, share.cached, capacity=settings.memory, disk=share.disk, verify=settings.verify)
    part = fitting(settings.part_size, Disk(settings.state_dir).room().size)
    multiparts, deletions = MultipartUploads(store, journal, spawn), Deletions(store, spawn, journal, retries)
    zeros = ZeroObjects(store, journal, multiparts, spawn, settings.prefix)
    ground = _Ground(
        settings=settings,
        store=store,
        journal=journal,
        spawn=spawn,
        inodes=inodes,
        subtree_lock=subtree_lock,
        blocks=blocks,
        cache=cache,
        merger=merger,
        listings=Listings(inodes, store, merger, subtree_lock, spawn, ttl=settings.ttl, names=share.names),
        deletions=deletions,
        rollback=RenameRollback(store, deletions, journal, spawn, retries),
        multiparts=multiparts,
        uploader=Uploader(store, blocks, spawn, share.uploads, PartPlan(part), multiparts, zeros),
        spools=_spools(settings, share, part),
        pages=PageCache(inodes, spawn, kernel),
        share=share,
        retries=retries,
    )
    return _halves(ground, kernel)


def _spools(settings: Settings, share: Quota, part: int) -> SpoolArea:
    """Where drafts lie; blocks on the same disk give way to them."""
    kept = settings.cache_free or NOTHING
    directory = settings.state_dir / "spool"
    if share.disk is None:
        return SpoolArea(directory, share.drafts, part=part, kept=kept)
    return SpoolArea(directory, share.drafts, part=part, kept=kept, give_way=share.disk.give_way)


def _halves(on: _Ground, kernel: PageNotifier | None) -> Filesystem:
    """Bytes and names, and what ties them together."""
    ttl, lists, shared = on.settings.ttl, on.listings, _shared(on)
    attributes = _attributes(on, shared)
    conflicts, commits, file_io = _bytes(on, attributes)
    namespace = Namespace(
        on.inodes, on.store, on.merger, lists, attributes, file_io, on.deletions, on.subtree_lock, ttl=ttl
    )
    moves = RenameCopies(on.store, on.multiparts, on.journal)
    adoption, refused_changes = _taken_up(on, attributes, namespace, commits, file_io)
    claims = ExclusiveCreate(on.settings.exclusive, on.settings.durability)
    return Filesystem(
        store=on.store,
        inodes=on.inodes,
        blocks=on.blocks,
        cache=on.cache,
        listings=lists,
        deletions=on.deletions,
        attributes=attributes,
        uploader=on.uploader,
        conflicts=conflicts,
        commits=commits,
        pages=on.pages,
        file_io=file_io,
        namespace=namespace,
        eviction=Eviction(on.inodes, attributes, lists, on.spawn, kernel, most=on.share.names),
        creations=Creations(namespace, on.store, attributes, on.rollback, on.subtree_lock, claims),
        renames=Renames(
            namespace, on.store, attributes, file_io, on.deletions, moves, on.rollback, on.subtree_lock, on.journal
        ),
        rollback=on.rollback,
        subtree_lock=on.subtree_lock,
        replay=Replay(on.journal, on.store, on.multiparts, attributes, on.rollback),
        adoption=adoption,
        refused_changes=refused_changes,
        retries=on.retries,
        multiparts=on.multiparts,
        shared=shared,
        zeros=on.uploader.zeros,
        delayed_sync=_delayed_sync(on, commits),
    )


def _attributes(on: _Ground, shared: SharedAttributes | None) -> AttributeWriteback:
    settings = on.settings
    return AttributeWriteback(
        on.inodes, on.store, on.blocks, on.merger, on.listings, on.cache, on.subtree_lock, on.journal, on.spawn,
        on.multiparts, KeyPermissions(on.inodes, on.store), on.retries, on.rollback.wait_for,
        ttl=settings.ttl, shared=shared, acls=settings.acls, new_acl=settings.acl, new_class=settings.storage_class
    )  # fmt: skip


def _shared(on: _Ground) -> SharedAttributes | None:
    """What is shared with mounts on other machines, where that is asked for."""
    if not on.settings.shared_attributes:
        return None
    writes = not (on.settings.read_only or on.settings.anonymous)
    shared = SharedAttributes(on.inodes, on.listings, on.store, on.cache, on.spawn, writes=writes)
    on.merger.agrees = shared.remembered
    return shared


def _delayed_sync(on: _Ground, commits: Commits) -> DelayedSync | None:
    if on.settings.durability is not Durability.WRITEBACK:
        return None
    return DelayedSync(on.journal, commits.records, on.spools, on.spawn)


def _bytes(on: _Ground, attributes: AttributeWriteback) -> tuple[Conflicts, Commits, FileIO]:
    conflicts = Conflicts(on.inodes, on.uploader, attributes.renewed)
    commits = Commits(
        on.inodes, on.uploader, attributes, on.rollback.wait_for, on.subtree_lock, conflicts, on.pages, on.journal,
        on.spawn, on.share.backlog, on.retries, durability=on.settings.durability
    )  # fmt: skip
    failed_writes = FailedWrites(on.inodes, attributes, commits, on.pages)
    file_io = FileIO(
        on.inodes, on.blocks, on.spools, on.uploader, on.listings, attributes, commits, on.pages, on.spawn,
        failed_writes, mountpoint=on.settings.mountpoint, dirty_limit=on.settings.dirty_limit,
        patience=on.settings.patience
    )  # fmt: skip
    return conflicts, commits, file_io


def _taken_up(
    on: _Ground, attributes: AttributeWriteback, namespace: Namespace, commits: Commits, file_io: FileIO
) -> tuple[Adoption, RefusedChanges]:
    """What goes on with drafts and refused changes of an earlier mount."""
    directories, spool_replay = KeyDirectories(namespace, on.merger), SpoolReplay(on.journal, on.spools)
    adoption = Adoption(
        on.journal, namespace, directories, commits, attributes, on.blocks, spool_replay, on.uploader,
        file_io.failed_writes
    )  # fmt: skip
    return adoption, RefusedChanges(on.journal, namespace, directories, attributes, on.deletions)
