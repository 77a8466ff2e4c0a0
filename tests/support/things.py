"""What a file, directory, link or special file has, and what a crash may leave of that: the model of `labels`.

An attribute is known by a name: `mode`, `uid`, `gid`, `rdev`, `mtime`, `body` (of a link where it leads to), `type`
(the Content-Type), `acl`, `class`, and those of extended attributes for headers and metadata. A set of values is any
one of them; None as a time is any, else it says that there is none.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sosfs.metadata import system_headers


@dataclass(eq=False)
class Thing:
    """A file, directory, link or special file: what it is by name of an attribute, and what it may be after a crash.

    A set of values is any one of them; None as a time is any.
    """

    now: dict[str, Any]
    could: dict[str, list[Any]] = field(default_factory=dict)
    is_kept: bool = False  # it was acknowledged: a crash leaves it there
    is_typed: bool = False  # its Content-Type was set
    replaced: Thing | None = None  # what it was renamed over before it was acknowledged
    number: int = 0  # by which the kernel knows it; 0: not yet
    unsure_until: float = -1.0  # trio time until which the mount need not know what another client has stored
    stamp: Any = None  # the time that was set last, which it has where a crash takes what was written since

    def __post_init__(self) -> None:
        self.could = self.could or {name: [value] for name, value in self.now.items()}
        self.stamp = self.now["mtime"]

    @property
    def kind(self) -> int:
        """The type of its mode."""
        return stat.S_IFMT(self.now["mode"])

    @property
    def is_folder(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.now["mode"])

    def set(self, name: str, value: Any) -> None:
        """It was set and that was acknowledged, of a file that is."""
        value = None if name == "mtime" and self.is_folder else value  # what is made in it changes that
        self.now[name] = value
        self.stamp = value if name == "mtime" else self.stamp
        is_safe = self.is_kept and (name != "mtime" or len(self.could["body"]) == 1)
        self.could[name] = [value] if is_safe else [*self.could.get(name, [None]), value]

    def write(self, at: int, data: bytes) -> None:
        """Puts data there; the time is that of the write then."""
        body = self.now["body"].ljust(at, b"\0")
        self.now["body"], self.now["mtime"] = body[:at] + data + body[at + len(data) :], None
        self.could["body"].append(self.now["body"])
        self.could["mtime"].append(None)

    def acknowledged(self, body: bytes, mtime: Any) -> None:
        """All that there is outlives a crash, with the bytes and time of when that was asked for, or later ones."""
        bodies = self.could["body"]
        while bodies[0] is not body:
            del bodies[0]
        if len(bodies) == 1:
            self.could = {name: [value] for name, value in self.now.items()}
            self.stamp = self.now["mtime"]
        else:
            self.could = {name: [value] for name, value in self.now.items()} | {"body": bodies, "mtime": [mtime, None]}
            self.stamp = None
        self.is_kept, self.replaced = True, None

    def differs(self, found: Mapping[str, Any] | None) -> str:
        """What is wrong with what was found; "" where nothing is."""
        return differing({name: [value] for name, value in self.now.items()}, found)

    def may_be(self, found: Mapping[str, Any] | None) -> str:
        """What of it no crash can have left; "" where all may be so."""
        if self.replaced is not None and not self.replaced.may_be(found):
            return ""
        if found is None:
            return "it is gone" if self.is_kept or self.replaced is not None else ""
        before, *later = self.could["body"]
        is_before = self.is_kept and found["body"] == before and before not in later
        if is_before and not fits("mtime", self.stamp, found["mtime"]):
            return f"its time is {found['mtime']} instead of {self.stamp}, which was set"
        return differing(self.could, found)


def differing(could: Mapping[str, list[Any]], found: Mapping[str, Any] | None) -> str:
    """Which attributes are none of those that they could be."""
    if found is None:
        return "it is not there"
    wrong = []
    for name in could.keys() | found.keys():
        if name not in found and name in ("acl", "class", "type"):
            continue  # where it was not looked for
        value = found.get(name)
        if name == "body" and len(could[name]) > 1:
            is_right = mixes(could[name], value)
        else:
            is_right = any(fits(name, one, value) for one in could.get(name, [None]))
        if not is_right:
            wrong.append(f"{name} is {brief(value)} instead of {[brief(one) for one in could.get(name, [None])]}")
    return ", ".join(sorted(wrong))


def fits(name: str, wanted: Any, value: Any) -> bool:
    """Whether a value is the one that was wanted."""
    if isinstance(wanted, frozenset):
        return value in wanted
    return wanted == value or (wanted is None and name == "mtime")


def mixes(bodies: list[bytes], body: bytes | None) -> bool:
    """Whether each byte is one of those that were there."""
    sizes = [len(one) for one in bodies]
    if body is None or not min(sizes) <= len(body) <= max(sizes):
        return False
    were = zip(*(one[: len(body)].ljust(len(body), b"\0") for one in bodies), strict=True)
    return all(byte in before for byte, before in zip(body, were, strict=True))


def brief(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:#o}" if value < 1 << 20 else str(value)
    return f"{len(value)} bytes" if isinstance(value, bytes) and len(value) > 20 else repr(value)


def fresh(name: str, mode: int) -> dict[str, Any]:
    """The attributes of what is made anew."""
    now: dict[str, Any] = {
        "mode": mode, "uid": 0, "gid": 0, "rdev": 0, "mtime": None, "body": b"", "acl": "private", "class": "",
    }  # fmt: skip
    if stat.S_ISREG(mode):
        now["type"] = frozenset({system_headers.for_name(name).content_type.encode()})
    return now


def retyped(thing: Thing, old: str, new: str) -> frozenset[bytes]:
    """The types that a rename may give it: that of the new name where it had that of the old one."""
    kinds = {system_headers.renamed(kind.decode(), old, new).encode() for kind in thing.now["type"]}
    own = system_headers.for_name(new).content_type.encode()
    return frozenset(kinds | (thing.now["type"] if thing.is_typed else {own}))  # as it was sent, or was to be


def adopted(found: Mapping[str, Any], fitting: list[Thing], path: str) -> Thing:
    """A thing that is as it was found; of what was not looked for, as those that it may be."""
    now = dict(found)
    acls: set[str] = set()
    for thing in fitting or [Thing(fresh(split(path)[1], found["mode"]))]:
        acl = thing.now["acl"]
        acls |= acl if isinstance(acl, frozenset) else {acl}
        for could in thing.could["acl"]:
            acls |= could if isinstance(could, frozenset) else {could}
    now["acl"], now["class"] = frozenset(acls), fitting[0].now["class"] if fitting else ""
    if any(thing.now["mtime"] is None for thing in fitting):
        now["mtime"] = None  # that of an upload which goes on is the one with which it was begun
    if "type" in now:
        now["type"] = frozenset({now["type"]})
    return Thing(now, is_kept=True, is_typed=any(thing.is_typed for thing in fitting))


def split(path: str) -> tuple[str, str]:
    """The directory and the name."""
    folder, _, name = path.rpartition("/")
    return folder, name
