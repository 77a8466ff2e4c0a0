"""Hours of programs on one mount over a bad server, with little memory and a small disk: does anything grow?

    python -m tests.whole.soak MINUTES [--json FILE]       make soak MINUTES=60

Five kinds of programs work side by side, each in a directory of its own, round by round, and look at what they have
written. Of the requests some fail, are refused, or lose their answer. Meanwhile is counted what the daemon holds. After
a warm-up none of that may grow, and at rest it goes back.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from sosfs.ipc.status import Status
from tests.conftest import access_to, new_bucket
from tests.support.disks import small_disk
from tests.support.faults import Action, Answer, Delay, Moment, Reset
from tests.support.mounting import Mount, run_sosfs
from tests.support.proxy import Proxy
from tests.support.seaweed import Weed
from tests.support.servers import Server
from tests.support.watchdog import Watchdog

MIB = 1 << 20
DISK, CACHE, KEPT = 192 << 20, 64 << 20, 24 << 20  # bytes
MEMORY = 16 << 20
OPTIONS = (
    *("--memory", str(MEMORY), "--cache-size", str(CACHE), "--cache-free", str(KEPT)),
    *("--ttl", "2", "--log-level", "warning"),
)
SAMPLE = 2.0  # seconds between two looks
WARM_UP = 0.3  # of the time
REST = 100.0  # seconds without work at the end: idle threads, connections and heaps are given back by then
FAULTS = 0.05  # of all requests
# What a value may grow by, from the end of the warm-up to the end: a part of it, and so much more.
GROWTH = {
    "rss": (0.10, 12 * MIB),
    "threads": (0.15, 6),
    "files": (0.15, 10),
    "cache": (0.15, 8 * MIB),
    "log": (0, 64 << 10),  # a minute
}
WORDS = {
    "rss": "resident memory, MiB",
    "threads": "threads",
    "files": "open files",
    "cache": "cache disk, MiB",
    "log": "log, KiB",
}
Program = Callable[[Path, Path, random.Random], None]


@dataclass(frozen=True)
class Sample:
    """What the daemon holds at a moment; sizes are bytes."""

    time: float
    rss: int
    threads: int
    files: int
    cache: int
    log: int


@dataclass
class Outcome:
    """What came of a run. `growth` is what a straight line through the samples after the warm-up rises by."""

    minutes: float
    samples: list[Sample] = field(default_factory=list)
    rest: Sample | None = None
    rounds: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    requests: int = 0
    faults: int = 0

    @property
    def warm(self) -> list[Sample]:
        """The samples after the warm-up."""
        begun = self.samples[0].time
        return [one for one in self.samples if one.time - begun >= WARM_UP * (self.samples[-1].time - begun)]

    def growth(self, name: str) -> float:
        warm = self.warm
        times, values = [one.time for one in warm], [float(getattr(one, name)) for one in warm]
        return statistics.linear_regression(times, values).slope * (times[-1] - times[0])

    @property
    def grown(self) -> list[str]:
        """What has grown by more than it may, in words."""
        lines = []
        for name, (part, more) in GROWTH.items():
            usual = statistics.median(getattr(one, name) for one in self.warm)
            if name == "log":
                usual, more = 0.0, int(more * self.minutes)
            if self.growth(name) > usual * part + more:
                lines.append(f"{name} has grown by {self.growth(name):.0f}, from about {usual:.0f}")
        return lines

    def table(self) -> str:
        """The figures as Markdown."""
        rows = ["| | first | median | most | growth | at rest |", "|---|---:|---:|---:|---:|---:|"]
        for name in GROWTH:
            values = [getattr(one, name) for one in self.warm]
            cells = [values[0], statistics.median(values), max(values), self.growth(name)]
            cells.append(getattr(self.rest, name) if self.rest else 0)
            unit = MIB if name in ("rss", "cache") else 1024 if name == "log" else 1
            rows.append(f"| {WORDS[name]} | " + " | ".join(f"{cell / unit:.0f}" for cell in cells) + " |")
        done = ", ".join(f"{count} of {name}" for name, count in sorted(self.rounds.items()))
        rows += [
            "",
            f"{self.minutes:g} minutes; {self.requests} requests, {self.faults} of them broken; rounds: {done}.",
        ]
        return "\n".join(rows)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Runs a program that must succeed."""
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, capture_output=True, text=True, errors="replace", timeout=600, check=False
    )
    if done.returncode:
        told = f"{done.stdout[-500:]} {done.stderr[-500:]}"
        raise RuntimeError(f"{' '.join(map(str, command))[:200]}: {done.returncode}: {told}")
    return done.stdout


def make_tree(root: Path, dice: random.Random, count: int = 60) -> None:
    for number in range(count):
        path = root / f"d{number % 7}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dice.randbytes(dice.choice((10, 3000, 40_000, 400_000))))


def rsync(here: Path, local: Path, dice: random.Random) -> None:
    """A tree of which some changes each time is copied, and compared.

    Without the window rsync compares whole seconds, and takes a file that was written twice in one for the same.
    """
    source = local / "rsync"
    make_tree(source, dice, dice.randrange(5, 60))
    run("rsync", "-a", "--modify-window=-1", "--delete", f"{source}/", here / "copy")
    run("diff", "-r", source, here / "copy")


def tar(here: Path, local: Path, dice: random.Random) -> None:
    """An archive is unpacked, packed again from the mount, and removed."""
    source = local / "tar"
    shutil.rmtree(source, ignore_errors=True)
    make_tree(source, dice)
    run("sh", "-euc", f"tar -C {source} -c . | tar -x", cwd=here)
    run("sh", "-euc", f"tar -c . | tar -C {source} -d", cwd=here)
    for path in list(here.iterdir()):
        shutil.rmtree(path)


def git(here: Path, local: Path, dice: random.Random) -> None:
    """A repository gets commits, and is checked; now and then it is begun anew."""
    repository = here / "repository"
    if not (repository / ".git").exists() or dice.random() < 0.1:
        shutil.rmtree(repository, ignore_errors=True)
        run("git", "init", "-q", repository)
    make_tree(repository / "tree", dice, 12)
    name = ("-c", "user.name=soak", "-c", "user.email=soak@localhost", "-c", "gc.auto=0")
    run("git", *name, "add", "-A", cwd=repository)
    run("git", *name, "commit", "-q", "--allow-empty", "-m", "round", cwd=repository)
    run("git", "fsck", "--strict", cwd=repository)


def sqlite(here: Path, local: Path, dice: random.Random) -> None:
    """A database gets rows, some go, and it is sound."""
    base = here / "base.sqlite"
    script = (
        "create table if not exists t (id integer primary key, body blob);"
        "begin; insert into t (body) with recursive n(i) as (select 1 union all select i + 1 from n where i < 300) "
        f"select randomblob({dice.randrange(10, 900)}) from n;"
        f"delete from t where id % 3 = {dice.randrange(3)}; commit;"
        "delete from t where id < (select max(id) from t) - 5000; pragma integrity_check;"
    )
    if not run("sqlite3", base, script).rstrip().endswith("ok"):
        raise RuntimeError("the database is not sound")


def random_writes(here: Path, local: Path, dice: random.Random) -> None:
    """A file is changed at random places, as is its double elsewhere; both are the same afterwards."""
    double, path = local / "double", here / "random"
    if not double.exists():
        double.write_bytes(dice.randbytes(12 * MIB))
        shutil.copyfile(double, path)
    with double.open("r+b") as one, path.open("r+b") as other:
        for _ in range(60):
            body, place = dice.randbytes(dice.choice((100, 4096, 70_000))), dice.randrange(12 * MIB)
            for file in (one, other):
                file.seek(place)
                file.write(body)
    run("cmp", double, path)


PROGRAMS: Sequence[Program] = (rsync, tar, git, sqlite, random_writes)


def sampled(mount: Mount) -> Sample:
    """What the daemon holds now."""
    process = Path(f"/proc/{mount.pid}")
    text = (process / "status").read_text()
    rss, threads = (int(re.search(rf"{name}:\s+(\d+)", text)[1]) for name in ("VmRSS", "Threads"))  # type: ignore[index]
    state = os.statvfs(mount.cache)
    used = (state.f_blocks - state.f_bfree) * state.f_frsize
    return Sample(
        time.monotonic(), rss << 10, threads, len(os.listdir(process / "fd")), used, mount.logfile.stat().st_size
    )


def _work(
    program: Callable[[Path, Path, random.Random], None], mount: Mount, local: Path, until: float, out: Outcome
) -> None:
    dice, here, local = random.Random(program.__name__), mount.path / program.__name__, local / program.__name__
    here.mkdir()
    local.mkdir()
    while time.monotonic() < until and len(out.failures) < 10:
        try:
            program(here, local, dice)
        except Exception as error:  # noqa: BLE001 - it is told at the end
            out.failures.append(f"{program.__name__}, round {out.rounds[program.__name__] + 1}: {error!r}")
            return
        out.rounds[program.__name__] += 1


def break_some(proxy: Proxy) -> None:
    """A part of the requests fails, in four ways."""
    kinds: Sequence[Action] = (Answer(500, "InternalError"), Answer(503, "SlowDown"), Reset(Moment.AFTER), Delay(0.5))
    for seed, action in enumerate(kinds):
        proxy.inject(action, chance=FAULTS / len(kinds), seed=seed)


def soak(minutes: float, base: Path, *, rest: float = REST) -> Outcome:
    """One run, in a directory that is empty."""
    out = Outcome(minutes)
    with ExitStack() as ending:
        weed = Weed(Path(ending.enter_context(tempfile.TemporaryDirectory(dir=base))))
        ending.callback(weed.stop)
        server = Server("weed", f"http://127.0.0.1:{weed.port}")
        bucket = new_bucket(server)
        proxy = ending.enter_context(Proxy(server.endpoint))
        ending.enter_context(small_disk(base / "cache", DISK))
        watchdog = ending.enter_context(Watchdog())
        mount = Mount(access_to(server, proxy.endpoint), bucket.bucket, base, watchdog, OPTIONS)
        mount.allow_log(".")
        ending.callback(mount.clear)
        mount.start()
        break_some(proxy)
        _samples(mount, proxy, base, time.monotonic() + 60 * minutes, out)
        proxy.heal()
        _settle(mount)
        time.sleep(rest)
        out.rest = sampled(mount)
        mount.stop()
    return out


def _samples(mount: Mount, proxy: Proxy, base: Path, until: float, out: Outcome) -> None:
    local = base / "local"
    local.mkdir()
    workers = [threading.Thread(target=_work, args=(program, mount, local, until, out)) for program in PROGRAMS]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        if time.monotonic() < until:
            out.samples.append(sampled(mount))
        out.requests += len(proxy.requests)
        out.faults += sum(bool(request.fault) for request in proxy.requests)
        proxy.reset()
        time.sleep(SAMPLE)


def _settle(mount: Mount) -> None:
    """Waits until all is in the bucket."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        told = run_sosfs(["status", mount.path, "--json"], mount.environment).stdout
        if Status.from_json(told).pending_files == 0:
            return
        time.sleep(1)
    raise TimeoutError("changes are still pending")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("minutes", type=float)
    parser.add_argument("--json", type=Path, help="write all samples there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sosfs-soak-", ignore_cleanup_errors=True) as base:
        out = soak(options.minutes, Path(base))
    print(out.table())
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in (*out.samples, out.rest) if one]))
    for line in (*out.failures, *out.grown):
        print(f"WRONG: {line}")
    return 1 if out.failures or out.grown else 0


assert {each.name for each in fields(Sample)} >= set(GROWTH)

if __name__ == "__main__":
    sys.exit(main())
