"""`sosfs clean`: what mounts that are no more have left behind, on this machine and in the bucket.

What is owed to a bucket is never removed, but told. Blocking, one call a process.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich import filesize

from sosfs.cli import state_directories
from sosfs.cli.state_directories import IN_USE, StateDirectory
from sosfs.config.credentials import CredentialSource
from sosfs.config.parameters import Settings, cache_root
from sosfs.daemon.launch import Exit
from sosfs.log.escaping import printable

if TYPE_CHECKING:
    from sosfs.cli.unfinished_uploads import Unfinished
    from sosfs.s3.calls import SignedCalls


FORGOTTEN = 7 * 86_400  # seconds after which no mount goes on with a scratch object: it is kept for a minute


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is to be done. `index`: remove the shared attributes, and nothing else.

    `is_dry`: nothing, only told; `asks`: about uploads, before they are ended.
    """

    uploads: bool = False
    index: bool = False
    asks: bool = True
    is_dry: bool = False


def of_machine(root: Path | None, wishes: Wishes) -> int:
    """Removes the cache directories in `root` that nobody needs, of all buckets. Raises OSError."""
    return _directories(state_directories.found(root or cache_root()), wishes)


def of_bucket(settings: Settings, source: CredentialSource, wishes: Wishes) -> int:
    """The same for one bucket, with the uploads that its mounts have left there. Raises OSError."""
    from sosfs.s3 import bucket_zone  # noqa: PLC0415 - loads libcurl
    from sosfs.s3.calls import SignedCalls  # noqa: PLC0415
    from sosfs.s3.endpoint import S3Target  # noqa: PLC0415

    settings = bucket_zone.located(settings)
    found = state_directories.found(settings.cache_dir or cache_root())
    with closing(SignedCalls(S3Target.of(settings, source), source.current())) as calls:
        if wishes.index:
            return _index(calls, settings, wishes)
        ours = [each for each in found if each.is_of(settings.bucket)]
        if not wishes.is_dry:
            _end_ours(calls, ours, settings)
        code = _directories(ours, wishes)
        if wishes.uploads:
            code = max(code, _all_uploads(calls, settings, found, wishes))
    return code


def _end_ours(calls: SignedCalls, directories: Sequence[StateDirectory], settings: Settings) -> None:
    from sosfs.cli import unfinished_uploads  # noqa: PLC0415

    ended = [
        unfinished_uploads.end_of_journal(calls, directory.path, settings.endpoint, settings.bucket)
        for directory in directories
    ]
    uploads, scratch = sum(one for one, _ in ended), sum(one for _, one in ended)
    try:
        scratch += unfinished_uploads.remove_forgotten(calls, settings.prefix, before=time.time() - FORGOTTEN)
    except OSError as error:  # what is on this machine can be tidied up all the same
        told = f"whether scratch objects are left in {settings.source} is not known: {error.strerror}"
        print(printable(f"sosfs: {told}"), file=sys.stderr)
    if uploads:
        print(f"{_counted(uploads, 'unfinished upload')} of mounts here ended")
    if scratch:
        print(f"{_counted(scratch, 'scratch object')} of mounts removed")


def _index(calls: SignedCalls, settings: Settings, wishes: Wishes) -> int:
    """Removes what mounts share of attributes in the bucket."""
    from sosfs.cli import shared_index  # noqa: PLC0415

    found = shared_index.look(calls, settings.prefix)
    for key in found.others:
        print(printable(f"stays: {key}: it is no index of attributes"))
    failures = [] if wishes.is_dry else shared_index.remove(calls, settings.prefix, found)
    for failure in failures:
        print(printable(f"sosfs: {failure.key}: {failure.error.strerror}"), file=sys.stderr)
    count = _counted(len(set(found.ours) - {failure.key for failure in failures}), "object")
    print(f"shared attributes of {settings.source.rstrip('/')}: {count} {_would(wishes)}removed")
    return Exit.FAILED if failures else Exit.OK


def _directories(directories: Sequence[StateDirectory], wishes: Wishes) -> int:
    removed = freed = 0
    code = Exit.OK
    for directory in directories:
        with state_directories.held(directory) as is_ours:
            why = state_directories.reasons(directory) if is_ours else [IN_USE]
            for line in why:
                print(printable(f"stays: {directory.path}: {line}"))
            if why:
                continue
            size = state_directories.size(directory)
            print(printable(f"{_would(wishes)}removed: {directory.path}, {filesize.decimal(size)}"))
            try:
                if not wishes.is_dry:
                    state_directories.remove(directory)
            except OSError as error:
                print(printable(f"sosfs: {directory.path}: {error.strerror}"), file=sys.stderr)
                code = Exit.FAILED
                continue
            removed, freed = removed + 1, freed + size
    word = "cache directory" if removed == 1 else "cache directories"
    print(f"{removed} {word} {_would(wishes)}removed, {filesize.decimal(freed)}")
    return code


def _would(wishes: Wishes) -> str:
    return "would be " if wishes.is_dry else ""


def _counted(count: int, word: str) -> str:
    return f"1 {word}" if count == 1 else f"{count} {word}s"


def _all_uploads(calls: SignedCalls, settings: Settings, directories: Sequence[StateDirectory], wishes: Wishes) -> int:
    """Ends all unfinished uploads of the bucket, whoever began them, if the user wants it."""
    from sosfs.cli import unfinished_uploads  # noqa: PLC0415

    used = unfinished_uploads.in_use(path for directory in directories for path in directory.buckets)
    found = list(unfinished_uploads.listed(calls, settings.prefix, used=used))
    for each in found:
        print(printable(_line(each, time.time())))
    total = filesize.decimal(sum(each.size for each in found))
    print(f"{_counted(len(found), 'unfinished upload')} in {printable(settings.source)}, {total}")
    if not found or wishes.is_dry:
        return Exit.OK
    if wishes.asks and not _agreed():
        print("none was ended")
        return Exit.OK
    for each in found:
        unfinished_uploads.abort(calls, each.upload.key, each.upload.upload_id)
    print(f"{_counted(len(found), 'unfinished upload')} ended")
    return Exit.OK


def _line(each: Unfinished, now: float) -> str:
    age = max(0.0, now - each.upload.started)
    shown = f"{age / 86_400:.0f} days" if age >= 2 * 86_400 else f"{age / 3600:.1f} hours"
    return f"{shown:>10}  {filesize.decimal(each.size):>10}  {each.parts:>5} parts  {each.upload.key}"


def _agreed() -> bool:
    """Asks; who cannot be asked does not agree."""
    if not sys.stdin.isatty():
        print("sosfs: nobody can be asked here: --yes ends them unasked", file=sys.stderr)
        return False
    print("Programs that are still at one of them fail. End them all? [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
