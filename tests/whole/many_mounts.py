"""Several mounts of one bucket on one machine: what they do together, what it costs, and that no update is lost.

    python -m tests.whole.many_mounts [--mounts 1,2,4,8] [--seconds 20]

Each mount has a worker that makes files of its own, reads those of its neighbour, and counts on in a file that all
share: who is beaten reads again. One more writes numbers that another mount waits to see. The result is a table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from sosfs.ipc.status import Status
from tests.conftest import access_to, new_bucket
from tests.support.ceph import Ceph
from tests.support.foreign import Foreign
from tests.support.mounting import Mount, run_sosfs
from tests.support.servers import Server
from tests.support.watchdog import Watchdog
from tests.whole.test_several_mounts import add_one, shows

TTL = 1.0  # seconds
BODY = bytes(4096)
SHARED = 10  # own files for each turn with the shared one
LOOK = 0.02  # seconds between two looks at what another mount writes
HEADER = ("mounts", "files/s", "requests a file", "counted", "lost", "beaten", "seen after, median", "p99")


@dataclass
class Outcome:
    """What came of a run with so many mounts."""

    mounts: int
    seconds: float
    files: int = 0
    counted: int = 0
    beaten: int = 0
    stored: int = 0  # what the shared file says in the end
    requests: int = 0
    seen: list[float] = field(default_factory=list)  # seconds until another mount showed what one had written

    def row(self) -> str:
        """A line of the table."""
        late = statistics.quantiles(self.seen, n=100)[-1] if len(self.seen) > 1 else 0.0
        usual = statistics.median(self.seen) if self.seen else 0.0
        cells = [
            str(self.mounts), f"{self.files / self.seconds:.0f}", f"{self.requests / max(1, self.files):.2f}",
            str(self.counted), str(self.counted - self.stored), str(self.beaten), f"{usual:.2f} s", f"{late:.2f} s",
        ]  # fmt: skip
        return f"| {' | '.join(cells)} |"


def requests_of(mount: Mount) -> int:
    """All requests that a mount has sent."""
    told = Status.from_json(run_sosfs(["status", mount.path, "--json"], mount.environment).stdout)
    return sum(told.requests.values())


def work(number: int, mounts: list[Mount], until: float, out: Outcome, lock: threading.Lock) -> None:
    """Makes own files, reads the neighbour's, counts on."""
    top = mounts[number].path
    here, there = top / f"own{number}", top / f"own{(number + 1) % len(mounts)}"
    here.mkdir(exist_ok=True)
    at = 0
    while time.monotonic() < until:
        (here / f"f{at}").write_bytes(BODY)
        if at % SHARED == 1 and (there / f"f{at // 2}").exists():
            assert (there / f"f{at // 2}").read_bytes() == BODY
        at += 1
        if at % SHARED == 0:
            won = add_one(top / "count")
            with lock:
                out.counted, out.beaten = out.counted + won, out.beaten + (not won)
    with lock:
        out.files += at


def watch(mounts: list[Mount], until: float, out: Outcome) -> None:
    """The first mount writes, the last one looks until it sees that."""
    number = 0
    while time.monotonic() < until:
        number += 1
        (mounts[0].path / "shown").write_bytes(b"%d" % number)
        began = time.monotonic()
        while not shows(mounts[-1].path / "shown", b"%d" % number):
            time.sleep(LOOK)
            assert time.monotonic() < began + 60, "it is never seen"
        out.seen.append(time.monotonic() - began)


def measure(count: int, seconds: float, server: Server, base: Path) -> Outcome:
    """One run with so many mounts of a new bucket."""
    out, lock, bucket = Outcome(count, seconds), threading.Lock(), new_bucket(server)
    bucket.put("count", b"%06d" % 0)
    with ExitStack() as ending:
        watchdog = ending.enter_context(Watchdog())
        mounts = []
        for number in range(count):
            place = base / f"{count}-{number}"
            mount = Mount(access_to(server), bucket.bucket, place, watchdog, ("--ttl", str(TTL)))
            mount.allow_log(".")
            ending.callback(mount.clear)
            mount.start()
            mounts.append(mount)
        _run(mounts, seconds, out, lock)
        out.requests = sum(map(requests_of, mounts))
        for mount in mounts:
            mount.stop()
    out.stored = _number(bucket)
    return out


def _run(mounts: list[Mount], seconds: float, out: Outcome, lock: threading.Lock) -> None:
    until = time.monotonic() + seconds
    workers = [threading.Thread(target=work, args=(at, mounts, until, out, lock)) for at in range(len(mounts))]
    if len(mounts) > 1:
        workers.append(threading.Thread(target=watch, args=(mounts, until, out)))
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def _number(bucket: Foreign) -> int:
    return int(bucket.get("count"))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mounts", default="1,2,4,8")
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    print(f"| {' | '.join(HEADER)} |\n|{'---:|' * len(HEADER)}")
    lost = 0
    with tempfile.TemporaryDirectory(prefix="sosfs-mounts-", ignore_cleanup_errors=True) as name, ExitStack() as ending:
        ceph = Ceph(Path(name))
        ending.callback(ceph.stop)
        server = Server("ceph", f"http://127.0.0.1:{ceph.port}")
        for count in map(int, options.mounts.split(",")):
            out = measure(count, options.seconds, server, Path(name))
            lost += out.counted != out.stored
            print(out.row(), flush=True)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
