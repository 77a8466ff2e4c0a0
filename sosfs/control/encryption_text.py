"""How a bucket encrypts what is stored, as text: one line.

    AES256                          the server's own keys (SOS: SSE-SOS)
    aws:kms [KEY] [bucket-key]      a key of a key management service; aws:kms:dsse likewise

KEY is an id or an ARN, `bucket-key` spares requests to that service. A # begins a comment; no line means that nothing
is set, which some servers do not take: on SOS encryption once on stays on. Pure functions, safe from any thread.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sosfs.control.rejected_texts import BadText

Rule = Mapping[str, Any]

AES256 = "AES256"
ALGORITHMS = (AES256, "aws:kms", "aws:kms:dsse")
BUCKET_KEY = "bucket-key"
HELP = "# How what is stored is encrypted: AES256, or aws:kms [KEY] [bucket-key]. No line: nothing is set.\n"
_COMMENT = re.compile(r"(?:^|\s)#.*")
_KEY = re.compile(r"[A-Za-z0-9_:/.-]{1,2048}")
_DEFAULT, _ALGORITHM, _ID = "ApplyServerSideEncryptionByDefault", "SSEAlgorithm", "KMSMasterKeyID"


def shown(rules: Sequence[Rule]) -> str:
    """The text of a bucket's encryption, without comments; "" for none."""
    lines = []
    for rule in rules:
        default = rule.get(_DEFAULT, {})
        words = [default.get(_ALGORITHM, ""), default.get(_ID, ""), BUCKET_KEY if rule.get("BucketKeyEnabled") else ""]
        lines.append(" ".join(filter(None, words)))
    return "".join(f"{line}\n" for line in lines if line)


def parse(text: str) -> list[dict[str, Any]]:
    """The rules of a text, one or none. Raises `BadText`."""
    rules: list[dict[str, Any]] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = _COMMENT.sub("", line).split()
        if words and rules:
            raise BadText("one line only: a bucket encrypts in one way", line=number)
        if words:
            rules.append(_rule(words, number))
    return rules


def same(some: Sequence[Rule], others: Sequence[Rule]) -> bool:
    """Whether both say the same."""
    return shown(some) == shown(others)


def _rule(words: list[str], number: int) -> dict[str, Any]:
    algorithm = {each.lower(): each for each in ALGORITHMS}.get(words[0].lower(), "")
    if not algorithm:
        near = difflib.get_close_matches(words[0], ALGORITHMS, n=1)
        advice = f"; did you mean {near[0]}?" if near else ""
        raise BadText(f"{words[0]!r} is none of {', '.join(ALGORITHMS)}{advice}", line=number)
    rest = words[1:]
    has_bucket_key = rest[-1:] == [BUCKET_KEY]
    key = rest[: len(rest) - has_bucket_key]
    if algorithm == AES256 and rest:
        raise BadText(f"{AES256} stands alone", line=number)
    if len(key) > 1 or (key and not _KEY.fullmatch(key[0])):
        raise BadText(f"write: {algorithm} [KEY] [{BUCKET_KEY}]", line=number)
    rule: dict[str, Any] = {_DEFAULT: {_ALGORITHM: algorithm} | ({_ID: key[0]} if key else {})}
    return rule | ({"BucketKeyEnabled": True} if has_bucket_key else {})
