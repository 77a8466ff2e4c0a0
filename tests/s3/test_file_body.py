"""The body of a part that is sent from a file: its bytes, its holes, and the hash of what was sent."""

from __future__ import annotations

import random
from hashlib import md5
from pathlib import Path

import pytest

from sosfs.s3 import file_body
from sosfs.s3.file_body import FileBody, hashed

BYTES = random.Random(3).randbytes(100)
HOLES = [(3, 10), (10, 12), (40, 60), (90, 100)]


def plain(holes: list[tuple[int, int]]) -> bytes:
    """The file as it is to be sent."""
    made = bytearray(BYTES)
    for start, stop in holes:
        made[start:stop] = bytes(stop - start)
    return bytes(made)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that has bytes in its holes as well: what was cut off."""
    made = tmp_path / "file"
    made.write_bytes(BYTES)
    return made


@pytest.mark.parametrize("holes", [[], HOLES, [(0, 100)], [(0, 1), (99, 100)]], ids=["none", "some", "all", "ends"])
def test_holes_are_zeros_whatever_the_file_has_there(
    path: Path, holes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_body, "PIECE", 7)
    with path.open("rb") as file:
        for start in range(0, 100, 3):
            for stop in range(start, 101, 7):
                body, due = FileBody(file.fileno(), start, stop, holes), plain(holes)[start:stop]
                assert (bytes(body), len(body)) == (due, len(due))
                assert b"".join(body.read(at, 5) for at in range(0, len(body), 5)) == due
                assert hashed(md5, body).digest() == md5(due).digest()
                assert body.read(len(body), 5) == b""


@pytest.mark.parametrize("holes", [[], [(3, 10), (90, 100)]], ids=["none", "some"])
def test_a_file_that_was_cut_off_gives_what_it_has(path: Path, holes: list[tuple[int, int]]) -> None:
    """Else what comes behind its end would be sent in the wrong place."""
    path.write_bytes(BYTES[:50])
    with path.open("rb") as file:
        body = FileBody(file.fileno(), 20, 100, holes)
        assert body.read(0, 80) == BYTES[20:50]
        assert body.read(30, 10) == b""


def test_what_was_sent_is_hashed_as_it_goes(path: Path) -> None:
    with path.open("rb") as file:
        body = FileBody(file.fileno(), 0, 100)
        assert body.sent_md5 == ""
        body.read(0, 100)
        assert body.sent_md5 == "", "nobody has asked for it"
        body.sum()
        body.read(0, 60)
        assert body.sent_md5 == ""
        body.read(0, 50)  # from the beginning, on another connection
        body.read(50, 50)
        assert body.sent_md5 == md5(BYTES).hexdigest()
        body.read(60, 40)  # once more; and it is no other for that
        assert body.sent_md5 == md5(BYTES).hexdigest()
        path.write_bytes(bytes(100))
        assert body.sent_md5 == md5(BYTES).hexdigest(), "whatever the file has by now"
        body.read(0, 10)
        body.read(20, 80)
        assert body.sent_md5 == "", "a piece was left out"
