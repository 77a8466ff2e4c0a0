"""The journal's rows as values, and as JSON.

Pure values.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from sosfs.metadata.edits import NO_EDITS, POSIX, Edits
from sosfs.metadata.user_metadata import POSIX_NAMES, Posix
from sosfs.s3.protocol import UNLOCKED, Guard, Headers, Lock, Properties, Version

Ranges = tuple[tuple[int, int], ...]
SavedPart = tuple[int, str, int, int]  # of an upload that is not completed: number, ETag, start, stop


@dataclass(frozen=True, slots=True)
class SavedDraft:
    """A draft as the journal holds it. `spool` is the file's name, "" when the bytes are in `body`.

    `base` is (key, etag, size) of the version below the changed ranges. `sums` are the CRC-32 of each MiB
    of the spool, empty for a spool that was written to since. `going` is the ETag that the object gets by the
    request under way, and whether it then has all of the draft. `properties` have the `edits`. The bytes of `parts`
    are in a multipart upload of this key alone. With a `boot` the spool was not synced, and the row is true in that
    boot of the machine alone: in any other `before` is, or what that names; None for what the bucket has. `serial` is
    the draft's, and means something to the process that has written it.
    """

    key: str
    size: int
    base: tuple[str, str, int] | None
    base_stop: int
    expected: Version | Guard
    version: Version | None
    local: Ranges
    dirty: Ranges
    posix: Posix
    properties: Properties
    spool: str
    sums: tuple[int, ...]
    going: tuple[str, bool] | None = None
    body: bytes = b""
    edits: Edits = NO_EDITS
    parts: tuple[SavedPart, ...] = ()
    boot: str = ""
    before: SavedDraft | None = None
    serial: int = 0

    @property
    def blob(self) -> bytes | None:
        """The bytes that lie in the row itself: those of before, or else this draft's."""
        below = self.before.blob if self.before is not None else None
        if below is not None:
            return below
        return self.body if not self.spool else None

    @property
    def safe(self) -> SavedDraft | None:
        """What a power loss goes back to."""
        if not self.boot:
            return self
        return self.before.safe if self.before is not None else None

    @property
    def spools(self) -> frozenset[str]:
        """The files that it names."""
        return frozenset({self.spool}) | (self.before.spools if self.before is not None else frozenset())

    def told_of(self, spool: str) -> int:
        """How many bytes of this file it tells of, at most."""
        before = self.before.told_of(spool) if self.before is not None else 0
        return max(before, self.size if self.spool == spool else 0)

    def synced(self, spools: Collection[str]) -> SavedDraft:
        """The same once these spools are on the disk."""
        if self.boot and self.spool in spools:
            return replace(self, boot="", before=None, sums=())
        return replace(self, before=self.before.synced(spools)) if self.before is not None else self


@dataclass(frozen=True, slots=True)
class SavedAttributes:
    """Attributes to be written to an object that still has this version (a directory's marker: any).

    The user has set what `edits` names; the rest is what was known of the object, `properties` with the edits.
    `sent` are the properties of copies that may have been made of it since, `tokens` (`recognition`) those of uploads.
    `is_written`: the file has been written to since its time was set, which then is that of the bytes before.
    """

    key: str
    version: Version | None
    posix: Posix
    properties: Properties
    edits: Edits = NO_EDITS
    sent: tuple[Properties, ...] = ()
    tokens: tuple[str, ...] = ()
    is_written: bool = False

    def uploaded(self) -> SavedAttributes:
        """The change of what one of the uploads has made: the bytes that were written have the time of then."""
        if not self.is_written:
            return self
        return replace(self, edits=replace(self.edits, posix=self.edits.posix - {"mtime_ns"}), is_written=False)


def version_record(version: Version | None) -> list[object] | None:
    """A version as JSON."""
    return None if version is None else [version.etag, version.size, version.modified]


def version_back(value: list[object] | None) -> Version | None:
    """The version again."""
    return None if value is None else Version(*value)  # type: ignore[arg-type]


def posix_record(posix: Posix) -> list[int | None]:
    """POSIX attributes as JSON."""
    return [posix.mode, posix.uid, posix.gid, posix.mtime_ns, posix.rdev]


def properties_record(properties: Properties) -> list[object]:
    """Headers, metadata, storage class and lock as JSON."""
    headers, lock = properties.headers, properties.lock
    told: list[object] = [[getattr(headers, name) for name in headers.__slots__], dict(properties.metadata)]
    told.append(properties.storage_class)
    return told if lock == UNLOCKED else [*told, [lock.mode, lock.until, lock.is_held]]


def properties_back(value: list[object]) -> Properties:
    """Headers, metadata, storage class and lock again; older records have no class, and most no lock."""
    headers, metadata, *rest = value
    storage_class, lock = rest[0] if rest else None, Lock(*rest[1]) if len(rest) > 1 else UNLOCKED  # type: ignore[misc]
    return Properties(Headers(*headers), metadata, storage_class, lock)  # type: ignore[misc, arg-type]


def edits_record(edits: Edits) -> list[object]:
    """Edits as JSON."""
    return [dict(edits.headers), dict(edits.metadata), sorted(edits.posix)]


def edits_back(headers: dict[str, str], metadata: dict[str, str | None], posix: list[str] | None = None) -> Edits:
    """The edits again; older records name no POSIX fields, and may mean any of them."""
    return Edits(headers, metadata, POSIX if posix is None else frozenset(posix))


def attributes_record(saved: SavedAttributes) -> list[object]:
    """An attribute change as JSON."""
    what = [saved.key, version_record(saved.version), posix_record(saved.posix), properties_record(saved.properties)]
    sent = [properties_record(one) for one in saved.sent]
    return [*what, edits_record(saved.edits), sent, saved.tokens, saved.is_written]


def attributes_back(record: list[object]) -> SavedAttributes:
    """The attribute change again; for older records all that was known of the object is what the user has set."""
    key, version, posix, properties, *more = record
    known = properties_back(properties)  # type: ignore[arg-type]
    edits, sent, tokens, is_written = more or (_all_of(known), [], [], False)
    return SavedAttributes(
        key,  # type: ignore[arg-type]
        version_back(version),  # type: ignore[arg-type]
        Posix(*posix),  # type: ignore[misc]
        known,
        edits if isinstance(edits, Edits) else edits_back(*edits),  # type: ignore[misc]
        tuple(properties_back(one) for one in sent),  # type: ignore[attr-defined]
        tuple(tokens),  # type: ignore[arg-type]
        bool(is_written),
    )


def _all_of(known: Properties) -> Edits:
    headers = {name: value for name in known.headers.__slots__ if (value := getattr(known.headers, name))}
    return Edits(headers, {name: known.metadata[name] for name in known.metadata if name not in POSIX_NAMES}, POSIX)


def draft_record(saved: SavedDraft) -> dict[str, object]:
    """A draft as JSON, but for its bytes. Only what was not synced says so, or earlier versions could not read it."""
    expected = saved.expected.value if isinstance(saved.expected, Guard) else version_record(saved.expected)
    unsynced: dict[str, object] = {"boot": saved.boot} if saved.boot else {}
    if saved.serial:
        unsynced["serial"] = saved.serial
    if saved.before is not None:
        unsynced["before"] = draft_record(saved.before)
    return {
        "key": saved.key,
        "size": saved.size,
        "base": saved.base,
        "base_stop": saved.base_stop,
        "expected": expected,
        "version": version_record(saved.version),
        "local": saved.local,
        "dirty": saved.dirty,
        "posix": posix_record(saved.posix),
        "properties": properties_record(saved.properties),
        "spool": saved.spool,
        "sums": saved.sums,
        "going": saved.going,
        "edits": edits_record(saved.edits),
        "parts": saved.parts,
        **unsynced,
    }


def draft_back(record: dict[str, object], body: bytes) -> SavedDraft:
    """The draft again, `body` being its `blob`; older records have no edits and no parts."""
    known = dict(record)
    earlier: dict[str, object] | None = known.pop("before", None)  # type: ignore[assignment]
    before = draft_back(earlier, body) if earlier is not None else None
    if known["spool"] or (before is not None and before.blob is not None):
        body = b""
    expected, base, going = known.pop("expected"), known.pop("base"), known.pop("going")
    return SavedDraft(
        expected=Guard(expected) if isinstance(expected, str) else Version(*expected),  # type: ignore[misc]
        base=tuple(base) if base else None,  # type: ignore[arg-type]
        going=tuple(going) if going else None,  # type: ignore[arg-type]
        version=version_back(known.pop("version")),  # type: ignore[arg-type]
        local=tuple((a, b) for a, b in known.pop("local")),  # type: ignore[attr-defined]
        dirty=tuple((a, b) for a, b in known.pop("dirty")),  # type: ignore[attr-defined]
        posix=Posix(*known.pop("posix")),  # type: ignore[misc]
        properties=properties_back(known.pop("properties")),  # type: ignore[arg-type]
        sums=tuple(known.pop("sums")),  # type: ignore[arg-type]
        body=body,
        edits=edits_back(*known.pop("edits", ({}, {}))),  # type: ignore[misc]
        parts=tuple((a, b, c, d) for a, b, c, d in known.pop("parts", ())),  # type: ignore[attr-defined]
        before=before,
        **known,  # type: ignore[arg-type]
    )
