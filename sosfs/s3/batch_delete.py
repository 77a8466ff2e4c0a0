"""Delete any number of keys, in batches where the server takes them.

A batch names its keys in its body, and some servers (Ceph 16) ask for the right to remove from the whole bucket
before they look into it: a key limited to a prefix is refused what it may do one by one. One by one are removed as
well those of a batch whose answer speaks of other keys: XML changes some, and gateways write them in their own ways.

Concurrency: trio thread only; the one-by-one deletes go side by side.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from sosfs.concurrency.tasks import each
from sosfs.errors import Cause, StoreError
from sosfs.s3.dispatch import Dispatcher
from sosfs.s3.protocol import DELETE_MAX, Failure
from sosfs.s3.xml import UnclearBatch

if TYPE_CHECKING:
    from sosfs.s3.calls import SignedCalls

DELETES_AT_ONCE = 32


def goes_alone(error: StoreError) -> bool:
    """Whether a batch ended so that each of its keys may be removed by itself all the same."""
    return error.cause is Cause.DENIED or isinstance(error, UnclearBatch)


async def remove_all(
    dispatcher: Dispatcher, delete: Callable[[str], Awaitable[None]], keys: Sequence[str]
) -> list[Failure]:
    """Removes any number of keys, 1,000 a request; what could not be removed is returned, key by key."""
    failures: list[Failure] = []

    async def alone(key: str) -> None:
        try:
            await delete(key)
        except StoreError as error:
            failures.append(Failure(key, error))

    for at in range(0, len(keys), DELETE_MAX):
        batch = keys[at : at + DELETE_MAX]
        try:
            failures += await dispatcher.send("DeleteObjects", partial(_batch, batch))
        except StoreError as error:
            if goes_alone(error):
                await each(alone, batch, at_once=DELETES_AT_ONCE)
            else:
                failures += [Failure(key, error) for key in batch]
    return failures


def _batch(keys: Sequence[str], calls: SignedCalls) -> list[Failure]:
    return calls.delete_many(keys)
