"""sosfs itself: with close in the bucket, with the journal, and with other settings for comparison."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from tests.bench.systems.system import ROOT, Closed, Place, Role, System, at_once, sync_directory


def _system(name: str, closed: Closed, *options: str, settle: Callable[[Place], float] = at_once) -> System:
    def command(place: Place) -> list[str]:
        where = ["--endpoint", place.server.endpoint, "--cache-dir", str(place.cache)]
        mount = [sys.executable, "-m", "sosfs", "mount", "-f"]
        return [*mount, place.bucket, str(place.mountpoint), *where, *options]

    def environment(place: Place) -> Mapping[str, str]:
        keys = {"EXOSCALE_API_KEY": place.server.key, "EXOSCALE_API_SECRET": place.server.secret}
        return {**keys, "PYTHONPATH": str(ROOT)}

    told = " ".join(options) or "defaults"
    unmount = (sys.executable, "-m", "sosfs", "umount")
    return System(name, Role.OWN, closed, told, command, environment, settle=settle, unmount=unmount)


def _sync_top(place: Place) -> float:
    sync_directory(place.mountpoint)
    return 0.0


SOSFS = [
    _system("sosfs", Closed.BUCKET),
    _system("sosfs-journal", Closed.MACHINE, "--durability", "journal", settle=_sync_top),
    _system("sosfs-writeback", Closed.MACHINE, "--durability", "writeback", settle=_sync_top),
    _system("sosfs-tuned", Closed.BUCKET, "--memory", "1G", "--ttl", "60"),
    _system("sosfs-listed", Closed.BUCKET, "--attributes", "listed"),
    _system("sosfs-unverified", Closed.BUCKET, "--verify", "none"),
]
