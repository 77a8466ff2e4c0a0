"""Multipart uploads of ours that nobody goes on with: which are aborted, and when. Decided here and only here.

The journal has the id of each upload that was begun; those that no draft takes up are aborted by the next
mount. Before the store's answer there is no id, only an intent: where the answer was lost, or the process died, the
uploads of exactly that key are listed, and those that were begun at that time aborted. They may be another
client's only if that one began to write the same file in those very minutes, and then it begins again.

Concurrency: trio thread only; runs before the kernel's first request, and at the drain.
"""

from __future__ import annotations

import logging
from collections.abc import Set

from .errors import Cause, StoreError
from .journal import Journal
from .store import ObjectStore

log = logging.getLogger(__name__)

EARLY, LATE = 60, 300  # seconds: the server's clock may be behind ours; and ahead, with the tries of one request


class Abandoned:
    """What is left of uploads."""

    def __init__(self, journal: Journal, store: ObjectStore) -> None:
        self._journal = journal
        self._store = store

    async def abort(self, *, keep: Set[str]) -> None:
        """Aborts all unfinished uploads of this mount but those in `keep` (ids). What fails is tried next time."""
        for upload_id, key, _ in self._journal.uploads():
            if upload_id not in keep and await self._aborted(key, upload_id):
                self._journal.drop_upload(upload_id)
        await self.abort_unknown()

    async def abort_unknown(self) -> None:
        """Aborts the uploads whose id this mount was never told."""
        ours = {upload_id for upload_id, _, _ in self._journal.uploads()}
        for key, since in self._journal.intents():
            try:
                found = await self._store.list_uploads(key)
            except StoreError as error:
                if error.cause not in (Cause.DENIED, Cause.UNSUPPORTED):
                    log.warning("an upload of %s may stay unfinished: %s", key, error)
                    continue
                log.info("an upload of %s may stay unfinished: %s", key, error)
                found = []
            unknown = [
                upload.upload_id
                for upload in found
                if upload.key == key
                and upload.upload_id not in ours
                and since - EARLY <= upload.started <= since + LATE
            ]
            if all([await self._aborted(key, upload_id) for upload_id in unknown]):
                self._journal.drop_intent(key)

    async def _aborted(self, key: str, upload_id: str) -> bool:
        try:
            await self._store.abort_multipart(key, upload_id)
        except OSError as error:
            log.warning("an unfinished upload of %s stays: %s", key, error)
            return False
        return True
