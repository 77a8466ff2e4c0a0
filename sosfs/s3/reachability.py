"""Whether a bucket can be mounted and, in words for the user, why not. Trio thread."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from sosfs.errors import StoreError
from sosfs.s3.dispatch import Dispatcher
from sosfs.s3.endpoint import S3Target

if TYPE_CHECKING:
    from sosfs.s3.calls import SignedCalls

REACH_PATIENCE = 3.0  # seconds: who mounts waits at a terminal

WORDS = {
    "NoSuchBucket": "there is no such bucket",
    "InvalidAccessKeyId": "the server does not know this access key",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "AccessDenied": "this key may not list it; one that is limited to a prefix mounts BUCKET/PREFIX",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "PermanentRedirect": "the bucket is in another zone",
}


def unreachable(error: StoreError, where: str) -> StoreError:
    """The refusal to list the bucket `where`, with its reason."""
    why = WORDS.get(error.code) or error.detail or error.code
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
        raise unreachable(error, f"bucket {target.bucket!r} at {target.endpoint}") from error
