"""Set the log level, and read it again at SIGHUP.

One a process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from sosfs.config.parameters import LogLevel

LIBRARIES = ("boto3", "botocore", "urllib3")  # at info they tell of each connection

_read: Callable[[], LogLevel] | None = None


def follow(read: Callable[[], LogLevel]) -> None:
    """From now on `again` asks this."""
    global _read  # noqa: PLW0603 - as the logging it sets
    _read = read


def put(level: LogLevel) -> None:
    """Logs messages of this weight and above."""
    logging.getLogger().setLevel(level.name)
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(max(logging.WARNING, logging.getLogger().level))


def name() -> str:
    """That which holds, as a user writes it."""
    return logging.getLevelName(logging.getLogger().level).lower()


def again() -> LogLevel | None:
    """Reads the level again and puts it; None where nobody said from where. Raises OSError, `SettingError`."""
    if _read is None:
        return None
    level = _read()
    put(level)
    return level
