"""What a mount does with the journal that an earlier one left: decided here and only here.

    renames under way   -> taken back, or finished where all copies were there (`undoing`)
    deletes             -> sent, where the object is still the version that was removed
    attribute changes   -> written, where the object is still the version that was changed
    drafts              -> back in the tree at once, and sent as before; a multipart upload goes on

Then `multiparts` aborts the uploads that no draft goes on with.

All of it may have reached the bucket before the crash, so each step first looks whether it has.

Concurrency: trio thread only; runs before the kernel's first request.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import replace
from functools import partial

from . import headers, metadata
from .attributes import Attributes
from .blocks import Blocks, Source
from .commits import Commits
from .conflict import Conflicts
from .content import content_of
from .copying import copy_object
from .deletions import is_refusal
from .directory import Merger
from .draft import Draft, State
from .errors import Cause, StoreError
from .guards import look
from .inodes import Inode, Known
from .journal import Journal
from .keys import Form, name_of
from .moving import below_first, listed_under
from .multiparts import Multiparts
from .namespace import Namespace
from .saved import SavedAttributes, SavedDraft
from .spool import Spool, SpoolArea
from .store import Detail, Listed, Object, ObjectStore, Properties, Version
from .tasks import each
from .undoing import Undoing
from .upload import Upload, Uploader

log = logging.getLogger(__name__)

AT_ONCE = 16


class Replay:
    """Work on objects alone: renames, deletes, attributes, attributes."""

    def __init__(
        self, journal: Journal, store: ObjectStore, multiparts: Multiparts, attributes: Attributes, undoing: Undoing
    ) -> None:
        self._journal = journal
        self._store = store
        self._undoing = undoing
        self._attributes = attributes
        self._copy = partial(copy_object, store, multiparts=multiparts)

    async def run(self) -> None:
        """Does it all. Raises StoreError when the bucket cannot be asked; the journal then keeps the rest."""
        states = self._journal.rename_states()
        for row, old, new in self._journal.renames():
            if await self._undoing.replay(row, old, new, states.get(row, "")):
                log.warning("finishing the rename of %s to %s that a crash cut short", old, new)
                await self._finish_rename(old, new)
                await self._follow_rename(row, old, new)
        await each(self._delete, self._journal.deletes(), at_once=AT_ONCE)
        self._drop_carried()
        await each(self._write_attributes, self._journal.attributes(), at_once=AT_ONCE)

    async def _finish_rename(self, old: str, new: str) -> None:
        """Whatever is under an old key, and was not copied or was changed since, is copied; then it is removed."""
        left = await self._listed(old)
        copied = {listed.key: listed.version for listed in await self._listed(new)} if left else {}

        async def move(one: Listed) -> None:
            new_key = new + one.key[len(old) :]
            if new_key not in copied or not copied[new_key].same_bytes(one.version):
                await self._move(one, new_key)

        await each(move, left, at_once=AT_ONCE)
        failures = await self._store.delete_many(below_first(one.key for one in left))
        for failure in failures:
            if not is_refusal(failure.error):
                raise failure.error
            log.error("renamed, but its old name stays: %s: %s", failure.key, failure.error)

    async def _listed(self, key: str) -> list[Listed]:
        """A file, or all that is below a directory."""
        if key.endswith("/"):
            return await listed_under(self._store, key)
        found = await _find(self._store, key)
        return [Listed(key, found.version, found.properties.storage_class)] if found is not None else []

    async def _move(self, one: Listed, new_key: str) -> None:
        acl = await self._attributes.acl_of(one.key)
        self._attributes.forget(new_key)
        await self._copy(one.key, new_key, one.version, storage_class=one.storage_class, acl=acl)

    async def _follow_rename(self, row: int, old: str, new: str) -> None:
        """What was changed under the old name and is not sent goes on under the new one, upon the object there."""
        drafts = [(at, saved) for at, saved in self._journal.drafts() if _is_at(saved.key, old)]
        attributes = [(at, saved) for at, saved in self._journal.attributes() if _is_at(saved.key, old)]
        found = {
            key: await _find(self._store, new + key[len(old) :])
            for key in {saved.key for _, saved in drafts} | {saved.key for _, saved in attributes}
        }
        displaced = [at for at, saved in self._journal.drafts() if saved.key == new]
        with self._journal.together():
            for at in displaced:
                self._journal.drop_draft(at)
            for at, draft in drafts:
                self._journal.save_draft(at, _moved(draft, new + draft.key[len(old) :], found[draft.key]))
            for at, saved in attributes:
                here = found[saved.key]
                version = here.version if here is not None and saved.version is not None else saved.version
                self._journal.save_attributes(at, replace(saved, key=new + saved.key[len(old) :], version=version))
            self._journal.drop_rename(row)

    async def _delete(self, item: tuple[str, Version]) -> None:
        key, version = item
        found = await _find(self._store, key)
        if found is not None and found.version.same_as(version):
            await self._store.delete(key)
        with self._journal.together():
            for row, saved in self._journal.drafts():
                if saved.key == key:  # what was removed had changes that were not sent
                    self._journal.drop_draft(row)
            self._journal.drop_delete(key)

    def _drop_carried(self) -> None:
        """Attributes of a file that has a draft go up with that, and must not change the version under it."""
        changed = {saved.key for _, saved in self._journal.drafts()}
        for row, saved in self._journal.attributes():
            if saved.key in changed:
                self._journal.drop_attributes(row)

    async def _write_attributes(self, item: tuple[int, SavedAttributes]) -> None:
        row, saved = item
        self._attributes.forget(saved.key)
        found = await _find(self._store, saved.key)
        if saved.key.endswith("/") and saved.version is None:
            await self._write_marker(saved, found)
        elif found is not None and saved.version is not None and found.version.same_as(saved.version):
            used = _carried(saved, found.properties)
            acl = await self._attributes.acl_of(saved.key)
            await self._copy(saved.key, saved.key, found.version, properties=used, acl=acl)
        self._journal.drop_attributes(row)

    async def _write_marker(self, saved: SavedAttributes, found: Object | None) -> None:
        if found is not None and found.version.size:
            return
        used = _carried(saved, found.properties if found is not None else Properties(headers.for_directory()))
        acl = await self._attributes.acl_of(saved.key) if found is not None else None
        await self._store.put(saved.key, b"", used, acl=acl)


def _carried(saved: SavedAttributes, found: Properties) -> Properties:
    """What the object is to have: all that was known of it when it was changed, for it still is that version.

    But `expires` may not have been known: the one that is `found` stays, and so does the storage class.
    """
    kept = saved.properties.headers if saved.properties.headers.content_type else found.headers
    return Properties(
        replace(kept, expires=kept.expires or found.headers.expires),
        metadata.write(saved.properties.metadata, saved.posix),
        found.storage_class,
    )


def _is_at(key: str, old: str) -> bool:
    return key.startswith(old) if old.endswith("/") else key == old


def _moved(saved: SavedDraft, key: str, found: Object | None) -> SavedDraft:
    """A draft under its new key; its base is what the rename copied there."""
    if found is None or saved.base is None or found.version.size != saved.base[2]:
        return replace(saved, key=key)
    version = found.version
    return replace(saved, key=key, base=(key, version.etag, version.size), expected=version, version=version)


async def _find(store: ObjectStore, key: str) -> Object | None:
    try:
        return await look(store, key, detail=Detail.WHOLE)
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
        uploads = {key: (upload_id, begun_with) for upload_id, key, begun_with in self._journal.uploads()}
        kept: set[str] = set()
        names: set[str] = set()
        for row, saved in self._journal.drafts():
            names.add(saved.spool)
            upload = uploads.get(saved.key)
            if await self._adopt(row, saved, upload) and upload is not None:
                kept.add(upload[0])
        if not self._journal.is_new:
            self._spools.clear(names)
        return kept

    async def _adopt(self, row: int, saved: SavedDraft, upload: tuple[str, Properties] | None) -> bool:
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
        elif not await self._is_there(inode, draft, saved.going):
            return await self._go_on(inode, draft, upload)
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
        draft.serial, draft.saved, draft.recorded, draft.safe, draft.state = 1, 0, 1, 1, State.DIRTY
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
        inode.edits = saved.edits  # the properties have them, but are read again before they are written
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

    async def _is_there(self, inode: Inode, draft: Draft, going: tuple[str, bool] | None) -> bool:
        """Whether the object in the bucket is this draft, sent just before the crash."""
        if going is None:
            return False
        etag, is_all = going
        content_of(inode).going = (etag, draft.serial if is_all else 0)
        found = await self._commits.recognise(inode, draft, etag)
        if found is None or not is_all:
            return False
        self._attributes.wrote(inode, found.properties, inode.posix, adopt_time=False)
        return True

    async def _go_on(self, inode: Inode, draft: Draft, upload: tuple[str, Properties] | None) -> bool:
        content = content_of(inode)
        if upload is not None and draft.size > self._uploader.plan.single:
            upload_id, begun_with = upload
            content.upload = Upload(self._uploader, draft, self._inodes.key(inode), begun_with, None)
            await content.upload.resume(upload_id)
        self._commits.send_later(inode)
        return content.upload is not None

    async def _keep_damaged(self, inode: Inode, draft: Draft) -> None:
        """Bytes that are not those that were promised must not replace the object: they are kept beside it."""
        error = StoreError(errno.EIO, inode.segment, detail="the spool was damaged")
        await self._conflicts.keep(inode, draft, error)
        await self._attributes.refresh(inode)
