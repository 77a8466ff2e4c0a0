"""The journal: drafts, deletes, attributes, renames and uploads that must outlive a crash.

One SQLite database in the cache directory holds what was promised and is not in the bucket yet: drafts, deletes,
attribute changes, directory renames, and the multipart uploads and scratch objects under way. A row is written before
the promise and removed after the bucket has it, so a replay may find work that is done already, never miss some.

A change survives the death of this process as soon as its statement returns, and the death of the machine once `sync`
returns. Every row carries a checksum, and all together a count that a damaged write-ahead log cannot fake (`database`);
small drafts lie in their row, large ones in the spool, with a checksum of each MiB. What is damaged is set aside and
told (`salvage`, `damage`), what is not is used.

Concurrency: trio thread only, but for the fsync, which runs in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from sosfs.disk import watermark
from sosfs.disk.damage import Damage
from sosfs.disk.database import Schema
from sosfs.disk.lock import locked
from sosfs.disk.reserve import Need
from sosfs.disk.watermark import Watermark
from sosfs.journal import salvage
from sosfs.journal.rows import (
    SavedAttributes,
    SavedDraft,
    attributes_back,
    attributes_record,
    draft_back,
    draft_record,
    properties_back,
    properties_record,
    version_record,
)
from sosfs.journal.salvage import FINDING, Finding
from sosfs.s3.protocol import Properties, Version

log = logging.getLogger(__name__)

FILE, MARK, DAMAGED = "journal.sqlite", "journal.mark", "damaged"
SCRATCH = "scratch"  # the name of the row of `facts` that has the keys of scratch objects
LOST_POWER = "lost_power"  # another one
CHANGES = ("drafts", "deletes", "attributes", "renames")  # the tables of what the bucket lacks
SCHEMA: Schema = {
    "facts": ("name text primary key", "value text"),
    "drafts": ("id integer primary key", "record text", "body blob", "open integer"),
    "goings": ("id integer primary key", "token text"),
    "deletes": ("key text primary key", "version text"),
    "attributes": ("id integer primary key", "record text"),
    "renames": ("id integer primary key", "old text", "new text"),
    "rename_states": ("id integer primary key", "state text"),
    "uploads": ("upload text primary key", "key text", "properties text"),
    "intents": ("key text primary key", "since integer"),
}


class Journal:
    """The journal of one mount, locked against any other."""

    def __init__(self, directory: Path, owner: str) -> None:
        """Opens or begins the journal of `owner` (endpoint, bucket and prefix).

        Raises OSError EBUSY when another mount has it, EINVAL when it is another bucket's.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = directory / FILE
        self.damage = Damage(directory / DAMAGED)
        with contextlib.ExitStack() as undo:
            self._lock = locked(directory)
            undo.callback(os.close, self._lock)
            # Nor what a repair has left that was cut short. Before the lock it could be another mount's meanwhile.
            self._is_new = not any(directory.glob("journal.*"))
            undo.callback(self._leave_nothing)
            self._mark = Watermark(directory / MARK)
            undo.callback(self._mark.close)
            self._require(owner, self._mark.found.owner if self._mark.found else owner)
            self._db = salvage.opened(self._path, SCHEMA, self._mark, self.damage)
            undo.callback(self._db.close, is_idle=False)
            self._facts: dict[str, str] = dict(self._db.rows("facts"))
            self._require(owner, self._facts.get("owner", owner))
            if self._mark.found is not None and self._mark.found.is_of_other_boot:
                self.note(LOST_POWER, "yes")
            self._mark.begin(owner, self._db.number)
            self.note("owner", owner)
            undo.pop_all()
        self._is_put_off = False
        self._keys: dict[int, str] = {}  # of the drafts that were written down or read here, by row
        self._renamed: dict[int, tuple[str, str]] = {}  # the keys of renames that began or were read here
        self._outdated: dict[str, int] = {}  # keys of which the disk may have old rows: since which transaction
        self._outdated_trees: dict[str, int] = {}  # the same of prefixes

    def _require(self, owner: str, found: str) -> None:
        if found != owner:
            raise OSError(errno.EINVAL, f"{self._path.parent} holds the journal of another bucket: {found}")

    def close(self) -> None:
        """Closes the database and lets others have it."""
        self._close()
        os.close(self._lock)

    def _close(self) -> None:
        is_idle = self.finding is Finding.SOUND and not any(map(self._db.count, SCHEMA.keys() - {"facts"}))
        self._db.close(is_idle=is_idle)
        self._mark.close()

    def withdraw(self) -> None:
        """Closes it for a mount that never began: a journal that nobody had before is no bucket's afterwards."""
        self._close()
        self._leave_nothing()
        os.close(self._lock)

    def _leave_nothing(self) -> None:
        for name in (FILE, f"{FILE}-wal", f"{FILE}-shm", MARK) if self._is_new else ():
            (self._path.parent / name).unlink(missing_ok=True)

    async def sync(self) -> None:
        """All that was written before is on the disk afterwards. Raises OSError when the disk refuses."""
        try:
            await self._db.sync()
        except OSError:
            if not self._path.exists():
                self.damage.note(f"the journal in {self._path.parent} was removed while it was in use")
            raise
        for outdated in (self._outdated, self._outdated_trees):
            for key in [key for key, since in outdated.items() if since <= self._db.synced]:
                del outdated[key]

    def catch_up(self) -> None:
        """What a full disk has kept from being written is written, if room has come free. Never raises."""
        self._db.catch_up()

    def put_off(self, wake: Callable[[], None]) -> None:
        """From now on nobody waits in `flushed`: `wake` is called after each change, and has it synced in a moment."""
        self._is_put_off = True
        self._db.wrote = wake

    @property
    def unsynced(self) -> int:
        """How many changes a power loss may take."""
        return self._db.number - self._db.synced

    async def flushed(self) -> None:
        """What was dropped is not done again after a power loss, to what has the name then. Never raises.

        Where that is put off, it holds for a name as soon as somebody waits for that (`settled`).
        """
        if not self._is_put_off:
            await self.flushed_now()

    async def flushed_now(self) -> None:
        """As `flushed`, whatever is put off."""
        try:
            await self.sync()
        except OSError as error:
            log.error("the journal cannot be written: %s", error)

    async def settled(self, key: str) -> None:
        """Before the bucket gets something new under a key: no row on the disk will be taken for its. As `flushed`."""
        if key in self._outdated or any(map(key.startswith, self._outdated_trees)):
            await self.flushed_now()

    def _outdates(self, *keys: str) -> None:
        """What the journal has of these keys is about to change, or to go."""
        if self._is_put_off:
            self._outdated |= dict.fromkeys(keys, self._db.number + 1)

    def together(self, need: Need = Need.RELIEF) -> AbstractContextManager[None]:
        """What is written within is there as a whole after a crash, or not at all. Nothing may be awaited within.

        On a full disk it is owed; where it is a promise of its own it is ENOSPC, and nothing of it is there.
        """
        return self._db.together(need)

    # What it says of itself

    @property
    def finding(self) -> Finding:
        """How far what it says can be trusted, until the recovery is done."""
        return Finding(self._facts.get(FINDING, Finding.SOUND.value))

    def doubt(self, finding: Finding) -> None:
        """Something was found in it later that is not right; what is known to be worse stays."""
        if self.finding is Finding.SOUND:
            self.note(FINDING, finding.value)

    @property
    def has_lost_power(self) -> bool:
        """Whether the machine was started again since it was written; until a recovery is done, by whichever mount."""
        return self._facts.get(LOST_POWER) == "yes"

    def recovered(self) -> None:
        """What was found was heeded."""
        with self.together():
            for row in self.rename_states().keys() - {row for row, _, _ in self.renames()}:
                self._db.drop("rename_states", row)
            self.note(FINDING, Finding.SOUND.value)
            if self.has_lost_power:
                self.note(LOST_POWER, "no")

    @property
    def spool_names(self) -> frozenset[str] | None:
        """How names of spool files begin that need no row; None where an older journal does not say so."""
        known = self._facts.get("spools")
        return None if known is None else frozenset(json.loads(known))

    def note_spools(self, names: frozenset[str]) -> None:
        """Sets `spool_names`."""
        self.note("spools", json.dumps(sorted(names)))

    def note(self, name: str, value: str) -> None:
        """Sets one of the facts; without room it is owed, for a mount that begins on a full disk makes some."""
        if self._facts.get(name) != value:
            with self.together():
                self._db.put("facts", name, value, need=Need.RELIEF)
            self._facts[name] = value

    # Drafts

    def save_draft(self, row: int, saved: SavedDraft) -> int:
        """Stores a draft in its row, or in a new one for 0; returns the row."""
        if row:
            self._outdates(saved.key, self._keys.get(row, saved.key))
        row = row or self._db.new_id()
        self._put_draft(row, json.dumps(draft_record(saved)), saved.blob, Need.PROMISE, is_open=False)
        self._keys[row] = saved.key
        return row

    def draft(self, row: int) -> SavedDraft:
        """What a row says of a draft whose spool is being written to."""
        _, record, body, _ = self._db.row("drafts", row)
        return replace(draft_back(json.loads(record), body or b""), sums=())

    def alter_draft(self, row: int, change: Callable[[SavedDraft], SavedDraft]) -> None:
        """Changes what a row says of a draft; its bytes stay, and whether its spool is being written to."""
        _, record, body, is_open = self._db.row("drafts", row)
        known = draft_back(json.loads(record), body or b"")
        changed = change(known)
        if changed.key != known.key:
            self._outdates(known.key, changed.key)
        self._put_draft(row, json.dumps(draft_record(changed)), changed.blob, Need.RELIEF, is_open=bool(is_open))
        self._keys[row] = changed.key

    def reopen_draft(self, row: int) -> None:
        """Its spool is being written to: from now on the checksums in the row say nothing."""
        _, record, body, _ = self._db.row("drafts", row)
        self._db.put("drafts", row, record, body, 1, need=Need.RELIEF)

    def draft_goes(self, row: int, token: str) -> None:
        """A request is about to make the object with this token (`recognition`), from all the row has or more.

        This has a table of its own, since to change a row is to write the draft's bytes again.
        """
        self._db.put("goings", row, token, need=Need.RELIEF)

    def drop_draft(self, row: int) -> None:
        """The bucket has it, or nobody wants it any more."""
        self._outdates(self._keys.get(row, ""))
        with self.together():
            self._db.drop("goings", row)
            self._db.drop("drafts", row)
        self._keys.pop(row, None)  # not before: who tries again after an error outdates it as well

    def drafts(self) -> Iterator[tuple[int, SavedDraft]]:
        """All drafts, oldest first."""
        tokens: Mapping[int, str] = dict(self._db.rows("goings"))
        for row, record, body, is_open in self._db.rows("drafts"):
            known = json.loads(record)
            self._keys[row] = known["key"]
            known["going"] = [tokens[row], True] if row in tokens else known["going"]
            below = known.get("before") if row in tokens else None
            while below:
                below["going"], below = [tokens[row], True], below.get("before")  # it went later than they were written
            if is_open and known["going"]:
                known["going"][1] = False
            yield row, draft_back({**known, "sums": [] if is_open else known["sums"]}, body or b"")

    def _put_draft(self, row: int, record: str, body: bytes | None, need: Need, *, is_open: bool) -> None:
        """Writes the row; a request that went out before is no longer of all that it has."""
        if not self._db.has("goings", row):
            self._db.put("drafts", row, record, body, int(is_open), need=need)
            return
        with self._db.together(need):
            self._db.drop("goings", row)
            self._db.put("drafts", row, record, body, int(is_open), need=need)

    # Deletes

    def add_delete(self, key: str, version: Version) -> None:
        """A key is to be removed, as long as it has this version."""
        self._db.put("deletes", key, json.dumps(version_record(version)), need=Need.RELIEF)

    def drop_delete(self, key: str) -> None:
        """It is gone."""
        self._outdates(key)
        self._db.drop("deletes", key)

    def deletes(self) -> list[tuple[str, Version]]:
        """What is to be removed."""
        rows = self._db.rows("deletes")
        return [(key, Version(*json.loads(version))) for key, version in rows]

    # Attributes

    def save_attributes(self, row: int, saved: SavedAttributes, need: Need = Need.PROMISE) -> int:
        """Stores an attribute change in its row, or in a new one for 0; returns the row."""
        row = row or self._db.new_id()
        self._db.put("attributes", row, json.dumps(attributes_record(saved)), need=need)
        return row

    def drop_attributes(self, row: int) -> None:
        """They are written."""
        self._db.drop("attributes", row)

    def attributes(self) -> list[tuple[int, SavedAttributes]]:
        """What is to be written, oldest first."""
        return [(row, attributes_back(json.loads(record))) for row, record in self._db.rows("attributes")]

    # Renames and uploads

    def add_rename(self, old: str, new: str) -> int:
        """A rename of what the bucket has begins, from key to key or prefix to prefix; returns its row."""
        row = self._db.new_id()
        self._db.put("renames", row, old, new)
        self._renamed[row] = old, new
        return row

    def set_rename(self, row: int, state: str, need: Need = Need.RELIEF) -> None:
        """How far a rename is (`rename_copies`)."""
        self._db.put("rename_states", row, str(state), need=need)  # a plain one: the checksum is of the type too

    def rename_states(self) -> dict[int, str]:
        """How far each rename is, by row."""
        return dict(self._db.rows("rename_states"))

    def drop_rename(self, row: int) -> None:
        """It is done, or undone."""
        old, new = self._renamed.get(row, ("", ""))
        self._outdates(old, new)
        if self._is_put_off and old.endswith("/"):
            self._outdated_trees |= dict.fromkeys((old, new), self._db.number + 1)
        with self.together():
            self._db.drop("rename_states", row)
            self._db.drop("renames", row)
        self._renamed.pop(row, None)

    def renames(self) -> list[tuple[int, str, str]]:
        """Renames under way, oldest first."""
        rows = self._db.rows("renames")
        self._renamed |= {row: (old, new) for row, old, new in rows}
        return rows

    def add_intent(self, key: str, since: int) -> None:
        """A multipart upload of this key is about to begin, at `since` (epoch): its id is not known before the answer.

        One that is noted already keeps its time. Without room it is owed: to send the file makes some.
        """
        if not self._db.has("intents", key):
            with self.together():
                self._db.put("intents", key, since, need=Need.RELIEF)

    def drop_intent(self, key: str) -> None:
        """The store has answered, and no such upload is unknown."""
        self._db.drop("intents", key)

    def intents(self) -> list[tuple[str, int]]:
        """The beginnings that got no answer, as (key, since)."""
        return self._db.rows("intents")

    def add_upload(self, upload: str, key: str, properties: Properties) -> None:
        """A multipart upload of ours has begun, with the properties that the object will have."""
        self._db.put("uploads", upload, key, json.dumps(properties_record(properties)), need=Need.RELIEF)

    def drop_upload(self, upload: str) -> None:
        """It is completed or aborted."""
        self._db.drop("uploads", upload)

    def uploads(self) -> list[tuple[str, str, Properties]]:
        """Uploads that were neither completed nor aborted, as (id, key, properties)."""
        rows = self._db.rows("uploads")
        return [(upload, key, properties_back(json.loads(record))) for upload, key, record in rows]

    def add_scratch(self, key: str) -> None:
        """An object that is no file is about to be stored: it is to be removed again."""
        self._note_scratch([*self.scratch(), key])

    def drop_scratch(self, key: str) -> None:
        """It is gone."""
        self._note_scratch([one for one in self.scratch() if one != key])

    def scratch(self) -> list[str]:
        """The keys of objects that are no files and not removed yet."""
        return list(json.loads(self._facts.get(SCRATCH, "[]")))

    def _note_scratch(self, keys: list[str]) -> None:
        self._facts[SCRATCH] = json.dumps(keys)
        with self.together():  # as an intent
            self._db.put("facts", SCRATCH, self._facts[SCRATCH], need=Need.RELIEF)

    @property
    def rows(self) -> int:
        """How much is pending."""
        return sum(self._db.count(table) for table in CHANGES)


@dataclass(frozen=True, slots=True)
class LeftOver:
    """What a journal that nobody has open holds: `changes` that the bucket lacks, and what it should not have.

    That are unfinished `uploads`, and `scratch` objects.
    """

    owner: str  # as for `Journal`
    changes: int
    uploads: int
    scratch: int
    is_whole: bool  # else it has to be opened to tell what is damaged


def left_over(directory: Path) -> LeftOver | None:
    """What the journal in a directory holds, None where there is none. Raises OSError EIO if nothing says whose."""
    path, mark = directory / FILE, watermark.read(directory / MARK)
    if not path.exists() and (mark is None or not mark.least):
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as db:
            (owner,) = db.execute("select value from facts where name = 'owner'").fetchone()
            counted = [db.execute(f"select count(*) from {table}").fetchone()[0] for table in (*CHANGES, "uploads")]
            noted = db.execute("select value from facts where name = ?", (SCRATCH,)).fetchone()
            scratch = len(json.loads(noted[0])) if noted else 0
            number = db.execute("select number from chain").fetchone()[0] if mark else 0
    except (sqlite3.Error, TypeError, ValueError) as error:
        if mark is None:
            raise OSError(errno.EIO, f"{path}: {error}") from error
        return LeftOver(mark.owner, 0, 0, 0, is_whole=False)
    is_whole = mark is None or number >= mark.least
    return LeftOver(owner, sum(counted[:-1]), counted[-1], scratch, is_whole=is_whole)


def upload_ids(directory: Path) -> list[str]:
    """The ids of the uploads that the journal in a directory knows, also while a mount has it. Raises OSError EIO."""
    path = directory / FILE
    if not path.exists():
        return []
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as db:
            return [upload_id for (upload_id,) in db.execute("select upload from uploads")]
    except sqlite3.Error as error:
        raise OSError(errno.EIO, f"{path}: {error}") from error
