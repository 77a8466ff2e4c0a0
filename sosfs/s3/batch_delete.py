"""Delete any number of keys, in batches where the server takes them.

A batch names its keys in its body, and some servers (Ceph 16) ask for the right to remove from the whole bucket
before they look into it: a key limited to a prefix is refused what it may do one by one. One by one are removed as
well those of a batch whose answer speaks of other keys: XML changes some, and gateways write them in their own ways.
So is what may only go as one version of it, where the server heeds that in a DeleteObject alone, or says in a batch
that another one is there: a DeleteObject that is refused is looked into.

Concurrency: trio thread only; the one-by-one deletes go side by side.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from sosfs.concurrency.tasks import each
from sosfs.errors import Cause, StoreError
from sosfs.s3.dispatch import Dispatcher
from sosfs.s3.protocol import DELETE_MAX, Failure, Version
from sosfs.s3.xml import UnclearBatch

if TYPE_CHECKING:
    from sosfs.s3.calls import SignedCalls

DELETES_AT_ONCE = 32


def goes_alone(error: StoreError) -> bool:
    """Whether a batch ended so that each of its keys may be removed by itself all the same."""
    return error.cause is Cause.DENIED or isinstance(error, UnclearBatch)


class Delete(Protocol):
    """Removes one key, with a version only that."""

    async def __call__(self, key: str, *, version: Version | None = None) -> None: ...


async def remove_all(
    dispatcher: Dispatcher, delete: Delete, keys: Sequence[str], versions: Mapping[str, Version], *, in_batches: bool
) -> list[Failure]:
    """Removes any number of keys, up to 1,000 a request; what could not be removed is returned, key by key.

    Of those in `versions` only that version; a batch has such keys too where it heeds their ETags (`in_batches`).
    """
    failures: list[Failure] = []

    async def alone(key: str) -> None:
        try:
            await delete(key, version=versions.get(key))
        except StoreError as error:
            failures.append(Failure(key, error))

    together = [key for key in keys if in_batches or key not in versions]
    for at in range(0, len(together), DELETE_MAX):
        batch = together[at : at + DELETE_MAX]
        etags = {key: versions[key].etag for key in batch if key in versions}
        try:
            failed = await dispatcher.send("DeleteObjects", partial(_batch, batch, etags))
        except StoreError as error:
            if goes_alone(error):
                await each(alone, batch, at_once=DELETES_AT_ONCE)
            else:
                failures += [Failure(key, error) for key in batch]
            continue
        refused = {one.key for one in failed if one.key in etags and one.error.errno == errno.ESTALE}
        failures += [one for one in failed if one.key not in refused]
        await each(alone, sorted(refused), at_once=DELETES_AT_ONCE)
    apart = [] if in_batches else [key for key in keys if key in versions]
    await each(alone, apart, at_once=DELETES_AT_ONCE)
    return failures


def _batch(keys: Sequence[str], etags: Mapping[str, str], calls: SignedCalls) -> list[Failure]:
    return calls.delete_many(keys, etags)
