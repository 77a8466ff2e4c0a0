"""Workloads of everyday programs: tar, git, mv, append, rsync --inplace."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

from tests.bench.client import each
from tests.bench.material import BLOCK, SMALL, chunks, in_memory, unlike_chunks
from tests.bench.scale import Scale
from tests.bench.stage import Stage
from tests.bench.systems.system import sync_directory
from tests.bench.workloads.workload import Unit, Workload, tool

KB = 1000


def untar(stage: Stage) -> None:
    archive, home = in_memory(stage.material.archive), stage.home
    with stage.clock():
        tool("tar", "xf", archive, "-C", home, "--no-same-owner")
        sync_directory(home)
    with tarfile.open(archive) as members:
        sizes = [member.size for member in members]
    stage.expect(len(sizes), sum(sizes))


def untar_bare(stage: Stage) -> None:
    """PUTs, 16 at once."""
    with tarfile.open(stage.material.archive) as members:
        found = [(member.name, member.size) for member in members]
    with stage.clock():
        each(lambda item: stage.bare.put(f"{stage.prefix}/{item[0]}", BLOCK[: item[1]]), found)


def _git(*command: str | Path) -> None:
    # A mount's files belong to whom the system says; git else refuses them.
    tool("git", "-c", "safe.directory=*", *command)


def git_clone(stage: Stage) -> None:
    source, target = stage.material.repository, stage.home / "clone"
    with stage.clock():
        _git("clone", "-q", "--no-hardlinks", source, target)
        sync_directory(target)
    stage.expect_what_is_seen("clone")


def git_status(stage: Stage) -> None:
    """On a clone, after a remount."""
    target = stage.home / "clone"
    _git("clone", "-q", "--no-hardlinks", stage.material.repository, target)
    stage.remount()
    with stage.clock():
        _git("-C", target, "status", "--short")


def rename_directory(stage: Stage) -> None:
    count = stage.scale.renamed
    stage.dataset.put_small(f"{stage.prefix}/old", count)
    home = stage.home
    with stage.clock():
        (home / "old").rename(home / "new")
    stage.expect(count, count * len(SMALL), below="new/")
    stage.expect(0, 0, below="old/")


def rename_bare(stage: Stage) -> None:
    """Server-side copies, 16 at once, then deletions in bulk."""
    old, new = f"{stage.prefix}/old/", f"{stage.prefix}/new/"
    stage.dataset.put_small(old.rstrip("/"), stage.scale.renamed)
    with stage.clock():
        keys = [key.removeprefix(old) for key in stage.bare.sizes(old)]
        each(lambda name: stage.bare.copy(old + name, new + name), keys)
        stage.bare.delete(old)


def append(stage: Stage) -> None:
    """Opens, appends 1 KB and closes, several times, on a file that is in the bucket."""
    key, size, count = f"{stage.prefix}/log", stage.scale.appended, stage.scale.appends
    stage.client.put_directory(stage.prefix)
    stage.client.put_parts(key, chunks(size))
    with stage.clock():
        for _ in range(count):
            with (stage.top / key).open("ab", buffering=0) as file:
                file.write(BLOCK[:KB])
    stage.expect(1, size + count * KB)


def append_bare(stage: Stage) -> None:
    """Each is a multipart upload of a server-side copy and the tail."""
    key, size = f"{stage.prefix}/log", stage.scale.appended
    stage.bare.put_parts(key, chunks(size))
    with stage.clock():
        for i in range(stage.scale.appends):
            stage.bare.append(key, size + i * KB, BLOCK[:KB])


def rsync_inplace(stage: Stage) -> None:
    """`rsync --inplace` of a big local file over that in the bucket, 1 MiB of which differs."""
    key, source = f"{stage.prefix}/big", in_memory(stage.material.big)
    stage.client.put_directory(stage.prefix)
    stage.client.put_parts(key, unlike_chunks(stage.scale.big))
    with stage.clock():
        tool("rsync", "--inplace", "--no-whole-file", "--ignore-times", source, stage.top / key)
    stage.expect(1, stage.scale.big)
    offset, change = stage.material.change
    stage.expect_bytes("big", change, at=offset)


def huge_first(stage: Stage) -> None:
    """The first entry of a huge directory."""
    below = stage.dataset.huge()
    with stage.clock(), os.scandir(stage.top / below) as entries:
        next(entries)


def huge_first_bare(stage: Stage) -> None:
    """The listing's first page."""
    below = stage.dataset.huge()
    with stage.clock():
        stage.bare.first_page(f"{below}/")


def huge_list(stage: Stage) -> None:
    """All names of a huge directory."""
    below = stage.dataset.huge()
    with stage.clock():
        found = sum(1 for _ in (stage.top / below).iterdir())
    if found != stage.scale.huge:
        raise OSError(f"{found} entries of {stage.scale.huge}")


def huge_list_bare(stage: Stage) -> None:
    below = stage.dataset.huge()
    with stage.clock():
        stage.bare.sizes(f"{below}/")


def first_byte(stage: Stage) -> None:
    """Opens files of 16 MiB and reads one byte of each."""
    keys = stage.dataset.cold()
    with stage.clock():
        for key in keys:
            with (stage.top / key).open("rb", buffering=0) as file:
                file.read(1)


def first_byte_bare(stage: Stage) -> None:
    keys = stage.dataset.cold()
    with stage.clock():
        for key in keys:
            stage.bare.get(key, 0, 1)


def _once(_: Scale) -> float:
    return 1


def _git_files(scale: Scale) -> float:
    return scale.git_files


TOOLS = [
    Workload("untar", "untar", Unit.FILES, lambda scale: scale.untar_files, untar, untar_bare, stores=True),
    Workload("git_clone", "git clone", Unit.FILES, _git_files, git_clone, stores=True, renames=True),
    Workload("git_status", "git status, remounted", Unit.FILES, _git_files, git_status, renames=True),
    Workload(
        "dir_rename", "rename of a directory", Unit.FILES, lambda scale: scale.renamed, rename_directory, rename_bare
    ),
    Workload("append", "append 1 KB", Unit.CALLS, lambda scale: scale.appends, append, append_bare, stores=True),
    Workload("rsync_inplace", "rsync --inplace, 1 MiB changed", Unit.SECONDS, _once, rsync_inplace, stores=True),
    Workload("huge_first", "huge directory, first entry", Unit.SECONDS, _once, huge_first, huge_first_bare),
    Workload("huge_list", "huge directory, all names", Unit.FILES, lambda scale: scale.huge, huge_list, huge_list_bare),
    Workload(
        "first_byte",
        "first byte of a cold file",
        Unit.CALLS,
        lambda scale: scale.first_bytes,
        first_byte,
        first_byte_bare,
    ),
]
