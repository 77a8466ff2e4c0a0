"""Who reads file after file finds the next ones here: told by the requests, which go together, and which in vain."""

from __future__ import annotations

import errno
import io
import os
import random
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio
import trio.testing

from sosfs.config.parameters import TTL
from sosfs.files.prefetch import AHEAD, ROOM, RUN, SMALL, SPREAD
from tests.conftest import Mounter
from tests.support.composed import Composed, composed
from tests.support.drive import Drive, fails
from tests.support.foreign import Foreign
from tests.support.held import Held, opened, put_all, silence
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import Traffic

TREE = {f"top/d{at // 6}/f{at:02}": bytes([at]) * 3000 for at in range(60)}


@pytest.fixture
def server(moto: Server) -> Server:
    """One server is enough: what is tested here happens before it."""
    return moto


@pytest.fixture
def tree(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> Drive:
    """Ten directories of six files."""
    foreign.put_all(TREE)
    return mounter(proxy.endpoint)


def read(drive: Drive, paths: list[str]) -> None:
    """Reads files, one after the other."""
    for path in paths:
        assert (drive.here / path).read_bytes() == TREE[path]


def asked(traffic: Traffic) -> list[str]:
    """The files that were asked for."""
    return sorted(request.key for request in traffic.of("GET", "HEAD") if request.key in TREE)


def test_tar_waits_for_few_files_and_asks_for_each_once(tree: Drive, proxy: Proxy) -> None:
    with proxy.recording() as traffic:
        packed = subprocess.run(["tar", "c", "top"], cwd=tree.here, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        found = {member.name: archive.extractfile(member) for member in archive.getmembers() if member.isfile()}
        assert {name: body.read() for name, body in found.items() if body} == TREE
    assert asked(traffic) == sorted(TREE)
    assert traffic.peak("GET") >= AHEAD // 4


def test_files_at_random_bring_no_others_along(tree: Drive, proxy: Proxy) -> None:
    some = random.Random(1).sample(sorted(TREE), 25)
    with proxy.recording() as traffic:
        read(tree, some)
    assert asked(traffic) == sorted(some)


def test_who_stops_has_asked_for_no_more_than_it_may(tree: Drive, proxy: Proxy) -> None:
    some = sorted(TREE)[:9]
    with proxy.recording() as traffic:
        read(tree, some)
    assert len(some) < len(asked(traffic)) <= len(some) + AHEAD


def test_who_reads_a_directory_wants_nothing_beside_it(tree: Drive, proxy: Proxy) -> None:
    list(tree.here.glob("top/*/*"))
    some = [name for name in sorted(TREE) if name.startswith("top/d3/")]
    with proxy.recording() as traffic:
        read(tree, some)
    assert asked(traffic) == some


def test_a_directory_of_more_than_one_page_is_followed_on(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    names = [f"many/{at:04}" for at in range(1060)]
    foreign.put_all({name: name.encode() for name in names})
    drive = mounter(proxy.endpoint)
    with proxy.recording() as traffic:
        for name in names[480:]:
            assert (drive.here / name).read_bytes() == name.encode()
    asked_for = [request for request in traffic.of("GET", "HEAD") if request.key in names]
    assert sorted(request.key for request in asked_for) == names[480:]
    first = [one for one in asked_for if "many/0500" <= one.key < "many/0600"]
    late = [one for one in asked_for if one.key >= "many/1010"]
    assert Traffic(first).peak() >= 4
    assert Traffic(late).peak() >= 4


def test_two_readers_do_not_disturb_each_other_for_long(tree: Drive, proxy: Proxy) -> None:
    names = sorted(TREE)
    with proxy.recording() as traffic:
        for first, second in zip(names[:30], names[30:], strict=True):
            read(tree, [first, second])
    assert asked(traffic) == names


def test_several_who_share_a_directory_do_not_wait_for_each_other(
    foreign: Foreign, mounter: Mounter, proxy: Proxy
) -> None:
    bodies = {f"many/{at:03}": b"%d" % at for at in range(240)}
    foreign.put_all(bodies)
    drive, names = mounter(proxy.endpoint), list(bodies)
    proxy.latency = 0.02
    with proxy.recording() as traffic, ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda first: {name: (drive.here / name).read_bytes() for name in names[first::8]}, range(8))
        assert {name: body for share in found for name, body in share.items()} == bodies
    asked_for = [request.key for request in traffic.of("GET", "HEAD") if request.key in bodies]
    assert sorted(asked_for) == names
    assert traffic.peak("GET") >= AHEAD // 2


def test_several_who_read_here_and_there_bring_no_others_along(
    foreign: Foreign, mounter: Mounter, proxy: Proxy
) -> None:
    foreign.put_all({f"many/{at:03}": b"%d" % at for at in range(900)})
    some = list(range(0, 900, SPREAD + 1))
    random.Random(4).shuffle(some)
    drive = mounter(proxy.endpoint)
    with proxy.recording() as traffic, ThreadPoolExecutor(4) as pool:
        for body in pool.map(lambda at: (at, (drive.here / "many" / f"{at:03}").read_bytes()), some):
            assert body == (body[0], b"%d" % body[0])
    asked_for = [request.key for request in traffic.of("GET", "HEAD") if request.key.startswith("many/")]
    assert sorted(set(asked_for) - {"many/"}) == sorted(f"many/{at:03}" for at in some)


def test_what_is_changed_after_it_was_fetched_ahead_shows_the_change(tree: Drive, proxy: Proxy) -> None:
    names = sorted(TREE)
    read(tree, names[:6])
    proxy.settle()
    for name in names[6:12]:
        (tree.here / name).write_bytes(b"changed")
    assert [(tree.here / name).read_bytes() for name in names[6:12]] == [b"changed"] * 6
    assert [Path(tree.here / name).stat().st_size for name in names[6:12]] == [7] * 6


def test_who_goes_on_elsewhere_is_followed_there(tree: Drive, proxy: Proxy) -> None:
    names = sorted(TREE)
    read(tree, names[:5])
    with proxy.recording() as traffic:
        read(tree, names[30:48])
    assert asked(traffic) == names[30:48]
    assert traffic.peak("GET") >= 3


# In one process, by what the bucket is asked and what is in memory


async def look(mount: Composed, *numbers: int) -> list[bytes]:
    """What who reads these files of `d` from the beginning is shown."""
    found = []
    for number in numbers:
        reader = await opened(mount, os.O_RDONLY, f"d/{number:02}")
        mount.parts.attributes.attribute_prefetch.opened()
        found.append(bytes(await mount.parts.file_io.read(reader, 0, reader.inode.size)))
        await mount.parts.file_io.release(reader)
        await trio.testing.wait_all_tasks_blocked()
    return found


async def list_forty(mount: Composed, store: Held, *, size: int = 5000) -> None:
    """Files of `d`, which is listed."""
    await put_all(store, {f"d/{number:02}": bytes([number]) * size for number in range(40)})
    await mount.parts.listings.complete(await mount._walk("d"))


def in_memory(mount: Composed) -> set[int]:
    """The files of which bytes are here; they are no more afterwards."""
    return {at for at in range(40) if mount.parts.blocks.forget(lambda key: key == f"d/{at:02}")}  # noqa: B023


def test_the_next_ones_are_here_for_who_comes_to_them(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await list_forty(mount, store)
        await look(mount, *range(RUN + 1))
        before = store.calls.copy()
        assert await look(mount, *range(RUN + 1, RUN + 4)) == [bytes([at]) * 5000 for at in range(RUN + 1, RUN + 4)]
        assert store.calls == before, "nor are more fetched as long as most of them are yet to be read"

    mount.loop.run(main)
    assert RUN + 4 <= max(in_memory(mount)) <= RUN + AHEAD


def test_who_reads_here_and_there_has_nothing_else_fetched(mount: Composed, store: Held) -> None:
    numbers = (7, 30, 2, 15, 21, 9)

    async def main() -> None:
        await list_forty(mount, store)
        await look(mount, *numbers)

    mount.loop.run(main)
    assert in_memory(mount) == set(numbers)


@pytest.mark.promise(11)
@pytest.mark.parametrize("size", [SMALL, SMALL + 1])
def test_what_is_fetched_ahead_takes_a_part_of_the_memory(tmp_path: Path, store: Held, size: int) -> None:
    with composed(store, tmp_path, memory=32 << 20) as mount:

        async def main() -> None:
            await list_forty(mount, store, size=size)
            await look(mount, *range(RUN + 1))

        mount.loop.run(main)
        found = in_memory(mount) - set(range(RUN + 1))
        most = mount.parts.blocks.capacity // ROOM // size + 1
        assert most < AHEAD
        assert (0 < len(found) <= most) if size <= SMALL else not found
        mount.loop.run(store.release)


def test_what_another_client_changed_after_it_was_fetched_ahead_is_shown_as_it_is(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await list_forty(mount, store)
        await look(mount, *range(RUN + 1))
        await put_all(store, {f"d/{RUN + 1:02}": b"\xff" * 5000})
        mount.loop._clock.jump(2 * TTL)
        assert await look(mount, RUN + 1) == [b"\xff" * 5000]

    mount.loop.run(main)


@pytest.mark.usefixtures("without_bugs")
def test_a_file_that_cannot_be_fetched_ahead_fails_nobody_but_who_reads_it(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await list_forty(mount, store)
        for what in ("get", "head"):
            store.errors[what, f"d/{RUN + 2:02}"] = [silence(what)] * 9
        assert await look(mount, *range(RUN + 2)) == [bytes([at]) * 5000 for at in range(RUN + 2)]
        with fails(errno.EIO):
            await look(mount, RUN + 2)
        store.errors.clear()
        assert await look(mount, RUN + 2, RUN + 3) == [bytes([at]) * 5000 for at in (RUN + 2, RUN + 3)]

    mount.loop.run(main)
