"""The table of errors: only a 404 for a key is an absence, and nothing that is not understood passes for one."""

from __future__ import annotations

import errno

import pytest

from sosfs import errors
from sosfs.errors import Cause, StoreError, from_s3, unanswered


@pytest.mark.parametrize(
    ("code", "status", "number"),
    [
        ("NoSuchKey", 404, errno.ENOENT),
        ("NoSuchVersion", 404, errno.ENOENT),
        ("", 404, errno.ENOENT),
        ("NoSuchBucket", 404, errno.ENXIO),
        ("NoSuchUpload", 404, errno.ENXIO),
        ("AccessDenied", 403, errno.EACCES),
        ("", 403, errno.EACCES),
        ("ExpiredToken", 400, errno.EACCES),
        ("PreconditionFailed", 412, errno.ESTALE),
        ("ConditionalRequestConflict", 409, errno.ESTALE),
        ("", 416, errno.ESTALE),
        ("EntityTooLarge", 400, errno.EFBIG),
        ("BadDigest", 400, errno.EIO),
        ("SlowDown", 503, errno.EIO),
        ("", 504, errno.ETIMEDOUT),
        ("", 500, errno.EIO),
        ("NoSuchKey", 500, errno.EIO),
        ("QuotaExceeded", 403, errno.EDQUOT),
        ("MetadataTooLarge", 400, errno.ENOSPC),
        ("InvalidObjectState", 403, errno.EREMOTEIO),
        ("AccessControlListNotSupported", 400, errno.EOPNOTSUPP),
        *(("NeverHeardOf", status, errno.EIO) for status in (404, 409, 412, 416)),  # neither absence nor conflict
        ("NeverHeardOf", 400, errno.EINVAL),
        ("NeverHeardOf", 418, errno.EIO),
        ("", 301, errno.EIO),
        ("", 0, errno.EIO),
    ],
)
def test_answers(code: str, status: int, number: int) -> None:
    error = from_s3("GetObject 'key'", code=code, status=status)
    assert (error.errno, error.code, error.status) == (number, code, status)


def test_the_code_decides_before_the_status() -> None:
    assert from_s3("r", code="AccessDenied", status=404).errno == errno.EACCES
    assert from_s3("r", code="NoSuchKey", status=200).errno == errno.ENOENT


def test_absence_has_two_codes_and_one_status_only() -> None:
    assert {code for code, number in errors.BY_CODE.items() if number == errno.ENOENT} == {"NoSuchKey", "NoSuchVersion"}
    assert {status for status, number in errors.BY_STATUS.items() if number == errno.ENOENT} == {404}


@pytest.mark.parametrize("status", range(500, 600))
def test_no_failure_of_a_server_is_an_absence_or_a_conflict(status: int) -> None:
    assert from_s3("r", code="", status=status).cause in (Cause.FAILED, Cause.UNSUPPORTED)


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (errno.ENOENT, Cause.ABSENT),
        (errno.ESTALE, Cause.CONFLICT),
        (errno.EACCES, Cause.DENIED),
        (errno.EOPNOTSUPP, Cause.UNSUPPORTED),
        (errno.EIO, Cause.FAILED),
        (errno.ETIMEDOUT, Cause.FAILED),
        (errno.ENXIO, Cause.FAILED),
    ],
)
def test_causes(number: int, cause: Cause) -> None:
    assert StoreError(number, "r").cause is cause


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "ExpiredToken", "RequestTimeTooSkewed"])
def test_who_is_not_known_is_told_eacces_but_was_denied_nothing(code: str) -> None:
    error = from_s3("r", code=code, status=403)
    assert (error.errno, error.cause) == (errno.EACCES, Cause.UNAUTHENTICATED)


def test_it_is_an_os_error_that_says_what_was_asked() -> None:
    error = from_s3("GetObject 'a/b'", code="AccessDenied", status=403, detail="not yours")
    assert isinstance(error, OSError)
    assert str(error) == "[Errno 13] GetObject 'a/b': AccessDenied (not yours)"
    assert not error.repeated


def test_no_answer() -> None:
    assert unanswered("r", "reset").errno == errno.EIO
    assert unanswered("r", "silence", timed_out=True).errno == errno.ETIMEDOUT
    assert "reset" in str(unanswered("r", "reset"))
