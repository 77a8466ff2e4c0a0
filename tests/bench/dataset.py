"""What lies in the bucket before a system reads it: put there once, by a bare S3 client where files are objects.

Read-only data is shared by all systems. What a workload changes is put anew for each run, below its own prefix.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.bench.client import Client, each
from tests.bench.material import BLOCK, SMALL, chunks, directories, tree_layout
from tests.bench.scale import Scale


class Dataset:
    """The shared data of one bucket; each method gives the directory or key of it, made when first asked for."""

    def __init__(self, client: Client, scale: Scale) -> None:
        self.client, self.scale = client, scale
        self._made: set[str] = set()

    def big(self, size: int, number: int = 0) -> str:
        """The key of a big file."""
        return self._once(f"data/big-{size}-{number}", lambda key: self.client.put_parts(key, chunks(size)))

    def big_whole(self, size: int) -> str:
        """The key of a big file that was put in one request, which a reader can verify."""
        return self._once(f"data/whole-{size}", lambda key: self.client.put_whole(key, chunks(size)))

    def small(self) -> str:
        """A directory of small files."""
        return self._once("data/small", lambda name: self.put_small(name, self.scale.small_files))

    def tree(self) -> str:
        """A directory with the tree of many sizes."""
        return self._once("data/tree", self.put_tree)

    def huge(self) -> str:
        """A directory with a great many files."""
        return self._once("data/huge", lambda name: self.put_small(name, self.scale.huge))

    def cold(self) -> list[str]:
        """Keys of files to read the first byte of."""
        keys = [f"data/cold/{i}" for i in range(self.scale.first_bytes)]
        self._once("data/cold", lambda name: self._put_cold(name, keys))
        return keys

    def _put_cold(self, name: str, keys: list[str]) -> None:
        self.client.put_directory(name)
        each(lambda key: self.client.put(key, BLOCK), keys, threads=4)

    def put_small(self, where: str, count: int) -> None:
        """Small files, straight in one directory."""
        self.client.put_directory(where)
        each(lambda i: self.client.put(f"{where}/{i:06}", SMALL), range(count))

    def put_tree(self, where: str, *, by: Client | None = None) -> None:
        """The tree, with all its directories; `by` another client than the dataset's own."""
        client, layout = by or self.client, tree_layout(self.scale)
        each(client.put_directory, [where, *(f"{where}/{name}" for name in directories(layout))])
        each(lambda item: client.put(f"{where}/{item[0]}", BLOCK[: item[1]]), layout.items())

    def _once(self, name: str, make: Callable[[str], None]) -> str:
        """Makes it below `data`, unless it is there; what failed is made anew the next time."""
        if name not in self._made:
            if not self._made:
                self.client.put_directory("data")
            make(name)
            self._made.add(name)
        return name
