"""A page of a listing, or an answer about one name, is on its way, and what it shows is removed meanwhile.

In one process; another client's eyes are the store itself.
"""

from __future__ import annotations

from functools import partial

import trio

from sosfs.config.parameters import TTL
from sosfs.tree import keys
from tests.support.composed import Composed
from tests.support.held import Held, begun, put_all, settled, told


def test_what_was_removed_while_a_page_was_on_its_way_stays_removed_though_another_pass_has_begun(
    mount: Composed, store: Held
) -> None:
    outcomes: dict[str, object] = {}

    async def main() -> None:
        await put_all(store, {"d/": b"", "d/a": b"a", "d/b": b"b"})
        await mount.tree()
        parts, parent = mount.parts, await mount._walk("d")
        directory = parts.listings.directory(parent)
        mount.loop._clock.jump(2 * TTL)
        page = store.after["list", "d/"] = trio.Event()
        await begun(mount, partial(parts.listings.first_page, directory))
        await parts.namespace.unlink(parent, b"b", parts.namespace.listed(parent, b"b"))
        mount.loop._clock.jump(0.1)
        directory.doubt()  # names of it were forgotten for want of memory
        store.before["list", "d/"] = trio.Event()
        await begun(mount, partial(parts.listings.first_page, directory))
        await settled(page)
        await begun(mount, partial(told, outcomes, "b", partial(mount._walk, "d/b")))
        await settled(store.before["list", "d/"])
        assert "No such file" in str(outcomes["b"])

    mount.loop.run(main)


def test_what_was_removed_while_it_was_asked_for_by_name_stays_removed_though_a_pass_has_begun(
    mount: Composed, store: Held
) -> None:
    outcomes: dict[str, object] = {}

    async def main() -> None:
        await put_all(store, {"d/": b"", "d/a": b"a", "d/b": b"b"})
        await mount.tree()
        namespace, parent = mount.parts.namespace, await mount._walk("d")
        directory = namespace.directory(parent)
        answer = store.after["head", "d/b"] = trio.Event()
        ask = partial(namespace._ask_by_name, directory, b"b", keys.parse(b"b"))
        await begun(mount, partial(told, outcomes, "b", ask))
        await namespace.unlink(parent, b"b", namespace.listed(parent, b"b"))
        mount.loop._clock.jump(0.1)
        directory.begin("d/")
        await settled(answer)
        assert "No such file" in str(outcomes["b"])
        assert b"b" not in directory.entries

    mount.loop.run(main)
