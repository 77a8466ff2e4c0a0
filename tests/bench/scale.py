"""How much each workload moves: all sizes and repetitions.

`MEDIUM` is what the README's figures are of; its rows there fit into one run. `FULL` takes hours in runs of half an
hour each, `QUICK` some ten minutes, `TINY` seconds a row.
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
    timed: int  # calls of each kind under load


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
    timed=400,
)

# s3fs waits for six requests, one after the other, for each file that it copies in: with 20 ms each, 400 files take it
# close to a minute.
MEDIUM = Scale(
    name="medium",
    rounds=3,
    limit=240,
    big=256 * MIB,
    mixed=64 * MIB,
    small_reads=1000,
    large_reads=300,
    mix_calls=1000,
    small_files=300,
    tree_files=400,
    tree_fan=8,
    untar_files=300,
    git_files=50,
    renamed=200,
    appends=10,
    appended=32 * MIB,
    huge=20_000,
    first_bytes=20,
    timed=100,
)

QUICK = Scale(
    name="quick",
    rounds=1,
    limit=60,
    big=64 * MIB,
    mixed=16 * MIB,
    small_reads=300,
    large_reads=150,
    mix_calls=300,
    small_files=60,
    tree_files=100,
    tree_fan=4,
    untar_files=100,
    git_files=20,
    renamed=60,
    appends=5,
    appended=16 * MIB,
    huge=5000,
    first_bytes=10,
    timed=30,
)

# For the tests of the benchmark itself, and to see that every row runs: no figure of it says anything.
TINY = Scale(
    name="tiny",
    rounds=2,
    limit=60,
    big=8 * MIB,
    mixed=4 * MIB,
    small_reads=20,
    large_reads=10,
    mix_calls=20,
    small_files=16,
    tree_files=16,
    tree_fan=2,
    untar_files=16,
    git_files=5,
    renamed=10,
    appends=2,
    appended=8 * MIB,
    huge=50,
    first_bytes=2,
    timed=8,
)

SCALES = {scale.name: scale for scale in (FULL, MEDIUM, QUICK, TINY)}
