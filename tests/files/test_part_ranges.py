"""Parts of a multipart upload: contiguous, within S3's bounds, enough for the largest object, bound to their upload."""

from __future__ import annotations

import errno

import pytest

from sosfs.config.choices import PART_MAX, PART_MIN
from sosfs.files.part_ranges import EARLIER, PartPlan, Range, fitting, plan_of
from sosfs.s3.protocol import OBJECT_MAX, PARTS_MAX
from tests.support.drive import fails

MIB, GIB = 1 << 20, 1 << 30
FIRST = (PART_MIN, 8 * MIB, 100 * MIB, 3 * GIB, PART_MAX)


@pytest.mark.parametrize("first", FIRST)
def test_the_largest_object_fits(first: int) -> None:
    parts = list(PartPlan(first).ranges(OBJECT_MAX))
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    assert len(parts) <= PARTS_MAX
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == OBJECT_MAX
    assert all(PART_MIN <= part.stop - part.start <= PART_MAX for part in parts[:-1])


@pytest.mark.parametrize(("size", "last"), [(7, 8), (40, 32), (200, 128)])
def test_parts_grow_slowly(size: int, last: int) -> None:
    """With parts of 8 MiB a file of 200 GiB has none above 128 MiB."""
    assert max(part.stop - part.start for part in PartPlan(8 * MIB).ranges(size * GIB)) <= last * MIB


def test_there_is_no_part_beyond_the_last() -> None:
    with fails(errno.EFBIG):
        PartPlan(1).at(OBJECT_MAX)


@pytest.mark.parametrize("size", [GIB, 50 * GIB + 12345])
@pytest.mark.parametrize("plan", [PartPlan(5 * MIB), PartPlan(8 * MIB, EARLIER)])
def test_the_plan_of_an_upload_is_told_by_its_parts(plan: PartPlan, size: int) -> None:
    usual, parts = PartPlan(16 * MIB), list(plan.ranges(size))
    for some in (parts, parts[1:-1], parts[-3:], parts[2:5]):
        assert plan_of(some, usual).has(some)
    assert plan_of([], usual) is usual
    with pytest.raises(ValueError, match="no plan"):
        plan_of([Range(1, 0, 7 * MIB), Range(2, 8 * MIB, 16 * MIB)], usual)


def test_what_has_another_number_or_begins_elsewhere_is_no_part_of_a_plan() -> None:
    plan = PartPlan(8 * MIB)
    assert plan.has([Range(2, 8 * MIB, 9 * MIB)])
    for other in (Range(3, 8 * MIB, 9 * MIB), Range(1, 1 * MIB, 2 * MIB), Range(2, 8 * MIB, 17 * MIB)):
        assert not plan.has([other])
    assert not plan.has([Range(PARTS_MAX + 1, OBJECT_MAX * 99, OBJECT_MAX * 99 + 1)])


def test_a_file_ends_with_its_last_part() -> None:
    plan = PartPlan(8 * MIB)
    assert list(plan.ranges(0)) == []
    whole = [Range(1, 0, 8 * MIB), Range(2, 8 * MIB, 16 * MIB)]
    assert list(plan.ranges(16 * MIB)) == whole
    assert list(plan.ranges(16 * MIB + 1, begin=8 * MIB)) == [whole[1], Range(3, 16 * MIB, 16 * MIB + 1)]


def test_a_plan_is_told_by_the_last_of_its_first_parts_and_what_is_usual_comes_first() -> None:
    """Then how parts are made now, and how they once were last: the first thousand are alike in both."""
    plan, usual = PartPlan(5 * MIB), PartPlan(16 * MIB)
    parts = list(plan.ranges(20 * GIB))
    for some in (parts[:3], parts[999:1000], parts[1000:1001]):
        assert plan_of(some, usual).at(10 * GIB) == plan.at(10 * GIB)
    assert plan_of(list(usual.ranges(GIB)), usual) is usual


@pytest.mark.parametrize(("disk", "size"), [(1000 * MIB, 8 * MIB), (48 * MIB, 6 * MIB), (10 * MIB, PART_MIN)])
def test_several_parts_fit_on_a_disk(disk: int, size: int) -> None:
    assert fitting(8 * MIB, disk) == size
