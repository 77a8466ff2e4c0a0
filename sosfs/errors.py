"""Which errno an S3 answer becomes: decided here and only here.

`OSError` is the error vocabulary of the whole program. The lanes turn what their library raises into a
`StoreError` with `from_s3`, once, at the place where it happens; nobody above looks at HTTP again, and
`operations` turns the errno into the answer of the system call.

Only a 404 is an absence: ENOENT is answered for NoSuchKey and NoSuchVersion, and for a HEAD whose 404
has no body. Everything that is not understood is EIO. Pure values, safe from any thread.
"""

import errno
import os
from enum import Enum

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})  # this machine's disk has no room, or none for this user

# S3 error code -> errno (API reference, "List of error codes"; SOS adds none that is documented).
BY_CODE: dict[str, int] = {
    "NoSuchKey": errno.ENOENT,
    "NoSuchVersion": errno.ENOENT,
    # The bucket of a mount is gone: that says nothing of a file, so it must not look like its absence.
    "NoSuchBucket": errno.ENXIO,
    "NoSuchUpload": errno.ENXIO,
    "NoSuchCORSConfiguration": errno.ENODATA,
    "NoSuchBucketPolicy": errno.ENODATA,
    "AccessDenied": errno.EACCES,
    "AllAccessDisabled": errno.EACCES,
    "AccountProblem": errno.EACCES,
    "InvalidAccessKeyId": errno.EACCES,
    "SignatureDoesNotMatch": errno.EACCES,
    "ExpiredToken": errno.EACCES,
    "InvalidToken": errno.EACCES,
    "RequestTimeTooSkewed": errno.EACCES,
    "AccessControlListNotSupported": errno.EOPNOTSUPP,
    "NotImplemented": errno.EOPNOTSUPP,
    "MethodNotAllowed": errno.EOPNOTSUPP,
    "UnsupportedArgument": errno.EOPNOTSUPP,
    "PreconditionFailed": errno.ESTALE,
    "ConditionalRequestConflict": errno.ESTALE,
    "KeyTooLongError": errno.ENAMETOOLONG,
    "KeyTooLong": errno.ENAMETOOLONG,
    "MetadataTooLarge": errno.ENOSPC,
    "EntityTooLarge": errno.EFBIG,
    "EntityTooSmall": errno.EINVAL,
    "InvalidArgument": errno.EINVAL,
    "InvalidRequest": errno.EINVAL,
    "InvalidPart": errno.EINVAL,
    "InvalidPartOrder": errno.EINVAL,
    "InvalidBucketName": errno.EINVAL,
    "MalformedACLError": errno.EINVAL,
    "MalformedXML": errno.EINVAL,
    "MalformedPolicy": errno.EINVAL,
    "InvalidObjectName": errno.EINVAL,
    "XMinioInvalidResourceName": errno.EINVAL,
    "BucketAlreadyExists": errno.EEXIST,
    "BucketAlreadyOwnedByYou": errno.EEXIST,
    "BucketNotEmpty": errno.ENOTEMPTY,
    "TooManyBuckets": errno.EDQUOT,
    "BucketLimitExceeded": errno.EDQUOT,
    "OperationAborted": errno.EBUSY,  # another request makes or removes the same bucket
    "QuotaExceeded": errno.EDQUOT,
    "InvalidObjectState": errno.EREMOTEIO,
    "InvalidRange": errno.ESTALE,
    "BadDigest": errno.EIO,
    "SlowDown": errno.EIO,
    "ServiceUnavailable": errno.EIO,
    "InternalError": errno.EIO,
    "RequestTimeout": errno.ETIMEDOUT,
}

# For an answer without a code that the table knows: a HEAD has no body, proxies invent codes.
BY_STATUS: dict[int, int] = {
    400: errno.EINVAL,
    401: errno.EACCES,
    403: errno.EACCES,
    404: errno.ENOENT,
    405: errno.EOPNOTSUPP,
    408: errno.ETIMEDOUT,
    409: errno.ESTALE,
    412: errno.ESTALE,
    413: errno.EFBIG,
    416: errno.ESTALE,
    501: errno.EOPNOTSUPP,
    504: errno.ETIMEDOUT,
}


class Cause(Enum):
    """What a caller may have to tell apart beyond the errno."""

    ABSENT = "absent"
    CONFLICT = "conflict"
    DENIED = "denied"
    UNAUTHENTICATED = "unauthenticated"  # says nothing of what may be done: with a valid key a later try succeeds
    UNSUPPORTED = "unsupported"
    FAILED = "failed"


class StoreError(OSError):
    """A request that the store refused or that did not come through, with its errno.

    `code` is the S3 error code ("" where there is none), `status` the HTTP status (0 where no answer
    came), `request` what was asked, for the log: operation and key, `detail` what was said of it.
    `repeated`: an earlier try may have taken effect, so that a conflict may be with ourselves.
    """

    def __init__(self, number: int, request: str, *, code: str = "", status: int = 0, detail: str = "") -> None:
        text = f"{request}: {code or os.strerror(number)}"
        super().__init__(number, f"{text} ({detail})" if detail else text)
        self.code = code
        self.status = status
        self.request = request
        self.detail = detail
        self.repeated = False

    @property
    def cause(self) -> Cause:
        """Which of the few reactions fits; a lost answer, a 5xx and a time-out are all FAILED."""
        if self.code in _UNAUTHENTICATED:
            return Cause.UNAUTHENTICATED
        return _CAUSES.get(self.errno or errno.EIO, Cause.FAILED)


KEY_REFUSED = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"})
_UNAUTHENTICATED = KEY_REFUSED | {"RequestTimeTooSkewed"}
_CAUSES = {
    errno.ENOENT: Cause.ABSENT,
    errno.ESTALE: Cause.CONFLICT,
    errno.EACCES: Cause.DENIED,
    errno.EOPNOTSUPP: Cause.UNSUPPORTED,
}


def from_s3(request: str, *, code: str, status: int, detail: str = "") -> StoreError:
    """The error for one S3 answer: by its code where the table has it, else by its HTTP status, else EIO."""
    number = BY_CODE.get(code)
    if number is None:
        number = BY_STATUS.get(status, errno.EIO)
    return StoreError(number, request, code=code, status=status, detail=detail)


def unanswered(request: str, detail: str, *, timed_out: bool = False) -> StoreError:
    """The error for a request that got no whole answer: refused, reset, cut short (EIO) or ETIMEDOUT."""
    return StoreError(errno.ETIMEDOUT if timed_out else errno.EIO, request, detail=detail)
