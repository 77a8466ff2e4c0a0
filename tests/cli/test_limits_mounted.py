"""Limits as a user sets them: at mount, while it goes on, and what other processes notice of one that asks for much."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import Cramped, Mounter
from tests.support.disks import fill, free
from tests.support.drive import Drive, eventually, status
from tests.support.faults import Answer
from tests.support.foreign import Foreign
from tests.support.mounting import run_sosfs
from tests.support.proxy import Proxy
from tests.support.traffic import Op, on

MIB = 1 << 20


def limit(drive: Drive, *options: str) -> str:
    done = run_sosfs(["limit", drive.mount.path, *options], drive.mount.environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_rates_hold_for_a_mount_and_change_while_it_goes_on(mounter: Mounter, foreign: Foreign) -> None:
    body = os.urandom(3 * MIB)
    foreign.put("there", body)
    drive = mounter("", "--upload-rate", "1M", "--download-rate", "1M", "--transfers", "7")
    now = status(drive)
    assert (now.upload_rate, now.download_rate, now.transfers, now.allowed) == (MIB, MIB, 7, 7)

    began = time.monotonic()
    (drive.here / "new").write_bytes(body)
    assert time.monotonic() - began >= 2.9
    began = time.monotonic()
    assert (drive.here / "there").read_bytes() == body
    assert time.monotonic() - began >= 2.9

    # A copy that would take ten minutes ends at once when the limit goes.
    shown = limit(drive, "--upload-rate", "5K")
    assert "7 requests at once; 5K/s up, 1M/s down" in shown
    with subprocess.Popen(
        [sys.executable, "-c", f"open({str(drive.here / 'slow')!r}, 'wb').write(b'x' * {3 * MIB})"]
    ) as slow:
        eventually(lambda: status(drive).under_way > 0)
        assert slow.poll() is None
        assert "no limit up" in limit(drive, "--upload-rate", "0", "--transfers", "20")
        assert slow.wait(60) == 0
    assert status(drive).transfers == 20
    assert drive.stored(drive.here / "slow") == b"x" * (3 * MIB)
    assert "sosfs_transfers_limit 20.0" in (drive.mount.path / ".sosfs/metrics").read_text()


def test_only_who_mounted_it_may_change_it_and_nothing_is_no_change(mounter: Mounter, tmp_path: Path) -> None:
    drive = mounter()
    assert limit(drive) == "48 requests at once; no limit up, no limit down\n"
    done = run_sosfs(["limit", tmp_path], drive.mount.environment)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1


def test_a_server_that_asks_for_less_is_asked_less_and_status_says_so(
    mounter: Mounter, proxy: Proxy, foreign: Foreign
) -> None:
    foreign.put_all({f"d{number}/f": b"x" for number in range(60)})
    drive = mounter(proxy.endpoint)
    with proxy.broken(Answer(503, "SlowDown"), on(Op.LIST), times=3):
        drive.run("ls", "-R", ".")
    now = status(drive)
    assert now.refusals >= 1 and now.allowed < now.transfers
    shown = run_sosfs(["status", drive.mount.path], drive.mount.environment).stdout
    assert "as the server has asked for fewer" in shown
    assert "sosfs_slow_downs_total" in (drive.mount.path / ".sosfs/metrics").read_text()


def test_one_process_that_asks_for_much_does_not_keep_another_waiting(
    mounter: Mounter, proxy: Proxy, foreign: Foreign
) -> None:
    """64 threads of one process read as many files; what another process asks for comes within a round, not last."""
    count = 160
    foreign.put_all({f"many/{number:03}": b"m" * 2000 for number in range(count)} | {"other/file": b"o" * 2000})
    drive = mounter(proxy.endpoint, "--transfers", "4", "--attributes", "listed")
    assert len(list((drive.here / "many").iterdir())) == count
    assert len(list((drive.here / "other").iterdir())) == 1
    proxy.settle()
    proxy.latency = 0.1
    grep = (
        "import sys; from concurrent.futures import ThreadPoolExecutor as Pool; from pathlib import Path\n"
        "with Pool(64) as pool: list(pool.map(Path.read_bytes, Path(sys.argv[1]).iterdir()))"
    )
    with subprocess.Popen([sys.executable, "-c", grep, str(drive.here / "many")]) as busy:
        eventually(lambda: status(drive).queued > 40)
        proxy.reset()
        assert drive.run("cat", "other/file") == "o" * 2000
        before = proxy.requests
        assert busy.wait(120) == 0
    own = [at for at, request in enumerate(before) if request.key == "other/file"]
    assert own, "the file was read before"
    # Each request of `cat` waits for those under way and for one of the other process; it makes a few one by one.
    assert own[-1] < 30, [str(request) for request in before]
    proxy.latency = 0.0


def test_kept_space_blocks_give_way_to_files_that_are_written(cramped: Cramped, foreign: Foreign) -> None:
    """On a disk of 96 MiB, 32 of them kept: blocks that were read go, what is written goes up, the 32 stay free."""
    foreign.put_all({f"read/{number}": os.urandom(4 * MIB) for number in range(10)})
    drive = cramped(96 * MIB, "--cache-size", "60M", "--cache-free", "32M", "--part-size", "5M")
    cache = drive.mount.cache
    drive.run(sys.executable, "-m", "sosfs", "warm", drive.here / "read", environment=drive.mount.environment)
    blocks = sum(path.stat().st_blocks * 512 for path in (cache / "blocks").glob("*.data"))
    assert 10 * MIB < blocks <= 40 * MIB and free(cache) >= 32 * MIB
    least = free(cache)
    with (drive.here / "written").open("wb") as file:
        for _ in range(40):
            file.write(os.urandom(2 * MIB))
            least = min(least, free(cache))
    assert least >= 32 * MIB - (6 << 20)
    assert len(drive.stored(drive.here / "written")) == 80 * MIB
    left = sum(path.stat().st_blocks * 512 for path in (cache / "blocks").glob("*.data"))
    assert left < blocks


def test_kept_space_is_kept_from_writers_when_others_fill_the_disk(cramped: Cramped) -> None:
    """Nothing of ours is left to give way: what is written goes up by way of memory, and the disk is left alone."""
    drive = cramped(64 * MIB, "--cache-free", "25%")
    ballast = fill(drive.mount.cache, leave=12 * MIB)  # less than the 16 that are kept
    least = free(drive.mount.cache)
    with (drive.here / "large").open("wb") as file:
        for _ in range(96):
            file.write(bytes(MIB))
            least = min(least, free(drive.mount.cache))
    assert least >= 10 * MIB  # the journal may grow
    assert drive.stored(drive.here / "large") == bytes(96 * MIB)
    ballast.unlink()
