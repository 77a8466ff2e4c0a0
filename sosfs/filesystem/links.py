"""`sosfs link`: URLs of files for others.

A link is signed here, and the bucket is not asked: a key that may do no more than read one object can make one for it,
and a link to upload needs no object. So what is known without asking is all that is checked. Only `--public` asks, for
the object's ACL. Concurrency: trio thread only.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from enum import Enum

from sosfs.control import acl_text
from sosfs.errors import Cause, StoreError
from sosfs.files.open_file import draft_of
from sosfs.filesystem.pending_changes import PendingChanges
from sosfs.filesystem.version_paths import VersionPaths
from sosfs.ipc.commands import Names, Options, Tell, Told
from sosfs.s3.http_headers import check_key
from sosfs.s3.object_urls import Addressing, Links, Method
from sosfs.s3.protocol import ObjectStore
from sosfs.tree import keys
from sosfs.tree.inodes import Inode, Inodes
from sosfs.tree.listing import Listings


class LinkKind(Enum):
    """What a link is for."""

    DOWNLOAD = "download"
    UPLOAD = "upload"
    PUBLIC = "public"  # not signed


class Readers(Enum):
    """Who may read an object without a key, as its ACL has it."""

    ANYBODY = "anybody"
    NOBODY = "nobody"
    UNKNOWN = "unknown"  # the key may not read the ACL, or the server has none


class LinkCommand:
    """Makes the links of a mount."""

    def __init__(
        self,
        inodes: Inodes,
        listings: Listings,
        paths: VersionPaths,
        store: ObjectStore,
        links: Links,
        changes: PendingChanges,
    ) -> None:
        self._inodes = inodes
        self._listings = listings
        self._paths = paths
        self._store = store
        self._links = links
        self._changes = changes

    async def run(self, paths: Sequence[Names], tell: Tell, options: Options) -> Told:
        """The links of these files. `expires` is seconds, else it is the mount's `--link-lifetime`.

        Raises OSError: EISDIR and EINVAL for what is known to be no file, ENOENT for a download of what is known not
        to be there, EOPNOTSUPP as `Links`.
        """
        kind, addressing = LinkKind(options["kind"]), Addressing(options["addressing"])
        lifetime = int(options.get("expires", self._links.lifetime))
        return {"links": [[_shown(path), await self._link(path, kind, addressing, lifetime)] for path in paths]}

    async def _link(self, path: Names, kind: LinkKind, addressing: Addressing, lifetime: int) -> Told:
        inode = self._known(path, kind)
        key = self._paths.key_of(path) if inode is None else self._inodes.key(inode)
        check_key(key)
        is_unsent = bool(self._changes.changes([path])) or (inode is not None and _is_changed(inode))
        told: Told = {"is_unsent": is_unsent and kind is not LinkKind.UPLOAD}
        if kind is LinkKind.PUBLIC:
            self._links.require_open()
            readers = await self._readers(key)
            return told | {"url": self._links.url(key, addressing), "readers": readers.value}
        method = Method.PUT if kind is LinkKind.UPLOAD else Method.GET
        url = self._links.presigned(key, method=method, lifetime=lifetime, addressing=addressing)
        return told | {"url": url, "lifetime": lifetime}

    def _known(self, path: Names, kind: LinkKind) -> Inode | None:
        """The file at a path as far as it is known without asking. Raises OSError where no link can be of use."""
        at = self._inodes.root
        for name in keys.meant_path(path):
            directory = at.directory
            found = directory.entries.get(name) if directory else None
            if found is None:
                is_absent = directory is not None and self._listings.is_known(directory)
                if is_absent and kind is not LinkKind.UPLOAD:
                    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), _shown(path))
                return None
            at = found
        if at.is_directory:
            raise OSError(errno.EISDIR, "a directory, which has no link", _shown(path))
        if not at.is_regular:
            raise OSError(errno.EINVAL, "no regular file; name what it points to", _shown(path))
        return at

    async def _readers(self, key: str) -> Readers:
        try:
            acl = await self._store.get_acl(key)
        except StoreError as error:
            if error.cause not in (Cause.DENIED, Cause.UNSUPPORTED):
                raise
            return Readers.UNKNOWN
        reading = (grant.grantee for grant in acl.grants if grant.permission in ("READ", "FULL_CONTROL"))
        return Readers.ANYBODY if acl_text.ALL_USERS in reading else Readers.NOBODY


def _is_changed(inode: Inode) -> bool:
    """Whether a file is being written: such a change does not wait for the bucket yet."""
    draft = draft_of(inode)
    return draft is not None and draft.is_dirty


def _shown(path: Names) -> str:
    return os.fsdecode(b"/".join(path))
