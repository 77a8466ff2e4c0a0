"""`sosfs pending` and `sosfs retry`: what of a mount is not in the bucket yet, and that it is tried now.

The mount knows and does both; here it is asked, without a look into the mount. Blocking, one call a process.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import filesize

from sosfs.cli import location, progress, status
from sosfs.cli.progress import Step
from sosfs.cli.status import Output
from sosfs.daemon import launch, mountpoint
from sosfs.daemon.launch import Exit
from sosfs.ipc import commands
from sosfs.ipc.commands import Names, Tell, Told
from sosfs.ipc.pending import Kind
from sosfs.ipc.status import ANSWER_SECONDS, fetch
from sosfs.log.escaping import printable
from sosfs.log.wording import counted, lasting


@dataclass(frozen=True, slots=True)
class Target:
    """Which changes are meant: those at and below `names` in the mount at `mountpoint`, of the user `owner`."""

    mountpoint: Path
    owner: int
    names: Names

    def ask(self, errand: str, news: Tell) -> Told:
        """Has the daemon tell or try them. Raises OSError, soon where it hangs."""
        return commands.ask(self.mountpoint, errand, [self.names], owner=self.owner, news=news, silence=ANSWER_SECONDS)


def show(given: str | None, output: Output) -> int:
    """Prints what waits at a path, or in all mounts; 1 when a mount did not answer. Raises OSError for the one."""
    if given is not None:
        code, outcomes = Exit.OK, [_asked(_target(given))]
    else:
        code, outcomes = _everywhere()
    if output is Output.JSON:
        print(json.dumps([change for target, outcome in outcomes for change in _documents(target, outcome)]))
    else:
        print("\n".join(_text(outcomes)))
    return code


def retry(given: str) -> int:
    """Has what waits at a path tried now and tells what came of it; 1 when something still waits. Raises OSError."""
    target = _target(given)
    with progress.of_items("trying") as shown:

        def news(told: Told) -> None:
            if told:
                shown.tell(Step("trying", told["tried"], told["total"]))

        outcome = target.ask("retry", news)
    if not outcome["tried"]:
        print("nothing waits there")
        return Exit.OK
    left = int(outcome["total"])
    print(f"{counted(outcome['tried'], 'change')} tried, {left if left else 'none'} still {_waits(left)}")
    for line in _lines(target, outcome):
        print(line, file=sys.stderr)
    return Exit.FAILED if left else Exit.OK


def _target(given: str) -> Target:
    """What a path means. One outside of all mounts may have been a mount point, whose daemon drains."""
    place = location.holding(given, mountpoint.table())
    if place is None:
        path = mountpoint.canonical(given)
        if fetch(path) is None:
            raise OSError(errno.EINVAL, "nothing of sosfs is mounted there", given)
        return Target(path, os.geteuid(), ())
    return Target(place.mount.mountpoint, place.mount.owner, place.names)


def _asked(target: Target) -> tuple[Target, Told]:
    return target, target.ask("pending", lambda _: None)


def _everywhere() -> tuple[Exit, list[tuple[Target, Told]]]:
    """What waits in all mounts; those that do not answer are told on standard error."""
    owners = {mount.mountpoint: mount.owner for mount in status.askable(mountpoint.table())}
    code, outcomes = Exit.OK, []
    for one in status.everywhere():
        path = Path(one.mountpoint)
        try:
            if one.now is None:
                raise OSError(errno.ENOTCONN, one.why, one.mountpoint)
            outcomes.append(_asked(Target(path, owners.get(path, os.geteuid()), ())))
        except OSError as error:
            code = launch.report(error)
    return code, outcomes


def _documents(target: Target, outcome: Told) -> list[dict[str, Any]]:
    return [{**change, "mountpoint": str(target.mountpoint)} for change in outcome["changes"]]


def _text(outcomes: Sequence[tuple[Target, Told]]) -> Iterator[str]:
    total = sum(int(outcome["total"]) for _, outcome in outcomes)
    size = sum(int(change["size"]) for _, outcome in outcomes for change in outcome["changes"])
    for target, outcome in outcomes:
        yield from _lines(target, outcome)
    if not total:
        yield "nothing waits"
    else:
        yield f"{counted(total, 'change')} {_waits(total)}{f', {filesize.decimal(size)}' if size else ''}"


def _lines(target: Target, outcome: Told) -> Iterator[str]:
    for change in outcome["changes"]:
        path = os.path.join(target.mountpoint, change["path"])  # noqa: PTH118 - an empty one is the mount point
        yield f"{printable(path)}: {printable(_described(change, now=time.time()))}"
    more = int(outcome["total"]) - len(outcome["changes"])
    if more:
        yield f"and {more:,} more"


def _described(change: Told, *, now: float) -> str:
    """One change in words: what, how far, since when, why not yet, and when again."""
    what = change["kind"]
    if what == Kind.CONTENT.value:
        what = filesize.decimal(change["size"])
        if change["size"]:
            what += f", {100 * change['uploaded'] // change['size']} % up"
    told = f"{what}, for {lasting(now - change['since'])}"
    if change["error"]:
        told += f": {change['error']}"
    if change["retry_at"]:
        told += f"; tried again in {lasting(change['retry_at'] - now)}"
    return told


def _waits(count: int) -> str:
    return "waits" if count == 1 else "wait"
