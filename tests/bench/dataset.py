"""What lies in the bucket before a system reads it: put there once for each server, by the bare client.

Read-only data is shared by all systems. What a workload changes is put anew for each run, below its own prefix.
"""

from __future__ import annotations

from tests.bench.bare import Bare
from tests.bench.material import BLOCK, SMALL, chunks, directories, tree_layout
from tests.bench.scale import Scale


class Dataset:
    """The shared data of one bucket; each method gives the directory or key of it, made when first asked for."""

    def __init__(self, bare: Bare, scale: Scale) -> None:
        self.bare, self.scale = bare, scale
        self._made: set[str] = set()

    def big(self, size: int, number: int = 0) -> str:
        """The key of a big file."""
        key = f"data/big-{size}-{number}"
        if self._missing(key):
            self._directory("data")
            self.bare.put_parts(key, chunks(size))
        return key

    def big_whole(self, size: int) -> str:
        """The key of a big file that was put in one request, which a reader can verify."""
        key = f"data/whole-{size}"
        if self._missing(key):
            self._directory("data")
            self.bare.put_whole(key, chunks(size))
        return key

    def small(self) -> str:
        """A directory of small files."""
        if self._missing("data/small"):
            self._directory("data")
            self.put_small("data/small", self.scale.small_files)
        return "data/small"

    def tree(self) -> str:
        """A directory with the tree of many sizes."""
        if self._missing("data/tree"):
            self._directory("data")
            self.put_tree("data/tree")
        return "data/tree"

    def huge(self) -> str:
        """A directory with a great many files."""
        if self._missing("data/huge"):
            self._directory("data")
            self.put_small("data/huge", self.scale.huge)
        return "data/huge"

    def cold(self) -> list[str]:
        """Keys of files to read the first byte of."""
        keys = [f"data/cold/{i}" for i in range(self.scale.first_bytes)]
        if self._missing("data/cold"):
            self._directory("data")
            self._directory("data/cold")
            self.bare.each(lambda key: self.bare.put(key, BLOCK), keys, threads=4)
        return keys

    def put_small(self, where: str, count: int) -> None:
        """Small files, straight in one directory."""
        self.bare.put_directory(where)
        self.bare.each(lambda i: self.bare.put(f"{where}/{i:06}", SMALL), range(count))

    def put_tree(self, where: str, *, by: Bare | None = None) -> None:
        """The tree, with all its directories; `by` another client than the dataset's own."""
        bare, layout = by or self.bare, tree_layout(self.scale)
        bare.each(bare.put_directory, [where, *(f"{where}/{name}" for name in directories(layout))])
        bare.each(lambda item: bare.put(f"{where}/{item[0]}", BLOCK[: item[1]]), layout.items())

    def _directory(self, name: str) -> None:
        if self._missing(f"{name}/"):
            self.bare.put_directory(name)

    def _missing(self, name: str) -> bool:
        """Whether it has yet to be made; true once only."""
        missing = name not in self._made
        self._made.add(name)
        return missing
