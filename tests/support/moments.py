"""Each moment at which a process may die: after each transaction of its journal, and before each request.

What is written in one transaction is there as a whole or not at all, so there is nothing in between to die at. Of each
moment the state directory and the bucket are kept, and the next mount begins with those.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sosfs.disk.watermark import Watermark
from tests.support.composed import Composed
from tests.support.fake_store import FakeStore

Bucket = dict[str, Any]


class Moments:
    """The moments of what is done within `noted`, and a next mount for each of them."""

    def __init__(self, mount: Composed, store: FakeStore, base: Path) -> None:
        self._mount = mount
        self._store = store
        self._base = base / "moments"
        self._kept: list[tuple[Path, Bucket]] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Within, each moment is kept."""
        wrote, asked = Watermark.wrote, FakeStore._begin

        def written(mark: Watermark, number: int) -> None:
            wrote(mark, number)
            self._keep()

        async def begin(store: FakeStore, operation: str, key: str) -> None:
            self._keep()
            await asked(store, operation, key)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Watermark, "wrote", written)
            patch.setattr(FakeStore, "_begin", begin)
            yield
        self._keep()

    def _keep(self) -> None:
        copy = self._base / str(len(self._kept))
        shutil.copytree(self._mount._settings.state_dir, copy, ignore=shutil.ignore_patterns("*-shm", "lock"))
        self._kept.append((copy, self._bucket()))

    def _bucket(self) -> Bucket:
        return {key: replace(kept) for key, kept in self._store._stored.items()}

    def each(self, meanwhile: Callable[[], object] = lambda: None) -> Iterator[int]:
        """Lets a mount begin after each moment, and after `meanwhile`; tells which moment it is."""
        assert self._kept
        for number, (copy, bucket) in enumerate(self._kept):
            self._mount.crash()
            state = self._mount._settings.state_dir
            shutil.rmtree(state)
            shutil.copytree(copy, state)
            self._store._stored = {key: replace(kept) for key, kept in bucket.items()}
            meanwhile()
            self._mount.start()
            yield number
