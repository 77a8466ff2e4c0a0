"""Tell the service manager: ready, busy with what, stopping.

It is told by the main process of the service, which is why the unit uses `sosfs mount -f`; where no
`NOTIFY_SOCKET` is set nothing happens. Safe from any thread; a message is one datagram and does not block.
"""

from __future__ import annotations

import functools
import os

import sdnotify


@functools.cache
def _notifier() -> sdnotify.SystemdNotifier:
    return sdnotify.SystemdNotifier()


def heartbeat_seconds() -> float | None:
    """How often `alive` is to be told: half of what the manager waits (sd_watchdog_enabled(3)); None: not at all."""
    waits = os.environ.get("WATCHDOG_USEC", "")
    if not waits.isdecimal() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(waits) / 1e6 / 2 or None


def alive() -> None:
    """The daemon works; a manager that does not hear it for too long ends the daemon."""
    _notifier().notify("WATCHDOG=1")


def ready(what: str) -> None:
    """The mount is usable."""
    _notifier().notify(f"READY=1\nSTATUS={what}")


def stopping(what: str, *, seconds: float) -> None:
    """The mount is ending and not done within the next while; may be told again, each time for `seconds` more."""
    _notifier().notify(f"STOPPING=1\nSTATUS={what}\nEXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}")
