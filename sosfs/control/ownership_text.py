"""Who owns the objects of a bucket, as text: one word, as S3's ownership controls have it.

    BucketOwnerEnforced      the bucket's owner owns all that is stored, and on AWS there are no ACLs
    BucketOwnerPreferred     the same of what is stored with `--acl bucket-owner-full-control`
    ObjectWriter             who stores an object owns it

A # begins a comment; no word means that nothing is set. Pure functions, safe from any thread.
"""

from __future__ import annotations

import difflib
import re

from sosfs.control.rejected_texts import BadText

WORDS = ("BucketOwnerEnforced", "BucketOwnerPreferred", "ObjectWriter")
HELP = f"# Who owns what is stored, one of {', '.join(WORDS)}. No word: as the server does by itself.\n"
_COMMENT = re.compile(r"#.*")


def parse(text: str) -> str:
    """The word of a text, as S3 writes it; "" for none. Raises `BadText`."""
    found = ""
    for number, line in enumerate(text.splitlines(), 1):
        word = _COMMENT.sub("", line).strip()
        if not word:
            continue
        if found:
            raise BadText("one word only", line=number)
        found = {each.lower(): each for each in WORDS}.get(word.lower(), "")
        if not found:
            near = difflib.get_close_matches(word, WORDS, n=1)
            advice = f"; did you mean {near[0]}?" if near else ""
            raise BadText(f"{word!r} is none of {', '.join(WORDS)}{advice}", line=number)
    return found


def shown(word: str) -> str:
    """The text of what is set, without comments."""
    return f"{word}\n" if word else ""
