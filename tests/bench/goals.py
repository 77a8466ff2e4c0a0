"""How fast sosfs is to be, beside whom: the numbers that a report says are reached or not.

A row whose time depends on when close returns is compared at the same durability: close in the bucket with s3fs, which
waits as long, the journal with rclone's cache on the disk. Any other row is compared with the faster of both, whichever
mode sosfs runs in. References are never what a ratio is made with; that the journal is not to be behind JuiceFS with
write-back is a goal of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.systems import SYSTEMS, Role
from tests.bench.workloads import WORKLOADS

BUCKET, JOURNAL = "sosfs", "sosfs-journal"
AHEAD = "juicefs-writeback"
CPU_BASE = "s3fs"  # whose CPU per operation is not to be exceeded
ROUND_TRIPS = (0, 20)  # milliseconds at which the goals hold

# By workload: how many times as fast with close in the bucket, and with the journal.
AT_LEAST = {
    **dict.fromkeys(("seq_write", "seq_read", "seq_write4", "seq_read4"), (1.2, 1.2)),
    **dict.fromkeys(("rand_read_4k", "rand_read_256k"), (1.2, 1.2)),
    "rand_mix": (1.0, 1.0),
    "small_create": (2.0, 2.0),
    "small_create16": (3.0, 3.0),
    **dict.fromkeys(("tree_copy", "untar", "git_clone"), (3.0, 2.0)),
    **dict.fromkeys(("tree_list", "tree_find", "tree_rsync"), (3.0, 3.0)),
    "dir_rename": (2.0, 2.0),
    "tree_remove": (4.0, 4.0),
}
NOT_BEHIND = ("tree_copy", "untar", "git_clone")


@dataclass(frozen=True)
class Goal:
    """That `system` is so many times as fast as the fastest of `bases`."""

    workload: str
    system: str
    bases: tuple[str, ...]
    at_least: float


def bases(workload: str, system: str) -> tuple[str, ...]:
    """The peers that a ratio of this system in this workload may be made with."""
    peers = [each for each in SYSTEMS.values() if each.role is Role.PEER]
    if not WORKLOADS[workload].renames:
        peers = [each for each in peers if not each.for_renames]
    if WORKLOADS[workload].stores:
        peers = [each for each in peers if each.closed is SYSTEMS[system].closed]
    return tuple(each.name for each in peers)


def goals(workload: str) -> Sequence[Goal]:
    """All goals for a workload; none for many."""
    if workload not in AT_LEAST:
        return []
    wanted = zip((BUCKET, JOURNAL), AT_LEAST[workload], strict=True)
    found = [Goal(workload, system, bases(workload, system), least) for system, least in wanted]
    if workload in NOT_BEHIND:
        found.append(Goal(workload, JOURNAL, (AHEAD,), 1.0))
    return found
