"""moto's server as the tests run it: a condition on a write is judged and the write done in one step, as on S3.

moto (5.2, `S3Response.put_object`) looks whether the object is there and stores the new one after that, with a thread
for each request and no lock over both: of two `If-None-Match: *` that come at one time both may be answered 200. Who
claims a name by such a request would then have lost it without a word, and no client can tell.

Run as a program, with the options of `moto.server`.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from moto.s3.responses import S3Response
from moto.server import main

WRITES = ("_key_response_put", "_key_response_post", "_key_response_delete")
LOCK = threading.Lock()


def serialised(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, one call at a time among all that are."""

    @functools.wraps(method)
    def call(*arguments: Any, **options: Any) -> Any:
        with LOCK:
            return method(*arguments, **options)

    return call


if __name__ == "__main__":
    for name in WRITES:
        setattr(S3Response, name, serialised(getattr(S3Response, name)))
    main()
