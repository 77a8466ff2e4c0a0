"""Multipart uploads that a mount begins: each ends, completed or aborted.

    intent --the answer has its id--> upload --completed or aborted--> nothing is left
       `--no answer, or one to a second try--> uploads of that key are looked for and aborted

The journal has the id of each upload; one that nobody goes on with is aborted at the drain, or by the next mount.
Before the store's answer there is no id, only an intent. Where a try got no answer, also one within the HTTP client, or
the process died, the uploads of exactly that key are listed: with the next upload of that key, at the drain, and by
the next mount. Those are aborted that were begun at that time, have no parts, and are not known: nobody can have
added a part to an upload of ours whose id we were never told. It may be another client's only if that one began to
write the same file in those very minutes and has not finished its first part; its next part is then refused.

Concurrency: trio thread only. A look for the uploads of a key ends nothing, and leaves the intent, where one is being
begun, or is begun meanwhile: it cannot tell that one from a lost one, nor say that none will come of it.
"""

from __future__ import annotations

import errno
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Set
from dataclasses import dataclass
from typing import Any

from sosfs.errors import Cause, StoreError
from sosfs.journal.journal import Journal
from sosfs.s3.protocol import NOTHING, Acl, ObjectStore, Properties

log = logging.getLogger(__name__)

# Seconds: S3 refuses a clock that is off by more than 15 minutes, and the tries of one request may take five.
EARLY, LATE = 900, 1200

Spawn = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


@dataclass(slots=True, eq=False)
class _Look:
    """One look for the uploads of a key."""

    key: str
    is_overtaken: bool = False  # another upload of the key has been asked for since


class MultipartUploads:
    """The uploads of one mount."""

    def __init__(self, store: ObjectStore, journal: Journal, spawn: Spawn) -> None:
        self._store = store
        self._journal = journal
        self._spawn = spawn
        self._beginning: Counter[str] = Counter()  # keys
        self._looks: list[_Look] = []
        self._used: set[str] = set()  # ids of those that somebody goes on with

    async def begin(self, key: str, properties: Properties, *, acl: Acl | None = None) -> str:
        """Begins an upload and returns its id; it is in the journal. Raises StoreError, OSError of the journal."""
        if self._is_doubtful(key):
            await self._look(key)  # so that no intent grows older than what is looked for
        was_doubtful = self._is_doubtful(key)
        repeated: list[str] = []
        self._journal.add_intent(key, int(time.time()))
        self._beginning[key] += 1
        self._overtake(key)
        try:
            upload_id = await self._store.create_multipart(key, properties, acl=acl, on_repeat=repeated.append)
        except StoreError as error:
            is_alone = self._beginning[key] == 1
            if is_alone and not was_doubtful and not error.repeated and 400 <= error.status < 500:
                self._journal.drop_intent(key)
            raise
        finally:
            self._beginning -= Counter([key])
        is_doubtful = was_doubtful or bool(repeated)
        self._used.add(upload_id)
        with self._journal.together():
            self._journal.add_upload(upload_id, key, properties)
            if not is_doubtful and not self._beginning[key]:  # what is being begun beside has no other intent
                self._journal.drop_intent(key)
        if is_doubtful:
            self._spawn(lambda: self._look(key))
        return upload_id

    def resumed(self, upload_id: str) -> None:
        """Somebody goes on with an upload of an earlier mount."""
        self._used.add(upload_id)

    def ended(self, upload_id: str) -> None:
        """The upload is completed, or the store does not know it any more."""
        self._used.discard(upload_id)
        self._journal.drop_upload(upload_id)

    def left(self, key: str, upload_id: str) -> None:
        """Nobody goes on with an upload, be it aborted or not: a new file of this name is another one."""
        with self._journal.together():  # owed where there is no room, which that may make
            self._journal.add_upload(upload_id, key, NOTHING)

    async def abort(self, key: str, upload_id: str) -> bool:
        """Whether the upload is gone; if it cannot be aborted now, the drain or the next mount does it."""
        self._used.discard(upload_id)
        try:
            await self._store.abort_multipart(key, upload_id)
        except OSError as error:
            log.info("an unfinished upload of %s stays for now: %s", key, error)
            return False
        self._journal.drop_upload(upload_id)
        return True

    async def abort_unused(self, keep: Set[str] = frozenset()) -> None:
        """Aborts all that nobody goes on with, but for `keep` (ids). What fails is tried next time."""
        for upload_id, key, _ in self._journal.uploads():
            if upload_id not in self._used | keep and not await self.abort(key, upload_id):
                log.warning("an unfinished upload of %s stays", key)
        for key, _ in self._journal.intents():
            await self._look(key)

    def _is_doubtful(self, key: str) -> bool:
        return any(key == other for other, _ in self._journal.intents())

    def _overtake(self, key: str) -> None:
        for look in self._looks:
            look.is_overtaken |= look.key == key

    async def _look(self, key: str) -> None:
        """Aborts the uploads of a key whose ids this mount was never told. Never raises."""
        since = dict(self._journal.intents()).get(key)
        if since is None or self._beginning[key]:
            return
        look = _Look(key)
        self._looks.append(look)
        try:
            is_settled = await self._abort_unknown(look, since)
        except OSError as error:
            is_settled = _is_given_up(key, error)
        finally:
            self._looks.remove(look)
        if is_settled and not look.is_overtaken:
            self._journal.drop_intent(key)

    async def _abort_unknown(self, look: _Look, since: int) -> bool:
        """Whether nothing more can come of a try at the time `since`. Raises OSError."""
        unknown = await self._unknown(look.key, since)
        for upload_id in unknown:
            if look.is_overtaken:
                return False  # it may be that one
            await self._store.abort_multipart(look.key, upload_id)
        return bool(unknown) or time.time() >= since + LATE

    async def _unknown(self, key: str, since: int) -> list[str]:
        """The ids of the uploads that a try at the time `since` may have begun: without parts, and nobody's here."""
        then = range(since - EARLY, since + LATE + 1)
        uploads = await self._store.list_uploads(key)
        found = {upload.upload_id for upload in uploads if upload.key == key and upload.started in then}
        empty = [upload_id for upload_id in found - self._known() if await self._is_empty(key, upload_id)]
        known = self._known()  # with those that were begun meanwhile
        return [upload_id for upload_id in empty if upload_id not in known]

    def _known(self) -> set[str]:
        return {upload_id for upload_id, _, _ in self._journal.uploads()}

    async def _is_empty(self, key: str, upload_id: str) -> bool:
        try:
            return not await self._store.list_parts(key, upload_id)
        except StoreError as error:
            if error.errno != errno.ENXIO:
                raise
            return False  # it has ended


def _is_given_up(key: str, error: OSError) -> bool:
    """Whether looking again would end the same way."""
    if error.errno == errno.EINTR:
        return False  # whoever it was for waits no more
    if isinstance(error, StoreError) and error.cause in (Cause.DENIED, Cause.UNSUPPORTED):
        log.info("an upload of %s may stay unfinished: %s", key, error)
        return True
    log.warning("an upload of %s may stay unfinished: %s", key, error)
    return False
