"""ACLs as text: grammar, parser, printer.

    # what comes after a # is a comment
    owner ID
    user ID PERMISSION
    group URI PERMISSION
    all-users PERMISSION
    authenticated-users PERMISSION

or the name of a canned ACL alone. PERMISSION is READ, WRITE, READ_ACP, WRITE_ACP or FULL_CONTROL. The order
says nothing. The owner cannot be changed and may be left out; where nobody has FULL_CONTROL the owner keeps
it (as the Exoscale CLI does), so that no text locks everybody out. Pure functions, safe from any thread.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence

from sosfs.config.choices import Canned
from sosfs.control.rejected_texts import BadText
from sosfs.s3.protocol import (
    Acl,
    Grant,
)

ALL_USERS = "http://acs.amazonaws.com/groups/global/AllUsers"
AUTHENTICATED_USERS = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers"
PERMISSIONS = ("READ", "WRITE", "READ_ACP", "WRITE_ACP", "FULL_CONTROL")
FULL_CONTROL = PERMISSIONS[-1]
OF_OBJECTS = tuple(Canned)
OF_BUCKETS = (Canned.PRIVATE, Canned.PUBLIC_READ, Canned.PUBLIC_READ_WRITE, Canned.AUTHENTICATED_READ)
HELP = """\
# One grant a line: user ID PERMISSION, all-users PERMISSION, authenticated-users PERMISSION.
# PERMISSION: READ WRITE READ_ACP WRITE_ACP FULL_CONTROL. Or one of these names alone:
# {}
"""
_GROUPS = {"all-users": ALL_USERS, "authenticated-users": AUTHENTICATED_USERS}
_WORDS = {uri: word for word, uri in _GROUPS.items()}
_COMMENT = re.compile(r"(?:^|\s)#.*")


def shown(acl: Acl) -> str:
    """The text of an ACL, without comments. `parse` gives the same ACL back."""
    lines = [f"owner {acl.owner}"]
    for grant in acl.grants:
        who = _WORDS.get(grant.grantee)
        if who is None:
            who = f"{'group' if _is_group(grant.grantee) else 'user'} {grant.grantee}"
        lines.append(f"{who} {grant.permission}")
    return "\n".join(lines) + "\n"


def help_text(canned: Sequence[Canned]) -> str:
    """The grammar in comments, for the head of a text that is to be edited."""
    return HELP.format(" ".join(each.value for each in canned))


def parse(text: str, *, owner: str, canned: Sequence[Canned] = OF_OBJECTS) -> Acl | Canned:
    """What a text asks for. `owner` is the ID that owns the object or bucket, "" where it is not known.

    Raises `BadText` with the line at fault.
    """
    lines = list(_lines(text))
    if not lines:
        raise BadText("an ACL needs at least one line")
    named = _canned(lines, canned)
    if named is not None:
        return named
    grants: dict[Grant, None] = {}
    for number, words in lines:
        if words[0].lower() == "owner":
            _check_owner(words, owner, number)
            continue
        grants[_grant(words, canned, number)] = None
    kept = tuple(grants)
    if not any(grant.permission == FULL_CONTROL for grant in kept):
        kept = (Grant(owner, FULL_CONTROL), *kept)
    return Acl(owner, kept)


def check(text: str, *, canned: Sequence[Canned] = OF_OBJECTS) -> None:
    """Raises `BadText` for lines that are wrong whatever may follow."""
    if any(_lines(text)):
        parse(text, owner="", canned=canned)


def same(one: Acl, other: Acl) -> bool:
    """Whether two ACLs grant the same; the order says nothing."""
    return one.owner == other.owner and set(one.grants) == set(other.grants)


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """The words of each line that says something, and its number."""
    for number, line in enumerate(text.splitlines(), 1):
        if words := _COMMENT.sub("", line).split():
            yield number, words


def _canned(lines: list[tuple[int, list[str]]], canned: Sequence[Canned]) -> Canned | None:
    known = {each.value: each for each in canned}
    for number, words in lines:
        found = known.get(words[0].lower())
        if found is None:
            continue
        if len(lines) > 1 or len(words) > 1:
            raise BadText(f"{found.value} stands alone, without any other line", line=number)
        return found
    return None


def _check_owner(words: list[str], owner: str, number: int) -> None:
    if len(words) < 2:
        raise BadText("write: owner ID", line=number)
    named = " ".join(words[1:])
    if owner and named != owner:
        raise BadText(f"the owner is {owner} and cannot be changed", line=number)


def _grant(words: list[str], canned: Sequence[Canned], number: int) -> Grant:
    kind = words[0].lower()
    if kind in _GROUPS:
        if len(words) != 2:
            raise BadText(f"write: {kind} PERMISSION", line=number)
        return Grant(_GROUPS[kind], _permission(words[1], number))
    if kind not in ("user", "group"):
        near = difflib.get_close_matches(kind, [*_GROUPS, "user", "owner", *(each.value for each in canned)], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadText(f"{words[0]!r} is neither a grant nor a canned ACL{hint}", line=number)
    if len(words) < 3:
        raise BadText(f"write: {kind} {'ID' if kind == 'user' else 'URI'} PERMISSION", line=number)
    grantee = " ".join(words[1:-1])
    if (kind == "group") != _is_group(grantee):
        raise BadText("a group is named by a URI, a user by an ID", line=number)
    return Grant(grantee, _permission(words[-1], number))


def _permission(word: str, number: int) -> str:
    plain = word.upper().replace("-", "_")
    if plain not in PERMISSIONS:
        raise BadText(f"{word!r} is none of {' '.join(PERMISSIONS)}", line=number)
    return plain


def _is_group(grantee: str) -> bool:
    return grantee.startswith("http")
