"""Run commands such as `warm` and `drop` on a mount of all buckets, bucket by bucket.

The first name of a path is its bucket; the root stands for all. A bucket is entered to be warmed; to drop what is
known of one that nobody has entered there is nothing to do. One bucket comes after the other, so that what is in
flight is bounded as for one. What is told and tried of waiting changes asks no bucket, and enters none.

Concurrency: trio thread only.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from sosfs.buckets.bucket_list import BucketList
from sosfs.buckets.member import Member
from sosfs.filesystem.bucket import BucketMount
from sosfs.filesystem.pending_changes import TOLD, told, tried
from sosfs.filesystem.warm import NAMED
from sosfs.ipc.commands import NO_OPTIONS, Names, Options, Tell, Told, Work
from sosfs.ipc.pending import Change
from sosfs.s3.protocol import Bucket

ERRANDS = ("warm", "drop", "restore", "versions", "prune", "usage", "link")
WHOLE = frozenset({"changes", "entries", "usages", "links"})  # lists of which nothing is left out
NOTHING: Mapping[str, Told] = {  # what is told where there was no bucket to do it in; the other errands fail then
    "drop": {"files": 0, "memory_bytes": 0, "disk_bytes": 0, "kept_files": 0, "kept": []},
    "versions": {"entries": []},
    "usage": {"usages": []},
}


class Members(Protocol):
    """The buckets of a mount, as far as its commands need them: `registry.BucketRegistry`."""

    @property
    def bucket_list(self) -> BucketList:
        """Which buckets the account has."""

    @property
    def served(self) -> Sequence[BucketMount]:
        """The buckets that were entered."""

    def earlier(self) -> Sequence[Change]:
        """What an earlier mount left for others, and that could not be taken up yet."""

    def known(self, bucket: Bucket) -> Member:
        """The member for a bucket of the roster."""

    async def find(self, name: str) -> Member:
        """The bucket of that name. Raises ENOENT."""

    async def entered(self, member: Member) -> BucketMount:
        """The bucket, served from now on."""


def works(buckets: Members) -> Mapping[str, Work]:
    """The errands by name."""
    own = {errand: partial(_run, buckets, errand) for errand in ERRANDS}
    return own | {"pending": partial(_pending, buckets), "retry": partial(_retry, buckets)}


async def _run(buckets: Members, errand: str, paths: Sequence[Names], tell: Tell, options: Options) -> Told:
    total: Told = {}
    for member, inner in await _by_bucket(buckets, paths):
        served = await buckets.entered(member) if errand != "drop" else member.served
        if served is not None:
            _add(total, member.name, await served.errands[errand](inner, tell, options))
    if not total and errand not in NOTHING:
        raise OSError(errno.ENOENT, "there is no bucket")
    return total or dict(NOTHING[errand])


async def _pending(buckets: Members, paths: Sequence[Names], tell: Tell, options: Options = NO_OPTIONS) -> Told:
    return await _of_each("pending", buckets, paths, told(_earlier(buckets, paths)), tell)


async def _retry(buckets: Members, paths: Sequence[Names], tell: Tell, options: Options = NO_OPTIONS) -> Told:
    before = _earlier(buckets, paths)
    if before:
        await tried(before[0])  # takes up what waits of all buckets
    total = {"tried": len(before), **told(_earlier(buckets, paths))}
    return await _of_each("retry", buckets, paths, total, tell)


async def _of_each(
    errand: str, buckets: Members, paths: Sequence[Names], total: Told, tell: Tell, options: Options = NO_OPTIONS
) -> Told:
    """Adds up what the buckets tell that were entered; the paths get their names before them."""
    for served in buckets.served:
        name = served.settings.bucket
        inner = [path[1:] for path in paths if not path or path[0] == os.fsencode(name)]
        if inner:
            outcome = await served.errands[errand](inner, tell, NO_OPTIONS)
            changes = [{**one, "path": f"{name}/{one['path']}"} for one in outcome.pop("changes")]
            total["changes"] = sorted([*total["changes"], *changes], key=lambda one: float(one["since"]))[:TOLD]
            for count, value in outcome.items():
                total[count] += value
    return total


def _earlier(buckets: Members, paths: Sequence[Names]) -> list[Change]:
    return [one for one in buckets.earlier() if any(one.pending.is_under(path[:1]) for path in paths)]


async def _by_bucket(buckets: Members, paths: Sequence[Names]) -> Iterable[tuple[Member, list[Names]]]:
    found: dict[Member, list[Names]] = {}
    for path in paths:
        if path:
            found.setdefault(await buckets.find(os.fsdecode(path[0])), []).append(path[1:])
        else:
            await buckets.bucket_list.refresh()
            for bucket in list(buckets.bucket_list.listed.values()):
                found.setdefault(buckets.known(bucket), []).append(())
    return found.items()


def _add(total: Told, bucket: str, outcome: Told) -> None:
    """Adds one bucket's figures; the paths it names get its name before them."""
    for name, value in outcome.items():
        if isinstance(value, list):
            named = [*total.get(name, []), *(_below(bucket, one) for one in value)]
            total[name] = named if name in WHOLE else named[:NAMED]
        elif name == "cache_bytes":
            total[name] = value  # all have one disk cache
        else:
            total[name] = total.get(name, 0) + value


def _below(bucket: str, told: str | Sequence[Any]) -> str | Sequence[Any]:
    """A path, or what is told of one and begins with it."""
    return f"{bucket}/{told}" if isinstance(told, str) else [f"{bucket}/{told[0]}", *told[1:]]
