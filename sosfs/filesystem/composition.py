"""How the parts of a filesystem over one store are put together: decided here and only here.

`mount` composes them over a real bucket and the kernel; tests compose the same over a store in memory.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from sosfs.attributes.permissions import Refusals
from sosfs.attributes.writeback import Attributes
from sosfs.cache.attributes import AttributeCache
from sosfs.cache.blocks import Blocks, Spawn
from sosfs.concurrency.backoff import Retries
from sosfs.config.parameters import Settings
from sosfs.disk.free_space import Disk
from sosfs.files import pending
from sosfs.files.commits import Commits
from sosfs.files.conflict import Conflicts
from sosfs.files.failed_writes import Discards
from sosfs.files.file_io import Contents
from sosfs.files.page_cache import Kernel, Pages
from sosfs.files.part_ranges import PartPlan, fitting
from sosfs.files.spool import SpoolArea
from sosfs.files.upload import Uploader
from sosfs.filesystem.quotas import Share, whole
from sosfs.journal.journal import Journal
from sosfs.journal.multipart_uploads import Multiparts
from sosfs.namespace.creation import Creations
from sosfs.namespace.deletions import Deletions
from sosfs.namespace.eviction import Shedding
from sosfs.namespace.exclusive_create import Claims
from sosfs.namespace.namespace import Namespace
from sosfs.namespace.rename import Renames
from sosfs.namespace.rename_copies import Moves
from sosfs.namespace.rename_rollback import Undoing
from sosfs.recovery.directories import Places
from sosfs.recovery.refused_changes import Resumption
from sosfs.recovery.replay import Adoption, Replay
from sosfs.recovery.spool import Reclaim
from sosfs.s3.protocol import ObjectStore
from sosfs.tree.inodes import ROOT, Defaults, Inodes
from sosfs.tree.listing import Listings
from sosfs.tree.listing_merge import Merger
from sosfs.tree.subtree_lock import Gate


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one filesystem."""

    store: ObjectStore
    inodes: Inodes
    blocks: Blocks
    cache: AttributeCache
    listings: Listings
    deletions: Deletions
    attributes: Attributes
    uploader: Uploader
    conflicts: Conflicts
    commits: Commits
    pages: Pages
    contents: Contents
    namespace: Namespace
    shedding: Shedding
    creations: Creations
    renames: Renames
    undoing: Undoing
    gate: Gate
    replay: Replay
    adoption: Adoption
    resumption: Resumption
    retries: Retries
    multiparts: Multiparts

    async def recover(self) -> None:
        """Takes up what an earlier mount of this bucket left. Raises what the bucket answers."""
        await self.replay.run()
        going_on = await self.adoption.run()
        await self.resumption.run()
        await self.multiparts.abort_unused(keep=going_on)

    async def drain(self) -> None:
        """Sends what the bucket lacks; what cannot be sent stays in the journal."""
        await self.contents.discards.discard_all()
        await self.commits.drain()
        await self.attributes.drain()
        await self.undoing.drain()
        await self.deletions.drain()
        await self.multiparts.abort_unused()

    @property
    def pending(self) -> int:
        """How many changes the bucket lacks."""
        return self.commits.pending[0] + len(self.attributes.dirty) + self.deletions.pending + self.undoing.pending

    @property
    def waiting(self) -> list[str]:
        """What the last try did not bring into the bucket, and why."""
        drafts = pending.waiting(self.commits.drafts)
        return [*drafts, *self.attributes.waiting, *self.deletions.waiting, *self.undoing.waiting]


@dataclass(frozen=True, slots=True)
class _Ground:
    """What everything else stands on."""

    settings: Settings
    store: ObjectStore
    journal: Journal
    spawn: Spawn
    inodes: Inodes
    gate: Gate
    blocks: Blocks
    cache: AttributeCache
    merger: Merger
    listings: Listings
    deletions: Deletions
    multiparts: Multiparts
    uploader: Uploader
    spools: SpoolArea
    pages: Pages
    share: Share
    retries: Retries


def assemble(
    settings: Settings,
    store: ObjectStore,
    journal: Journal,
    spawn: Spawn,
    *,
    first: int = ROOT,
    share: Share | None = None,
    kernel: Kernel | None = None,
) -> Parts:
    """The parts of a filesystem over `store`, with its state in the settings' directory.

    `first` is the number of its root; `share` is what it has of the mount's memory, None for all of it; `kernel` is
    what can be said to the kernel, None where there is none.
    """
    defaults = Defaults(settings.uid, settings.gid, settings.umask, time.time_ns())
    inodes = Inodes(settings.prefix, defaults, first=first)
    share = share or whole(settings)
    cache = AttributeCache(settings.state_dir / "attributes.sqlite")
    merger, gate, retries = Merger(inodes, cache), Gate(inodes), Retries()
    blocks = Blocks(store, spawn, share.cached, capacity=settings.memory, disk=share.disk, verify=settings.verify)
    part = fitting(settings.part_size, Disk(settings.state_dir).room().size)
    spools = SpoolArea(settings.state_dir / "spool", share.drafts, part=part)
    multiparts = Multiparts(store, journal, spawn)
    ground = _Ground(
        settings=settings,
        store=store,
        journal=journal,
        spawn=spawn,
        inodes=inodes,
        gate=gate,
        blocks=blocks,
        cache=cache,
        merger=merger,
        listings=Listings(inodes, store, merger, gate, spawn, ttl=settings.ttl),
        deletions=Deletions(store, spawn, journal, retries),
        multiparts=multiparts,
        uploader=Uploader(store, blocks, spawn, share.uploads, PartPlan(part), multiparts),
        spools=spools,
        pages=Pages(inodes, spawn, kernel),
        share=share,
        retries=retries,
    )
    return _halves(ground, kernel)


def _halves(on: _Ground, kernel: Kernel | None) -> Parts:
    """Bytes and names, and what ties them together."""
    ttl, lists = on.settings.ttl, on.listings
    attributes = Attributes(
        on.inodes, on.store, on.blocks, on.merger, lists, on.cache, on.gate, on.journal, on.spawn,
        on.multiparts, Refusals(on.inodes, on.store), on.retries,
        ttl=ttl, new_acl=on.settings.acl, new_class=on.settings.storage_class
    )  # fmt: skip
    conflicts, commits, contents = _bytes(on, attributes)
    namespace = Namespace(on.inodes, on.store, on.merger, lists, attributes, contents, on.deletions, on.gate, ttl=ttl)
    moves = Moves(on.store, on.multiparts, on.journal)
    undoing = Undoing(on.store, on.deletions, on.journal, on.spawn, on.retries)
    places = Places(namespace, on.merger)
    reclaim = Reclaim(on.journal, on.spools)
    claims = Claims(on.settings.exclusive, on.settings.durability)
    return Parts(
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
        contents=contents,
        namespace=namespace,
        shedding=Shedding(on.inodes, attributes, lists, on.spawn, kernel, most=on.share.names),
        creations=Creations(namespace, on.store, attributes, on.deletions, undoing, on.gate, claims),
        renames=Renames(namespace, on.store, attributes, contents, on.deletions, moves, undoing, on.gate, on.journal),
        undoing=undoing,
        gate=on.gate,
        replay=Replay(on.journal, on.store, on.multiparts, attributes, undoing),
        adoption=Adoption(
            on.journal, namespace, places, commits, attributes, on.blocks, reclaim, on.uploader, contents.discards
        ),
        resumption=Resumption(on.journal, namespace, places, attributes, on.deletions),
        retries=on.retries,
        multiparts=on.multiparts,
    )


def _bytes(on: _Ground, attributes: Attributes) -> tuple[Conflicts, Commits, Contents]:
    conflicts = Conflicts(on.inodes, on.uploader, attributes.renewed)
    commits = Commits(
        on.inodes, on.uploader, attributes, on.deletions, on.gate, conflicts, on.journal, on.spawn,
        on.share.backlog, on.retries, durability=on.settings.durability
    )  # fmt: skip
    discards = Discards(on.inodes, attributes, commits, on.pages)
    contents = Contents(
        on.inodes, on.blocks, on.spools, on.uploader, on.listings, attributes, commits, on.pages, on.spawn, discards,
        mountpoint=on.settings.mountpoint, dirty_limit=on.settings.dirty_limit, patience=on.settings.patience
    )  # fmt: skip
    return conflicts, commits, contents
