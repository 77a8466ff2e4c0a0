"""Why a bucket cannot be mounted, in words for the user: decided here and only here. Pure, safe from any thread."""

from __future__ import annotations

import errno

from sosfs.errors import StoreError

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
    return StoreError(error.errno or errno.EIO, where, code=error.code, status=error.status, detail=why)
