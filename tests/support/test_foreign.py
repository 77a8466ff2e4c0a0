"""The other S3 tool of the tests."""

from __future__ import annotations

from tests.support.foreign import MUCH, Foreign


def test_a_bucket_that_takes_much_memory_is_emptied_with_all_versions(foreign: Foreign) -> None:
    foreign.keep_versions()
    for _ in range(2):
        foreign.put("large", bytes(MUCH))
    foreign.put("small", b"small")
    foreign.let_go()
    found = foreign.client.list_object_versions(Bucket=foreign.bucket)
    assert "Versions" not in found


def test_what_takes_little_stays(foreign: Foreign) -> None:
    foreign.put("small", b"small")
    foreign.let_go()
    assert foreign.keys() == ["small"]
