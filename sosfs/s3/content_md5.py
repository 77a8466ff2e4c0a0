"""Send Content-MD5 where a server insists on it.

AWS stores nothing without one in a bucket whose objects it locks by themselves (Object Lock with a default retention),
and says so with a 400. A hash costs 1.6 s of CPU a GB: so it is sent from the first such refusal on.

Concurrency: trio thread only; `ContentMd5` is one store's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import TypeVar

from sosfs.errors import StoreError
from sosfs.s3.http_headers import content_md5
from sosfs.s3.protocol import PartBody

T = TypeVar("T")

Send = Callable[[Mapping[str, str]], Awaitable[T]]


def asks_for_md5(error: StoreError) -> bool:
    """Whether a refusal is for want of a Content-MD5: of what the bucket is to lock.

    Whatever its errno: that of a copy may have been explained by an encryption key (`customer_key`).
    """
    return error.status == HTTPStatus.BAD_REQUEST and not error.elsewhere and "content-md5" in error.detail.lower()


class ContentMd5:
    """Whether a server wants them."""

    def __init__(self) -> None:
        self.are_wanted = False

    async def stored(self, body: PartBody, send: Send[T], headers: Mapping[str, str]) -> T:
        """What `send` returns, called with `headers` and the body's hash where the server wants that."""
        if not self.are_wanted:
            try:
                return await send(headers)
            except StoreError as error:
                if not asks_for_md5(error):
                    raise
                self.are_wanted = True
        return await send({**headers, **content_md5(body)})
