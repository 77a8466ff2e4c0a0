"""The text files of `.sosfs`: what reading shows and what writing does.

What is written is compared with what the server has, in meaning, and nothing is sent for what is so already.
A refused text, and why it was, is kept in `.sosfs/errors`. Concurrency: trio thread only.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping

from sosfs.control import acl_text, cors_text
from sosfs.control.nodes import Audience, Folder, Node, TextFile
from sosfs.control.object_acl import ObjectAcls
from sosfs.control.rejected_texts import BadText, Rejections
from sosfs.ipc.status import Status
from sosfs.namespace.namespace import Namespace
from sosfs.s3.bucket_settings import BucketSettings, Versioning
from sosfs.s3.protocol import Acl
from sosfs.tree.inodes import Inode


class Report(TextFile):
    """What the mount says of itself."""

    is_lasting = True

    def __init__(self, name: str, tell: Callable[[], str], *, permissions: int) -> None:
        super().__init__(("report", name))
        self.permissions = permissions
        self._tell = tell

    async def read(self) -> str:
        """The text as it is now."""
        return self._tell()


class StatusReport(Report):
    """The mount's status. Other users are told no names: errors speak of files that modes may keep from them."""

    def __init__(self, status: Callable[[], Status]) -> None:
        super().__init__("status", lambda: status().to_json() + "\n", permissions=0o444)
        self._status = status

    async def shown_to(self, audience: Audience) -> str:
        """All of it for the owner, numbers for others."""
        if audience is Audience.OWNER:
            return await self.read()
        return self._status().without_names().to_json() + "\n"


class Setting(TextFile):
    """A text that can be changed. `what` names it for the user."""

    permissions = 0o600

    def __init__(self, what: str, rejections: Rejections) -> None:
        super().__init__(("setting", what))
        self._what = what
        self._rejections = rejections

    async def write(self, text: bytes) -> None:
        """Applies a text, or keeps the reason why it cannot be applied."""
        try:
            await self._apply(_decoded(text))
        except OSError as error:
            self._rejections.add(self._name(), error)
            raise

    def check(self, text: bytes) -> None:
        """Refuses what is wrong already: a shell ignores the error of its `close`, but not that of `write`."""
        try:
            self._check(_decoded(text))
        except BadText as error:
            self._rejections.add(self._name(), error)
            raise

    def _check(self, text: str) -> None:
        """Raises `BadText` for lines that nothing which may follow can put right."""

    def _name(self) -> str:
        return self._what

    @abc.abstractmethod
    async def _apply(self, text: str) -> None: ...


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise BadText("not UTF-8", line=text.count(b"\n", 0, error.start) + 1) from error


class BucketAcl(Setting):
    """The bucket's ACL: who may list it and create in it. It says nothing of who may read an object."""

    def __init__(self, bucket: BucketSettings, rejections: Rejections) -> None:
        super().__init__("bucket/acl", rejections)
        self._bucket = bucket

    async def read(self) -> str:
        """The ACL with its grammar in comments."""
        return acl_text.help_text(acl_text.OF_BUCKETS) + acl_text.shown(await self._bucket.acl())

    def _check(self, text: str) -> None:
        acl_text.check(text, canned=acl_text.OF_BUCKETS)

    async def _apply(self, text: str) -> None:
        now = await self._bucket.acl()
        wanted = acl_text.parse(text, owner=now.owner, canned=acl_text.OF_BUCKETS)
        if not (isinstance(wanted, Acl) and acl_text.same(wanted, now)):
            await self._bucket.put_acl(wanted)


class Cors(Setting):
    """The bucket's CORS rules; empty for none."""

    def __init__(self, bucket: BucketSettings, rejections: Rejections) -> None:
        super().__init__("bucket/cors", rejections)
        self._bucket = bucket

    async def read(self) -> str:
        """The rules as JSON."""
        return cors_text.shown(await self._bucket.cors())

    def _check(self, text: str) -> None:
        cors_text.check(text)

    async def _apply(self, text: str) -> None:
        wanted = cors_text.parse(text)
        if not cors_text.same(wanted, await self._bucket.cors()):
            await self._bucket.put_cors(wanted)


class VersioningState(Setting):
    """Whether the bucket keeps old versions: off, enabled or suspended."""

    def __init__(self, bucket: BucketSettings, rejections: Rejections) -> None:
        super().__init__("bucket/versioning", rejections)
        self._bucket = bucket

    async def read(self) -> str:
        """One word."""
        return (await self._bucket.versioning()).value + "\n"

    def _check(self, text: str) -> None:
        word = text.strip().lower()
        if word not in {state.value for state in Versioning}:
            raise BadText(f"{word!r} is none of {', '.join(state.value for state in Versioning)}", line=1)

    async def _apply(self, text: str) -> None:
        self._check(text)
        now, wanted = await self._bucket.versioning(), Versioning(text.strip().lower())
        if wanted is now:
            return
        if wanted is Versioning.OFF:
            raise BadText("versioning that was enabled once can only be suspended", line=1)
        await self._bucket.put_versioning(wanted)


class Policy(Setting):
    """The bucket policy, in the server's own language and not looked into; empty for none."""

    def __init__(self, bucket: BucketSettings, rejections: Rejections) -> None:
        super().__init__("bucket/policy", rejections)
        self._bucket = bucket

    async def read(self) -> str:
        """The policy as the server gives it."""
        return await self._bucket.policy()

    async def _apply(self, text: str) -> None:
        wanted = text if text.strip() else ""
        if wanted != await self._bucket.policy():
            await self._bucket.put_policy(wanted)


class ObjectAcl(Setting):
    """The ACL of an object."""

    def __init__(self, inode: Inode, namespace: Namespace, sharing: ObjectAcls, rejections: Rejections) -> None:
        super().__init__("acl", rejections)
        self.identity = ("acl", inode.number)
        self._inode = inode
        self._namespace = namespace
        self._sharing = sharing

    def taken(self) -> None:
        """The inode stays as long as this node."""
        self._inode.lookups += 1

    def dropped(self) -> None:
        """The inode may go."""
        self._namespace.forget(self._inode, 1)

    def _name(self) -> str:
        return f"acl/{self._namespace.inodes.key(self._inode)}"

    async def read(self) -> str:
        """The ACL with its grammar in comments."""
        return acl_text.help_text(acl_text.OF_OBJECTS) + acl_text.shown(await self._sharing.read(self._inode))

    def _check(self, text: str) -> None:
        acl_text.check(text)

    async def _apply(self, text: str) -> None:
        await self._sharing.write(self._inode, text)


class AclFolder(Folder):
    """A directory of the mount, with the ACLs of its objects."""

    def __init__(self, inode: Inode, namespace: Namespace, sharing: ObjectAcls, rejections: Rejections) -> None:
        super().__init__(("acl", inode.number))
        self._inode = inode
        self._namespace = namespace
        self._sharing = sharing
        self._rejections = rejections

    def taken(self) -> None:
        """The inode stays as long as this node."""
        self._inode.lookups += 1

    def dropped(self) -> None:
        """The inode may go."""
        self._namespace.forget(self._inode, 1)

    async def children(self) -> Mapping[bytes, Node]:
        """A file or directory for each of the real ones."""
        await self._namespace.listings.complete(self._inode)
        entries = self._namespace.directory(self._inode).entries
        return {name: self._node(inode) for name, inode in list(entries.items())}

    async def child(self, name: bytes) -> Node:
        """That of the real file or directory of this name. Raises what looking it up raises."""
        return self._node(await self._namespace.lookup(self._inode, name))

    def _node(self, inode: Inode) -> Node:
        kind = AclFolder if inode.is_directory else ObjectAcl
        return kind(inode, self._namespace, self._sharing, self._rejections)
