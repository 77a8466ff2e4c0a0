"""What a user changed of an object's headers and metadata and the bucket does not have yet. Decided here only: how
such changes stand over what the object has.

Edits are kept apart from the properties that were read, because those may be read again before the edits are
written; applied twice they change nothing more. Frozen values, safe from any thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from .store import Properties

_NONE: Mapping[str, str | None] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Edits:
    """New values by name: of the fields of `store.Headers` ("" removes one), of metadata (None removes one)."""

    headers: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str | None] = field(default_factory=lambda: _NONE)

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


NO_EDITS = Edits()
