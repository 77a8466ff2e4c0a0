"""The extended attributes of a file: read, list, set, remove.

| attribute                                  | stands for                                            |
|--------------------------------------------|-------------------------------------------------------|
| `user.NAME`                                | the metadata `x-amz-meta-NAME` (`xattr_encoding`)        |
| `user.mime_type`                           | Content-Type; removing it gives the name's own type   |
| `user.sos.cache-control` and four more     | the header                                            |
| `user.sos.acl`                             | the ACL as text (`acl_text`)                               |
| `user.sos.retention`, `.legal-hold`        | the lock as text (`object_lock_text`)                 |
| `user.sos.etag`, `.version-id`, `.url` ... | read-only                                             |

Listed is only what a copy of the file should carry: metadata, headers that are set, a Content-Type other than
the name shows. So `cp --preserve=xattr` and `rsync -X` neither meet what cannot be set nor spread an ACL or a lock.
What is set goes into the bucket with the file's other attributes, in one request.

Concurrency: trio thread only.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Mapping

from sosfs.attributes.revalidation import is_new
from sosfs.attributes.writeback import AttributeWriteback
from sosfs.control import acl_text
from sosfs.control.object_acl import ObjectAcls
from sosfs.control.object_retention import ObjectRetentions
from sosfs.control.rejected_texts import Rejections
from sosfs.files.draft import DraftState
from sosfs.files.open_file import draft_of
from sosfs.metadata import system_headers, xattr_encoding
from sosfs.metadata.edits import Edits
from sosfs.s3.http_headers import STANDARD
from sosfs.s3.object_urls import Links
from sosfs.s3.protocol import Detail, Object, Properties
from sosfs.tree.inodes import Inode, Inodes

USER = b"user."
SOS = USER + xattr_encoding.RESERVED
MIME_TYPE = USER + xattr_encoding.MIME_TYPE
ACL = SOS + b"acl"
RETENTION = SOS + b"retention"
LEGAL_HOLD = SOS + b"legal-hold"
EXPIRES = SOS + b"expires"
LINK = SOS + b"presigned-url"
HEADERS: Mapping[bytes, str] = {
    SOS + b"cache-control": "cache_control",
    SOS + b"content-disposition": "content_disposition",
    SOS + b"content-encoding": "content_encoding",
    SOS + b"content-language": "content_language",
    EXPIRES: "expires",
    MIME_TYPE: "content_type",
}
Reader = Callable[[Inode], Awaitable[str]]
Writer = Callable[[Inode, str], Awaitable[None]]


def _absent() -> OSError:
    return OSError(errno.ENODATA, "no such attribute")


class Xattrs:
    """The extended attributes of the files of a mount. `kept` are the keys where losers of a conflict lie."""

    def __init__(
        self,
        inodes: Inodes,
        attributes: AttributeWriteback,
        sharing: ObjectAcls,
        retentions: ObjectRetentions,
        links: Links,
        rejections: Rejections,
        *,
        kept: list[str],
    ) -> None:
        self._inodes = inodes
        self._attributes = attributes
        self._sharing = sharing
        self._links = links
        self._rejections = rejections
        self._kept = kept
        self._writers: Mapping[bytes, tuple[str, Writer]] = {
            ACL: ("ACL", sharing.write),
            RETENTION: ("retention", retentions.retain),
            LEGAL_HOLD: ("legal hold", retentions.hold),
        }
        self._retentions = retentions
        self._readers: Mapping[bytes, Reader] = {
            ACL: self._acl,
            RETENTION: retentions.retention,
            LEGAL_HOLD: retentions.legal_hold,
            SOS + b"etag": self._etag,
            SOS + b"version-id": self._version_id,
            SOS + b"storage-class": self._storage_class,
            SOS + b"sha256": self._sha256,
            SOS + b"url": self._url,
            LINK: self._presigned_url,
            SOS + b"state": self._state,
        }

    # Reading

    async def get(self, inode: Inode, name: bytes, *, uid: int) -> bytes:
        """The value of a `user.` attribute, for a process of this user.

        Raises ENODATA, EPERM for a link to what is another's, and what the bucket answers.
        """
        if name == LINK:
            await self._require_owner(inode, uid)
        if name in self._readers:
            return (await self._readers[name](inode)).encode()
        known = await self._known(inode, whole=name == EXPIRES)
        if name in HEADERS and (value := getattr(known.headers, HEADERS[name])):
            return str(value).encode()
        for entry, value in known.metadata.items():
            if xattr_encoding.shown(entry) == name[len(USER) :]:
                return xattr_encoding.from_text(value)
        raise _absent()

    async def names(self, inode: Inode) -> list[bytes]:
        """The attributes that a copy should have. Raises what the bucket answers."""
        if not inode.is_regular and not inode.is_directory:
            return []  # Linux lets nobody read user attributes of links and special files
        known = await self._known(inode, whole=True)
        shown = [xattr_encoding.shown(entry) for entry in known.metadata]
        listed = [USER + name for name in shown if name is not None]
        listed += [name for name, field in HEADERS.items() if name != MIME_TYPE and getattr(known.headers, field)]
        if known.headers.content_type not in system_headers.UNTYPED | {system_headers.DIRECTORY, self._own_type(inode)}:
            listed.append(MIME_TYPE)
        return listed

    async def _known(self, inode: Inode, *, whole: bool = False) -> Properties:
        """The object's properties with the user's edits; `whole` is with `expires`, which may cost a request."""
        await self._learn(inode)
        if whole and inode.version is not None:
            await self._attributes.learn_whole(inode)
        if inode.is_directory and not inode.attributes_dirty:
            return self._attributes.known(inode)
        return self._attributes.properties(inode)  # of a directory: a marker is on its way

    async def _learn(self, inode: Inode) -> None:
        if await self._attributes.revalidate(inode) is not inode:
            raise OSError(errno.ESTALE, "it turned out to be of another type")

    def _own_type(self, inode: Inode) -> str:
        return system_headers.DIRECTORY if inode.is_directory else system_headers.for_name(inode.segment).content_type

    # Reading what is no header and no metadata

    async def _acl(self, inode: Inode) -> str:
        return acl_text.shown(await self._sharing.read(inode))

    async def _etag(self, inode: Inode) -> str:
        await self._learn(inode)
        if inode.version is None:
            raise _absent()
        return inode.version.etag

    async def _version_id(self, inode: Inode) -> str:
        found = (await self._object(inode, Detail.WHOLE)).version_id
        if not found:
            raise _absent()
        return found

    async def _storage_class(self, inode: Inode) -> str:
        return (await self._object(inode, Detail.WHOLE)).properties.storage_class or STANDARD

    async def _sha256(self, inode: Inode) -> str:
        """What the server has verified and recorded; metadata of that name may speak of bytes written over since."""
        draft = draft_of(inode)
        found = await self._object(inode, Detail.CHECKSUM)
        if not found.sha256 or (draft is not None and draft.is_dirty):
            raise _absent()
        return found.sha256

    async def _object(self, inode: Inode, detail: Detail) -> Object:
        await self._learn(inode)
        if inode.version is None:
            raise _absent()
        return await self._attributes.look(inode, detail)

    async def _url(self, inode: Inode) -> str:
        return self._links.url(self._key(inode))

    async def _presigned_url(self, inode: Inode) -> str:
        return self._links.presigned(self._key(inode))

    def _key(self, inode: Inode) -> str:
        if inode.parent is None:
            raise _absent()
        return self._inodes.key(inode)

    async def _state(self, inode: Inode) -> str:
        """clean: as in the bucket; dirty: not yet; uploading: on its way; conflict: ours is kept beside another's."""
        draft = draft_of(inode)
        if draft is not None and draft.state is DraftState.COMMITTING:
            return "uploading"
        if inode.attributes_dirty or (draft is not None and draft.is_dirty):
            return "dirty"
        ours = f"{self._inodes.key(inode)}.conflict-"
        return "conflict" if any(key.startswith(ours) for key in self._kept) else "clean"

    # Changing

    async def set(self, inode: Inode, name: bytes, value: bytes, *, uid: int) -> None:
        """Sets a `user.` attribute, for a process of this user.

        Raises EPERM for what is read-only, for ACL and lock of what is another's and for less than the lock that is in
        force, EINVAL for what a header, an ACL or a lock cannot be, ENOSPC over 2 kB of metadata, EOPNOTSUPP for the
        root of the mount, which is no object.
        """
        if name in self._writers:
            await self._require_owner(inode, uid)
            await self._write(inode, name, value.decode(errors="replace"))
            return
        await self._require_settable(inode, name)
        await self._known(inode)
        if name in HEADERS:
            edits = inode.edits.with_header(HEADERS[name], system_headers.checked(HEADERS[name], value))
        else:
            entry = xattr_encoding.stored(name[len(USER) :], self._attributes.known(inode).metadata)
            edits = inode.edits.with_metadata(entry, xattr_encoding.to_text(value))
        self._change(inode, edits)

    def _change(self, inode: Inode, edits: Edits) -> None:
        self._inodes.require(inode)
        before, inode.edits = inode.edits, edits
        try:
            self._attributes.changed(inode, posix=())
        except OSError:
            inode.edits = before
            raise

    async def remove(self, inode: Inode, name: bytes, *, uid: int) -> None:
        """Removes a `user.` attribute, for a process of this user. Raises ENODATA, and as `set`."""
        if name in (RETENTION, LEGAL_HOLD):
            await self._require_owner(inode, uid)
            await self._unlock(inode, name)
            return
        await self._require_settable(inode, name)
        known = await self._known(inode, whole=name == EXPIRES)
        if name in HEADERS:
            # S3 has no object without a type; a new one gets that of the name that it will have then.
            if not getattr(known.headers, HEADERS[name]):
                raise _absent()
            left = self._own_type(inode) if name == MIME_TYPE and not is_new(inode) else ""
            edits = inode.edits.with_header(HEADERS[name], left)
        else:
            entry = xattr_encoding.stored(name[len(USER) :], known.metadata)
            if entry not in known.metadata:
                raise _absent()
            edits = inode.edits.with_metadata(entry, None)
        self._change(inode, edits)

    async def _write(self, inode: Inode, name: bytes, text: str) -> None:
        what, write = self._writers[name]
        try:
            await write(inode, text)
        except OSError as error:
            self._rejections.add(f"{what} of {inode.name.decode(errors='replace')}", error)
            raise

    async def _unlock(self, inode: Inode, name: bytes) -> None:
        """Ends a legal hold. A retention cannot be ended, and that is told."""
        if name == LEGAL_HOLD:
            if await self._retentions.legal_hold(inode) == "OFF":
                raise _absent()
            await self._write(inode, name, "OFF")
            return
        try:
            await self._retentions.release(inode)
        except OSError as error:
            if error.errno != errno.ENODATA:
                self._rejections.add(f"retention of {inode.name.decode(errors='replace')}", error)
            raise

    async def _require_owner(self, inode: Inode, uid: int) -> None:
        """EPERM for users who may not change the file's mode either: the kernel asks for write permission only.

        Whoever mounted may: the key that could do it with any other tool is his.
        """
        await self._learn(inode)
        if uid not in (0, inode.uid, os.geteuid()):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    async def _require_settable(self, inode: Inode, name: bytes) -> None:
        if name in self._readers:
            raise OSError(errno.EPERM, f"{name.decode()} is read-only")
        if name.startswith(SOS) and name not in HEADERS:
            raise OSError(errno.EOPNOTSUPP, f"there is no attribute {name.decode(errors='replace')}")
        if inode is self._inodes.root:
            raise OSError(errno.EOPNOTSUPP, "the root of a mount is no object")
        if inode.is_left_behind:
            raise OSError(errno.ESTALE, "another client replaced or removed it")
        await self._attributes.permissions.require_write(inode)
