"""Find the mount that a path typed by a user lies in.

Blocking; no state.
"""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
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


def holding(given: str, mounts: Sequence[Mount]) -> Location | None:
    """Where a path is, without asking a mount of ours, so that one that hangs holds nobody; None outside of them.

    Links are followed on the way to a mount, and not in it.
    """
    ours = {mount.mountpoint: mount for mount in mounts if mount.type == mountpoint.TYPE}
    path = mountpoint.outside(ours, given)
    above = [each for each in ours if path.is_relative_to(each)]
    return Location(ours[max(above, key=lambda each: len(each.parts))], path, given) if above else None


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


def looked_up(
    paths: Sequence[str], mounts: Sequence[Mount], where: Callable[[str], Path] = unfollowed
) -> list[Location]:
    """Where paths are, by `where`, which asks the mounts: speaks while that takes long. Raises OSError."""
    from sosfs.cli import progress  # noqa: PLC0415 - not for commands that ask nothing

    with progress.waiting("looking the paths up"):
        return [of(where(given), given, mounts) for given in paths]


def followed(given: str) -> Path:
    """The absolute path, all links resolved."""
    return Path(os.path.realpath(given))


def mount_at(path: Path) -> Mount:
    """Our mount on exactly this directory (absolute, links resolved). Raises OSError EINVAL where there is none."""
    mount = mountpoint.at(path)
    if mount is None or mount.type != mountpoint.TYPE:
        raise OSError(errno.EINVAL, "nothing of sosfs is mounted there", str(path))
    return mount


def by_mount(places: Sequence[Location]) -> list[tuple[Mount, list[tuple[bytes, ...]]]]:
    """Mount by mount what is in each, none twice."""
    found: dict[Mount, dict[tuple[bytes, ...], None]] = defaultdict(dict)
    for place in places:
        found[place.mount][place.names] = None
    return [(mount, list(names)) for mount, names in found.items()]
