"""`sosfs doctor`: which checks tell whether a mount can work, and how grave each is. Decided here and only here.

Nothing is changed and no secret is shown. Blocking, no state.
"""

from __future__ import annotations

import email.utils
import http.client
import os
import platform
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from rich import filesize

import sosfs
from sosfs import config, keysearch, mountpoint, status
from sosfs.config import Settings
from sosfs.credentials import CredentialError, Found, Surroundings
from sosfs.daemon import Exit, one_line
from sosfs.zone import Place

ANSWER_SECONDS = 10.0
SKEW_SECONDS = 900.0  # S3 refuses a signature that is further off (RequestTimeTooSkewed)
SKEW_NOTED = 60.0
READ_AHEAD = Path("/sys/class/bdi")


class Verdict(Enum):
    """What a check says."""

    GOOD = "ok"
    NOTE = "note"
    WARNING = "warn"
    BAD = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of a check."""

    verdict: Verdict
    what: str
    detail: str


Check = Callable[[Settings], Iterator[Finding]]


def run(settings: Settings) -> int:
    """Prints the outcome of all checks; 1 when one says that a mount cannot work."""
    bad = False
    for check in CHECKS:
        for finding in check(settings):
            print(f"{finding.verdict.value:<5} {finding.what:<12} {finding.detail}", flush=True)
            bad = bad or finding.verdict is Verdict.BAD
    return Exit.FAILED if bad else Exit.OK


def _program(_: Settings) -> Iterator[Finding]:
    detail = f"sosfs {sosfs.__version__}, Python {platform.python_version()}, Linux {platform.release()}"
    yield Finding(Verdict.NOTE, "program", detail)


def _fuse(_: Settings) -> Iterator[Finding]:
    device = mountpoint.FUSE_DEVICE
    usable = os.access(device, os.R_OK | os.W_OK)
    why = "can be opened" if usable else ("permission denied" if device.exists() else "missing: modprobe fuse")
    yield Finding(Verdict.GOOD if usable else Verdict.BAD, "FUSE", f"{device}: {why}")
    helper = shutil.which("fusermount3")
    yield Finding(Verdict.GOOD if helper else Verdict.BAD, "FUSE", helper or "fusermount3 is missing: install fuse3")
    if os.geteuid() != 0 and not mountpoint.others_allowed():
        yield Finding(Verdict.NOTE, "FUSE", f"--allow-other needs 'user_allow_other' in {mountpoint.FUSE_SETTINGS}")


def _files(_: Settings) -> Iterator[Finding]:
    for path in config.files():
        yield Finding(Verdict.NOTE, "settings", f"{path}: {'read' if path.exists() else 'no such file'}")


def _key(settings: Settings) -> Iterator[Finding]:
    """Each source in order, up to the one that is used; then where that leads."""
    around = Surroundings.of_process(settings.profile)
    found = None
    try:
        for answer in keysearch.look(around):
            if isinstance(answer, Found):
                found = answer
                yield Finding(Verdict.GOOD, "key", f"{answer.where}: {answer.credentials.access_key}")
            else:
                yield Finding(Verdict.NOTE, "key", f"{answer.where}: {answer.why}")
    except CredentialError as error:
        yield Finding(Verdict.BAD, "key", str(error))
        return
    if found is None:
        yield Finding(Verdict.BAD, "key", "none found: set EXOSCALE_API_KEY and EXOSCALE_API_SECRET")
        return
    place = keysearch.place(Place(settings.endpoint, settings.zone), found, around)
    yield Finding(Verdict.NOTE, "endpoint", f"{place.endpoint}, signing for {place.region}")
    yield _reached(place.endpoint)


def _reached(endpoint: str) -> Finding:
    """Whether the endpoint answers anything at all over HTTP, and how far its clock is from ours."""
    started = time.time()
    try:
        with urllib.request.urlopen(endpoint, timeout=ANSWER_SECONDS) as answer:
            headers = answer.headers
    except urllib.error.HTTPError as error:
        with error:
            headers = error.headers  # an answer all the same: nothing was signed
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return Finding(Verdict.BAD, "endpoint", f"does not answer: {reason}")
    seconds = time.time() - started
    if not headers.get("Date"):
        return Finding(Verdict.GOOD, "endpoint", f"answers in {seconds * 1000:.0f} ms")
    skew = email.utils.parsedate_to_datetime(headers["Date"]).timestamp() - started
    if abs(skew) > SKEW_SECONDS:
        return Finding(Verdict.BAD, "clock", f"{abs(skew):.0f} s off the server's: every request will be refused")
    verdict = Verdict.WARNING if abs(skew) > SKEW_NOTED else Verdict.GOOD
    return Finding(verdict, "endpoint", f"answers in {seconds * 1000:.0f} ms, clock {abs(skew):.0f} s off")


def _cache(settings: Settings) -> Iterator[Finding]:
    path = settings.cache_dir or settings.state_dir.parent
    nearest = next(directory for directory in (path, *path.parents) if directory.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        yield Finding(Verdict.BAD, "cache", f"{path}: may not be written")
        return
    free = shutil.disk_usage(nearest).free
    yield Finding(Verdict.GOOD, "cache", f"{path}: {filesize.decimal(free)} free")


def _mounts(_: Settings) -> Iterator[Finding]:
    for mount in mountpoint.table():
        if mount.type != mountpoint.TYPE or os.geteuid() not in {0, mount.owner}:
            continue
        try:
            now = status.fetch(mount.mountpoint, owner=mount.owner)
        except OSError as error:
            yield Finding(Verdict.WARNING, "mount", f"{mount.mountpoint}: {one_line(error)}")
            continue
        if now is None:
            yield Finding(Verdict.WARNING, "mount", f"{mount.mountpoint}: no daemon answers, 'sosfs umount' clears it")
            continue
        yield Finding(
            Verdict.GOOD, "mount", f"{mount.mountpoint}: {now.bucket}, {now.state.value}, {_read_ahead(mount)}"
        )


def _read_ahead(mount: mountpoint.Mount) -> str:
    try:
        return f"read-ahead {(READ_AHEAD / mount.device / 'read_ahead_kb').read_text().strip()} KiB"
    except OSError as error:
        return f"read-ahead unknown ({error.strerror})"


CHECKS: tuple[Check, ...] = (_program, _fuse, _files, _key, _cache, _mounts)
