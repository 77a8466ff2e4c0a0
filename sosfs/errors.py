"""Which errno an S3 answer becomes.

`OSError` is the error vocabulary of the whole program. A bad answer becomes a `StoreError` once, at the place where
it arrives (`xml.refusal_of`): with `from_s3` where an S3 server spoke, with `from_elsewhere` where a gateway, a
load balancer or a firewall did. Nobody above looks at HTTP again, and `operations` turns the errno into the answer
of the system call.

What follows from an answer depends on who gave it. An S3 server names an error in XML; only a HEAD has no body, and
then the server's request id tells. Without that a 404 is no absence, a 412 no lost race and a 403 no lack of a right:
they are failures, after which what is pending stays pending. Also an S3 server's NoSuchKey counts only where an
object was asked for: to a listing it says nothing. What is not understood is EIO. Pure values, safe from any thread.
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
    "NoSuchObjectLockConfiguration": errno.ENODATA,
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
    "InvalidBucketState": errno.EOPNOTSUPP,  # of a bucket with Object Lock, or without
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
    # Servers that keep keys as paths of files.
    "ExistingObjectIsFile": errno.ENOTDIR,
    "ExistingObjectIsDirectory": errno.EISDIR,
    "XMinioParentIsObject": errno.ENOTDIR,
    "XMinioObjectExistsAsDirectory": errno.EISDIR,
    "BucketAlreadyExists": errno.EEXIST,
    "BucketAlreadyOwnedByYou": errno.EEXIST,
    "BucketNotEmpty": errno.ENOTEMPTY,
    "TooManyBuckets": errno.EDQUOT,
    "BucketLimitExceeded": errno.EDQUOT,
    "OperationAborted": errno.EBUSY,  # another request makes or removes the same bucket
    "QuotaExceeded": errno.EDQUOT,
    "InvalidObjectState": errno.EREMOTEIO,
    "ObjectNotInActiveTierError": errno.EREMOTEIO,
    "InvalidRange": errno.ESTALE,
    "BadDigest": errno.EIO,
    "XAmzContentSHA256Mismatch": errno.EIO,  # the bytes changed on their way
    "SlowDown": errno.EIO,
    "ServiceUnavailable": errno.EIO,
    "InternalError": errno.EIO,
    "RequestTimeout": errno.ETIMEDOUT,
}

# For an S3 server's answer without a code that the table knows: that to a HEAD has none.
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

# For an answer that is no S3 server's, where it says more to a program than EIO would.
BY_STATUS_ELSEWHERE: dict[int, int] = {
    401: errno.EACCES,
    403: errno.EACCES,
    405: errno.EOPNOTSUPP,
    408: errno.ETIMEDOUT,
    413: errno.EFBIG,  # the limit of a proxy on bodies
    501: errno.EOPNOTSUPP,
    504: errno.ETIMEDOUT,
}

# Requests that ask for no object, so that NoSuchKey does not answer them.
_OF_NO_OBJECT = (
    *("ListBuckets", "ListObjects", "ListObjectVersions", "ListMultipartUploads"),
    *("CreateBucket", "DeleteBucket", "GetBucket", "PutBucket", "GetObjectLockConfiguration"),
    "PutObjectLockConfiguration",
    *("CreateMultipartUpload", "DeleteObjects"),
)
# What the program that reads the log should know beside the code.
_EXPLAINED = {
    "InvalidObjectState": "the object is archived: it has to be restored before it can be read or copied",
    "ObjectNotInActiveTierError": "the object is archived: it has to be restored before it can be read or copied",
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
    `repeated`: an earlier try may have taken effect, so that a conflict may be with ourselves. `elsewhere`: the
    answer is not an S3 server's.
    """

    def __init__(self, number: int, request: str, *, code: str = "", status: int = 0, detail: str = "") -> None:
        text = f"{request}: {code or os.strerror(number)}"
        super().__init__(number, f"{text} ({detail})" if detail else text)
        self.code = code
        self.status = status
        self.request = request
        self.detail = detail
        self.repeated = False
        self.elsewhere = False

    @property
    def cause(self) -> Cause:
        """Which of the few reactions fits; a lost answer, a 5xx, a time-out and a gateway's page are all FAILED."""
        if self.elsewhere:
            return Cause.FAILED
        if self.code in _UNAUTHENTICATED:
            return Cause.UNAUTHENTICATED
        return _CAUSES.get(self.errno or errno.EIO, Cause.FAILED)


def reason(error: OSError) -> str:
    """Why, without what was asked for: for who names that beside it."""
    if not isinstance(error, StoreError):
        return error.strerror or str(error)
    if not error.code:
        return error.detail or os.strerror(error.errno or errno.EIO)
    return f"{error.code} ({error.detail})" if error.detail else error.code


KEY_REFUSED = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"})
_UNAUTHENTICATED = KEY_REFUSED | {"RequestTimeTooSkewed"}
SERVER_FAILED = 500  # from this status on
_NEEDS_CODE = frozenset(
    {404, 409, 412, 416}
)  # with a code that the table has not they are neither absence nor conflict
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
        number = errno.EIO if code and status in _NEEDS_CODE else BY_STATUS.get(status, errno.EIO)
    if number == errno.ENOENT and request.startswith(_OF_NO_OBJECT):
        number = errno.EIO
    if number in (errno.ENOENT, errno.ESTALE) and status >= SERVER_FAILED:
        number = errno.EIO  # it failed, whatever it found out before
    detail = "; ".join(filter(None, (detail, _EXPLAINED.get(code))))
    return StoreError(number, request, code=code, status=status, detail=detail)


def from_elsewhere(request: str, *, status: int, detail: str) -> StoreError:
    """The error for an answer that no S3 server gave: never an absence and never a conflict, mostly EIO."""
    error = StoreError(BY_STATUS_ELSEWHERE.get(status, errno.EIO), request, status=status, detail=detail)
    error.elsewhere = True
    return error


def unanswered(request: str, detail: str, *, timed_out: bool = False) -> StoreError:
    """The error for a request that got no whole answer: refused, reset, cut short (EIO) or ETIMEDOUT."""
    return StoreError(errno.ETIMEDOUT if timed_out else errno.EIO, request, detail=detail)
