"""How many requests are under way at once, of one mount together, and how fast their bytes move.

    small requests  listings, metadata, small files     whichever is free, before all that is bulk
    bulk            bodies of 256 KiB and more           never all, so that a listing finds a place beside them

So neither keeps the other waiting; and within each, processes take turns (`FairQueue`). Where the server asks for fewer
requests, `Congestion` lowers the bound for both.

Concurrency: trio thread only, but for what `throttle` says.
"""

from __future__ import annotations

from dataclasses import dataclass

from sosfs.concurrency.threads import Threads, Together
from sosfs.config.parameters import TRANSFERS
from sosfs.s3.throttle import LEAST, Throttle

BULK_REQUESTS = 16  # at once, where so many are allowed at all, or a third of them where that is more


@dataclass(frozen=True, slots=True)
class Moment:
    """What holds now, for the user to see. Rates are bytes a second, 0 for none."""

    upload_rate: int
    download_rate: int
    transfers: int
    allowed: int
    under_way: int
    queued: int
    refusals: int


class Limits:
    """The threads that make a mount's requests, and what they keep to."""

    def __init__(self, *, transfers: int = TRANSFERS, upload_rate: int = 0, download_rate: int = 0) -> None:
        self.throttle = Throttle(upload=upload_rate, download=download_rate, transfers=max(transfers, LEAST))
        self._together = Together(lambda: self.throttle.congestion.allowed)
        self.small = Threads(self._small, self._together)
        self.bulk = Threads(self._bulk, self._together)

    def _small(self) -> int:
        allowed = self.throttle.congestion.allowed
        return allowed - max(1, allowed // 3)

    def _bulk(self) -> int:
        allowed = self.throttle.congestion.allowed
        return min(allowed - 1, max(BULK_REQUESTS, allowed // 3))

    def change(
        self, *, transfers: int | None = None, upload_rate: int | None = None, download_rate: int | None = None
    ) -> None:
        """What is not None holds from now on, for requests under way as well."""
        if upload_rate is not None:
            self.throttle.upload.limit = upload_rate
        if download_rate is not None:
            self.throttle.download.limit = download_rate
        if transfers is not None:
            self.throttle.congestion.most = max(transfers, LEAST)
            self._together.go_on()

    @property
    def now(self) -> Moment:
        """What holds now."""
        throttle = self.throttle
        return Moment(
            throttle.upload.limit,
            throttle.download.limit,
            throttle.congestion.most,
            throttle.congestion.allowed,
            self._together.under_way,
            self.small.waiting + self.bulk.waiting,
            throttle.congestion.refusals,
        )

    def close(self) -> None:
        """Ends the threads; no request may follow."""
        self.small.close()
        self.bulk.close()
