"""The plain and the presigned URL of an object.

A presigned URL is made here, without a request: whoever has it may read the object until it expires, or store one
under its key, as far as the key that signed it may, and at that key's cost where the requester pays. There is none for
objects that are encrypted with a customer's key: no URL can carry that key, and a browser has no way to send it (S3
API, "Presigned URLs and SSE-C"). Concurrency: any thread.
"""

from __future__ import annotations

import errno
import ipaddress
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

from sosfs.s3.endpoint import S3Target
from sosfs.s3.http_headers import path_of


class Method(Enum):
    """What a presigned URL is good for."""

    GET = "GET"
    PUT = "PUT"


class Addressing(Enum):
    """Where a URL names the bucket."""

    PATH = "path"
    VIRTUAL_HOST = "virtual-host"  # in the host's name, as web sites and CORS want it


@dataclass(frozen=True, slots=True)
class Links:
    """The URLs of one bucket's objects. `lifetime` is seconds, for those that are asked for without one."""

    target: S3Target
    lifetime: int

    def url(self, key: str, addressing: Addressing = Addressing.PATH) -> str:
        """The object's address; it answers only who may read the object.

        Raises OSError EOPNOTSUPP where the bucket's name cannot be part of the host's.
        """
        endpoint = self.target.endpoint.rstrip("/")
        if addressing is Addressing.PATH:
            return f"{endpoint}/{self.target.bucket}/{path_of(key)}"
        return f"{self._host(endpoint)}/{path_of(key)}"

    def _host(self, endpoint: str) -> str:
        parts = urlsplit(endpoint)
        if _is_address(parts.hostname or ""):
            raise OSError(errno.EOPNOTSUPP, "the endpoint is an address, before which no bucket's name can stand")
        if parts.scheme == "https" and "." in self.target.bucket:
            raise OSError(errno.EOPNOTSUPP, "no certificate is good for a host with this bucket's dots before it")
        return f"{parts.scheme}://{self.target.bucket}.{parts.netloc}{parts.path}"

    def require_open(self) -> None:
        """Raises OSError EOPNOTSUPP where objects are encrypted with a customer's key: no URL has it."""
        if self.target.customer_key:
            raise OSError(errno.EOPNOTSUPP, "a link cannot carry the key that the object is encrypted with")

    def presigned(
        self,
        key: str,
        *,
        method: Method = Method.GET,
        lifetime: int | None = None,
        addressing: Addressing = Addressing.PATH,
    ) -> str:
        """An address that lets anybody GET or PUT the object for `lifetime` seconds from now.

        Raises OSError EOPNOTSUPP where objects are encrypted with a customer's key, or there is no key to sign with;
        and as `url`.
        """
        self.require_open()
        from botocore.auth import S3SigV4QueryAuth  # noqa: PLC0415 - not before the daemon has forked
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415
        from botocore.credentials import Credentials  # noqa: PLC0415

        used = self.target.credentials.current()
        if used.is_nobody:
            raise OSError(errno.EOPNOTSUPP, "without a key nothing can be signed")
        key_of = Credentials(used.access_key, used.secret_key, used.token or None)
        request = AWSRequest(method=method.value, url=self.url(key, addressing), params=self.target.payer.headers)
        expires = self.lifetime if lifetime is None else lifetime
        S3SigV4QueryAuth(key_of, "s3", self.target.region, expires=expires).add_auth(request)
        return str(request.url)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
