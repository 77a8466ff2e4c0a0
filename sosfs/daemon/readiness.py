"""Tell the service manager: ready, busy with what, stopping.

It is told by the main process of the service, which is why the unit uses `sosfs mount -f`; where no
`NOTIFY_SOCKET` is set nothing happens. Safe from any thread; a message is one datagram and does not block.
"""

from __future__ import annotations

import functools

import sdnotify


@functools.cache
def _notifier() -> sdnotify.SystemdNotifier:
    return sdnotify.SystemdNotifier()


def ready(what: str) -> None:
    """The mount is usable."""
    _notifier().notify(f"READY=1\nSTATUS={what}")


def stopping(what: str, *, seconds: float) -> None:
    """The mount is ending and not done within the next while; may be told again, each time for `seconds` more."""
    _notifier().notify(f"STOPPING=1\nSTATUS={what}\nEXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}")
