"""The plain and the presigned URL of an object.

A presigned URL is made here, without a request: whoever has it may read the object until it expires, as far as
the key that signed it may, and at that key's cost where the requester pays. There is none for objects that are
encrypted with a customer's key: no URL can carry that key, and a browser has no way to send it (S3 API, "Presigned
URLs and SSE-C"). Concurrency: any thread.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from sosfs.s3.endpoint import S3Target
from sosfs.s3.http_headers import path_of


@dataclass(frozen=True, slots=True)
class Links:
    """The URLs of one bucket's objects. `lifetime` is seconds."""

    target: S3Target
    lifetime: int

    def url(self, key: str) -> str:
        """The object's address; it answers only who may read the object."""
        return f"{self.target.endpoint.rstrip('/')}/{self.target.bucket}/{path_of(key)}"

    def presigned(self, key: str) -> str:
        """An address that lets anybody GET the object for `lifetime` seconds from now.

        Raises OSError EOPNOTSUPP where objects are encrypted with a customer's key, or there is no key to sign with.
        """
        if self.target.customer_key:
            raise OSError(errno.EOPNOTSUPP, "a link cannot carry the key that the object is encrypted with")
        from botocore.auth import S3SigV4QueryAuth  # noqa: PLC0415 - not before the daemon has forked
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415
        from botocore.credentials import Credentials  # noqa: PLC0415

        used = self.target.credentials.current()
        if used.is_nobody:
            raise OSError(errno.EOPNOTSUPP, "without a key nothing can be signed")
        key_of = Credentials(used.access_key, used.secret_key, used.token or None)
        request = AWSRequest(method="GET", url=self.url(key), params=self.target.payer.headers)
        S3SigV4QueryAuth(key_of, "s3", self.target.region, expires=self.lifetime).add_auth(request)
        return str(request.url)
