"""Lifecycle rules as text: the JSON of S3's tools (`aws s3api put-bucket-lifecycle-configuration`), checked.

    {"Rules": [{"ID": "logs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 90}}]}

A rule removes files (Expiration), old versions (NoncurrentVersionExpiration), what uploads have left behind
(AbortIncompleteMultipartUpload), or moves them to another storage class. Lines that begin with # are comments. No
text, or no rule, means no lifecycle. Whether a server knows a part of a rule is its own matter: SOS has the three that
remove, and filters for prefix and size. Pure functions, safe from any thread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sosfs.control import json_text
from sosfs.control.json_text import line_of
from sosfs.control.rejected_texts import BadText

Rule = Mapping[str, Any]
Check = Callable[[str, Any, str], None]

RULES_MAX = 1000  # S3, PutBucketLifecycleConfiguration
ID_MAX = 255
ACTIONS = (
    *("Expiration", "NoncurrentVersionExpiration", "AbortIncompleteMultipartUpload"),
    *("Transitions", "NoncurrentVersionTransitions"),
)
HELP = """\
# Rules by which the server itself removes files ("Expiration": {"Days": 90}), old versions
# ("NoncurrentVersionExpiration": {"NoncurrentDays": 30}) and what uploads have left behind, for example:
# {"Rules": [{"ID": "uploads", "Status": "Enabled", "Filter": {"Prefix": ""},
#             "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7}}]}
"""
_COMMENT = re.compile(r"^[ \t]*#.*$", re.MULTILINE)
_UNSAYABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")  # in XML


def shown(rules: Sequence[Rule]) -> str:
    """The text of rules, without comments; "" for none. `parse` gives the same rules back."""
    if not rules:
        return ""
    return json.dumps({"Rules": list(rules)}, indent=2, ensure_ascii=False, default=_shown_date) + "\n"


def _shown_date(value: object) -> str:
    assert isinstance(value, datetime)
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse(text: str) -> list[dict[str, Any]]:
    """The rules of a text, their dates in one form. Raises `BadText`, with the line where one can be told."""
    text = _COMMENT.sub("", text)
    if not text.strip():
        return []
    document = json_text.parsed(text)
    if not isinstance(document, dict) or set(document) != {"Rules"} or not isinstance(document["Rules"], list):
        raise BadText('write {"Rules": [...]}')
    rules = document["Rules"]
    if len(rules) > RULES_MAX:
        raise BadText(f"{len(rules)} rules, at most {RULES_MAX}")
    for number, rule in enumerate(rules, 1):
        _check_rule(f"rule {number}", rule, text)
    ids = [rule["ID"] for rule in rules if rule.get("ID")]
    if twice := next((one for one in ids if ids.count(one) > 1), ""):
        raise BadText(f"two rules have the ID {twice!r}", line=line_of(text, twice))
    _write_dates_alike(rules)  # botocore takes 20270101 for seconds, and weeks for nothing
    return rules


def check(text: str) -> None:
    """Raises `BadText` for what is wrong already, though more may follow."""
    json_text.check_begun(parse, text)


def same(wanted: Sequence[Rule], now: Sequence[Rule]) -> bool:
    """Whether two lists of rules say the same. Servers give an ID to a rule that has none, and sort by it."""
    kept = [_plain(rule) for rule in now]
    for rule in map(_plain, wanted):
        found = next((one for one in kept if one == rule or ("ID" not in rule and _without_id(one) == rule)), None)
        if found is None:
            return False
        kept.remove(found)
    return not kept


def _without_id(rule: Rule) -> dict[str, Any]:
    return {name: value for name, value in rule.items() if name != "ID"}


def _plain(rule: Rule) -> dict[str, Any]:
    """A rule in one form: its times as text, and the prefix, which may stand in three places, in one."""
    plain: dict[str, Any] = json.loads(json.dumps(rule, default=_shown_date))
    _write_dates_alike(plain)
    chosen = dict(plain.pop("Filter", {}))
    chosen |= chosen.pop("And", {})
    chosen["Prefix"] = chosen.get("Prefix") or plain.pop("Prefix", "")
    tags = [*chosen.pop("Tags", ()), *([chosen.pop("Tag")] if "Tag" in chosen else ())]
    chosen["Tags"] = sorted((tag["Key"], tag["Value"]) for tag in tags)
    return {name: value for name, value in plain.items() if value not in ("", [])} | {"Filter": chosen}


def _write_dates_alike(value: Any) -> None:
    for each in value if isinstance(value, list) else value.values() if isinstance(value, dict) else ():
        if isinstance(each, dict) and isinstance(each.get("Date"), str):
            each["Date"] = _shown_date(_date_of(each["Date"]))
        _write_dates_alike(each)


def _check_rule(what: str, rule: object, text: str) -> None:
    _object(what, rule, text, _RULE)
    assert isinstance(rule, dict)
    if "Status" not in rule:
        raise BadText(f'{what} has no Status: "Enabled" or "Disabled"')
    if not any(name in rule for name in ACTIONS):
        raise BadText(f"{what} does nothing: it has none of {', '.join(ACTIONS)}")
    if "Filter" in rule and "Prefix" in rule:
        raise BadText(f"{what}: the Prefix stands in the Filter", line=line_of(text, "Prefix"))


def _object(what: str, value: object, text: str, checks: Mapping[str, Check]) -> None:
    if not isinstance(value, dict):
        raise BadText(f"{what} is no object", line=line_of(text, value))
    for name, found in value.items():
        if name not in checks:
            raise json_text.unknown(what, name, checks, text)
        checks[name](f"{what}, {name}", found, text)


def _days(least: int) -> Check:
    def check(what: str, value: object, text: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 31:
            raise BadText(f"{what}: {value!r} is no number from {least} on", line=line_of(text, value))

    return check


def _text(most: int) -> Check:
    def check(what: str, value: object, text: str) -> None:
        if not isinstance(value, str) or len(value) > most or _UNSAYABLE.search(value):
            raise BadText(f"{what} is no text of at most {most} characters", line=line_of(text, value))

    return check


def _status(what: str, value: object, text: str) -> None:
    if value not in ("Enabled", "Disabled"):
        raise BadText(f"{what}: {value!r} is neither 'Enabled' nor 'Disabled'", line=line_of(text, value))


def _truth(what: str, value: object, text: str) -> None:
    if not isinstance(value, bool):
        raise BadText(f"{what}: {value!r} is neither true nor false", line=line_of(text, value))


def _date(what: str, value: object, text: str) -> None:
    why = f"{what}: {value!r} is no midnight such as 2027-01-01T00:00:00Z"
    try:
        found = _date_of(value if isinstance(value, str) else "")
    except (ValueError, OverflowError) as error:
        raise BadText(why, line=line_of(text, value)) from error
    if found.timestamp() % 86_400:
        raise BadText(why, line=line_of(text, value))


def _date_of(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _each(check: Check) -> Check:
    def check_all(what: str, value: object, text: str) -> None:
        if not isinstance(value, list) or not value:
            raise BadText(f"{what} is no list with something in it", line=line_of(text, value))
        for one in value:
            check(what, one, text)

    return check_all


def _parts(checks: Mapping[str, Check], *, one_of: Iterable[str] = (), needs: Iterable[str] = ()) -> Check:
    names = tuple(one_of)

    def check(what: str, value: object, text: str) -> None:
        line = line_of(text, what.rpartition(", ")[2])
        _object(what, value, text, checks)
        assert isinstance(value, dict)
        if names and sum(name in value for name in names) != 1:
            raise BadText(f"{what} is to have one of {', '.join(names)}", line=line)
        if missing := [name for name in needs if name not in value]:
            raise BadText(f"{what} has no {missing[0]}", line=line)

    return check


_TAG: Check = _parts({"Key": _text(128), "Value": _text(256)}, needs=("Key", "Value"))
_SIZES: dict[str, Check] = {"ObjectSizeGreaterThan": _days(0), "ObjectSizeLessThan": _days(1)}
_AND: Check = _parts({"Prefix": _text(1024), "Tags": _each(_TAG), **_SIZES})
_FILTERS: dict[str, Check] = {"Prefix": _text(1024), "Tag": _TAG, **_SIZES, "And": _AND}
_CLASS = _text(64)


def _filter(what: str, value: object, text: str) -> None:
    _object(what, value, text, _FILTERS)
    assert isinstance(value, dict)
    if len(value) > 1:
        raise BadText(f"{what} has more than one condition: they stand together in And", line=line_of(text, "Filter"))


_RULE: dict[str, Check] = {
    "ID": _text(ID_MAX),
    "Status": _status,
    "Filter": _filter,
    "Prefix": _text(1024),
    "Expiration": _parts(
        {"Days": _days(1), "Date": _date, "ExpiredObjectDeleteMarker": _truth},
        one_of=("Days", "Date", "ExpiredObjectDeleteMarker"),
    ),
    "NoncurrentVersionExpiration": _parts(
        {"NoncurrentDays": _days(1), "NewerNoncurrentVersions": _days(1)}, needs=("NoncurrentDays",)
    ),
    "AbortIncompleteMultipartUpload": _parts({"DaysAfterInitiation": _days(1)}, needs=("DaysAfterInitiation",)),
    "Transitions": _each(
        _parts(
            {"Days": _days(0), "Date": _date, "StorageClass": _CLASS},
            one_of=("Days", "Date"),
            needs=("StorageClass",),
        )
    ),
    "NoncurrentVersionTransitions": _each(
        _parts(
            {"NoncurrentDays": _days(0), "NewerNoncurrentVersions": _days(1), "StorageClass": _CLASS},
            needs=("NoncurrentDays", "StorageClass"),
        )
    ),
}
