"""The data that is written and read: the same bytes, names and sizes for every system.

All of it comes from fixed seeds. Local sources (trees, an archive, a git repository) are made once, below the
benchmark's own directory on the local disk.
"""

from __future__ import annotations

import functools
import io
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench.scale import MIB, Scale

BLOCK = random.Random(4).randbytes(16 * MIB)  # big files repeat it: incompressible, and checked while it is read
CHUNK = MIB  # the unit of sequential reads and writes
SMALL = BLOCK[: 4 << 10]
MTIME = 1_700_000_000  # so that `rsync -a` finds nothing to do whoever made the copy


def chunk_at(offset: int) -> memoryview:
    """The `CHUNK` bytes that stand at `offset` (a multiple of it) in every big file."""
    start = offset % len(BLOCK)
    return memoryview(BLOCK)[start : start + CHUNK]


def chunks(size: int) -> Iterator[memoryview]:
    """The content of a big file of `size` bytes."""
    for offset in range(0, size, CHUNK):
        yield chunk_at(offset)[: size - offset]


def unlike_chunks(size: int) -> Iterator[bytes]:
    """The content of a big file no part of which occurs twice: rsync would find the others of a repeated one."""
    for offset in range(0, size, CHUNK):
        yield random.Random(offset).randbytes(min(CHUNK, size - offset))


def tree_layout(scale: Scale) -> dict[str, int]:
    """Name to size of each file of the tree, as the benchmark of GeeseFS has it: mean 28 KB, most of 512 bytes."""
    draw, fan = random.Random(6400), scale.tree_fan
    return {
        f"{i % fan}/{i // fan % fan}/{i}": 512 + int(draw.random() ** 10 * 300_000) for i in range(scale.tree_files)
    }


def directories(names: Iterator[str] | dict[str, int]) -> list[str]:
    """All directories above these files, parents first."""
    found = {str(parent) for name in names for parent in Path(name).parents}
    return sorted(found - {"."})


class Material:
    """Local sources below `base`, made when first asked for."""

    def __init__(self, base: Path, scale: Scale) -> None:
        self._base, self._scale = base, scale

    @functools.cached_property
    def tree(self) -> Path:
        """The tree of `tree_layout`."""
        root = self._base / "tree"
        for name, size in tree_layout(self._scale).items():
            _write(root / name, BLOCK[:size])
        return root

    @functools.cached_property
    def tree_copy(self) -> Path:
        """The same tree with the times that its files have in the bucket."""
        root = self._base / "tree-copy"
        shutil.copytree(self.tree, root)
        for path in root.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
            os.utime(path, (MTIME, MTIME))
        return root

    @functools.cached_property
    def archive(self) -> Path:
        """A tar file of many small files."""
        path = self._base / "archive.tar"
        with tarfile.open(path, "w") as archive:
            for i in range(self._scale.untar_files):
                info = tarfile.TarInfo(f"src/{i // 100}/{i}.c")
                info.size, info.mtime = 200 + i % 8000, MTIME
                archive.addfile(info, io.BytesIO(BLOCK[: info.size]))
        return path

    @functools.cached_property
    def repository(self) -> Path:
        """A git repository with one commit."""
        root = self._base / "repository"
        for i in range(self._scale.git_files):
            _write(root / f"{i // 50}/{i}.txt", BLOCK[i : i + 1000 + i % 9000].hex().encode())
        who = ("-c", "user.name=bench", "-c", "user.email=bench@example.net")
        for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "all"]):
            subprocess.run(["git", *command], cwd=root, check=True, timeout=120)
        return root

    @functools.cached_property
    def change(self) -> tuple[int, bytes]:
        """Where `big` is unlike the file in the bucket, and what stands there."""
        return self._scale.big // 2 // CHUNK * CHUNK, random.Random(-7).randbytes(CHUNK)

    @functools.cached_property
    def big(self) -> Path:
        """A local big file with 1 MiB in its middle unlike that of the bucket's."""
        path, (offset, change) = self._base / "big", self.change
        with path.open("wb") as out:
            for chunk in unlike_chunks(self._scale.big):
                out.write(chunk)
            out.seek(offset)
            out.write(change)
        return path


def in_memory(source: Path) -> Path:
    """The source, once it was read: its disk is not what is measured."""
    for path in [source] if source.is_file() else source.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(CHUNK):
                    pass
    return source


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
