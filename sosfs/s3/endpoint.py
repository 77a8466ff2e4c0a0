"""Where a bucket is, whom to trust on the way, and how long its server may take.

Immutable.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import urlsplit

from sosfs.config.credentials import CredentialSource
from sosfs.config.parameters import Settings
from sosfs.s3 import certificate_authorities
from sosfs.s3.customer_key import CustomerKey
from sosfs.s3.traffic import Traffic


class Payer(Enum):
    """Who pays for requests and transfer."""

    OWNER = "owner"  # of the bucket
    REQUESTER = "requester"  # whose key signs; a bucket that asks for that refuses all other requests

    @property
    def headers(self) -> dict[str, str]:
        """What each request says of it."""
        return {"x-amz-request-payer": self.value} if self is Payer.REQUESTER else {}


@dataclass(frozen=True, slots=True)
class S3Target:
    """One bucket of one endpoint, addressed path style (`https://endpoint/bucket/key`), and who signs.

    Times are seconds. `patience` is how long after a request's start a further try of it may begin; after
    that a server that fails is EIO, one that says nothing ETIMEDOUT. `customer_key` encrypts every object.
    `ca_bundle` is a file of trusted certificates, "" for those of the system. All lanes to it tell one `traffic`.
    """

    bucket: str
    endpoint: str
    region: str
    credentials: CredentialSource
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    patience: float = 25.0
    customer_key: CustomerKey | None = None
    payer: Payer = Payer.OWNER
    ca_bundle: str = ""
    traffic: Traffic = field(default_factory=Traffic, compare=False, repr=False)

    @property
    def is_clear(self) -> bool:
        """Whether requests go in the clear; else TLS keeps them whole."""
        return urlsplit(self.endpoint).scheme != "https"

    @classmethod
    def of(cls, settings: Settings, source: CredentialSource) -> S3Target:
        """What a mount with these settings talks to. Raises `CustomerKeyError`."""
        return cls(
            settings.bucket,
            settings.endpoint,
            settings.region,
            source,
            read_timeout=settings.timeout,
            patience=settings.patience,
            customer_key=CustomerKey.read(settings.sse_c_key) if settings.sse_c_key else None,
            payer=Payer.REQUESTER if settings.requester_pays else Payer.OWNER,
            ca_bundle=certificate_authorities.bundle_of(settings).path,
        )
