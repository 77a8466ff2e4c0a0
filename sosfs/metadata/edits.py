"""Changes of an object's attributes that the bucket lacks, and how they stand over it.

Edits are kept apart from the properties that were read, because those may be read again before the edits are
written; applied twice they change nothing more. They are of single fields: where another client has changed the
metadata of the same bytes meanwhile, its other fields stay. Frozen values, safe from any thread.
"""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from sosfs.metadata.user_metadata import Posix
from sosfs.s3.protocol import Properties

POSIX = frozenset({"mode", "uid", "gid", "mtime_ns"})  # fields of `user_metadata.Posix` that a user may set
_NONE: Mapping[str, str | None] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Edits:
    """New values by name: of the fields of `protocol.Headers` ("" removes one), of metadata (None removes one).

    `posix` names the fields of `user_metadata.Posix` that were set; their values are where the inode's are.
    """

    headers: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str | None] = field(default_factory=lambda: _NONE)
    posix: frozenset[str] = frozenset()

    def applied(self, properties: Properties) -> Properties:
        """`properties` as they are to be."""
        if not self.headers and not self.metadata:
            return properties
        left = {name: value for name, value in properties.metadata.items() if name not in self.metadata}
        added = {name: value for name, value in self.metadata.items() if value is not None}
        changed = dataclasses.replace(properties.headers, **self.headers)
        return dataclasses.replace(properties, headers=changed, metadata=left | added)

    def with_header(self, field_name: str, value: str) -> Edits:
        """These and one header more; "" removes it."""
        return dataclasses.replace(self, headers={**self.headers, field_name: value})

    def with_metadata(self, name: str, value: str | None) -> Edits:
        """These and one entry of metadata more; None removes it."""
        return dataclasses.replace(self, metadata={**self.metadata, name: value})

    def with_posix(self, names: Iterable[str]) -> Edits:
        """These and more fields of `user_metadata.Posix`."""
        posix = self.posix.union(names)
        return self if posix == self.posix else dataclasses.replace(self, posix=posix)

    def merged(self, ours: Posix, found: Posix) -> Posix:
        """`ours` where the user has set it, else what was `found`, where that says anything. The type stays ours."""
        theirs = {
            name: value
            for name in POSIX - self.posix
            if (value := getattr(found, name)) is not None and getattr(ours, name) is not None
        }
        if "mode" in theirs:
            theirs["mode"] = stat.S_IFMT(ours.mode or 0) | stat.S_IMODE(theirs["mode"])
        return dataclasses.replace(ours, **theirs)


NO_EDITS = Edits()
