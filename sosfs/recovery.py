"""What a mount does with the journal that an earlier one left: decided here and only here.

    renames under way   -> finished: whatever the old prefix still holds is copied, then removed
    deletes             -> sent, where the object is still the version that was removed
    attribute changes   -> written, where the object is still the version that was changed
    drafts              -> back in the tree at once, and sent as before; a multipart upload goes on
    other uploads of ours -> aborted: nobody was promised anything of them

All of it may have reached the bucket before the crash, so each step first looks whether it has.

Concurrency: trio thread only; runs before the kernel's first request.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import replace

import trio

from . import headers, metadata
from .attributes import Attributes
from .blocks import Blocks, Source
from .commits import Commits
from .conflict import Conflicts
from .content import content_of
from .copying import copy_object
from .directory import Merger
from .draft import Draft, State
from .errors import Cause, StoreError
from .inodes import Inode, Known
from .journal import Journal, SavedAttributes, SavedDraft
from .keys import Form, name_of
from .namespace import Namespace
from .spool import Spool, SpoolArea
from .store import Detail, Object, ObjectStore, Properties, Version
from .tasks import each
from .upload import Upload, Uploader, etag_of

log = logging.getLogger(__name__)

AT_ONCE = 16


class Replay:
    """Work on objects alone: renames, deletes, attributes, abandoned uploads."""

    def __init__(self, journal: Journal, store: ObjectStore, attributes: Attributes) -> None:
        self._journal = journal
        self._store = store
        self._attributes = attributes

    async def run(self) -> None:
        """Does it all. Raises StoreError when the bucket cannot be asked; the journal then keeps the rest."""
        for row, old, new in self._journal.renames():
            await self._finish_rename(old, new)
            self._journal.drop_rename(row)
        await each(self._delete, self._journal.deletes(), at_once=AT_ONCE)
        await each(self._write_attributes, self._journal.attributes(), at_once=AT_ONCE)

    async def _finish_rename(self, old: str, new: str) -> None:
        log.warning("finishing the rename of %s to %s that a crash cut short", old, new)
        token, more = "", True
        while more:
            page = await self._store.list(old, delimiter="", token=token)

            async def move(version: Version, key: str) -> None:
                acl = await self._attributes.acl_of(key)
                await copy_object(self._store, key, new + key[len(old) :], version, acl=acl)

            await each(lambda one: move(one.version, one.key), page.objects, at_once=AT_ONCE)
            failures = await self._store.delete_many([one.key for one in page.objects])
            if failures:
                raise failures[0].error
            token, more = page.token, bool(page.token)

    async def _delete(self, item: tuple[str, Version]) -> None:
        key, version = item
        found = await _find(self._store, key)
        if found is not None and found.version.same_as(version):
            await self._store.delete(key)
        self._journal.drop_delete(key)

    async def _write_attributes(self, item: tuple[int, SavedAttributes]) -> None:
        row, saved = item
        found = await _find(self._store, saved.key)
        if saved.key.endswith("/") and saved.version is None:
            await self._write_marker(saved, found)
        elif found is not None and saved.version is not None and found.version.same_as(saved.version):
            used = replace(found.properties, metadata=metadata.write(_foreign(found, saved), saved.posix))
            acl = await self._attributes.acl_of(saved.key)
            await copy_object(self._store, saved.key, saved.key, found.version, properties=used, acl=acl)
        self._journal.drop_attributes(row)

    async def _write_marker(self, saved: SavedAttributes, found: Object | None) -> None:
        if found is not None and found.version.size:
            return
        shown = found.properties.headers if found is not None else headers.for_directory()
        used = Properties(shown, metadata.write(saved.properties.metadata, saved.posix))
        acl = await self._attributes.acl_of(saved.key) if found is not None else None
        await self._store.put(saved.key, b"", used, acl=acl)

    async def abort_uploads(self, keep: set[str]) -> None:
        """Aborts our unfinished uploads but those in `keep`."""
        for upload_id, key in self._journal.uploads():
            if upload_id in keep:
                continue
            try:
                await self._store.abort_multipart(key, upload_id)
            except OSError as error:
                log.warning("an unfinished upload of %s stays: %s", key, error)
            else:
                self._journal.drop_upload(upload_id)


def _foreign(found: Object, saved: SavedAttributes) -> dict[str, str]:
    """The object's metadata with what the change set beside the POSIX attributes."""
    return {**found.properties.metadata, **saved.properties.metadata}


async def _find(store: ObjectStore, key: str) -> Object | None:
    try:
        return await store.head(key, detail=Detail.WHOLE)
    except StoreError as error:
        if error.cause is not Cause.ABSENT:
            raise
        return None


class Adoption:
    """Puts the drafts of an earlier mount back into the tree."""

    def __init__(
        self,
        journal: Journal,
        namespace: Namespace,
        merger: Merger,
        commits: Commits,
        conflicts: Conflicts,
        attributes: Attributes,
        blocks: Blocks,
        spools: SpoolArea,
        uploader: Uploader,
    ) -> None:
        self._journal = journal
        self._namespace = namespace
        self._inodes = namespace.inodes
        self._merger = merger
        self._commits = commits
        self._conflicts = conflicts
        self._attributes = attributes
        self._blocks = blocks
        self._spools = spools
        self._uploader = uploader

    async def run(self) -> set[str]:
        """Adopts all drafts; returns the ids of the uploads that go on. Raises what the bucket answers."""
        uploads = {key: upload_id for upload_id, key in self._journal.uploads()}
        kept: set[str] = set()
        names: set[str] = set()
        for row, saved in self._journal.drafts():
            names.add(saved.spool)
            upload_id = uploads.get(saved.key, "")
            if await self._adopt(row, saved, upload_id):
                kept.add(upload_id)
        if not self._journal.is_new:
            self._spools.clear(names)
        return kept

    async def _adopt(self, row: int, saved: SavedDraft, upload_id: str) -> bool:
        """Whether the draft goes on, with that upload."""
        try:
            spool, is_whole = await self._spool(saved)
        except FileNotFoundError:
            log.error("the bytes of %s are not in the spool any more: %s", saved.key, saved.spool)
            return False
        inode = await self._place(saved)
        content = content_of(inode)
        content.row = row
        content.draft = draft = self._draft(saved, spool)
        self._commits.began(inode)
        if not is_whole:
            await self._keep_damaged(inode, draft)
        elif not await self._is_there(inode, draft):
            return await self._go_on(inode, draft, upload_id)
        draft.saved = draft.serial
        await self._commits.let_go(inode, content)
        inode.content = None
        return False

    async def _spool(self, saved: SavedDraft) -> tuple[Spool, bool]:
        """The draft's bytes, and whether they are those that were recorded."""
        if not saved.spool:
            spool = self._spools.new()
            await spool.write(0, saved.body)
            return spool, True
        spool = self._spools.reopen(saved.spool)
        return spool, not saved.sums or await spool.sums(saved.size) == saved.sums

    def _draft(self, saved: SavedDraft, spool: Spool) -> Draft:
        base = Source(*saved.base) if saved.base is not None else None
        draft = Draft(spool, self._blocks, base, saved.expected)
        draft.size, draft.base_stop = saved.size, saved.base_stop
        draft.serial, draft.saved, draft.recorded, draft.state = 1, 0, 1, State.DIRTY
        for start, stop in saved.local:
            draft.local.add(start, stop)
        for start, stop in saved.dirty:
            draft.dirty.add(start, stop)
        return draft

    async def _place(self, saved: SavedDraft) -> Inode:
        """The inode of a key, with its directories, whatever of them the bucket has."""
        *folders, segment = saved.key[len(self._inodes.prefix) :].split("/")
        parent = self._inodes.root
        for folder in folders:
            parent = await self._folder(parent, folder)
        directory = self._namespace.directory(parent)
        name = name_of(segment)
        try:
            inode = await self._namespace.lookup(parent, name)
        except FileNotFoundError:
            inode = None
        if inode is None or inode.is_directory:
            form = Form.PLAIN if inode is None else Form.BESIDE
            inode = self._inodes.make(parent, segment, form, mode=self._inodes.defaults.file_mode)
        said = saved.posix
        inode.mode, inode.uid, inode.gid = said.mode or inode.mode, said.uid or 0, said.gid or 0
        inode.rdev, inode.mtime_ns = said.rdev or 0, said.mtime_ns or inode.mtime_ns
        inode.version, inode.properties, inode.size = saved.version, saved.properties, saved.size
        inode.known = Known.ALL
        directory.put(inode)
        return inode

    async def _folder(self, parent: Inode, segment: str) -> Inode:
        try:
            found = await self._namespace.lookup(parent, name_of(segment))
        except FileNotFoundError:
            found = None
        if found is None or not found.is_directory:
            directory = self._namespace.directory(parent)
            if found is not None:
                del directory.entries[found.name]
                found.form = Form.BESIDE
                directory.put(found)
            found = self._merger.new_directory(parent, segment)
            directory.put(found)
        return found

    async def _is_there(self, inode: Inode, draft: Draft) -> bool:
        """Whether the object in the bucket is this draft, sent just before the crash."""
        found = await _find(self._uploader.store, self._inodes.key(inode))
        if found is None or found.version.size != draft.size:
            return False
        if isinstance(draft.expected, Version) and found.version.same_as(draft.expected):
            return False
        if await etag_of(draft, self._uploader.plan) != found.version.etag:
            return False
        inode.version, inode.properties, inode.checked = found.version, found.properties, trio.current_time()
        return True

    async def _go_on(self, inode: Inode, draft: Draft, upload_id: str) -> bool:
        content = content_of(inode)
        if upload_id and draft.size > self._uploader.plan.single:
            properties = self._attributes.properties(inode)
            content.upload = Upload(self._uploader, draft, self._inodes.key(inode), properties, None)
            await content.upload.resume(upload_id)
        self._commits.send_later(inode)
        return content.upload is not None

    async def _keep_damaged(self, inode: Inode, draft: Draft) -> None:
        """Bytes that are not those that were promised must not replace the object: they are kept beside it."""
        error = StoreError(errno.EIO, inode.segment, detail="the spool was damaged")
        await self._conflicts.keep(inode, draft, error)
        await self._attributes.refresh(inode)
