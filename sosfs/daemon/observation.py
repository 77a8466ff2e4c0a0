"""What `sosfs log` and `sosfs profile` have a running mount do: levels, the access log, sums.

Concurrency: trio thread only; files are opened and closed in threads.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import trio

from sosfs.concurrency.threads import LOCAL
from sosfs.config.parameters import LogLevel
from sosfs.ipc.commands import NO_OPTIONS, Names, Options, Tell, Told, Work
from sosfs.log import level
from sosfs.tracing.access_log import AccessLog
from sosfs.tracing.meters import METERS
from sosfs.tracing.profile import Profile

log = logging.getLogger(__name__)

OFF = b""  # in place of a file
PROFILE_SECONDS = 0.25  # between two looks at the sums
PROFILES = 4  # at once


class Observation:
    """The logs of one mount, and the profiles that are being made of it."""

    def __init__(self, mountpoint: Path) -> None:
        self._mountpoint = mountpoint
        self._access_log: AccessLog | None = None
        self._profiles = 0

    @property
    def works(self) -> Mapping[str, Work]:
        """What commands may ask for, by name."""
        return {"log": self._log, "profile": self._profile}

    async def close(self) -> None:
        """Ends the access log."""
        await self._end_access_log()

    async def _log(self, words: Sequence[Names], tell: Tell, options: Options = NO_OPTIONS) -> Told:
        """Changes what is told (`level` with its name, `access` with a path or `OFF`) and returns what holds then."""
        for name, value in words:
            if name == b"level":
                _put_level(_level(value))
            elif name == b"access":
                await self._end_access_log()
                if value != OFF:
                    await self._begin_access_log(Path(os.fsdecode(value)))
            else:
                raise OSError(errno.EOPNOTSUPP, f"this mount knows no {os.fsdecode(name)!r} of its log")
        access = self._access_log
        return {"level": level.name(), "access": os.fspath(access.path) if access else None}

    async def _begin_access_log(self, path: Path) -> None:
        if path.is_relative_to(self._mountpoint):
            raise OSError(errno.EINVAL, "an access log cannot be in the mount that it is of", os.fspath(path))
        self._access_log = await LOCAL.run(AccessLog, path)
        METERS.watch(self._access_log)
        log.info("the access log goes to %s", path)

    async def _end_access_log(self) -> None:
        ended, self._access_log = self._access_log, None
        if ended is not None:
            METERS.unwatch(ended)
            await LOCAL.run(ended.close)
            log.info("the access log has ended")

    async def _profile(self, words: Sequence[Names], tell: Tell, options: Options = NO_OPTIONS) -> Told:
        """Sums what is asked of the mount for so many `seconds`, or until who asks hangs up; tells it meanwhile."""
        if self._profiles >= PROFILES:
            raise OSError(errno.EBUSY, f"{PROFILES} profiles of this mount are being made already")
        seconds = next((float(value) for name, value in words if name == b"seconds"), math.inf)
        profile = Profile()
        began = time.monotonic()

        def now() -> dict[str, Any]:
            return {"seconds": round(time.monotonic() - began, 3), **profile.told()}

        self._profiles += 1
        METERS.watch(profile)
        try:
            with trio.move_on_after(seconds):
                while True:
                    await trio.sleep(PROFILE_SECONDS)
                    tell(now())
            return now()
        finally:
            METERS.unwatch(profile)
            self._profiles -= 1


def _put_level(wanted: LogLevel) -> None:
    is_told = log.isEnabledFor(logging.INFO)  # else it may be afterwards
    if is_told:
        log.info("the log level is %s from now on", wanted.value)
    level.put(wanted)
    if not is_told:
        log.info("the log level is %s from now on", wanted.value)


def _level(value: bytes) -> LogLevel:
    try:
        return LogLevel(value.decode())
    except ValueError as error:
        raise OSError(errno.EINVAL, f"there is no log level {os.fsdecode(value)!r}") from error
