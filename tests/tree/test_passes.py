"""What is told by a pass through a directory, by its window, and by who reads it; and which files may be forgotten."""

from __future__ import annotations

import errno
import stat
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import cast

import pytest
import trio
import trio.testing

from sosfs.metadata import user_metadata
from sosfs.s3.protocol import Properties
from sosfs.s3.scratch_key import of_zeros
from sosfs.tree.inodes import (
    PENDING,
    Defaults,
    Directory,
    FileState,
    Inode,
    Inodes,
    Known,
    Pass,
    Reading,
    held,
    is_hidden,
    require_free,
)
from sosfs.tree.keys import CONTROL, HIDDEN, NAME_MAX, Form, shown_in_root
from tests.support.drive import fails

FILE, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777
TTL = 10.0


@pytest.fixture
def inodes() -> Inodes:
    return Inodes("", Defaults(0, 0, 0o022, 0))


def directory_of(inodes: Inodes, segment: str = "d") -> Directory:
    """A directory in the root."""
    inode = inodes.make(inodes.root, segment, Form.PLAIN, mode=DIRECTORY)
    inode.directory = Directory(inode)
    return inode.directory


def file_of(inodes: Inodes, directory: Directory, segment: str, mode: int = FILE) -> Inode:
    """One that the kernel has."""
    inode = inodes.make(directory.inode, segment, Form.PLAIN, mode=mode)
    inode.lookups = 2
    directory.entries[inode.name] = inode
    return inode


def at_any_time(work: Callable[[trio.testing.MockClock], Awaitable[None]]) -> None:
    clock = trio.testing.MockClock()
    clock.jump(100)
    trio.run(work, clock, clock=clock)


def test_a_pass_of_a_directory_that_was_renamed_goes_on_where_it_was() -> None:
    walk = Pass("old/", started=1.0)
    walk.begin, walk.reach, walk.token, walk.after = "old/b", "old/m", "of old", ""
    walk.tokens.add("of old")
    walk.follow("old/")
    assert (walk.token, walk.after, walk.tokens) == ("of old", "", {"of old"})
    walk.follow("longer/")
    assert (walk.prefix, walk.begin, walk.reach) == ("longer/", "longer/b", "longer/m")
    assert (walk.token, walk.after) == ("", "longer/m")
    assert walk.tokens == set(), "a server without order begins anew, and with the same ones once it has its old name"
    begun = Pass("old/", started=1.0)
    begun.follow("longer/")
    assert (begun.begin, begun.reach, begun.after) == ("", "", "")


@pytest.mark.parametrize(
    ("segment", "reach", "is_covered"),
    [
        *(("a", "d/m", False), ("b", "d/m", False), ("c", "d/m", True), ("m", "d/m", False), ("n", "d/m", False)),
        *(("m", "d/m/x", False), ("m", "d/m!", False), ("m", "d/m1", True)),
    ],
)
def test_a_name_that_a_page_would_have_shown_is_one_between_its_ends(
    segment: str, reach: str, is_covered: bool
) -> None:
    """As an object and as a prefix: keys below `m/` come after `m!`."""
    walk = Pass("d/", started=1.0)
    walk.begin, walk.reach = "d/b", reach
    assert walk.covers(segment) is is_covered
    walk.done = True
    assert walk.covers(segment) is (segment > "b"), "the last page shows all that follows"


def test_what_is_known_is_trusted_until_it_is_old_or_was_dropped(inodes: Inodes) -> None:
    directory = directory_of(inodes)

    async def look(clock: trio.testing.MockClock) -> None:
        def list_it() -> None:
            walk = directory.begin("d/")
            walk.done = True
            directory.window = Pass("d/")
            directory.window.done = True

        def trusted() -> tuple[bool, bool, bool]:
            return directory.is_known(TTL), directory.is_young(TTL), directory.has_window("a", TTL)

        list_it()
        assert trusted() == (True, True, True)
        assert directory.now is not None
        directory.now.done = False
        assert trusted() == (False, True, True)
        clock.jump(TTL)
        assert trusted() == (False, False, False)
        list_it()
        directory.forgotten = trio.current_time()
        assert trusted() == (False, False, False)
        clock.jump(0.1)
        list_it()
        directory.begin("d/")
        assert not directory.has_window("a", TTL), "a newer pass"
        list_it()
        directory.doubt()
        assert trusted() == (False, False, False)
        assert directory.doubted == trio.current_time()

    at_any_time(look)


def test_what_was_changed_here_before_a_pass_began_is_noted_no_more(inodes: Inodes) -> None:
    directory = directory_of(inodes)

    async def look(clock: trio.testing.MockClock) -> None:
        for name, when in ((b"before", None), (b"pending", PENDING)):
            directory.take(name, when=when)
        changed = trio.current_time()
        clock.jump(1)
        directory.put(file_of(inodes, directory, "now"))
        walk = directory.begin("d/")
        assert set(directory.touched) == {b"now", b"pending"}
        assert directory.unnoted == changed
        untouched = [name for name in (b"before", b"pending", b"now") if directory.untouched(name, walk)]
        assert untouched == [b"before"]

    at_any_time(look)


def test_a_reader_needs_the_names_that_it_was_not_told_yet(inodes: Inodes) -> None:
    directory = directory_of(inodes)
    walk = Pass("d/", started=1.0)
    for name in (b"a", b"b", b"c"):
        walk.show(name)
    reading = Reading(directory, walk)
    reading.comes_to(1)
    assert [name for name in (b"a", b"b", b"c", b"other") if reading.has_told(name)] == [b"a", b"other"]
    reading.close()
    assert not directory.readers


def test_only_what_its_name_tells_all_of_may_be_forgotten(inodes: Inodes) -> None:
    directory = directory_of(inodes)
    plain = file_of(inodes, directory, "a")
    assert inodes.may_lend(plain)
    assert not inodes.may_lend(file_of(inodes, directory, "l", LINK))
    assert not inodes.may_lend(file_of(inodes, directory, "s" * (NAME_MAX + 1)))
    plain.parent = None
    assert not inodes.may_lend(plain)


def test_what_is_kept_has_its_name_and_number_again_but_for_a_name_that_another_one_has(inodes: Inodes) -> None:
    directory = directory_of(inodes)
    files = [file_of(inodes, directory, segment) for segment in "ab"]
    unknown = file_of(inodes, directory, "c")
    unknown.lookups = 0
    inodes.lend(directory.inode, [*files, unknown])
    directory.entries.clear()
    assert inodes.has_lent(directory.inode)
    inodes.give_back(files[0].number, 1)
    other = file_of(inodes, directory, "b")
    for one in (*files, unknown):
        inodes.keep(one)
    assert directory.inode.directory is directory
    assert directory.entries == {b"a": files[0], b"b": other, b"c": unknown}
    assert [one.lookups for one in (*files, unknown)] == [1, 2, 0]
    assert all(inodes.find(one.number) is one for one in files)
    assert not inodes.has_lent(directory.inode)


def test_nothing_is_made_where_no_listing_would_show_it(inodes: Inodes) -> None:
    folder = directory_of(inodes).inode
    hidden, inner = directory_of(inodes, HIDDEN).inode, inodes.make(folder, HIDDEN, Form.PLAIN, mode=DIRECTORY)
    refused = [(inodes.root, HIDDEN), (hidden, "a"), (inodes.make(hidden, "b", Form.PLAIN, mode=DIRECTORY), "a")]
    for parent, segment in [*refused, (folder, of_zeros(""))]:
        with fails(errno.EINVAL):
            require_free(parent, segment)
    for parent, segment in [(inodes.root, "a"), (folder, HIDDEN), (inner, "a")]:
        require_free(parent, segment)
    assert is_hidden(hidden) and not is_hidden(inner)
    assert not is_hidden(inodes.make(inodes.root, HIDDEN, Form.PLAIN, mode=FILE))


@pytest.mark.parametrize("prefix", ["", "deep/"])
def test_the_root_stays_and_has_a_marker_only_below_a_prefix(prefix: str) -> None:
    inodes = Inodes(prefix, Defaults(0, 0, 0o022, 0))
    inodes.drop(inodes.root)
    assert inodes.find(inodes.root.number) is inodes.root and inodes.has_name(inodes.root)
    assert inodes.has_object(inodes.root) is bool(prefix)
    assert (inodes.root.known, inodes.root.whole) == ((Known.SIZE, False) if prefix else (Known.ALL, True))
    assert inodes.key(inodes.root) == prefix
    control = inodes.make(inodes.root, CONTROL, Form.PLAIN, mode=DIRECTORY)
    assert inodes.names(control) == (shown_in_root(CONTROL.encode()),)


@pytest.mark.parametrize(("is_dirty", "shows"), [(None, 5), (False, 5), (True, 9)])
def test_a_time_that_another_client_has_set_is_shown_but_for_other_bytes(
    inodes: Inodes, is_dirty: bool | None, shows: int
) -> None:
    file = inodes.make(inodes.root, "a", Form.PLAIN, mode=FILE)
    file.mtime_ns = 9
    if is_dirty is not None:
        file.open_file = cast(FileState, SimpleNamespace(draft=SimpleNamespace(is_dirty=is_dirty)))
    file.follow(Properties(metadata=user_metadata.write({}, user_metadata.Posix(FILE, 0, 0, 5, None))))
    assert file.mtime_ns == shows


def test_what_is_asked_for_by_a_number_that_was_forgotten_is_back_and_unread(inodes: Inodes) -> None:
    directory, gone = directory_of(inodes), directory_of(inodes, "gone")

    async def look(clock: trio.testing.MockClock) -> None:
        numbers = {}
        for one in (directory, gone):
            file = file_of(inodes, one, "a")
            inodes.lend(one.inode, [file])
            numbers[one] = file.number
            one.entries.clear()
        del file
        inodes.give_back(numbers[directory], 1)
        gone.inode.parent = None
        back = inodes[numbers[directory]]
        assert (back.lookups, back.used, back.whole) == (1, trio.current_time(), False)
        assert back.is_unread and directory.entries == {b"a": back}
        assert inodes[numbers[gone]].parent is None, "ESTALE for whoever has it"

    at_any_time(look)


def test_what_nobody_has_leaves_no_number(inodes: Inodes) -> None:
    directory = directory_of(inodes)
    file = file_of(inodes, directory, "a")
    file.lookups = 0
    inodes.lend(directory.inode, [file])
    assert not inodes.has_lent(directory.inode) and inodes.find(file.number) is None


def test_what_the_bucket_may_lack_is_shown_by_a_pass_from_its_beginning(inodes: Inodes) -> None:
    directory = directory_of(inodes)
    file_of(inodes, directory, "stored")
    file_of(inodes, directory, "new").pins = 1

    async def look(clock: trio.testing.MockClock) -> None:
        assert directory.begin("d/").names[:] == [b"new"]

    at_any_time(look)


@pytest.mark.parametrize("by", ["lookups", "opens", "pins"])
def test_whoever_has_it_holds_it(inodes: Inodes, by: str) -> None:
    file = inodes.make(inodes.root, "a", Form.PLAIN, mode=FILE)
    assert not held(file)
    setattr(file, by, 1)
    assert held(file)


def test_what_calls_itself_a_directory_is_bytes_under_its_name(inodes: Inodes) -> None:
    file = inodes.make(inodes.root, "dir", Form.PLAIN, mode=FILE)
    file.learn(Properties(metadata={"mode": str(stat.S_IFDIR | 0o750)}), whole=True)
    assert file.mode == stat.S_IFREG | 0o750


@pytest.mark.parametrize("prefix", ["", "p/"])
def test_what_no_name_leads_to_has_neither_a_key_nor_an_object(prefix: str) -> None:
    """Else it would be that of a file of the root, or of the mount's own directory."""
    inodes = Inodes(prefix, Defaults(0, 0, 0o022, 0))
    directory = directory_of(inodes)
    inode = file_of(inodes, directory, "a")
    assert (inodes.key(inode), inodes.key(inodes.root), inodes.names(inode)) == (f"{prefix}d/a", prefix, (b"d", b"a"))
    assert (inodes.has_object(inode), inodes.has_object(inodes.root)) == (True, prefix != "")
    assert inodes.has_key(inode, f"{prefix}d/a")
    directory.inode.parent = None
    assert not inodes.has_key(inode, f"{prefix}a")
    for one in (inode, directory.inode):
        with fails(errno.ESTALE):
            inodes.key(one)
    inode.parent = None
    assert not inodes.has_object(inode) and not inodes.has_key(inode, prefix)
    assert inodes.names(inodes.root) == ()
    assert inodes.path(inodes.root, "/mnt") == "/mnt"
