"""kill -9 at any instant loses nothing that was acknowledged, in all modes of durability.

Each round mounts, checks what the last kill left, works and is killed. `SOSFS_CRASH_ROUNDS` sets how many rounds
each test has, `SOSFS_CRASH_SEED` where their dice begin; `make fuzz` runs many.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from sosfs.config.parameters import Durability
from sosfs.control.acl_text import ALL_USERS
from tests.conftest import access_to
from tests.support.crash import File, Killer, Worker, look, rounds
from tests.support.foreign import Foreign
from tests.support.mounting import Mount
from tests.support.servers import Server
from tests.support.watchdog import Watchdog

ROUNDS = int(os.environ.get("SOSFS_CRASH_ROUNDS", "12"))  # of each of the four tests
SEED = int(os.environ.get("SOSFS_CRASH_SEED", "1"))
UNMOUNT_EVERY = 8  # rounds, after which the bucket is compared
WORKERS = 3
NS = 1_000_000_000
EXPECTED = "finishing the rename|is not in the bucket yet|a crash cut short"


def work(mount: Mount, workers: list[Worker], steps: int, seconds: float) -> None:
    """All workers at once until the daemon is killed."""
    killer = Killer(mount.pid, steps=steps, seconds=seconds)
    thread = threading.Thread(target=killer.run)
    thread.start()
    with ThreadPoolExecutor(len(workers)) as pool:
        running = [pool.submit(worker.work, killer.killed, killer.count) for worker in workers]
        for one in running:
            one.result()
    thread.join()


def acl_of(foreign: Foreign, key: str) -> str:
    """The canned ACL that an object's own amounts to, "" where there is no object."""
    try:
        grants = foreign.client.get_object_acl(Bucket=foreign.bucket, Key=key)["Grants"]
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        return ""
    groups = {(grant["Grantee"].get("URI", ""), grant["Permission"]) for grant in grants}
    return "public-read" if (ALL_USERS, "READ") in groups else "private"


def settle(workers: list[Worker], foreign: Foreign) -> None:
    """Each worker compares its tree with what is there, and goes on with that."""
    for worker in workers:
        worker.settle(look(worker.base, partial(_acl_under, foreign, worker.base.name)))


def _acl_under(foreign: Foreign, top: str, name: str) -> str:
    return acl_of(foreign, f"{top}/{name}")


def check_bucket(foreign: Foreign, workers: list[Worker]) -> None:
    """The bucket holds exactly the trees, byte for byte, and nothing half-done."""
    expected: dict[str, File | None] = {}
    for worker in workers:
        expected[f"{worker.base.name}/"] = None
        for path, file in worker.tree.items():
            expected[f"{worker.base.name}/{path}" + ("/" if file is None else "")] = file
    assert foreign.keys() == sorted(expected)
    for key, file in expected.items():
        if file is None:
            continue
        assert foreign.get(key) == file.body, key
        metadata = foreign.metadata(key)
        if file.mode:
            assert int(metadata["mode"]) & 0o7777 == file.mode, key
        if file.mtime_ns:
            assert metadata["mtime"] == f"{file.mtime_ns // NS}.{file.mtime_ns % NS:09d}", key
        if file.color:
            assert metadata["color"] == file.color, key
        if file.acl:
            assert acl_of(foreign, key) == file.acl, key
    assert foreign.uploads() == []


def verify(mount: Mount, foreign: Foreign, workers: list[Worker], count: int, seed: int) -> None:
    """`count` rounds of work and kill, with a check after each."""
    for number, (steps, seconds) in zip(range(1, count + 1), rounds(seed), strict=False):
        work(mount, workers, steps, seconds)
        mount.kill()
        mount.start()
        settle(workers, foreign)
        if number % UNMOUNT_EVERY == 0 or number == count:
            mount.stop()
            check_bucket(foreign, workers)
            assert list((mount.cache / "spool").iterdir()) == []
            mount.start()
            settle(workers, foreign)
    mount.stop()


@pytest.mark.promise(3)
@pytest.mark.timeout(60 + 12 * ROUNDS)
@pytest.mark.parametrize("durability", Durability)
def test_nothing_acknowledged_is_lost(
    server: Server, foreign: Foreign, watchdog: Watchdog, tmp_path: Path, durability: Durability
) -> None:
    mount = Mount(access_to(server), foreign.bucket, tmp_path, watchdog, ("--durability", durability.value))
    mount.allow_log(EXPECTED)
    large = server.name != "moto"  # moto answers 500 for the ACL of an object made of parts, which a rename asks for
    with mount:
        seeds = [SEED * 1000 + number for number in range(WORKERS)]
        workers = [Worker(mount.path / f"w{seed % 10}", seed, durability, large) for seed in seeds]
        for worker in workers:
            worker.base.mkdir()
        # What `writeback` does another way than the journal takes few rounds to be met.
        verify(mount, foreign, workers, ROUNDS if durability is not Durability.WRITEBACK else -(-ROUNDS // 2), SEED)
        mount.start()
