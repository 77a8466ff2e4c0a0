"""How much each workload moves: all sizes and repetitions.

`FULL` takes hours, `MEDIUM` one where each request takes 20 ms longer, `QUICK` some ten minutes.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Scale:
    """Sizes in bytes, times in seconds, the rest are counts."""

    name: str
    rounds: int  # each round runs every system once; figures are medians over them
    limit: float  # after this time a measurement is given up and its system killed
    big: int
    mixed: int  # the file of the read-write mix
    small_reads: int  # of 4 KiB
    large_reads: int  # of 256 KiB
    mix_calls: int
    small_files: int
    tree_files: int
    tree_fan: int  # the tree has this many directories, and as many in each
    untar_files: int
    git_files: int
    renamed: int
    appends: int
    appended: int
    huge: int  # keys in the one huge directory
    first_bytes: int


FULL = Scale(
    name="full",
    rounds=3,
    limit=900,
    big=1024 * MIB,
    mixed=256 * MIB,
    small_reads=4000,
    large_reads=1000,
    mix_calls=4000,
    small_files=1000,
    tree_files=6400,
    tree_fan=32,
    untar_files=10_000,
    git_files=500,
    renamed=1000,
    appends=20,
    appended=64 * MIB,
    huge=100_000,
    first_bytes=20,
)

MEDIUM = Scale(
    name="medium",
    rounds=3,
    limit=300,
    big=256 * MIB,
    mixed=64 * MIB,
    small_reads=1000,
    large_reads=300,
    mix_calls=1000,
    small_files=300,
    tree_files=800,
    tree_fan=16,
    untar_files=1000,
    git_files=100,
    renamed=200,
    appends=10,
    appended=32 * MIB,
    huge=20_000,
    first_bytes=20,
)

QUICK = Scale(
    name="quick",
    rounds=1,
    limit=40,
    big=128 * MIB,
    mixed=16 * MIB,
    small_reads=300,
    large_reads=150,
    mix_calls=300,
    small_files=100,
    tree_files=400,
    tree_fan=8,
    untar_files=300,
    git_files=60,
    renamed=100,
    appends=5,
    appended=16 * MIB,
    huge=5000,
    first_bytes=10,
)

SCALES = {scale.name: scale for scale in (FULL, MEDIUM, QUICK)}
