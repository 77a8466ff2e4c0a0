"""Tell in words why a bucket cannot be mounted."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from sosfs.errors import Cause, StoreError
from sosfs.s3.dispatch import Dispatcher
from sosfs.s3.endpoint import S3Target

if TYPE_CHECKING:
    from sosfs.s3.calls import SignedCalls

REACH_PATIENCE = 3.0  # seconds: the user waits at a terminal

WORDS = {
    "NoSuchBucket": "there is no such bucket",
    "InvalidAccessKeyId": "the server does not know this access key",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "AccessDenied": "this key may not list it; one that is limited to a prefix mounts BUCKET/PREFIX",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "PermanentRedirect": "the bucket is in another zone",
}


NOT_PUBLIC = "it is not public: without a key nobody may list it"


def unreachable(error: StoreError, where: str, *, anonymous: bool = False) -> StoreError:
    """The refusal to list the bucket `where`, with its reason."""
    why = WORDS.get(error.code) or error.detail or error.code
    if anonymous and error.cause is Cause.DENIED:
        why = NOT_PUBLIC
    told = StoreError(error.errno or errno.EIO, where, code=error.code, status=error.status, detail=why)
    told.elsewhere = error.elsewhere
    return told


async def reach(dispatcher: Dispatcher, target: S3Target, prefix: str) -> None:
    """Returns if objects under `prefix` can be listed; else a StoreError that says in words why not, soon."""

    def ask(calls: SignedCalls) -> None:
        calls.within(REACH_PATIENCE).list(prefix, delimiter="", after="", token="", limit=1)

    try:
        await dispatcher.send("ListObjectsV2", ask)
    except StoreError as error:
        where, nobody = f"bucket {target.bucket!r} at {target.endpoint}", target.credentials.current().is_nobody
        raise unreachable(error, where, anonymous=nobody) from error
