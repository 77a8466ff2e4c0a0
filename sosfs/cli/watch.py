"""`sosfs status --watch`: what mounts do, live, with the rates that follow from two looks.

A look a second, until Ctrl-C or until the mount has ended. On a terminal the picture is repainted; elsewhere, and with
--json, each look is added below the last. Blocking, one call a process.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich import filesize
from rich.console import Console
from rich.live import Live
from rich.text import Text

from sosfs.cli import status
from sosfs.cli.status import Output, Seen
from sosfs.daemon.launch import Exit
from sosfs.ipc.status import Status
from sosfs.log.escaping import printable
from sosfs.log.wording import counted, lasting

LOOK_SECONDS = 1.0
WINDOW = 10  # looks that a rate is the mean of: parts of a file come in bursts


@dataclass(frozen=True, slots=True)
class Rates:
    """What happened each second between two looks; sizes are bytes."""

    up: float = 0.0
    down: float = 0.0
    requests: Mapping[str, float] = field(default_factory=dict)  # by kind
    retries: float = 0.0
    failures: float = 0.0

    @property
    def total(self) -> float:
        """Requests of all kinds."""
        return sum(self.requests.values())

    def left(self, now: Status) -> float | None:
        """How many seconds the bytes that wait take at this rate; None where nothing goes up, or nothing waits."""
        size = now.pending_bytes - now.uploaded_bytes
        return size / self.up if size > 0 and self.up > 0 else None


def between(before: Status, now: Status, seconds: float) -> Rates:
    """The rates of `seconds` seconds. What is given up of an upload lowers its bytes: no rate is below 0."""
    if seconds <= 0 or before.pid != now.pid:
        return Rates()

    def rate(new: float, old: float) -> float:
        return max(0.0, new - old) / seconds

    return Rates(
        rate(_up(now), _up(before)),
        rate(now.received_bytes, before.received_bytes),
        {kind: rate(count, before.requests.get(kind, 0)) for kind, count in now.requests.items()},
        rate(now.retries, before.retries),
        rate(now.failures, before.failures),
    )


def _up(now: Status) -> int:
    """Bytes that are up, in objects, in parts of unfinished uploads or on the wire."""
    return now.sent_bytes + now.moving_bytes


class History:
    """The last looks at each mount."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._looks: dict[str, deque[tuple[float, Status]]] = {}

    def add(self, now: Status) -> Rates:
        """One more look; the rates since the oldest that is kept."""
        looks = self._looks.setdefault(now.mountpoint, deque(maxlen=WINDOW))
        looks.append((self._now(), now))
        (began, first), (ended, last) = looks[0], looks[-1]
        return between(first, last, ended - began)


def run(given: str | None, output: Output, *, looks: int | None = None) -> int:
    """Shows the mount that a path is in, or all, until Ctrl-C or its end, or for so many `looks`.

    Raises OSError for a path where nothing of sosfs is mounted, or whose daemon dies.
    """
    history = History()
    frames = _frames(given, looks)
    try:
        if output is Output.JSON:
            for seen in frames:
                looked = [_document(one, history) for one in seen]
                print(json.dumps(looked if given is None else looked[0]), flush=True)
        elif Console().is_terminal:
            with Live(auto_refresh=False, screen=False) as live:
                for seen in frames:
                    live.update(Text("\n".join(picture(seen, history))), refresh=True)
        else:
            for seen in frames:
                print("\n".join(picture(seen, history)), flush=True)
    except KeyboardInterrupt:
        return Exit.OK
    if given is not None and looks is None and output is Output.TEXT:
        print("the mount has ended")
    return Exit.OK


def _frames(given: str | None, looks: int | None) -> Iterator[list[Seen]]:
    """A look a second, of a path until its mount has ended.

    Raises OSError where the first one of a path shows no mount, and where its daemon has died.
    """
    count = 0
    while looks is None or count < looks:
        if count:
            time.sleep(LOOK_SECONDS)
        if given is None:
            yield status.everywhere()
        else:
            try:
                now = status.of_path(given)
            except OSError as error:
                if error.errno == errno.EINVAL and count:
                    return
                if error.errno == errno.ENOTCONN or not (count or isinstance(error, TimeoutError)):
                    raise
                yield [Seen(given, None, error.strerror or "")]
            else:
                given = now.mountpoint  # what was in it is not found any more while it drains
                yield [Seen(now.mountpoint, now)]
        count += 1


def _document(one: Seen, history: History) -> dict[str, Any]:
    """A look as JSON, with its rates; `left` is how many seconds what waits takes at this rate, null for unknown."""
    if one.now is None:
        return one.document
    rates = history.add(one.now)
    return {**one.document, "rates": {**dataclasses.asdict(rates), "left": rates.left(one.now)}}


def picture(seen: list[Seen], history: History) -> list[str]:
    """What is shown of one look: details of a single mount, of several a line each with its rates."""
    if len(seen) == 1 and seen[0].now is not None:
        return details(seen[0].now, history.add(seen[0].now))
    shown = []
    for line, one in zip(status.overview(seen), seen, strict=False):
        shown.append(line)
        if one.now is not None:
            rates = history.add(one.now)
            shown.append(f"  up {_speed(rates.up)}, down {_speed(rates.down)}, {rates.total:.1f} requests a second")
    return shown or status.overview(seen)


def details(now: Status, rates: Rates) -> list[str]:
    """One mount with its rates."""
    left = rates.left(now)
    lines = {
        "mount": f"{status.source(now)} at {now.mountpoint}, {status.STATES[now.state]}",
        "server": status.server(now),
        "up": f"{_speed(rates.up)}, {filesize.decimal(now.sent_bytes)} in all",
        "down": f"{_speed(rates.down)}, {filesize.decimal(now.received_bytes)} in all",
        "queue": status.pending(now) + (f"; {lasting(left)} left at this rate" if left is not None else ""),
    }
    told = [f"{name:<10} {printable(text)}" for name, text in lines.items()]
    told += [
        f"{'cache':<10} {status.CACHES.get(name, name)}: {status.share(hits, asked)}"
        for name, (hits, asked) in now.caches.items()
    ]
    kinds = {kind: rate for kind, rate in rates.requests.items() if rate}
    each = ", ".join(f"{kind} {rate:.1f}" for kind, rate in sorted(kinds.items(), key=lambda item: -item[1]))
    told.append(f"{'requests':<10} {rates.total:.1f} a second{f': {each}' if each else ''}")
    told.append(f"{'retries':<10} {rates.retries:.1f} a second, {now.retries:,} in all; {now.failures:,} given up")
    told += [f"{'waiting':<10} {printable(what)}" for what in now.waiting]
    told += [f"{'error':<10} {printable(error)}" for error in now.errors[-1:]]
    if len(now.errors) > 1:
        told.append(f"{'':<10} {counted(len(now.errors) - 1, 'error')} before that: 'sosfs status' has the last ones")
    return told


def _speed(rate: float) -> str:
    return f"{filesize.decimal(int(rate))}/s"
