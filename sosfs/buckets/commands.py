"""What commands have a mount of all buckets do, bucket by bucket.

The first name of a path is its bucket; the root stands for all. A bucket is entered to be warmed; to drop what is
known of one that nobody has entered there is nothing to do. One bucket comes after the other, so that what is in
flight is bounded as for one.

Concurrency: trio thread only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from sosfs.buckets.bucket_list import BucketList
from sosfs.buckets.member import Member
from sosfs.filesystem.bucket import BucketMount
from sosfs.filesystem.warm import NAMED
from sosfs.ipc.commands import Names, Options, Tell, Told, Work
from sosfs.s3.protocol import Bucket

ERRANDS = ("warm", "drop", "restore", "versions", "prune")
WHOLE = frozenset({"changes", "entries"})  # lists of which nothing is left out
NOTHING_DROPPED = {"files": 0, "memory_bytes": 0, "disk_bytes": 0, "kept_files": 0, "kept": []}


class Members(Protocol):
    """The buckets of a mount, as far as its commands need them: `registry.Buckets`."""

    @property
    def bucket_list(self) -> BucketList:
        """Which buckets the account has."""

    def known(self, bucket: Bucket) -> Member:
        """The member for a bucket of the roster."""

    async def find(self, name: str) -> Member:
        """The bucket of that name. Raises ENOENT."""

    async def entered(self, member: Member) -> BucketMount:
        """The bucket, served from now on."""


def works(buckets: Members) -> Mapping[str, Work]:
    """The errands by name."""
    return {errand: partial(_run, buckets, errand) for errand in ERRANDS}


async def _run(buckets: Members, errand: str, paths: Sequence[Names], tell: Tell, options: Options) -> Told:
    total: Told = {}
    for member, inner in await _by_bucket(buckets, paths):
        served = await buckets.entered(member) if errand != "drop" else member.served
        if served is not None:
            _add(total, member.name, await served.errands[errand](inner, tell, options))
    return total or dict(NOTHING_DROPPED)


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
