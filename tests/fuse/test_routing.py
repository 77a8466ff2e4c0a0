"""Whose a request is, the files' or the control tree's, and what extended attributes answer; in one process.

`test_xattrs.py` has what usual tools make of them on a mount, `control/` what is in the tree.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing

from sosfs.cache.blocks import BLOCK
from sosfs.config.credentials import Credentials
from sosfs.config.parameters import TTL, Durability
from sosfs.control.nodes import FIRST, NAME, Fixed, Tree
from sosfs.control.object_acl import ObjectAcls
from sosfs.control.object_retention import ObjectRetentions
from sosfs.control.rejected_texts import Rejections
from sosfs.filesystem.bucket import _operations
from sosfs.fuse.control_tree import ControlOperations
from sosfs.fuse.routing import Routing
from sosfs.fuse.xattrs import Xattrs
from sosfs.s3.endpoint import S3Target
from sosfs.s3.object_urls import Links
from sosfs.s3.protocol import Detail, Headers, Object, Properties, Right
from sosfs.tree.keys import BEHIND_CONTROL
from tests.attributes.test_protection import BOTH, HELD, KEPT, Locking, locking
from tests.control.test_open_texts import Setting
from tests.support.composed import LONG, TASK, Composed
from tests.support.held import begun, bodies, closed, denied, opened, put_all, settled, silence

pytestmark = pytest.mark.usefixtures("without_bugs")
CALLER: Any = SimpleNamespace(pid=TASK, uid=0, gid=0, umask=0o022)
OTHER: Any = SimpleNamespace(pid=TASK, uid=4321, gid=0, umask=0o022)  # let in by `--allow-other`
WHOLE = Headers(
    content_type="text/x-mine", cache_control="max-age=7", content_disposition="inline", content_encoding="gzip",
    content_language="de", expires="Thu, 01 Dec 2044 16:00:00 GMT",
)  # fmt: skip
BODY = bytes(BLOCK + 1)  # what is asked for its attributes does not bring it along, and so not all of them
THEN = FIRST + (1 << 40)  # numbers of the bucket as it was


class Old:
    """The bucket as it was: answers each request with its name."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.is_pushed_out = False

    def at(self, number: int) -> Any:
        """As `Past.at`."""
        if number >= THEN and self.is_pushed_out:
            raise OSError(errno.ESTALE, "pushed out")
        return self if number >= THEN else None

    def __getattr__(self, name: str) -> Any:
        async def handler(*arguments: Any) -> Any:
            self.asked.append((name, *arguments))
            if name == "refused":
                raise pyfuse3.FUSEError(errno.EROFS)
            return name

        return handler


class Whole:
    """A mount with all that the kernel may ask of it, and the bucket as it was, which notes what it is asked."""

    def __init__(self, mount: Composed, store: Locking) -> None:
        parts, locks, held = mount.parts, store, mount.trouble
        any_store: Any = held
        sharing = ObjectAcls(parts.inodes, any_store, parts.attributes, parts.commits, parts.subtree_lock)
        retentions = ObjectRetentions(
            parts.inodes, any_store, locks, parts.attributes, parts.commits, parts.subtree_lock
        )
        key: Any = SimpleNamespace(current=lambda: Credentials("key", "secret"))
        links = Links(S3Target("bucket", "https://s3.test", "zone", key), 60)
        self.rejections = Rejections()
        self.xattrs = Xattrs(
            parts.inodes, parts.attributes, sharing, retentions, links, self.rejections, kept=parts.conflicts.kept
        )
        self.setting = Setting()
        self.control = ControlOperations(Tree(Fixed("top", {b"setting": self.setting})))
        self.past = Old()
        past: Any = self.past
        self.mount, self.store, self.parts = mount, store, parts
        self.kernel = Routing(_operations(mount._settings, parts), self.control, parts.inodes, self.xattrs, past)
        self.root = parts.inodes.root.number

    async def number(self, name: bytes, parent: int = 0) -> int:
        """The number that a name leads to."""
        return int((await self.kernel.lookup(parent or self.root, name, CALLER)).st_ino)

    async def get(self, number: int, name: str, ctx: Any = CALLER) -> bytes:
        return await self.kernel.getxattr(number, f"user.{name}".encode(), ctx)

    async def give(self, number: int, name: str, value: bytes, ctx: Any = CALLER) -> None:
        await self.kernel.setxattr(number, f"user.{name}".encode(), value, ctx)

    async def take(self, number: int, name: str, ctx: Any = CALLER) -> None:
        await self.kernel.removexattr(number, f"user.{name}".encode(), ctx)

    async def names(self, number: int) -> set[str]:
        return {name.decode().removeprefix("user.") for name in await self.kernel.listxattr(number, CALLER)}


def run(base: Path, work: Callable[[Whole], Awaitable[None]], **options: Any) -> Locking:
    """What the store has when all is in it that `work` did."""
    with locking(base, **options) as (mount, store):
        mount.loop.run(lambda: work(Whole(mount, store)))
        mount.loop.passes(3)
        assert mount.parts.pending == 0
    return store


async def refused(number: int, work: Awaitable[Any]) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await work
    assert caught.value.errno == number


def properties(store: Locking, key: str = "file.txt") -> Properties:
    return store._stored[key].object.properties


# Whose a request is


def test_the_control_tree_is_found_by_its_name_in_the_root_alone(tmp_path: Path) -> None:
    async def main(whole: Whole) -> None:
        await put_all(whole.store, {".sosfs/file": b"theirs", "d/.sosfs": b"a name as any other"})
        kernel, control = whole.kernel, await whole.number(NAME)
        assert control == whole.control.tree.root.number
        setting = await whole.number(b"setting", control)
        assert whole.control.tree[setting] is whole.setting
        assert (await kernel.getattr(setting, CALLER)).st_ino == setting
        handle = (await kernel.open(setting, os.O_RDONLY, CALLER)).fh
        assert await kernel.read(handle, 0, 100) == b"old\n"
        await kernel.release(handle)
        behind = await whole.number(BEHIND_CONTROL.encode())
        file = await whole.number(b"file", behind)
        assert (await kernel.getattr(file, CALLER)).st_size == len(b"theirs")
        directory = await whole.number(b"d")
        assert (await kernel.getattr(await whole.number(NAME, directory), CALLER)).st_size == 19
        await refused(errno.EINVAL, kernel.lookup(directory, BEHIND_CONTROL.encode(), CALLER))
        assert kernel.path(setting) == f"{kernel.path(whole.root)}/.sosfs"
        assert kernel.path(file) == f"/{BEHIND_CONTROL}/file"
        opened = await kernel.open(file, os.O_RDONLY, CALLER)
        assert kernel.opened(opened.fh).path == kernel.path(file)
        assert kernel.opened(setting).path == kernel.path(setting)
        await kernel.release(opened.fh)

    run(tmp_path, main)


@pytest.mark.parametrize("places", ["from", "to", "from below", "to below"])
def test_nothing_is_renamed_into_or_out_of_the_control_tree(tmp_path: Path, places: str) -> None:
    async def main(whole: Whole) -> None:
        await put_all(whole.store, {"file": b"x"})
        control, root, rename = await whole.number(NAME), whole.root, whole.kernel.rename
        steps = {
            "from": (root, NAME, root, b"other"),
            "to": (root, b"file", root, NAME),
            "from below": (control, b"setting", root, b"other"),
            "to below": (root, b"file", control, b"other"),
        }
        await refused(errno.EPERM, rename(*steps[places], 0, CALLER))

    assert bodies(run(tmp_path, main)) == {"file": b"x"}


def test_what_the_bucket_has_of_its_name_is_moved_made_and_removed_as_what_it_is_shown_as(tmp_path: Path) -> None:
    behind = BEHIND_CONTROL.encode()

    async def main(whole: Whole) -> None:
        kernel, root = whole.kernel, whole.root
        await put_all(whole.store, {".sosfs": b"theirs", "other": b"other"})
        await whole.number(behind)
        await kernel.rename(root, behind, root, b"moved", 0, CALLER)
        await kernel.rename(root, b"other", root, behind, 0, CALLER)
        assert whole.store._stored[".sosfs"].body == b"other"
        await kernel.unlink(root, behind, CALLER)
        await kernel.mkdir(root, behind, 0o755, CALLER)
        await kernel.rename(root, b"moved", await whole.number(behind), NAME, 0, CALLER)
        for work in (kernel.mkdir(root, NAME, 0o755, CALLER), kernel.unlink(root, NAME, CALLER)):
            await refused(errno.EPERM, work)

    assert bodies(run(tmp_path, main)) == {".sosfs/": b"", ".sosfs/.sosfs": b"theirs"}


def test_each_tree_is_told_what_the_kernel_has_forgotten_of_it(tmp_path: Path) -> None:
    """Also beside one that is gone, for an error here would end the mount."""

    async def main(whole: Whole) -> None:
        await put_all(whole.store, {"file": b"x"})
        number, control = await whole.number(b"file"), await whole.number(NAME)
        setting = await whole.number(b"setting", control)
        whole.past.is_pushed_out = True
        await whole.kernel.forget([(THEN + 1, 1), (number, 1), (setting, 1)])
        assert (whole.setting.lookups, whole.parts.inodes[number].lookups) == (0, 0)
        whole.past.is_pushed_out = False
        await whole.kernel.forget([(THEN + 1, 3)])
        assert whole.past.asked == [("forget", [(THEN + 1, 3)])]

    run(tmp_path, main)


def test_the_bucket_as_it_was_is_asked_for_what_is_in_it(tmp_path: Path) -> None:
    async def main(whole: Whole) -> None:
        number, asked = THEN + 7, whole.past.asked
        kernel: Any = whole.kernel
        assert await kernel.lookup(number, b"name", CALLER) == "lookup"
        assert await kernel.getattr(number, CALLER) == "getattr"
        assert await kernel.getxattr(number, b"user.colour", CALLER) == "getxattr"
        assert await kernel.listxattr(number, CALLER) == "listxattr"
        assert asked[2] == ("getxattr", number, b"user.colour", 0)
        assert [one[1] for one in asked] == [number] * 4
        for old, new in ((whole.root, number), (number, whole.root)):
            await refused(errno.EROFS, kernel.rename(old, b"a", new, b"b", 0, CALLER))
        for work in (whole.give(number, "colour", b"blue"), whole.take(number, "colour")):
            await refused(errno.EOPNOTSUPP, work)
        whole.past.is_pushed_out = True
        for work in (
            kernel.getattr(number, CALLER),
            kernel.listxattr(number, CALLER),
            kernel.lookup(number, b"a", CALLER),
        ):
            await refused(errno.ESTALE, work)

    run(tmp_path, main)


# Extended attributes


def test_what_no_attribute_of_the_user_is_is_answered_at_once(tmp_path: Path) -> None:
    """The kernel asks for it before each write, and `cp -a` sets it of each file."""

    async def main(whole: Whole) -> None:
        await put_all(whole.store, {"file.txt": b"x"})
        number, kernel, before = await whole.number(b"file.txt"), whole.kernel, whole.store.calls.copy()
        for name in (b"security.capability", b"system.posix_acl_access"):
            await refused(errno.EOPNOTSUPP, kernel.getxattr(number, name, CALLER))
            await refused(errno.EOPNOTSUPP, kernel.setxattr(number, name, b"x", CALLER))
            await refused(errno.EOPNOTSUPP, kernel.removexattr(number, name, CALLER))
        control = await whole.number(NAME)
        for work in (whole.get(control, "colour"), whole.give(control, "colour", b"x"), whole.take(control, "a")):
            await refused(errno.EOPNOTSUPP, work)
        assert await whole.names(control) == set()
        assert whole.store.calls == before

    run(tmp_path, main)


async def _with_all(whole: Whole) -> int:
    """A file that another client has given all that there is."""
    metadata = {"colour": "blue", "of_others": "form", "mode": str(stat.S_IFREG | 0o644), "uid": "0"}
    await whole.store.put("file.txt", BODY, Properties(WHOLE, metadata, "COLD"))
    return await whole.number(b"file.txt")


LISTED = {
    "colour", "of_others", "mime_type", "sos.cache-control", "sos.content-disposition", "sos.content-encoding",
    "sos.content-language", "sos.expires",
}  # fmt: skip


@pytest.mark.promise(8)
def test_what_a_copy_should_have_is_listed_and_nothing_else(tmp_path: Path) -> None:
    async def main(whole: Whole) -> None:
        await put_all(whole.store, {"plain.txt": b"x", "plain": b"x", "d/": b"", "e/x": b"x"})
        await whole.store.put("typed.txt", b"x", Properties(Headers(content_type="text/plain")))
        await whole.store.put("f/", b"", Properties(Headers(content_type="application/x-directory")))
        link = {"mode": str(stat.S_IFLNK | 0o777), "colour": "x"}
        await whole.store.put("link", b"target", Properties(metadata=link))
        number = await _with_all(whole)
        assert await whole.names(number) == LISTED
        for name in LISTED:
            assert await whole.get(number, name)
        for one in (b"plain.txt", b"plain", b"typed.txt", b"d", b"e", b"f"):
            assert await whole.names(await whole.number(one)) == set(), one
        assert await whole.names(await whole.number(b"link")) == set()

    run(tmp_path, main)


def test_headers_of_which_an_answer_tells_only_if_it_is_asked_for_all_are_asked_for(tmp_path: Path) -> None:
    async def main(whole: Whole) -> None:
        number = await _with_all(whole)
        await whole.get(number, "colour")
        assert (await whole.get(number, "sos.expires")).decode() == WHOLE.expires
        whole.mount.loop._clock.jump(2 * TTL)
        await whole.give(number, "sos.expires", b"Thu, 01 Dec 2033 16:00:00 GMT")
        await whole.take(number, "sos.expires")
        await refused(errno.ENODATA, whole.get(number, "sos.expires"))
        await refused(errno.ENODATA, whole.take(number, "sos.expires"))

    assert properties(run(tmp_path, main)).headers == replace(WHOLE, expires="")


def test_a_header_that_was_never_asked_for_is_taken_away(tmp_path: Path) -> None:
    async def main(whole: Whole) -> None:
        await whole.take(await _with_all(whole), "sos.expires")

    assert properties(run(tmp_path, main)).headers == replace(WHOLE, expires="")


@pytest.mark.promise(7)
def test_what_is_set_and_taken_away_is_shown_at_once_and_all_else_stays(tmp_path: Path) -> None:
    async def main(whole: Whole) -> None:
        number = await _with_all(whole)
        await whole.give(number, "of_others", b"as it was")
        await whole.give(number, "sos.cache-control", b"no-store")
        await whole.give(number, "Shape", b"\xff")
        assert await whole.get(number, "Shape") == b"\xff"
        assert await whole.get(number, "sos.cache-control") == b"no-store"
        await whole.take(number, "colour")
        await whole.take(number, "sos.content-language")
        for name in ("colour", "sos.content-language", "never set"):
            await refused(errno.ENODATA, whole.get(number, name))
            await refused(errno.ENODATA, whole.take(number, name))
        assert await whole.names(number) == (LISTED | {"Shape"}) - {"colour", "sos.content-language"}
        assert await whole.get(number, "sos.state") == b"dirty"

    found = properties(run(tmp_path, main))
    assert found.headers == replace(WHOLE, cache_control="no-store", content_language="")
    assert {name: value for name, value in found.metadata.items() if name not in ("uid", "gid", "mtime")} == {
        "xattr--53hape": "data:;base64,/w==",
        "of_others": "as it was",
        "mode": str(stat.S_IFREG | 0o644),
    }


def test_who_takes_the_type_away_leaves_that_of_the_name(tmp_path: Path) -> None:
    async def main(whole: Whole) -> None:
        number = await _with_all(whole)
        await whole.take(number, "mime_type")
        assert await whole.get(number, "mime_type") == b"text/plain"

    assert properties(run(tmp_path, main)).headers.content_type == "text/plain"


@pytest.mark.parametrize("when", ["before", "while it is sent"])
@pytest.mark.parametrize("durability", Durability)
def test_who_takes_the_type_of_a_new_file_away_leaves_that_of_the_name_that_it_will_have(
    tmp_path: Path, durability: Durability, when: str
) -> None:
    async def main(whole: Whole) -> None:
        new, entry = await whole.kernel.create(whole.root, b"new.txt", 0o644, os.O_WRONLY, CALLER)
        await whole.give(entry.st_ino, "mime_type", b"text/x-mine")
        if when == "before":
            await whole.take(entry.st_ino, "mime_type")
        await whole.kernel.rename(whole.root, b"new.txt", whole.root, b"new.html", 0, CALLER)
        going = whole.store.before["put", "new.html"] = trio.Event()
        await begun(whole.mount, partial(whole.kernel.flush, new.fh))
        whole.mount.loop._clock.jump(1.0)
        await trio.testing.wait_all_tasks_blocked()
        assert ("put", "new.html") in whole.store.reached
        if when != "before":
            await whole.take(entry.st_ino, "mime_type")
        assert await whole.get(entry.st_ino, "mime_type") == b"text/html"
        await settled(going)
        await whole.kernel.release(new.fh)

    store = run(tmp_path, main, durability=durability)
    assert properties(store, "new.html").headers.content_type == "text/html"
    assert (store.calls["put"], store.calls["copy"]) == (1, 0 if when == "before" else 1)


@pytest.mark.parametrize("durability", Durability)
def test_a_directory_whose_type_is_taken_away_is_stored_as_one_and_once(tmp_path: Path, durability: Durability) -> None:
    async def main(whole: Whole) -> None:
        number = (await whole.kernel.mkdir(whole.root, b"d", 0o755, CALLER)).st_ino
        for _ in range(2):
            await whole.give(number, "mime_type", b"text/x-mine")
            await whole.take(number, "mime_type")
        assert await whole.get(number, "mime_type") == b"application/x-directory"

    store = run(tmp_path, main, durability=durability)
    assert properties(store, "d/").headers.content_type == "application/x-directory"
    assert store.calls["put"] + store.calls["copy"] <= 2


@pytest.mark.promise(9)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EINVAL])
def test_what_no_object_can_have_is_refused_and_what_was_set_before_stays(tmp_path: Path, number: int) -> None:
    async def main(whole: Whole) -> None:
        file = await _with_all(whole)
        await whole.give(file, "first", b"1")
        if number == errno.ENOSPC:
            await refused(number, whole.give(file, "large", bytes(2000)))
            await refused(errno.ENODATA, whole.get(file, "large"))
        else:
            for name, value in (("sos.expires", b"tomorrow"), ("mime_type", b""), ("sos.cache-control", b"a\nb")):
                await refused(number, whole.give(file, name, value))
        assert await whole.get(file, "sos.cache-control") == WHOLE.cache_control.encode()

    found = properties(run(tmp_path, main))
    assert (found.headers, found.metadata["first"]) == (WHOLE, "1")


@pytest.mark.promise(3)
def test_an_attribute_that_finds_no_room_in_the_journal_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "no room")

    async def main(whole: Whole) -> None:
        number = await _with_all(whole)
        with monkeypatch.context() as patch:
            patch.setattr(whole.mount._journal, "save_attributes", full)
            await refused(errno.ENOSPC, whole.give(number, "colour", b"red"))
            await refused(errno.ENOSPC, whole.take(number, "colour"))
        assert await whole.get(number, "colour") == b"blue"

    assert properties(run(tmp_path, main)).metadata["colour"] == "blue"


def test_what_cannot_be_set_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    async def main(whole: Whole) -> None:
        number, read_only = await _with_all(whole), ("etag", "version-id", "storage-class", "sha256", "url", "state")
        for name in (*read_only, "presigned-url"):
            await refused(errno.EPERM, whole.give(number, f"sos.{name}", b"x"))
            await refused(errno.EPERM, whole.take(number, f"sos.{name}"))
        await refused(errno.EPERM, whole.take(number, "sos.acl"))
        for work in (whole.give(number, "sos.other", b"x"), whole.take(number, "sos.other")):
            await refused(errno.EOPNOTSUPP, work)
        await refused(errno.ENODATA, whole.get(number, "sos.other"))
        for work in (whole.give(whole.root, "colour", b"x"), whole.take(whole.root, "colour")):
            await refused(errno.EOPNOTSUPP, work)
        for name in ("url", "presigned-url", "etag", "acl", "version-id"):
            await refused(errno.ENODATA, whole.get(whole.root, f"sos.{name}"))

    assert properties(run(tmp_path, main)).headers == WHOLE


def test_what_the_key_may_not_write_gets_no_attribute(tmp_path: Path) -> None:
    async def main(whole: Whole) -> None:
        number = await _with_all(whole)
        whole.parts.attributes.permissions.add([Right.WRITE])
        whole.store.errors["upload_part", "file.txt"] = [denied()] * 5
        await refused(errno.EACCES, whole.give(number, "colour", b"red"))
        assert await whole.get(number, "colour") == b"blue"

    assert properties(run(tmp_path, main)).metadata["colour"] == "blue"


@pytest.mark.promise(13)
def test_another_user_neither_gets_a_link_nor_sets_acl_and_lock(tmp_path: Path) -> None:
    """The kernel asks for no more than the right to read or to write the file."""

    async def main(whole: Whole) -> None:
        number = await _with_all(whole)
        await refused(errno.EPERM, whole.get(number, "sos.presigned-url", OTHER))
        for name, value in (("acl", b"public-read"), ("retention", b"GOVERNANCE 9 days"), ("legal-hold", b"ON")):
            await refused(errno.EPERM, whole.give(number, f"sos.{name}", value, OTHER))
        for name in ("retention", "legal-hold"):
            await refused(errno.EPERM, whole.take(number, f"sos.{name}", OTHER))
        assert (await whole.get(number, "sos.url", OTHER)) == b"https://s3.test/bucket/file.txt"
        assert whole.store.set == []
        whole.parts.inodes[number].uid = OTHER.uid
        for ctx in (OTHER, CALLER):
            assert b"X-Amz-Signature=" in await whole.get(number, "sos.presigned-url", ctx)

    store = run(tmp_path, main)
    assert len(store._stored["file.txt"].acl.grants) == 1


def test_acl_and_lock_are_shown_and_set_in_the_bucket(tmp_path: Path) -> None:
    async def main(whole: Whole) -> None:
        number, store = await _with_all(whole), whole.store
        assert b"owner owner\n" in await whole.get(number, "sos.acl")
        await whole.give(number, "sos.acl", b"public-read")
        assert len(store._stored["file.txt"].acl.grants) == 2
        for name in ("retention", "legal-hold"):
            await refused(errno.ENODATA, whole.take(number, f"sos.{name}"))
        await refused(errno.ENODATA, whole.get(number, "sos.retention"))
        assert await whole.get(number, "sos.legal-hold") == b"OFF"
        assert whole.rejections.text() == ""
        await whole.give(number, "sos.legal-hold", b"ON")
        assert store.locks["file.txt"] == HELD
        await whole.give(number, "sos.retention", b"COMPLIANCE 2096-10-02T07:06:40Z")
        assert store.locks["file.txt"] == BOTH
        await refused(errno.EPERM, whole.take(number, "sos.retention"))
        await whole.take(number, "sos.legal-hold")
        assert store.locks["file.txt"] == replace(BOTH, is_held=False)

    run(tmp_path, main)


@pytest.mark.parametrize("name", ["acl", "retention", "legal-hold"])
def test_a_text_that_is_refused_is_told_with_the_reason(tmp_path: Path, name: str) -> None:
    async def main(whole: Whole) -> None:
        number = await _with_all(whole)
        await refused(errno.EINVAL, whole.give(number, f"sos.{name}", b"\xff nonsense"))
        assert f"{name.replace('-', ' ')} of file.txt".lower() in whole.rejections.text().lower()

    run(tmp_path, main)


def test_a_retention_that_is_to_be_taken_off_is_told_as_refused(tmp_path: Path) -> None:
    async def main(whole: Whole) -> None:
        number = await _with_all(whole)
        whole.store.locks["file.txt"] = KEPT
        await refused(errno.EPERM, whole.take(number, "sos.retention"))
        assert "retention of file.txt" in whole.rejections.text()

    run(tmp_path, main)


def test_what_the_object_is_is_told_as_the_bucket_has_it(tmp_path: Path) -> None:
    async def main(whole: Whole) -> None:
        await put_all(whole.store, {"plain": b"x", "e/x": b"x", "m/": b""})
        number = await _with_all(whole)
        version = whole.store._stored["file.txt"].object.version
        assert (await whole.get(number, "sos.etag")).decode() == version.etag
        assert await whole.get(number, "sos.storage-class") == b"COLD"
        assert await whole.get(number, "sos.version-id") == b"current"
        assert await whole.get(await whole.number(b"plain"), "sos.storage-class") == b"STANDARD"
        await refused(errno.ENODATA, whole.get(number, "sos.sha256"))
        for name in ("etag", "version-id", "storage-class", "sha256"):
            await refused(errno.ENODATA, whole.get(await whole.number(b"e"), f"sos.{name}"))
        assert await whole.get(await whole.number(b"m"), "sos.version-id") == b"current"
        whole.mount.loop._clock.jump(2 * TTL)
        await put_all(whole.store, {"file.txt": BODY + b"theirs"})
        assert (await whole.get(number, "sos.etag")).decode() == whole.store._stored["file.txt"].object.version.etag
        whole.mount.loop._clock.jump(2 * TTL)
        whole.store.errors["head", "file.txt"] = [silence("head")]
        await refused(errno.EIO, whole.get(number, "sos.etag"))

    run(tmp_path, main)


def test_a_hash_is_told_only_of_the_bytes_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(whole: Whole) -> None:
        number, head = await _with_all(whole), whole.store.head
        asked: list[Detail] = []

        async def hashed(key: str, *, detail: Detail = Detail.USUAL) -> Object:
            asked.append(detail)
            return replace(await head(key, detail=detail), sha256="hash", version_id="")

        monkeypatch.setattr(whole.store, "head", hashed)
        assert await whole.get(number, "sos.sha256") == b"hash"
        assert Detail.CHECKSUM in asked
        handle = await opened(whole.mount, path="file.txt")
        assert await whole.get(number, "sos.sha256") == b"hash"
        await whole.parts.file_io.write(handle, 0, b"other")
        await refused(errno.ENODATA, whole.get(number, "sos.sha256"))
        await whole.parts.file_io.fsync(handle.inode)
        assert await whole.get(number, "sos.sha256") == b"hash"
        assert await whole.get(number, "sos.state") == b"clean"
        await refused(errno.ENODATA, whole.get(number, "sos.version-id"))
        await closed(whole.mount, handle)

    run(tmp_path, main)


def test_the_state_of_a_file_is_where_its_bytes_are(tmp_path: Path) -> None:
    async def main(whole: Whole) -> None:
        await put_all(whole.store, {"file": b"x"})
        number, root = await _with_all(whole), whole.root
        assert await whole.get(number, "sos.state") == b"clean"
        assert await whole.get(root, "sos.state") == b"clean"
        handle = await opened(whole.mount, path="file.txt")
        await whole.parts.file_io.write(handle, 0, b"ours!")
        assert await whole.get(number, "sos.state") == b"dirty"
        going = whole.store.before["put", "file.txt"] = trio.Event()
        await begun(whole.mount, partial(closed, whole.mount, handle))
        assert await whole.get(number, "sos.state") == b"uploading"
        await settled(going)
        assert await whole.get(number, "sos.state") == b"clean"
        whole.parts.conflicts.kept.append("file.txt.conflict-host-time")
        assert await whole.get(number, "sos.state") == b"conflict"
        assert await whole.get(await whole.number(b"file"), "sos.state") == b"clean"

    run(tmp_path, main)


def test_a_directory_has_the_attributes_that_were_set_of_it(tmp_path: Path) -> None:
    async def main(whole: Whole) -> None:
        await put_all(whole.store, {"e/x": b"x"})
        number = await whole.number(b"e")
        await refused(errno.ENODATA, whole.get(number, "mime_type"))
        await whole.give(number, "colour", b"blue")
        assert await whole.get(number, "colour") == b"blue"
        assert await whole.names(number) == {"colour"}
        assert await whole.get(number, "sos.state") == b"dirty"
        await whole.parts.commits.commit_under(whole.parts.inodes.root)
        assert await whole.get(number, "colour") == b"blue"
        assert await whole.get(number, "sos.state") == b"clean"
        assert await whole.get(number, "mime_type") == b"application/x-directory"

    found = properties(run(tmp_path, main), "e/")
    assert (found.metadata["colour"], found.headers.content_type) == ("blue", "application/x-directory")


@pytest.mark.promise(3)
def test_who_has_open_what_another_client_replaced_sets_no_attribute_of_it(tmp_path: Path) -> None:
    """It would be told that it did, and nothing of it would ever be stored."""

    async def main(whole: Whole) -> None:
        number = await _with_all(whole)
        handle = (await whole.kernel.open(number, os.O_RDONLY, CALLER)).fh
        await whole.kernel.read(handle, 0, 2)
        await put_all(whole.store, {"file.txt": b"theirs, of another length"})
        whole.mount.loop._clock.jump(2 * TTL)
        await whole.mount.tree()
        for work in (whole.give(number, "colour", b"red"), whole.take(number, "colour")):
            await refused(errno.ESTALE, work)
        await whole.kernel.release(handle)

    assert dict(properties(run(tmp_path, main)).metadata) == {}


@pytest.mark.promise(4)
def test_what_another_client_has_set_of_the_same_bytes_stays(tmp_path: Path) -> None:
    theirs = {"colour": "red", "theirs": "new", "mode": str(stat.S_IFREG | 0o600), "uid": "7"}

    async def begin(whole: Whole) -> None:
        number = await _with_all(whole)
        whole.store.errors["copy", "file.txt"] = [denied("copy")]
        await whole.give(number, "ours", b"new")

    with locking(tmp_path) as (mount, store):
        mount.loop.run(lambda: begin(Whole(mount, store)))
        mount.loop.passes(2)
        mount.loop.run(lambda: store.put("file.txt", BODY, Properties(WHOLE, theirs)))
        mount.loop.passes(LONG)
    wanted = theirs | {"ours": "new"}
    found = properties(store).metadata
    assert {name: found[name] for name in wanted} == wanted
