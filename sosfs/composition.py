"""How the parts of a filesystem over one store are put together: decided here and only here.

`mount` composes them over a real bucket and the kernel; tests compose the same over a store in memory.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from .attribute_cache import AttributeCache
from .attributes import Attributes
from .blocks import BLOCK, Blocks, Spawn
from .budget import Budget
from .commits import Commits
from .config import Settings
from .conflict import Conflicts
from .contents import Contents
from .deletions import Deletions
from .directory import Merger
from .disk_cache import DiskCache
from .gate import Gate
from .inodes import Defaults, Inodes
from .journal import Journal
from .listing import Listings
from .namespace import Namespace
from .recovery import Adoption, Replay
from .rename import Renames
from .spool import SpoolArea
from .store import ObjectStore
from .upload import PartPlan, Uploader

UPLOADS = 64 << 20  # bytes of bodies on their way up


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
    contents: Contents
    namespace: Namespace
    renames: Renames
    gate: Gate
    replay: Replay
    adoption: Adoption

    async def recover(self) -> None:
        """Takes up what an earlier mount of this bucket left. Raises what the bucket answers."""
        await self.replay.run()
        await self.replay.abort_uploads(keep=await self.adoption.run())

    async def drain(self) -> None:
        """Sends what the bucket lacks; what cannot be sent stays in the journal."""
        await self.commits.drain()
        await self.attributes.drain()
        await self.deletions.drain()

    @property
    def pending(self) -> int:
        """How many changes the bucket lacks."""
        return self.commits.pending[0] + len(self.attributes.dirty) + self.deletions.pending


def assemble(settings: Settings, store: ObjectStore, journal: Journal, spawn: Spawn) -> Parts:
    """The parts of a filesystem over `store`, with its state in the settings' directory."""
    ttl = settings.ttl
    defaults = Defaults(settings.uid, settings.gid, settings.umask, time.time_ns())
    inodes = Inodes(settings.prefix, defaults)
    gate = Gate(inodes)
    disk = None
    if settings.cache_size:
        disk = DiskCache(settings.state_dir / "blocks", capacity=settings.cache_size, block=BLOCK)
    blocks = Blocks(store, spawn, capacity=settings.memory, disk=disk)
    cache = AttributeCache(settings.state_dir / "attributes.sqlite")
    merger = Merger(inodes, cache)
    listings = Listings(inodes, store, merger, ttl=ttl)
    deletions = Deletions(store, spawn, journal)
    attributes = Attributes(
        inodes, store, blocks, merger, listings, cache, gate, journal, spawn, ttl=ttl, new_acl=settings.acl
    )
    uploader = Uploader(store, spawn, Budget(UPLOADS), PartPlan(settings.part_size), journal)
    spools = SpoolArea(settings.state_dir / "spool")
    conflicts = Conflicts(inodes, uploader, attributes.properties)
    commits = Commits(
        inodes,
        blocks,
        uploader,
        attributes,
        deletions,
        gate,
        conflicts,
        journal,
        spawn,
        durability=settings.durability,
    )
    contents = Contents(
        inodes,
        blocks,
        spools,
        uploader,
        attributes,
        commits,
        mountpoint=settings.mountpoint,
        dirty_limit=settings.dirty_limit,
    )
    namespace = Namespace(inodes, store, merger, listings, attributes, contents, deletions, ttl=ttl)
    return Parts(
        store=store,
        inodes=inodes,
        blocks=blocks,
        cache=cache,
        listings=listings,
        deletions=deletions,
        attributes=attributes,
        uploader=uploader,
        conflicts=conflicts,
        commits=commits,
        contents=contents,
        namespace=namespace,
        renames=Renames(namespace, store, attributes, contents, deletions, gate, journal),
        gate=gate,
        replay=Replay(journal, store, attributes),
        adoption=Adoption(
            journal, namespace, merger, commits, conflicts, attributes, blocks, spools, uploader
        ),
    )
