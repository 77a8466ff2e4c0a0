"""A kernel that takes and forgets what it is told to, and notes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Kernel:
    """As `PageNotifier`: what is given to it, and what it forgets."""

    def __init__(self) -> None:
        self.given: list[tuple[int, int, bytes]] = []
        self.numbers: list[int] = []
        self.names: list[tuple[int, bytes]] = []
        self.attributes: list[int] = []
        self.refuses = False

    def _answer(self) -> None:
        if self.refuses:
            raise OSError("the kernel refuses it")

    def give(self, number: int, offset: int, body: Any) -> None:
        """Pages."""
        self._answer()
        self.given.append((number, offset, bytes(body)))

    async def forget(self, numbers: Sequence[int], names: Sequence[tuple[int, bytes]]) -> None:
        """Files with their pages, and what names lead to."""
        self.numbers.extend(numbers)
        self.names.extend(names)
        self._answer()

    async def forget_attributes(self, number: int) -> None:
        """The size of a file, and the like."""
        self.attributes.append(number)
        self._answer()
