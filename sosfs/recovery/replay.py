"""Replay the journal that an earlier mount left.

    renames under way   -> taken back, or finished where all copies were there (`rename_rollback`)
    deletes             -> sent, where the object is still the version that was removed
    attribute changes   -> written, where the object still has the bytes whose attributes were changed
    drafts              -> back in the tree at once, and sent as before; a multipart upload goes on

Then `multipart_uploads` aborts the uploads that no draft goes on with.

All of it may have reached the bucket before the crash, so each step first looks whether it has.

Concurrency: trio thread only; runs before the kernel's first request.
"""

from __future__ import annotations

import errno
import logging
import math
from dataclasses import replace
from functools import partial

from sosfs.attributes.writeback import AttributeWriteback
from sosfs.cache.blocks import Blocks, Source
from sosfs.concurrency.tasks import each
from sosfs.errors import StoreError
from sosfs.files.commits import Commits
from sosfs.files.draft import Draft, DraftState
from sosfs.files.failed_writes import FailedWrites
from sosfs.files.open_file import content_of
from sosfs.files.spool import Spool
from sosfs.files.upload import Upload, Uploader, etag_of
from sosfs.journal.journal import Journal
from sosfs.journal.multipart_uploads import MultipartUploads
from sosfs.journal.rows import SavedDraft, SavedPart
from sosfs.journal.salvage import Finding
from sosfs.metadata import user_metadata
from sosfs.namespace import deletions
from sosfs.namespace.namespace import Namespace
from sosfs.namespace.rename import COPIED_AGAIN_MAX
from sosfs.namespace.rename_copies import RenameState, below_first, listed_under
from sosfs.namespace.rename_rollback import RenameRollback
from sosfs.recovery.attributes import AttributeReplay, is_refused
from sosfs.recovery.directories import KeyDirectories
from sosfs.recovery.spool import SpoolReplay
from sosfs.s3.copying import copy_object
from sosfs.s3.preconditions import find
from sosfs.s3.protocol import NOTHING, UNKNOWN, Listed, Object, ObjectStore, Properties, Version
from sosfs.tree.inodes import Inode, Known
from sosfs.tree.keys import Form

log = logging.getLogger(__name__)

KEYS_AT_ONCE = 16


class Replay:
    """Work on objects alone: renames, deletes, attributes."""

    def __init__(
        self,
        journal: Journal,
        store: ObjectStore,
        multiparts: MultipartUploads,
        attributes: AttributeWriteback,
        rollback: RenameRollback,
    ) -> None:
        self._journal = journal
        self._store = store
        self._rollback = rollback
        self._attributes = attributes
        self._attribute_replay = AttributeReplay(journal, store, multiparts, attributes)
        self._copy = partial(copy_object, store, multiparts=multiparts)

    async def run(self) -> None:
        """Does what the server lets it; deletes and attributes that it refuses stay in the journal (`refused_changes`).

        Raises StoreError when the bucket cannot be asked, or a rename cannot be finished; the journal keeps the rest.
        """
        if self._journal.finding is Finding.INCOMPLETE:
            self._hold_back()
        states = self._journal.rename_states()
        for row, old, new in self._journal.renames():
            state = states.get(row, "")
            try:
                if await self._rollback.replay(row, old, new, state):
                    log.warning("finishing the rename of %s to %s that a crash cut short", old, new)
                    await self._follow_rename(row, old, new, await self._finish_rename(old, new, state))
            except StoreError as error:
                what, said = f"the rename of {old} to {new} cannot be finished", error.strerror or ""
                raise StoreError(error.errno or errno.EIO, what, status=error.status, detail=said) from error
        await self._delete_all()
        self._drop_carried()
        await each(self._attribute_replay.write, self._journal.attributes(), at_once=KEYS_AT_ONCE)

    def _hold_back(self) -> None:
        """What an incomplete journal has of removals and renames may be done: it is not done again to other files."""
        damage, why = self._journal.damage, "was not finished, for the journal is not complete and it may be done"
        for key, version in self._journal.deletes():
            damage.must_set_aside(f"{key}: its removal {why}", {"key": key, "version": version})
            self._journal.drop_delete(key)
        for row, old, new in self._journal.renames():
            damage.must_set_aside(f"{old}: its rename to {new} {why}", {"old": old, "new": new})
            self._journal.drop_rename(row)

    async def _finish_rename(
        self, old: str, new: str, state: str, *, again: int = COPIED_AGAIN_MAX
    ) -> dict[str, Version]:
        """Whatever is under an old key, and was not copied or was changed since, is copied; then it is removed.

        Returns what the server refuses to remove, or another client replaces again and again.
        """
        left = await self._listed(old)
        copied = {listed.key: listed.version for listed in await self._listed(new)} if left else {}
        # Until all is copied, what stands over another file may be that one still, with the same bytes.
        tells_by_time = old.endswith("/") or state == RenameState.COPIED

        async def move(one: Listed) -> None:
            new_key = new + one.key[len(old) :]
            if not (tells_by_time and _is_later(one.version, copied.get(new_key))):
                await self._move(one, new_key)

        await each(move, left, at_once=KEYS_AT_ONCE)
        versions = {one.key: one.version for one in left}
        failures = await self._store.delete_many(below_first(versions), versions=versions)
        if again and any(deletions.is_replaced(failure.error) for failure in failures):
            # Another client has replaced some meanwhile.
            return await self._finish_rename(old, new, state, again=again - 1)
        for failure in failures:
            if not (deletions.is_denied(failure.error) or deletions.is_replaced(failure.error)):
                raise failure.error
        refused = {failure.key for failure in failures}
        return {one.key: one.version for one in left if one.key in refused}

    async def _listed(self, key: str) -> list[Listed]:
        """A file, or all that is below a directory; what a listing has nonsense of is asked for by itself."""
        shown = await listed_under(self._store, key) if key.endswith("/") else [Listed(key, UNKNOWN)]
        clear = [one for one in shown if one.version != UNKNOWN]
        for one in (one.key for one in shown if one.version == UNKNOWN):
            found = await find(self._store, one)
            if found is not None:
                clear.append(Listed(one, found.version, found.properties.storage_class))
        return clear

    async def _move(self, one: Listed, new_key: str) -> None:
        acl = await self._attributes.acls.of_key(one.key)
        self._attributes.forget(new_key)
        await self._copy(one.key, new_key, one.version, storage_class=one.storage_class, acl=acl)

    async def _follow_rename(self, row: int, old: str, new: str, left: dict[str, Version]) -> None:
        """What was changed under the old name and is not sent goes on under the new one, upon the object there.

        What is `left` of the old name is yet to be removed; its name stays away until then, as that of a directory.
        """
        drafts = [(at, saved) for at, saved in self._journal.drafts() if _is_at(saved.key, old)]
        attributes = [(at, saved) for at, saved in self._journal.attributes() if _is_at(saved.key, old)]
        found = {
            key: await find(self._store, new + key[len(old) :])
            for key in {saved.key for _, saved in drafts} | {saved.key for _, saved in attributes}
        }
        displaced = [at for at, saved in self._journal.drafts() if saved.key == new]
        voided = [at for at, saved in self._journal.attributes() if saved.key == new]
        with self._journal.together():
            for at in displaced:
                self._journal.drop_draft(at)
            for at in voided:
                self._journal.drop_attributes(at)
            for at, draft in drafts:
                below = Version(*draft.base[1:]) if draft.base is not None else None
                there = self._as_copy(below, found[draft.key])
                self._journal.save_draft(at, _moved(draft, new + draft.key[len(old) :], there))
            for at, saved in attributes:
                there = self._as_copy(saved.version, found[saved.key])
                version = there.version if there is not None else saved.version
                moved = replace(saved, key=new + saved.key[len(old) :], version=version, sent=())
                self._journal.save_attributes(at, moved)
            for key, version in ({old: Version("", 0)} | left if left else {}).items():
                self._journal.add_delete(key, version)
            self._journal.drop_rename(row)

    def _as_copy(self, below: Version | None, there: Object | None) -> Object | None:
        """What may be a copy of what was changed here, which has another ETag where that is no hash; else None."""
        if below is None or there is None or there.version.size != below.size:
            return None
        return there if there.version.same_bytes(below) or "-" in below.etag or not self._store.hashes else None

    async def _delete_all(self) -> None:
        """A directory goes after what is below it: its name stays away as long as anything is left of it."""
        gone = self._journal.deletes()
        for depth in sorted({_depth(key) for key, _ in gone}, reverse=True):
            left = [key for key, _ in self._journal.deletes()]
            free = [
                (key, version)
                for key, version in gone
                if _depth(key) == depth and not any(_is_below(other, key) for other in left)
            ]
            await each(self._delete, free, at_once=KEYS_AT_ONCE)

    async def _delete(self, item: tuple[str, Version]) -> None:
        key, version = item
        is_another = False
        try:
            found = await find(self._store, key)
            is_another = found is not None and not found.version.same_as(version)
            if found is not None and not is_another:
                await self._store.delete(key, version=version)
        except StoreError as error:
            is_another = deletions.is_replaced(error)
            if not is_another and not is_refused(error):
                raise
            if not is_another:
                log.warning("%s is removed and still in the bucket: %s", key, error)
                return
        if is_another:
            log.error("%s was removed here, and another client has replaced it since: theirs stays", key)
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


def _is_later(source: Version, there: Version | None) -> bool:
    """Whether what is under the new name is a copy of the source as it is now, or what somebody has stored over one."""
    return there is not None and (source.modified or 0) < (there.modified or 0)


def _depth(key: str) -> float:
    """How deep a directory is; files, whose order does not matter, are deeper than any."""
    return key.count("/") if key.endswith("/") else math.inf


def _is_below(key: str, directory: str) -> bool:
    return key != directory and directory.endswith("/") and key.startswith(directory)


def _is_at(key: str, old: str) -> bool:
    return key.startswith(old) if old.endswith("/") else key == old


def _moved(saved: SavedDraft, key: str, found: Object | None) -> SavedDraft:
    """A draft under its new key; its base is what the rename copied there."""
    if found is None:
        return replace(saved, key=key)
    version = found.version
    return replace(saved, key=key, base=(key, version.etag, version.size), expected=version, version=version)


class Adoption:
    """Puts the drafts of an earlier mount back into the tree."""

    def __init__(
        self,
        journal: Journal,
        namespace: Namespace,
        places: KeyDirectories,
        commits: Commits,
        attributes: AttributeWriteback,
        blocks: Blocks,
        spool_replay: SpoolReplay,
        uploader: Uploader,
        failed_writes: FailedWrites,
    ) -> None:
        self._failed_writes = failed_writes
        self._journal = journal
        self._namespace = namespace
        self._inodes = namespace.inodes
        self._places = places
        self._commits = commits
        self._attributes = attributes
        self._blocks = blocks
        self._spool_replay = spool_replay
        self._uploader = uploader

    def go_back(self) -> None:
        """As `SpoolReplay.go_back`."""
        self._spool_replay.go_back()

    async def run(self) -> set[str]:
        """Adopts all drafts; returns the ids of the uploads that go on. Raises what the bucket answers."""
        begun: dict[str, list[tuple[str, Properties]]] = {}
        for upload_id, key, begun_with in self._journal.uploads():
            if begun_with != NOTHING:  # else it was left (`MultipartUploads.left`)
                begun.setdefault(key, []).append((upload_id, begun_with))
        kept: set[str] = set()
        for row, saved in self._spool_replay.drafts():
            upload = await self._upload(saved, begun.get(saved.key, []))
            if await self._adopt(row, saved, upload) and upload is not None:
                kept.add(upload[0])
        await self._spool_replay.rest()
        return kept

    async def _adopt(self, row: int, saved: SavedDraft, upload: tuple[str, Properties] | None) -> bool:
        """Whether the draft goes on, with that upload."""
        spool = await self._spool_replay.spool(row, saved)
        if spool is None:
            return False
        inode = await self._place(saved)
        open_file = content_of(inode)
        open_file.row = row
        open_file.draft = draft = self._draft(saved, spool)
        self._commits.began(inode)
        if not await self._is_there(inode, draft, saved.going):
            return await self._go_on(inode, draft, upload, saved.parts)
        draft.saved = draft.serial
        await self._commits.let_go(inode, open_file)
        inode.open_file = None
        return False

    async def _upload(self, saved: SavedDraft, begun: list[tuple[str, Properties]]) -> tuple[str, Properties] | None:
        """With which of the uploads that were `begun` for its key a draft goes on.

        There are several where one could not be aborted, as that of a removed file: the right one has what is freed.
        """
        if len(begun) < 2:
            return begun[0] if begun else None
        freed = {(number, etag) for number, etag, _, _ in saved.parts}
        for upload in begun if freed else ():
            if freed <= await self._parts(saved.key, upload[0]):
                return upload
        return None

    async def _parts(self, key: str, upload_id: str) -> set[tuple[int, str]]:
        """Numbers and ETags of the parts of an upload; none where the server knows it no more."""
        try:
            return {(part.number, part.etag) for part in await self._uploader.store.list_parts(key, upload_id)}
        except StoreError as error:
            if error.errno != errno.ENXIO:
                raise
            return set()

    def _draft(self, saved: SavedDraft, spool: Spool) -> Draft:
        base = Source(*saved.base) if saved.base is not None else None
        draft = Draft(spool, self._blocks, base, saved.expected)
        draft.size, draft.base_stop = saved.size, saved.base_stop
        draft.since, draft.summed = spool.modified or draft.since, saved.size if saved.sums else 0
        draft.serial, draft.saved, draft.recorded, draft.safe, draft.state = 1, 0, 1, 1, DraftState.DIRTY
        for start, stop in saved.local:
            draft.local.add(start, stop)
        for start, stop in saved.dirty:
            draft.dirty.add(start, stop)
        for _, _, start, stop in saved.parts:
            draft.away.add(start, stop)
        return draft

    async def _place(self, saved: SavedDraft) -> Inode:
        """The inode of a key, with its directories, whatever of them the bucket has."""
        parent, segment = await self._places.parent_of(saved.key)
        directory = self._namespace.directory(parent)
        inode = await self._places.find(parent, segment)
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

    async def _is_there(self, inode: Inode, draft: Draft, going: tuple[str, bool] | None) -> bool:
        """Whether the object in the bucket is this draft, sent just before the crash."""
        if going is None:
            return self._journal.has_lost_power and await self._is_sent(inode, draft)
        etag, is_all = going
        content_of(inode).in_flight.sent(etag, draft.serial if is_all else 0)
        found = await self._commits.recognise(inode, draft, etag)
        if found is None or not is_all:
            return False
        self._takes(inode, found)
        return True

    def _takes(self, inode: Inode, found: Object) -> None:
        """The object stands. It may have more than was recorded: what was written, and not closed, when it was sent."""
        inode.size = found.version.size
        if "mtime_ns" not in inode.edits.posix:
            inode.mtime_ns = user_metadata.read(found.properties.metadata).mtime_ns or inode.mtime_ns
        with self._journal.together():  # owed on a full disk
            self._attributes.wrote(inode, found.properties, inode.posix, adopt_time=False)

    async def _is_sent(self, inode: Inode, draft: Draft) -> bool:
        """Whether the bucket has these very bytes: that they were sent may be what the power loss has taken."""
        store, size = self._uploader.store, draft.size
        if not store.hashes or draft.away or size > self._uploader.plan.single or not draft.local.covers(0, size):
            return False
        found = await self._commits.recognise(inode, draft, etag_of(await draft.read(0, size)))
        if found is not None:
            self._takes(inode, found)
        return found is not None

    async def _go_on(
        self, inode: Inode, draft: Draft, upload: tuple[str, Properties] | None, freed: tuple[SavedPart, ...]
    ) -> bool:
        open_file = content_of(inode)
        if upload is not None and (draft.size > self._uploader.plan.single or freed):
            upload_id, begun_with = upload
            open_file.upload = Upload(self._uploader, draft, self._inodes.key(inode), begun_with, None)
            await open_file.upload.resume(upload_id, freed)
        elif freed:
            draft.strand()
        draft.lose()  # the object was looked for
        if draft.refused:
            log.error("%s is lost: parts of it were only in an upload that is gone", self._inodes.key(inode))
            await self._failed_writes.discard(inode)
            return False
        self._commits.send_later(inode)
        return open_file.upload is not None
