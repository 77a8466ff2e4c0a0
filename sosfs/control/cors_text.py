"""CORS rules as text: the JSON of Exoscale's portal, checked.

    {"CORSRules": [{"AllowedOrigins": ["https://example.com"], "AllowedMethods": ["GET"], "MaxAgeSeconds": 3600}]}

`AllowedHeaders`, `ExposeHeaders` and `ID` may stand there too. No text, or no rule, means no CORS. The method
`*` is SOS's own (SOS "CORS"). Pure functions, safe from any thread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sosfs.control import json_text
from sosfs.control.json_text import line_of
from sosfs.control.rejected_texts import BadText

Rule = Mapping[str, Any]

RULES_MAX = 100  # S3, PutBucketCors
METHODS = ("GET", "PUT", "POST", "DELETE", "HEAD", "*")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110: a header's name; "*" in it is CORS's own
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^\s/]+|null", re.IGNORECASE)


def shown(rules: Sequence[Rule]) -> str:
    """The text of rules; "" for none. `parse` gives the same rules back."""
    return json.dumps({"CORSRules": list(rules)}, indent=2, ensure_ascii=False) + "\n" if rules else ""


def parse(text: str) -> list[dict[str, Any]]:
    """The rules of a text. Raises `BadText`, with the line where one can be told."""
    if not text.strip():
        return []
    document = json_text.parsed(text)
    if not isinstance(document, dict) or set(document) != {"CORSRules"} or not isinstance(document["CORSRules"], list):
        raise BadText('write {"CORSRules": [...]}')
    rules = document["CORSRules"]
    if len(rules) > RULES_MAX:
        raise BadText(f"{len(rules)} rules, at most {RULES_MAX}")
    for number, rule in enumerate(rules, 1):
        _check_rule(rule, number, text)
    return rules


def same(some: Sequence[Rule], others: Sequence[Rule]) -> bool:
    """Whether two lists of rules say the same: the first rule that fits holds, but within a rule order says nothing."""
    return [_plain(rule) for rule in some] == [_plain(rule) for rule in others]


def _plain(rule: Rule) -> dict[str, Any]:
    return {name: sorted(value) if isinstance(value, list) else value for name, value in rule.items() if value != []}


def check(text: str) -> None:
    """Raises `BadText` for what is wrong already, though more may follow."""
    json_text.check_begun(parse, text)


def _check_rule(rule: object, number: int, text: str) -> None:
    if not isinstance(rule, dict):
        raise BadText(f"rule {number} is no object")
    for name in rule:
        if name not in _CHECKS:
            raise json_text.unknown(f"rule {number}", name, _CHECKS, text)
    for name in ("AllowedOrigins", "AllowedMethods"):
        if not rule.get(name):
            raise BadText(f"rule {number} has no {name}")
    for name, value in rule.items():
        _CHECKS[name](f"rule {number}, {name}", value, text)


def _texts(what: str, value: object, text: str, is_valid: Callable[[str], object], rule: str) -> None:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise BadText(f"{what} is no list of texts", line=line_of(text, value))
    for each in value:
        if not is_valid(each):
            raise BadText(f"{what}: {each!r} {rule}", line=line_of(text, each))


def _origins(what: str, value: object, text: str) -> None:
    def is_valid(origin: str) -> bool:
        return origin.count("*") <= 1 and _ORIGIN.fullmatch(origin) is not None

    _texts(what, value, text, is_valid, "is no origin such as https://example.com, with one * at most")


def _methods(what: str, value: object, text: str) -> None:
    _texts(what, value, text, METHODS.__contains__, f"is none of {' '.join(METHODS)}")


def _allowed(what: str, value: object, text: str) -> None:
    def is_valid(name: str) -> bool:
        return name.count("*") <= 1 and _TOKEN.fullmatch(name) is not None

    _texts(what, value, text, is_valid, "is no header's name, with one * at most")


def _exposed(what: str, value: object, text: str) -> None:
    _texts(what, value, text, _TOKEN.fullmatch, "is no header's name")


def _age(what: str, value: object, text: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise BadText(f"{what}: {value!r} is no number of seconds", line=line_of(text, value))


def _id(what: str, value: object, text: str) -> None:
    if not isinstance(value, str) or len(value) > 255:
        raise BadText(f"{what} is no text of at most 255 characters", line=line_of(text, value))


_CHECKS: dict[str, Callable[[str, object, str], None]] = {
    "AllowedOrigins": _origins,
    "AllowedMethods": _methods,
    "AllowedHeaders": _allowed,
    "ExposeHeaders": _exposed,
    "MaxAgeSeconds": _age,
    "ID": _id,
}
