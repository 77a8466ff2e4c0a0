"""Keys and names: every key has a name, no two have the same, and a name leads back to its key."""

from __future__ import annotations

import errno
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sosfs.tree import keys
from sosfs.tree.keys import CONTROL, ESCAPE, NAME_MAX, Form, name_of, parse
from tests.support.drive import fails

# What names must not be, and what escapes and quotes could be mistaken for.
ODD = [
    "",
    ".",
    "..",
    "\n",
    "\0",
    "\x7f",
    CONTROL,
    ESCAPE,
    f"{ESCAPE}-",
    f"{ESCAPE}=x",
    f"{ESCAPE}f.",
    f"{ESCAPE}#",
    "é",
    "\U0001f600",
]
segments = st.one_of(
    st.sampled_from(ODD),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=300),
    st.lists(st.sampled_from([*ODD, keys.QUOTE, f"{keys.QUOTE}FF", f"{keys.QUOTE}{keys.QUOTE}", "a"]), max_size=6).map(
        "".join
    ),
)
names = st.one_of(st.binary(min_size=1, max_size=300), segments.map(str.encode)).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b"", b".", b"..")
)


@settings(deadline=None)
@given(segments)
def test_a_name_leads_back_to_its_segment(segment: str) -> None:
    for form in (Form.PLAIN, Form.BESIDE):
        name = name_of(segment, form)
        assert 0 < len(name) <= NAME_MAX
        assert b"/" not in name
        assert name not in (b".", b"..")
        parsed = parse(name)
        assert keys.matches(parsed, segment)
        if parsed.form is not Form.FOLDED:
            assert (parsed.segment, parsed.form) == (segment, form)


@settings(deadline=None)
@given(segments, segments)
def test_no_two_have_the_same_name(one: str, other: str) -> None:
    found = [name_of(segment, form) for segment in {one, other} for form in (Form.PLAIN, Form.BESIDE)]
    assert len(set(found)) == len(found)
    if one != other:
        assert not keys.matches(parse(name_of(one)), other)


@settings(deadline=None)
@given(names)
def test_a_name_that_can_be_given_stands_for_one_segment(name: bytes) -> None:
    try:
        parsed = parse(name)
    except OSError as error:
        assert error.errno == (errno.ENAMETOOLONG if len(name) > NAME_MAX else errno.EINVAL)
        return
    if parsed.form is not Form.FOLDED:
        assert name_of(parsed.segment, parsed.form) == name
        parsed.segment.encode()  # it can be a key


@pytest.mark.parametrize("name", [b"\xff", b"a\xff\xfe", b"caf\xe9", b"\xc3\xa9\xff"])
def test_what_is_no_utf8_can_be_stored(name: bytes) -> None:
    segment = parse(name).segment
    assert name_of(segment) == name
    assert re.fullmatch(r"[^\ud800-\udfff]+", segment)


@pytest.mark.parametrize("length", [NAME_MAX - 1, NAME_MAX, NAME_MAX + 1])
def test_a_segment_is_folded_only_where_it_is_longer_than_a_name(length: int) -> None:
    assert (parse(name_of("s" * length)).form is Form.FOLDED) == (length > NAME_MAX)
    assert keys.matches(parse(name_of("s" * length)), "s" * length)
    assert not keys.matches(parse(name_of("s" * 300)), "s" * 301)


@pytest.mark.parametrize("form", [Form.PLAIN, Form.BESIDE])
def test_only_the_name_that_is_given_to_a_long_segment_stands_for_it(form: Form) -> None:
    segment = "s" * (NAME_MAX + 1)
    name = name_of(segment, form)
    assert keys.is_folded(name) and not keys.is_folded(name_of("s", form))
    assert parse(name).form is Form.FOLDED and keys.matches(parse(name), segment)
    assert not keys.matches(parse(name[:-1] + b"t"), segment), "another head"
    assert not keys.matches(parse(name_of(segment[:-1] + "t", form)), segment), "another digest"


@pytest.mark.parametrize("name", [b"s" * (NAME_MAX + 1), b"%~#" + b"0" * NAME_MAX, b"%~f" + b"s" * NAME_MAX])
def test_what_is_longer_than_a_name_may_be_is_refused_as_that(name: bytes) -> None:
    with fails(errno.ENAMETOOLONG):
        parse(name)


def test_the_control_directory_hides_no_key() -> None:
    """What is called as it in the root is shown under another name, and nothing else is."""
    behind = keys.shown_in_root(CONTROL.encode())
    assert behind != CONTROL.encode()
    assert keys.meant_in_root(behind) == CONTROL.encode()
    assert keys.shown_in_root(b"other") == keys.meant_in_root(b"other") == b"other"
    assert keys.meant_path([behind, behind]) == [CONTROL.encode(), behind], "only in the root"
    assert keys.meant_path([]) == []
    assert keys.names_of(f"{CONTROL}/{CONTROL}/") == (behind, CONTROL.encode())
    assert keys.names_of("a/b") == (b"a", b"b")
