"""How entries stand in an object of the index: a compressed table with a checksum.

    b"sosfs attributes 1\\n", SHA-256 of all that follows, zlib of lines of JSON

A line is an entry, `[folder, name, ETag, size, modified, headers, metadata, storage class]`, or a leaf,
`[folder, name, object, entries]`, by its first place. Folders are relative to the mount's prefix, and "" or end in
"/"; the name "" is a directory's marker, in the folder "" that of the prefix. What is read is checked line by line, in
bounded memory. Pure functions, safe from any thread.
"""

from __future__ import annotations

import io
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from hashlib import sha256
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from sosfs.s3.protocol import KEY_MAX, METADATA_MAX, Headers, Properties, Version

Place = tuple[str, str]  # folder and name

MAGIC = b"sosfs attributes 1\n"
ENTRIES_MAX = 20_000  # of one table: what one scan of a tree shows
LEAVES_MAX = 10_000
TEXT_MAX = 8 << 20  # bytes of the lines together; those of 20,000 usual entries are 5 MiB
DATA_MAX = TEXT_MAX + (64 << 10)  # bytes of an object, also where nothing can be packed; of a usual one 1 MiB
FULL = 0.75  # of a table, where there are several
LINE_MAX = 16 << 10  # bytes: a key and metadata, with what JSON adds to them
SIZE_MAX = 1 << 50
TIME_MAX = 1 << 33
_DIGEST = sha256().digest_size
_LEAF = re.compile(r"[0-9a-f]{32}", re.ASCII)
_ESCAPED = re.compile(rb"\\u[dD]")
_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")  # of metadata; what is none could not be sent with a later chmod
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # likewise, in a header
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of one version of an object. `version.modified` is never None."""

    version: Version
    properties: Properties


@dataclass(frozen=True, slots=True)
class Leaf:
    """Where the entries from this place on are, up to that of the next leaf."""

    first: Place
    name: str
    entries: int


@dataclass(frozen=True, slots=True)
class Table:
    """The entries of a root or a leaf; or the leaves of a root, in order."""

    entries: Mapping[Place, Entry] = field(default_factory=lambda: MappingProxyType({}))
    leaves: Sequence[Leaf] = ()


def encoded(table: Table) -> bytes:
    """The object that holds a table, which has no more than fits (`pieces`)."""
    lines = [line_of(place, entry) for place, entry in sorted(table.entries.items(), key=lambda item: item[0])]
    lines += [_encode([*leaf.first, leaf.name, leaf.entries]) for leaf in table.leaves]
    body = zlib.compress("\n".join(lines).encode(), 6)
    return MAGIC + sha256(body).digest() + body


def line_of(place: Place, entry: Entry) -> str:
    """The line of an entry."""
    version, known = entry.version, entry.properties
    headers = list(astuple(known.headers))
    shown = headers if any(headers) else []
    return _encode(
        [*place, version.etag, version.size, version.modified, shown, dict(known.metadata), known.storage_class]
    )


def is_fit(place: Place, entry: Entry) -> bool:
    """Whether a table may have this entry.

    Of an object with more metadata than S3 allows, or with a header that is none, others are told nothing: they would
    refuse the whole table.
    """
    try:
        line = line_of(place, entry).encode()
        _read(line, {}, [])
    except ValueError:
        return False
    return len(line) < LINE_MAX


def decoded(data: bytes | memoryview) -> Table:
    """The table in an object. Raises ValueError, with the reason, for anything that `encoded` does not make."""
    begin = len(MAGIC) + _DIGEST
    if bytes(data[: len(MAGIC)]) != MAGIC or len(data) < begin:
        raise ValueError("it does not begin as one")
    if sha256(data[begin:]).digest() != data[len(MAGIC) : begin]:
        raise ValueError("its checksum is wrong")
    entries: dict[Place, Entry] = {}
    leaves: list[Leaf] = []
    for line in _lines(data[begin:]):
        _read(line, entries, leaves)
        if len(entries) > ENTRIES_MAX or len(leaves) > LEAVES_MAX:
            raise ValueError("it has too many entries")
    if leaves and (entries or any(one.first >= other.first for one, other in pairwise(leaves))):
        raise ValueError("its leaves are not in order")
    return Table(entries, leaves)


def _lines(packed: bytes | memoryview) -> Iterator[bytes]:
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(packed, TEXT_MAX)
    except zlib.error as error:
        raise ValueError(f"it cannot be unpacked: {error}") from error
    if not unpacking.eof:
        raise ValueError("it is cut off, or too large when unpacked")
    reader = io.BytesIO(text)
    while line := reader.readline(LINE_MAX + 1):
        if len(line) > LINE_MAX:
            raise ValueError("it has a line that is too long")
        yield line


def _read(line: bytes, entries: dict[Place, Entry], leaves: list[Leaf]) -> None:
    try:
        said = json.loads(str(line, "utf-8"))  # of bytes it would take halves of characters
        if _ESCAPED.search(line):
            _encode(said).encode()  # raises for half a character, which the cache could not store
    except RecursionError as error:
        raise ValueError("it has a line that is no entry") from error
    if not isinstance(said, list) or len(said) not in (4, 8):
        raise ValueError("it has a line that is no entry")
    place = _place(said[0], said[1])
    if len(said) == 4:
        name, count = said[2:]
        if type(name) is not str or not _LEAF.fullmatch(name) or not _is_count(count, ENTRIES_MAX):
            raise ValueError("it has a leaf that is none")
        leaves.append(Leaf(place, name, count))
        return
    entries[place] = _entry(*said[2:])


def _place(folder: Any, name: Any) -> Place:
    if type(folder) is not str or type(name) is not str or "/" in name or (folder and not folder.endswith("/")):
        raise ValueError("it has a line that is of no object")
    if len((folder + name).encode()) > KEY_MAX:  # UnicodeEncodeError is a ValueError
        raise ValueError("it has a line that is of no object")
    return folder, name


def _entry(etag: Any, size: Any, modified: Any, headers: Any, metadata: Any, storage_class: Any) -> Entry:
    is_version = type(etag) is str and etag and _is_count(size, SIZE_MAX) and _is_count(modified, TIME_MAX)
    is_headed = isinstance(headers, list) and len(headers) in (0, len(Headers.__slots__)) and _are_texts(headers)
    is_known = isinstance(metadata, dict) and _are_texts(metadata.values()) and all(map(_NAME.fullmatch, metadata))
    if not (is_version and is_headed and is_known and (storage_class is None or type(storage_class) is str)):
        raise ValueError("it has an entry that is none")
    if _CONTROL.search("".join(headers)):
        raise ValueError("it has an entry with a header that is none")
    if sum(map(len, (*metadata, *metadata.values()))) > METADATA_MAX:
        raise ValueError("it has an entry with more metadata than an object may have")
    return Entry(Version(etag, size, modified), Properties(Headers(*headers), metadata, storage_class))


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _are_texts(values: Any) -> bool:
    return all(type(value) is str for value in values)


def pieces(entries: Mapping[Place, Entry]) -> list[dict[Place, Entry]]:
    """The entries in order, as one table where they fit into one, else as several of about the same size.

    Those are up to three quarters full, and begin with a directory where one begins near.
    """
    places = sorted(entries)
    weights = [_weight(place, entries[place]) for place in places]
    total = sum(weights)
    whole = ENTRIES_MAX * TEXT_MAX
    if total <= whole:
        return [dict(entries)] if entries else []
    room = total / math.ceil(total / (whole * FULL))
    found: list[dict[Place, Entry]] = []
    begin = 0
    while begin < len(places):
        end, taken = begin, 0
        while end < len(places) and taken < room:
            taken += weights[end]
            end += 1
        end = _border(places, begin, end) if end < len(places) else end
        found.append({place: entries[place] for place in places[begin:end]})
        begin = end
    return found


def _weight(place: Place, entry: Entry) -> int:
    """What an entry takes of a table, where ENTRIES_MAX * TEXT_MAX is all: of its entries or of its bytes."""
    return max(TEXT_MAX, ENTRIES_MAX * (len(line_of(place, entry).encode()) + 1))


def _border(places: Sequence[Place], begin: int, end: int) -> int:
    """Where a directory begins, at `end` or up to a quarter of the piece before it; else `end`."""
    for at in range(end, end - (end - begin) // 4, -1):
        if places[at][0] != places[at - 1][0]:
            return at
    return end
