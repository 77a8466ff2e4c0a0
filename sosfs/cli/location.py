"""In which mount of ours a path is that a user typed. Blocking; no state."""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sosfs.daemon import mountpoint
from sosfs.daemon.mountpoint import Mount


@dataclass(frozen=True, slots=True)
class Location:
    """A path in a mount. `path` is absolute; `given` is how the user wrote it."""

    mount: Mount
    path: Path
    given: str

    @property
    def names(self) -> tuple[bytes, ...]:
        """The names from the root of the mount to it."""
        return tuple(os.fsencode(name) for name in self.path.relative_to(self.mount.mountpoint).parts)


def unfollowed(given: str) -> Path:
    """The absolute path, links resolved but for the last: what is done to a link is done to itself."""
    path = Path(os.path.abspath(given))  # noqa: PTH100 - resolve() would follow the last one
    return Path(os.path.realpath(path.parent)) / path.name


def of(path: Path, given: str, mounts: Sequence[Mount]) -> Location:
    """Where a path is. Raises OSError EINVAL for one that is in none of our mounts."""
    ours = [mount for mount in mounts if mount.type == mountpoint.TYPE and path.is_relative_to(mount.mountpoint)]
    if not ours:
        raise OSError(errno.EINVAL, "not in a mount of sosfs", given)
    # The last of several on one place lies on top.
    return Location(max(reversed(ours), key=lambda each: len(each.mountpoint.parts)), path, given)


def by_mount(places: Sequence[Location]) -> list[tuple[Mount, list[tuple[bytes, ...]]]]:
    """Mount by mount what is in each, none twice."""
    found: dict[Mount, dict[tuple[bytes, ...], None]] = defaultdict(dict)
    for place in places:
        found[place.mount][place.names] = None
    return [(mount, list(names)) for mount, names in found.items()]
