"""The ACLs of objects as texts, `.sosfs/acl`: what is sent, to which object, and what of it is known afterwards.

In one process, over a store in memory; `test_acl` has real servers.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from sosfs.config.parameters import Durability
from sosfs.control import acl_text
from sosfs.control.nodes import Folder, TextFile, Tree
from sosfs.control.object_acl import ObjectAcls
from sosfs.control.rejected_texts import Rejections
from sosfs.control.settings_files import AclFolder
from sosfs.s3.protocol import Acl
from tests.support.composed import Composed, composed
from tests.support.drive import fails
from tests.support.fake_store import ANYONE, OWNER
from tests.support.held import Held, bodies, denied, put_all, readers

pytestmark = pytest.mark.usefixtures("without_bugs")
SHOWN = acl_text.help_text(acl_text.OF_OBJECTS) + f"owner {OWNER}\nuser {OWNER} FULL_CONTROL\n"


class Acls:
    """`.sosfs/acl` of a mount."""

    def __init__(self, mount: Composed, store: Held) -> None:
        parts = mount.parts
        self.store, self.rejections = store, Rejections()
        sharing = ObjectAcls(parts.inodes, store, parts.attributes, parts.commits, parts.subtree_lock)
        self.top = AclFolder(parts.inodes.root, parts.namespace, sharing, self.rejections)
        self.tree = Tree(self.top)

    async def text(self, path: str) -> TextFile:
        """The text of a path."""
        found: Folder = self.top
        *above, name = path.split("/")
        for each in above:
            found = cast(Folder, await found.child(each.encode()))
        return cast(TextFile, await found.child(name.encode()))

    @property
    def sent(self) -> int:
        """How often an ACL was."""
        return self.store.calls["put_acl"]

    @property
    def errors(self) -> list[str]:
        """What `.sosfs/errors` says, without the times."""
        return [line.partition(" ")[2] for line in self.rejections.text().splitlines()]


@pytest.fixture
def acls(mount: Composed, store: Held) -> Iterator[Acls]:
    """Of a mount with some files."""
    mount.loop.run(lambda: put_all(store, {"file": b"bytes", "d/e/file": b"", "d/other": b"other", "empty/": b""}))
    yield Acls(mount, store)


def test_acls_stand_where_the_files_do(mount: Composed, acls: Acls) -> None:
    async def main() -> None:
        assert sorted(await acls.top.children()) == [b"d", b"empty", b"file"]
        folder = await acls.top.child(b"d")
        assert isinstance(folder, Folder)
        found = await folder.children()
        assert {name: isinstance(node, Folder) for name, node in found.items()} == {b"e": True, b"other": False}
        assert (await folder.child(b"other")).identity == found[b"other"].identity
        assert (await acls.top.child(b"file")).identity != found[b"other"].identity
        with fails(errno.ENOENT):
            await folder.child(b"none")

    mount.loop.run(main)


def test_an_acl_is_read_edited_and_written_and_what_is_so_already_is_not_sent(mount: Composed, acls: Acls) -> None:
    async def main() -> None:
        text = await acls.text("d/other")
        assert await text.read() == SHOWN
        await text.write(SHOWN.encode())
        assert acls.sent == 0
        await text.write(SHOWN.encode() + b"all-users READ\n")
        assert (acls.sent, ANYONE in readers(acls.store, "d/other")) == (1, True)
        assert await text.read() == SHOWN + "all-users READ\n"
        await text.write(b"all-users READ\n")
        assert acls.sent == 1
        await text.write(b"private")
        assert readers(acls.store, "d/other") == {OWNER}
        assert ANYONE not in readers(acls.store, "file")

    mount.loop.run(main)
    assert acls.errors == []


def test_a_text_that_is_none_is_told_with_its_path_and_nothing_is_sent(mount: Composed, acls: Acls) -> None:
    async def main() -> None:
        text = await acls.text("d/other")
        for written in (b"public-reed", b"owner somebody", b"# none"):
            with fails(errno.EINVAL):
                await text.write(written)
        with fails(errno.EINVAL):
            text.check(b"public-reed\n")
        text.check(b"bucket-owner-read\n")

    mount.loop.run(main)
    assert acls.sent == 0
    assert [line.partition(": ")[0] for line in acls.errors] == ["acl/d/other"] * 4


@pytest.mark.parametrize("path", ["d", ""])
def test_what_has_no_object_has_no_acl(mount: Composed, acls: Acls, path: str) -> None:
    async def main() -> None:
        sharing = acls.top._sharing
        inode = await mount._walk(path)
        with fails(errno.ENODATA):
            await sharing.read(inode)
        with fails(errno.ENODATA):
            await sharing.write(inode, "public-read")

    mount.loop.run(main)
    assert (acls.sent, acls.store.calls["get_acl"]) == (0, 0)


def test_a_file_that_is_gone_has_no_acl_nor_has_what_got_its_name(mount: Composed, acls: Acls) -> None:
    async def main() -> None:
        text = await acls.text("file")
        acls.tree.take(text)
        await mount.unlink("file")
        await mount.parts.deletions.drain()
        await put_all(acls.store, {"file": b"another's"})
        with fails(errno.ENODATA, errno.ENOENT, errno.ESTALE):
            await text.read()
        with fails(errno.ENODATA, errno.ENOENT, errno.ESTALE):
            await acls.top._sharing.write(text._inode, "public-read")  # type: ignore[attr-defined]

    mount.loop.run(main)
    assert (acls.sent, readers(acls.store)) == (0, {OWNER})


def test_an_acl_that_is_not_told_is_not_replaced(mount: Composed, acls: Acls, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that knows none would take the request for one that stores the object."""

    async def refused(key: str) -> Acl:
        raise denied("get_acl")

    async def main() -> None:
        text = await acls.text("file")
        monkeypatch.setattr(acls.store, "get_acl", refused)
        for work in (text.read(), text.write(b"public-read")):
            with fails(errno.EACCES):
                await work

    mount.loop.run(main)
    assert acls.sent == 0
    assert acls.errors == ["acl/file: get_acl: AccessDenied"]


def test_a_file_is_stored_before_it_gets_its_acl(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await mount.write("new", b"bytes", flags=os.O_CREAT)
        text = await Acls(mount, store).text("new")
        assert bodies(store) == {}
        await text.write(b"public-read")
        assert (bodies(store), ANYONE in readers(store, "new")) == ({"new": b"bytes"}, True)
        await mount.write("new", b"BYTES")
        assert await text.read() == SHOWN + "all-users READ\n"
        assert bodies(store) == {"new": b"BYTES"}

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(lambda: main(mount))


def test_an_acl_that_was_set_is_kept_whatever_the_rules_of_the_bucket_say(mount: Composed, acls: Acls) -> None:
    """As they do where they say that ACLs have no effect, and this one has been taken."""

    async def has_none() -> bool:
        return False

    async def main() -> None:
        kept = mount.parts.attributes.acls
        acls.store.has_acls = has_none  # type: ignore[method-assign]
        assert not await kept.are_kept()
        text = await acls.text("file")
        await text.write(b"public-read\n")
        assert await kept.are_kept()
        await mount.chmod("file", 0o600)

    mount.loop.run(main)
    assert ANYONE in readers(acls.store)


def test_a_name_that_the_kernel_has_open_stays_that_of_its_file(mount: Composed, acls: Acls) -> None:
    """And no longer than it has it."""

    async def main() -> None:
        text = await acls.text("file")
        inode = await mount._walk("file")
        before = inode.lookups
        held = acls.tree.take(text)
        assert acls.tree.take(await acls.text("file")) is held
        assert inode.lookups == before + 1
        await mount.rename("file", "moved")
        with fails(errno.EINVAL):
            await cast(TextFile, acls.tree[held.number]).write(b"public-reed")
        await cast(TextFile, acls.tree[held.number]).write(b"public-read")
        assert ANYONE in readers(acls.store, "moved")
        acls.tree.forget(held.number, 1)
        assert acls.tree[held.number] is held
        acls.tree.forget(held.number, 1)
        with fails(errno.ESTALE):
            acls.tree[held.number]
        assert inode.lookups == before
        acls.tree.forget(held.number, 1)  # the kernel may tell it of what was pushed out
        again = acls.tree.take(await acls.text("moved"))
        assert acls.tree[again.number] is again, "who asks for it anew has it anew"
        folder = acls.tree.take(await acls.top.child(b"d"))
        real = await mount._walk("d")
        before = real.lookups
        acls.tree.forget(folder.number, 1)
        assert real.lookups == before - 1

    mount.loop.run(main)
    assert acls.errors[0].startswith("acl/moved: ")
