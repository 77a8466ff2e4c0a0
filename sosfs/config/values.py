"""Parse and show the values of options: sizes, durations, users, words.

The same text is good on the command line, in `-o` and in a TOML file, which may also hold a plain number or
truth value. Pure, safe from any thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import grp
import ipaddress
import math
import os
import pwd
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Generic, TypeVar

from sosfs.config.choices import (
    PART_MAX,
    PART_MIN,
    Share,
)

T = TypeVar("T")
E = TypeVar("E", bound=Enum)

LIFETIME_MAX = 7 * 86_400  # seconds; S3 takes no longer-lived signature of version 4
MEMORY_MIN = 64 << 10  # bytes
CACHE_MIN = 1 << 20
RATE_MIN = 1 << 10  # bytes a second
TRANSFERS_MIN, TRANSFERS_MAX = 2, 512  # a large request never keeps all small ones waiting, so there are two at least
IDENTIFIER_MAX = (1 << 32) - 2  # of users and groups; the one above it is nobody's
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SIZE = re.compile(r"(\d+)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """One way to write a value. `parse` raises ValueError with a sentence for the user. `words`: all that there are."""

    metavar: str
    parse: Callable[[str], T]
    shown: Callable[[T], str] = str
    natives: tuple[type, ...] = ()
    words: tuple[str, ...] = ()
    has_none: bool = False  # a plain 0 in a TOML file is good, and means none
    hint: str = ""  # how to write it, where a TOML file gives it in a type that does not fit

    def named(self, metavar: str) -> Kind[T]:
        """The same kind under a name that fits the parameter better."""
        return dataclasses.replace(self, metavar=metavar)

    def text(self, value: object) -> str | None:
        """The text for a value that a TOML file gave in its own type, None where that type does not fit."""
        if self.has_none and type(value) is int and value == 0:
            return "0"
        if type(value) not in self.natives:
            return None
        if isinstance(value, bool):
            return "yes" if value else "no"
        return str(value)


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None or int(match[1]) == 0:
        raise ValueError(f"{text!r} is no size; write it as 64M or 1G")
    return int(match[1]) << _UNITS[match[2].upper()]


def _memory(text: str) -> int:
    size = _size(text)
    if size < MEMORY_MIN:
        raise ValueError(f"{text!r} is less than {shown_size(MEMORY_MIN)}; write it with a unit, as 64M")
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > there:
        raise ValueError(f"{text!r} is more than the {there >> 20}M that this machine has")
    return size


def _cache_size(text: str) -> int:
    if text.strip() == "0":
        return 0
    size = _size(text)
    if size < CACHE_MIN:
        raise ValueError(f"{text!r} is less than {shown_size(CACHE_MIN)}, and not 0; write it with a unit, as 10G")
    return size


def _rate(text: str) -> int:
    if text.strip() == "0":
        return 0
    rate = _size(text.strip().removesuffix("/s"))
    if rate < RATE_MIN:
        raise ValueError(f"{text!r} is less than {shown_size(RATE_MIN)} a second; 0 is for no limit")
    return rate


def _transfers(text: str) -> int:
    count = int(text) if text.isascii() and text.isdigit() else 0
    if not TRANSFERS_MIN <= count <= TRANSFERS_MAX:
        raise ValueError(f"{text!r} is no number from {TRANSFERS_MIN} to {TRANSFERS_MAX}")
    return count


def _free(text: str) -> Share:
    match = re.fullmatch(r"(\d{1,2}(?:\.\d+)?)\s*%", text.strip())
    if match:
        return Share(percent=float(match[1]))
    if text.strip() == "0":
        return Share()
    try:
        return Share(size=_size(text))
    except ValueError:
        raise ValueError(f"{text!r} is no part of a disk; write it as 20G or 10%") from None


def _shown_free(share: Share | None) -> str:
    if share is None:
        return ""
    return f"{share.percent:g}%" if share.percent else shown_size(share.size)


def _part(text: str) -> int:
    size = _size(text)
    if not PART_MIN <= size <= PART_MAX:
        raise ValueError(f"{text!r} is not between {shown_size(PART_MIN)} and {shown_size(PART_MAX)}, as S3 asks")
    return size


def shown_size(size: int) -> str:
    """A size with the largest unit that divides it: 8M, 1G, 1000."""
    for unit, bits in reversed(_UNITS.items()):
        if size and size % (1 << bits) == 0:
            return f"{size >> bits}{unit}"
    return str(size)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (seconds >= 0 and math.isfinite(seconds)):
        raise ValueError(f"{text!r} is no number of seconds")
    return seconds


def _lifetime(text: str) -> float:
    seconds = _seconds(text)
    if not 1 <= seconds <= LIFETIME_MAX:
        raise ValueError(f"{text!r} is not between 1 second and a week, as S3 asks")
    return seconds


def _period(text: str) -> float:
    seconds = _seconds(text)
    if seconds == 0:
        raise ValueError("no answer could come within 0 seconds")
    return seconds


def _octal(text: str) -> int:
    if re.fullmatch(r"(0o)?[0-7]{1,4}", text) is None or int(text, 8) > 0o777:
        raise ValueError(f"{text!r} is no set of permission bits; write it as 022")
    return int(text, 8)


def _flag(text: str) -> bool:
    word = text.lower()
    if word in {"yes", "true", "on", "1"}:
        return True
    if word in {"no", "false", "off", "0"}:
        return False
    raise ValueError(f"{text!r} is neither yes nor no")


def _user(text: str) -> int:
    return _identifier(text, "user", lambda name: pwd.getpwnam(name).pw_uid)


def _group(text: str) -> int:
    return _identifier(text, "group", lambda name: grp.getgrnam(name).gr_gid)


def _identifier(text: str, noun: str, look_up: Callable[[str], int]) -> int:
    if text.isascii() and text.isdigit():
        if int(text) > IDENTIFIER_MAX:
            raise ValueError(f"{text!r} is no number of a {noun}")
        return int(text)
    try:
        return look_up(text)
    except KeyError as error:
        raise ValueError(f"there is no {noun} {text!r}") from error


def _url(text: str) -> str:
    if re.fullmatch(r"https?://[^\s/]+/?", text) is None:
        raise ValueError(f"{text!r} is no endpoint; write it as https://HOST or http://HOST:PORT")
    return text.rstrip("/")


@dataclass(frozen=True, slots=True)
class Loopback:
    """A TCP port that only this machine reaches."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _listening(text: str) -> Loopback | Path:
    """A port of the loopback, or a path; a relative one has a slash in it, for a word alone is rather a host."""
    if "/" in text:
        return _path(text)
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise ValueError(f"{text!r} is no address; write it as 127.0.0.1:PORT, [::1]:PORT or the path of a socket")
    host = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ValueError(f"{text!r} is not of this machine's loopback, and metrics are not for others")
    return Loopback(host, int(port))


def _path(text: str) -> Path:
    if not text:
        raise ValueError("the path is empty")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ValueError(f"{text!r} begins with the home of somebody who is not there") from None


def _certificates(text: str) -> Path:
    import ssl  # noqa: PLC0415 - 10 ms that only who names a file shall wait

    path = _path(text)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise ValueError(f"{path} holds no certificate in PEM form") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    return path


def _storage_class(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_.-]+", text) is None:
        raise ValueError(f"{text!r} is no storage class; write it as STANDARD_IA")
    return "" if text == "STANDARD" else text


def choice(enum: type[E]) -> Kind[E]:
    """One of the values of an Enum."""
    words = tuple(str(member.value) for member in enum)

    def parse(text: str) -> E:
        if text not in words:
            raise ValueError(f"{text!r} is none of {', '.join(words)}")
        return enum(text)

    return Kind(f"{{{','.join(words)}}}", parse, lambda member: str(member.value), words=words)


TEXT: Kind[str] = Kind("TEXT", str)
STORAGE_CLASS: Kind[str] = Kind("NAME", _storage_class)
URL: Kind[str] = Kind("URL", _url)
PATH: Kind[Path] = Kind("PATH", _path)
CERTIFICATES: Kind[Path] = Kind("FILE", _certificates)
LISTENING: Kind[Loopback | Path] = Kind("ADDRESS", _listening)
FLAG: Kind[bool] = Kind("", _flag, lambda value: "yes" if value else "no", (bool,))
# None of them is a plain number in TOML: `memory = 256` is 256 bytes, and never meant.
SIZE: Kind[int] = Kind("SIZE", _size, shown_size, hint='write it with a unit, as "64M" or "1G"')
PART: Kind[int] = dataclasses.replace(SIZE, parse=_part)
MEMORY: Kind[int] = dataclasses.replace(SIZE, parse=_memory)
CACHE: Kind[int] = dataclasses.replace(SIZE, parse=_cache_size, has_none=True)
RATE: Kind[int] = Kind(
    "RATE", _rate, shown_size, has_none=True, hint='write it with a unit, as "10M", or "0" for no limit'
)
FREE: Kind[Share | None] = Kind("SIZE|N%", _free, _shown_free, has_none=True, hint='write it as "20G" or "10%"')
TRANSFERS: Kind[int] = Kind("N", _transfers, str, (int,))
SECONDS: Kind[float] = Kind("SECONDS", _seconds, "{:g}".format, (int, float))
PERIOD: Kind[float] = dataclasses.replace(SECONDS, parse=_period)
LIFETIME: Kind[float] = dataclasses.replace(SECONDS, parse=_lifetime)
# Nor is this: TOML has 77 for 0o115, which lets others write.
OCTAL: Kind[int] = Kind("BITS", _octal, "{:03o}".format, hint='write it as "027"')
USER: Kind[int] = Kind("USER", _user, str, (int,))
GROUP: Kind[int] = Kind("GROUP", _group, str, (int,))


def for_argparse(kind: Kind[T]) -> Callable[[str], T]:
    """A kind as the `type` of an argument: what it cannot be is wrong usage."""

    def convert(text: str) -> T:
        try:
            return kind.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert
