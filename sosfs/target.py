"""Where a bucket is and how long its server may take to answer: the values that all lanes share. Immutable."""

from __future__ import annotations

from dataclasses import dataclass

from sosfs.credentials import CredentialSource


@dataclass(frozen=True, slots=True)
class S3Target:
    """One bucket of one endpoint, addressed path style (`https://endpoint/bucket/key`), and who signs.

    Times are seconds. `patience` is how long after a request's start a further try of it may begin; after
    that a server that fails is EIO, one that says nothing ETIMEDOUT.
    """

    bucket: str
    endpoint: str
    region: str
    credentials: CredentialSource
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    patience: float = 25.0
