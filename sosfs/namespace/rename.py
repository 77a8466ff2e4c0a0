"""Rename files and directories: copy on the server, then delete.

A file that is not in the bucket yet just changes its name. Any other object is copied with all it has
(headers, metadata, ACL: a copy resets the ACL on SOS) and pinned to the version that is known; its old
key is deleted only after the copy is there. What another client stores under an old key meanwhile is copied too: a
directory is listed again before its old keys go, and a large file, whose copy takes long, is looked at. What goes wrong
before that leaves the old tree as it was, and the copies go again (`rename_rollback`); what goes wrong after it leaves
twins, never losses. The old keys go as the versions that were copied, where the server can tell. A directory's objects
are copied side by side and deleted in batches.

Concurrency: trio thread only; the gate keeps commits out of the subtree meanwhile.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from sosfs.attributes.protection import Act
from sosfs.attributes.writeback import AttributeWriteback
from sosfs.concurrency.tasks import each
from sosfs.errors import Cause, StoreError
from sosfs.files.file_io import FileIO
from sosfs.journal.journal import Journal
from sosfs.metadata import system_headers
from sosfs.namespace.deletions import Deletions, is_denied, is_replaced
from sosfs.namespace.namespace import Namespace, refuse
from sosfs.namespace.rename_copies import Move, RenameCopies, below_first, listed_under
from sosfs.namespace.rename_rollback import RenameRollback
from sosfs.s3.preconditions import check_still, find
from sosfs.s3.protocol import KEY_MAX, Acl, Listed, ObjectStore, Properties, Version
from sosfs.tree import keys
from sosfs.tree.inodes import PENDING, Inode, require_free
from sosfs.tree.subtree_lock import SubtreeLock

log = logging.getLogger(__name__)

COPIES_AT_ONCE = 32
COPIED_AGAIN_MAX = 5  # listings of what was copied, before the old keys go
LOOKED_AT = 64 << 20  # bytes of a file from which on its copy takes so long that the file is looked at again after it


class _Copy(NamedTuple):
    """What was copied, and what that made."""

    of: Version
    version: Version


class Renames:
    """Moves names."""

    def __init__(
        self,
        namespace: Namespace,
        store: ObjectStore,
        attributes: AttributeWriteback,
        file_io: FileIO,
        deletions: Deletions,
        moves: RenameCopies,
        rollback: RenameRollback,
        subtree_lock: SubtreeLock,
        journal: Journal,
    ) -> None:
        self._namespace = namespace
        self._inodes = namespace.inodes
        self._store = store
        self._attributes = attributes
        self._file_io = file_io
        self._deletions = deletions
        self._moves = moves
        self._rollback = rollback
        self._subtree_lock = subtree_lock
        self._journal = journal

    async def rename(self, old_parent: Inode, old_name: bytes, parent: Inode, name: bytes, *, replace: bool) -> None:
        """Gives a file or directory another name, over an existing one only with `replace`.

        Raises OSError ENOENT, EEXIST, EISDIR, ENOTDIR, ENOTEMPTY, EINVAL (into itself), ENAMETOOLONG; EPERM for what
        is locked, or something below it, and over what is.
        """
        inode = await self._namespace.lookup(old_parent, old_name)
        parsed = keys.parse(name)
        if self._inodes.is_under(parent, inode):
            raise refuse(errno.EINVAL)
        target = await self._target(inode, parent, name, replace=replace)
        if target is inode:
            return
        if parsed.form is keys.Form.FOLDED and target is None:
            raise refuse(errno.EINVAL, "a folded name stands for a key that exists")
        if target is None:
            require_free(parent, parsed.segment)
        segment, form = (target.segment, target.form) if target is not None else (parsed.segment, parsed.form)
        await self._require_unlocked(inode, target)
        await self._attributes.write_directories(inode)
        if inode.parent is None:
            raise refuse(errno.ENOENT)  # what was asked for the target, or a listing meanwhile, has shown it
        await self._namespace.keep_parent(inode.parent)
        try:
            await self._move(inode, target, parent, segment, form)
        except OSError:
            if target is not None:
                await self._file_io.doubt(target)  # a copy may have replaced it all the same
            raise
        old_parent.touch()
        parent.touch()

    async def _require_unlocked(self, inode: Inode, target: Inode | None) -> None:
        """EPERM before anything is copied; what is below a directory is asked when it has been listed."""
        await self._attributes.protection.require(inode, Act.RENAME)
        if target is not None:
            await self._attributes.protection.require(target, Act.WRITE)

    async def _move(self, inode: Inode, target: Inode | None, parent: Inode, segment: str, form: keys.Form) -> None:
        async with AsyncExitStack() as held:
            await held.enter_async_context(self._file_io.writeback.gathered(inode))
            if target is not None:
                await held.enter_async_context(self._file_io.leaving(target))
            # Else the new parent could be renamed itself meanwhile.
            await held.enter_async_context(self._subtree_lock.shared(parent))
            await held.enter_async_context(self._subtree_lock.exclusive(*filter(None, (inode, target))))
            await self._move_within(inode, target, parent, segment, form)

    async def _move_within(
        self, inode: Inode, target: Inode | None, parent: Inode, segment: str, form: keys.Form
    ) -> None:
        """Within the gate, for only now it is certain which key the new parent has."""
        key = self._inodes.child_key(parent, segment)
        if len(key.encode()) + inode.is_directory > KEY_MAX:
            raise refuse(errno.ENAMETOOLONG)
        if inode.parent is None:
            raise refuse(errno.ENOENT)  # a listing has shown it
        parents = inode.parent, parent
        for one in parents:
            one.pins += 1  # no listing takes it away meanwhile, empty as others may have made it: what moves has a name
        try:
            if inode.is_directory:
                await self._move_directory(inode, target, parent, segment, key + "/")
            else:
                await self._move_file(inode, target, parent, segment, key, form)
        finally:
            for one in parents:
                one.pins -= 1

    async def _target(self, inode: Inode, parent: Inode, name: bytes, *, replace: bool) -> Inode | None:
        try:
            target = await self._namespace.lookup(parent, name)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return None
        if target is inode:
            return target
        if not replace:
            raise refuse(errno.EEXIST)
        if inode.is_directory and not target.is_directory:
            raise refuse(errno.ENOTDIR)
        if target.is_directory and not inode.is_directory:
            raise refuse(errno.EISDIR)
        if target.is_directory:
            await self._namespace.require_empty(target)
        return target

    @asynccontextmanager
    async def _under_way(
        self, inode: Inode, target: Inode | None, parent: Inode, segment: str, form: keys.Form, *, old: str, new: str
    ) -> AsyncIterator[Move]:
        """For what is done to the objects. Of what is left of it where it fails, no name is shown until it is gone."""
        if inode.parent is None:
            raise refuse(errno.ENOENT)  # a listing has shown it while both names were waited for
        directory, name = self._namespace.directory(parent), keys.name_of(segment, form)
        is_unsent = target is not None and not self._is_stored(target)
        move = self._moves.begin(old, new, over=target is not None, is_unsent=is_unsent)
        try:
            with self._namespace.moving(inode, target, parent, segment, form):
                async with self._rollback.taking_back(move):
                    yield move
        except BaseException:

            def ask_anew() -> None:
                directory.reached_bucket(name)
                directory.doubt()
                if target is not None:
                    target.checked = 0.0  # it may be replaced

            if self._rollback.watch(move, ask_anew) and target is None:
                directory.touched[name] = PENDING
            else:
                ask_anew()
            raise

    @contextmanager
    def _done(self, move: Move) -> Iterator[None]:
        """For what the tree and the journal say of it from now on. Raises ESTALE where no name leads to the new parent.

        Done it is all the same: the next mount must not finish it over what is new by then.
        """
        try:
            with self._journal.together():
                self._moves.ended(move)
                yield
        except OSError:
            self._moves.ended(move)
            raise

    def _is_stored(self, target: Inode) -> bool:
        """Whether what has the new name is in the bucket. Else a copy can be taken back: nothing of it was replaced."""
        marker = self._namespace.directory(target).marker if target.is_directory else None
        return target.version is not None or marker is not None

    # Files

    async def _move_file(
        self, inode: Inode, target: Inode | None, parent: Inode, segment: str, key: str, form: keys.Form
    ) -> None:
        old_key = self._inodes.key(inode)
        await self._rollback.vacate(key)
        await self._rollback.leave(old_key)
        await self._deletions.wait_for(old_key)
        await self._file_io.ascertain(inode)
        await self._attributes.ascertain(inode)  # what a copy of ours has made would pass for another client's
        if inode.version is None:
            if target is not None:
                await self._file_io.records.displaces(inode, target)
            self._move_unsent(inode, target, parent, segment, form)
            return
        await self._attributes.permissions.require_remove(old_key)
        async with self._under_way(inode, target, parent, segment, form, old=old_key, new=key) as move:
            version, used = await self._copy(inode, move, segment)
            with self._attributes.keeping(inode):
                await self._moves.copied(move)
                await self._retire(inode, move)
        gone = PENDING if self._deletions.is_pending(old_key) else None
        with self._done(move):
            self._replace(inode, target, parent, segment, form, gone=gone)
            self._file_io.copied(inode.version, version)
            inode.version = version
            self._attributes.carried(inode, used or inode.properties, whole=inode.whole or used is not None)
            self._file_io.moved(inode)
        await self._journal.flushed()

    def _move_unsent(self, inode: Inode, target: Inode | None, parent: Inode, segment: str, form: keys.Form) -> None:
        """A file that the bucket has not seen takes its new name along; it will go up over what has that name there."""
        with self._journal.together():
            self._replace(inode, target, parent, segment, form, gone=None)
            if target is not None and target.version is not None:
                self._file_io.replaces(inode, target.version)
            else:
                self._file_io.moved(inode)

    async def _copy(self, inode: Inode, move: Move, segment: str) -> tuple[Version, Properties | None]:
        """Copies the object; returns the new version, and the properties it got where they are not those it had."""
        assert inode.version is not None
        acl = await self._attributes.acls.of(inode)
        may_retype = inode.is_regular and system_headers.for_name(segment) != system_headers.for_name(inode.segment)
        if inode.attributes_dirty or inode.properties.storage_class is None or (may_retype and not inode.whole):
            await self._attributes.fetch_whole(inode)
        used = self._attributes.of_stored(inode) if inode.attributes_dirty else None
        if may_retype:
            used = self._retyped(inode, segment, used)
        try:
            version = await self._copy_version(inode, move, used, acl)
        except StoreError as error:
            if error.cause is not Cause.CONFLICT or used is not None or inode.pins:
                raise
            # Another client wrote it meanwhile: its version is the one to be renamed.
            await self._attributes.refresh_within(inode)
            if inode.version is None or inode.parent is None:
                raise  # it is gone, or has an inode of its own: the kernel looks the name up again
            await self._attributes.fetch_whole(inode)
            acl = await self._attributes.acls.of(inode)
            version = await self._copy_version(inode, move, None, acl)
        return version, used

    async def _copy_version(self, inode: Inode, move: Move, used: Properties | None, acl: Acl | None) -> Version:
        """Copies the version that is known, and is there still afterwards. ESTALE where it is another."""
        assert inode.version is not None
        kept = inode.properties.storage_class
        with self._attributes.keeping(inode):
            made = await self._moves.copy(move, move.old, inode.version, properties=used, storage_class=kept, acl=acl)
            if inode.version.size >= LOOKED_AT:
                await check_still(self._store.head, f"CopyObject {move.old!r}", move.old, inode.version)
        return made

    def _retyped(self, inode: Inode, segment: str, used: Properties | None) -> Properties | None:
        """`used`, or what the object has, with the Content-Type of the new name where only the old one told it."""
        had = self._attributes.of_stored(inode)
        kind = system_headers.renamed(had.headers.content_type, inode.segment, segment)
        if kind == had.headers.content_type or not inode.whole:
            return used
        return replace(had, headers=replace(had.headers, content_type=kind))

    async def _retire(self, inode: Inode, move: Move) -> None:
        """Removes the old key. Raises a refusal."""
        assert inode.version is not None and inode.parent is not None
        directory, name = self._namespace.directory(inode.parent), inode.name
        try:
            await self._deletions.retire(move.old, inode.version, partial(directory.reached_bucket, name))
        except StoreError:
            self._moves.refused(move)
            raise

    def _replace(
        self, inode: Inode, target: Inode | None, parent: Inode, segment: str, form: keys.Form, *, gone: float | None
    ) -> None:
        """Changes the tree: the inode leaves its old name and takes the new one."""
        assert inode.parent is not None
        old = self._namespace.directory(inode.parent)
        if target is not None:
            self._attributes.discard(target)  # while it has its name
            target.parent = None
            self._file_io.left(target)
        old.take(inode.name, when=gone)
        self._namespace.left(old, inode)
        inode.parent, inode.segment, inode.form = parent, segment, form
        self._namespace.directory(parent).put(inode)
        self._inodes.keep(inode)

    # Directories

    async def _move_directory(
        self, inode: Inode, target: Inode | None, parent: Inode, segment: str, prefix: str
    ) -> None:
        if target is not None and self._namespace.directory(target).entries:
            raise refuse(errno.ENOTEMPTY)  # made since: the kernel's lock on it goes with a caller
        old_prefix = self._inodes.key(inode)
        await self._rollback.vacate(prefix.removesuffix("/"))
        await self._rollback.leave(old_prefix)
        await self._deletions.wait_under(old_prefix)
        known = self._inodes.below(inode)
        opened = [one for one in known.values() if one.open_file is not None]
        await each(self._file_io.ascertain, opened, at_once=COPIES_AT_ONCE)  # a copy would not be recognised
        listed = await listed_under(self._store, old_prefix)
        room = KEY_MAX - len(prefix.encode()) + len(old_prefix.encode())
        if any(len(one.key.encode()) > room for one in listed):
            raise refuse(errno.ENAMETOOLONG, "a key below would have over 1024 bytes")
        await self._attributes.permissions.require_remove(old_prefix)
        await self._attributes.protection.require_each([one.key for one in listed], Act.RENAME)
        plain = keys.Form.PLAIN
        async with self._under_way(inode, target, parent, segment, plain, old=old_prefix, new=prefix) as move:
            await self._journal.sync()
            await self._learn_again([one for one in listed if _is_overtaken(one, known.get(one.key))], known)
            copies = await self._copy_all(listed, move, known)
            await self._copy_changed(listed, copies, move, known)
            await self._moves.copied(move)
            left = await self._delete_all(copies, move)
        known = self._inodes.below(inode)  # with what came meanwhile and is in no bucket yet
        with self._done(move):
            self._remove_later(left, inode)
            self._replace(inode, target, parent, segment, plain, gone=PENDING if left else None)
            for old_key, moved in known.items():
                self._moved(moved, copies.get(move.target(old_key)))
        await self._journal.flushed()

    def _remove_later(self, left: Mapping[str, Version], inode: Inode) -> None:
        """The old name stays hidden until what is left under it is gone."""
        assert inode.parent is not None
        top = self._inodes.key(inode)
        for key in below_first(left):
            if key != top:
                self._deletions.retract(key, left[key], lambda: None)
        if left:  # of a directory the marker goes last, be there one or not
            settled = partial(self._namespace.directory(inode.parent).reached_bucket, inode.name)
            self._deletions.retract(top, left.get(top, Version("", 0)), settled)

    def _moved(self, inode: Inode, copy: _Copy | None) -> None:
        """An inode has its new key, and its object there is this copy."""
        if copy is None:
            self._attributes.moved(inode)
        elif inode.is_directory or self._is_of(copy, inode):
            self._file_io.copied(inode.version, copy.version)
            inode.version = copy.version
            self._attributes.carried(inode, inode.properties, whole=inode.whole)
        elif inode.open_file is None or inode.open_file.draft is None:
            # Another client had changed it before it was copied: what is known of ours holds for its bytes at most.
            self._attributes.replaced(inode)
            if inode.version is None or not copy.of.same_bytes(inode.version):
                self._namespace.replaced(inode, copy.version)
                return
            self._file_io.copied(inode.version, copy.version)
            inode.version, inode.whole, inode.acl_private_until = copy.version, False, 0.0
        self._file_io.moved(inode)  # a draft still expects ours: where theirs was copied its commit loses

    def _is_of(self, copy: _Copy, inode: Inode) -> bool:
        """Whether it was made of the version that is known; with our attributes, whatever was done to those there."""
        if inode.version is None:
            return False
        return copy.of.same_as(inode.version) or (inode.attributes_dirty and copy.of.same_bytes(inode.version))

    async def _copy_all(self, listed: list[Listed], move: Move, known: dict[str, Inode]) -> dict[str, _Copy]:
        copies: dict[str, _Copy] = {}

        async def copy(one: Listed) -> None:
            made = await self._copy_one(one, move, known.get(one.key))
            if made is not None:
                copies[move.target(one.key)] = made

        # The marker that cannot be taken back comes last: what fails before leaves the directory there as it was.
        last = [one for one in listed if move.replaces and one.key == move.old]
        await each(copy, [one for one in listed if one not in last], at_once=COPIES_AT_ONCE)
        for one in last:
            await copy(one)
        return copies

    async def _copy_changed(
        self, listed: list[Listed], copies: dict[str, _Copy], move: Move, known: dict[str, Inode]
    ) -> None:
        """Copies what another client has stored since it was listed: it would go with the old key.

        Listings are compared with each other: not every server tells the same ETag to a HEAD. ESTALE where that never
        ends.
        """
        seen = {one.key: one.version for one in listed}
        for _ in range(COPIED_AGAIN_MAX):
            now = await listed_under(self._store, move.old)
            changed = [one for one in now if one.key in seen and not one.version.same_as(seen[one.key])]
            if not changed:
                return
            await self._learn_again(changed, known)
            copies |= await self._copy_all(changed, move, known)
            seen |= {one.key: one.version for one in changed}
        raise refuse(errno.ESTALE, "other clients write to what is renamed, again and again")

    async def _learn_again(self, listed: Iterable[Listed], known: dict[str, Inode]) -> None:
        """What another client has set of the same bytes goes along with what was changed of them here.

        However recently these were asked for: that was before.
        """

        async def learn(one: Listed) -> None:
            inode = known.get(one.key)
            if inode is None:
                return
            inode.whole = False
            try:
                await self._attributes.fetch_whole(inode)
            except StoreError as error:
                if error.cause is not Cause.ABSENT:  # else it was removed since, as who copies it finds too
                    raise

        await each(learn, listed, at_once=COPIES_AT_ONCE)

    async def _copy_one(self, one: Listed, move: Move, inode: Inode | None) -> _Copy | None:
        used: Properties | None = None
        if inode is not None and inode.attributes_dirty:
            await self._attributes.fetch_whole(inode)
            # Another client's bytes keep what that one stored with them.
            if inode.is_directory or (inode.version is not None and one.version.same_bytes(inode.version)):
                used = self._attributes.of_stored(inode)
                inode.properties, inode.whole = used, True
        acl, version = await self._acl(one, inode), one.version
        for last in (False, True):
            try:
                made = await self._moves.copy(
                    move, one.key, version, properties=used, storage_class=one.storage_class, acl=acl
                )
                return _Copy(version, made)
            except StoreError as error:
                if error.cause is Cause.ABSENT:
                    return None  # removed by another client since it was listed
                if last or error.cause is not Cause.CONFLICT:
                    raise
                here = await find(self._store, one.key)
                if here is None:
                    return None
                version = here.version
                used = used if version.same_bytes(one.version) else None
        return None

    async def _acl(self, one: Listed, inode: Inode | None) -> Acl | None:
        if inode is not None and inode.version is not None and one.version.same_as(inode.version):
            return await self._attributes.acls.of(inode)
        return await self._attributes.acls.of_key(one.key)

    async def _delete_all(self, copies: dict[str, _Copy], move: Move) -> dict[str, Version]:
        """Removes the old keys. Raises the refusal when none may be removed.

        Returns what is left otherwise: of a key whose delete got no answer nobody knows whether it is there. What
        another client has stored since it was copied stays under its old name, where the server can tell.
        """
        old = {move.source(key): copy.of for key, copy in copies.items()}
        failures = await self._store.delete_many(below_first(old), versions=old)
        refused = [failure for failure in failures if is_denied(failure.error)]
        if refused and len(refused) == len(old):
            self._moves.refused(move)
            raise refused[0].error
        replaced = [failure.key for failure in failures if is_replaced(failure.error)]
        for key in replaced:
            log.warning("%s was renamed here, and another client has replaced it since: theirs stays", key)
        return {failure.key: old[failure.key] for failure in failures if failure.key not in replaced}


def _is_overtaken(one: Listed, inode: Inode | None) -> bool:
    """Whether another client has changed what has changes of ours that wait."""
    return inode is not None and inode.pins > 0 and inode.version is not None and not one.version.same_as(inode.version)
