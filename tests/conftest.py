"""Fixtures of the end-to-end tests: servers, buckets, proxies and mounts, each cleared away whatever happens."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from zlib import crc32

import pytest

from tests.support.disks import DISK, small_disk
from tests.support.drive import Drive
from tests.support.foreign import Foreign
from tests.support.mounting import Access, Mount
from tests.support.proxy import Proxy
from tests.support.servers import Server, client_of
from tests.support.watchdog import Watchdog

pytest_plugins = ["tests.support.servers", "tests.support.held"]

PATIENCE = 100.0  # seconds a test may take before its mounts are cleared away under it; below pytest's own limit
HURRY = ("--patience", "1", "--timeout", "2")
LARGE = random.Random(16).randbytes(20 << 20)
FRAIL = {"d/small": b"small" * 1000, "d/other": b"other", "d/large": LARGE}
FAILED = pytest.StashKey[bool]()
Mounter = Callable[..., Drive]
Cramped = Callable[..., Drive]
MOUNTING = frozenset({"mounter", "shared", "drive"})
# What tests ask for that mount or need a server.
NEEDING = frozenset({"watchdog", "desk", "server", "ceph", "weed", "moto", "installed", "package"})
# Where files are given to other users, disks mounted or namespaces made.
OF_ROOT = frozenset(
    {
        *("test_attributes", "test_bench", "test_control_tree", "test_full_disk_mounted", "test_interrupts"),
        *("test_normal_user", "test_other_users", "test_peers", "test_permissions", "test_provisional_attributes"),
        *("test_refused_changes", "test_service_manager", "test_shared_attributes", "test_small_disk", "test_tools"),
        "test_warm_and_drop",
    }
)
SLOW = frozenset(
    {
        *("test_crash", "test_memory", "test_tools", "test_peers", "test_install", "test_service_manager"),
        *("test_failed_commits", "test_recipes", "test_commands"),
    }
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Lets fixtures know whether their test failed."""
    report = yield
    if call.when == "call":
        item.stash[FAILED] = report.failed
    return report


def pytest_configure(config: pytest.Config) -> None:
    """Processes of the tests heed Ctrl-C, also where a shell has begun the tests in the background, ignoring it.

    Where no bytecode is to be written (for root in somebody's clone; in many containers), it lies aside until the end,
    once for all workers: else each mount compiles the whole program, which is half of the CPU time that it takes.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", "") and "PYTHONPYCACHEPREFIX" not in os.environ:
        aside = tempfile.mkdtemp(prefix="sosfs-bytecode-")
        config.add_cleanup(lambda: shutil.rmtree(aside, ignore_errors=True))
        os.environ["PYTHONPYCACHEPREFIX"] = aside


@pytest.hookimpl(wrapper=True, tryfirst=True)  # `-m root` is to see what is marked here, and the order is the last word
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None, None, None]:
    """Leaves each test that mounts to one server, and begins with the files that take long.

    A mount costs a second of CPU, and what the servers do otherwise is tested without one: so half of these tests
    runs on each, chosen by their names, unless `SOSFS_SERVERS=all` or a selection asks for more. At the end one
    worker would be alone with a slow file: those with few tests that take minutes come first, then those with many
    that mount. `SOSFS_MOUNTS=no` leaves out all that mount or need a server.
    """
    for item in items:
        if item.path.stem in OF_ROOT or "cramped" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.root)
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root: 'make test' runs it with sudo"))
    if os.environ.get("SOSFS_MOUNTS") == "no":
        mounting = {item for item in items if not NEEDING.isdisjoint(_asked_for(item))}
        config.hook.pytest_deselected(items=list(mounting))
        items[:] = [item for item in items if item not in mounting]
    if os.environ.get("SOSFS_SERVERS") != "all":
        spared = _spared(items)
        config.hook.pytest_deselected(items=[item for item in items if item in spared])
        items[:] = [item for item in items if item not in spared]
    yield
    long = Counter(item.path for item in items if not MOUNTING.isdisjoint(getattr(item, "fixturenames", ())))
    items.sort(key=lambda item: (item.path.stem not in SLOW, -long[item.path], item.path))


def _asked_for(item: pytest.Item) -> Iterator[object]:
    """The fixtures of a test, with that which its `subject` asks for while it is made."""
    yield from getattr(item, "fixturenames", ())
    if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
        yield item.callspec.params.get("subject")


def _spared(items: list[pytest.Item]) -> set[pytest.Item]:
    """Of tests that mount and are there once for each server, those of all servers but one."""
    same: dict[str, list[pytest.Item]] = {}
    for item in items:
        server = item.callspec.params.get("server") if isinstance(item, pytest.Function) and _has(item) else None
        if server is not None:
            same.setdefault(item.nodeid.replace(str(server), ""), []).append(item)
    return {
        item for name, group in same.items() for item in group if item is not group[crc32(name.encode()) % len(group)]
    }


def _has(item: pytest.Function) -> bool:
    return hasattr(item, "callspec") and not MOUNTING.isdisjoint(item.fixturenames)


@pytest.fixture(scope="session")
def watchdog() -> Iterator[Watchdog]:
    """What ends mounts when the tests hang or die."""
    with Watchdog() as dog:
        yield dog


@pytest.fixture(autouse=True)
def _deadline(request: pytest.FixtureRequest) -> Iterator[None]:
    if "watchdog" not in request.fixturenames:
        yield
        return
    dog: Watchdog = request.getfixturevalue("watchdog")
    marker = request.node.get_closest_marker("timeout")
    dog.deadline(marker.args[0] - 20 if marker else PATIENCE)
    yield
    dog.deadline(0)


def access_to(server: Server, endpoint: str = "") -> Access:
    """How to reach a server, directly or through a proxy's endpoint."""
    return Access(endpoint or server.endpoint, server.key, server.secret)


def new_bucket(server: Server) -> Foreign:
    """A client of a bucket with a name that was never used."""
    client, name = client_of(server), f"e2e-{uuid.uuid4().hex[:16]}"
    client.create_bucket(Bucket=name)
    return Foreign(client, name)


@pytest.fixture
def foreign(server: Server) -> Iterator[Foreign]:
    """A bucket of the test's own, as another S3 tool sees it."""
    bucket = new_bucket(server)
    yield bucket
    bucket.let_go()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """A recording and breaking proxy before the server."""
    with Proxy(server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def mounter(
    request: pytest.FixtureRequest, server: Server, foreign: Foreign, proxy: Proxy, watchdog: Watchdog, tmp_path: Path
) -> Iterator[Mounter]:
    """Mounts the test's bucket, as often as asked: `mounter(endpoint, *options, source=...)` gives a `Drive`."""
    del proxy  # asked for only so that it outlives the mounts
    numbers = itertools.count()
    mounts: list[Mount] = []

    def mount(endpoint: str = "", *options: str, source: str = "") -> Drive:
        base = tmp_path / f"mount{next(numbers)}"
        mounted = Mount(access_to(server, endpoint), source or foreign.bucket, base, watchdog, options)
        mounted.start()
        mounts.append(mounted)
        return Drive(mounted, foreign, mounted.path)

    yield mount
    failed = request.node.stash.get(FAILED, True)
    with ExitStack() as ending:
        for mounted in mounts:
            ending.callback(mounted.clear)
        for mounted in mounts:
            if failed:
                print(f"log of {mounted.base.name}:\n{mounted.log[-8000:]}")
            elif mounted.running:
                mounted.end()


@pytest.fixture(scope="module")
def shared(server: Server, watchdog: Watchdog, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drive]:
    """One mount for the tests of a module that do not care what else is in the bucket."""
    bucket = new_bucket(server)
    with Mount(access_to(server), bucket.bucket, tmp_path_factory.mktemp("shared"), watchdog) as mount:
        yield Drive(mount, bucket, mount.path)
    bucket.let_go()


@pytest.fixture
def drive(request: pytest.FixtureRequest, shared: Drive) -> Iterator[Drive]:
    """A new directory in the module's shared mount. The daemon's log is checked after each test."""
    mount = shared.mount
    if not mount.running:  # an earlier test ended it
        mount.clear()
        mount.start()
    here = mount.path / f"t-{uuid.uuid4().hex[:12]}"
    here.mkdir()
    seen = len(mount.log)
    yield Drive(mount, shared.foreign, here)
    if request.node.stash.get(FAILED, True):
        print(f"log:\n{mount.log[seen:][-8000:]}")
    assert mount.running, "the daemon died"
    mount.check_log()


@pytest.fixture
def frail(mounter: Mounter, proxy: Proxy, foreign: Foreign) -> Drive:
    """A mount of `FRAIL` through the proxy that gives up soon. Nothing was looked at; the log may tell of trouble."""
    foreign.put_all(FRAIL)
    foreign.begin_and_abort("warm")  # the first upload of a new server takes Ceph longer than such a mount waits
    drive = mounter(proxy.endpoint, *HURRY)
    drive.mount.allow_log(r"WARNING|ERROR")
    return drive


@pytest.fixture
def cramped(
    request: pytest.FixtureRequest, server: Server, foreign: Foreign, watchdog: Watchdog, tmp_path: Path
) -> Iterator[Cramped]:
    """Mounts the test's bucket with its cache on a small disk: `cramped(size, *options, endpoint=..., inodes=...)`."""
    with ExitStack() as ending:
        mounts: list[Mount] = []

        def mount(size: int = DISK, *options: str, endpoint: str = "", inodes: int = 0) -> Drive:
            base = tmp_path / f"cramped{len(mounts)}"
            ending.enter_context(small_disk(base / "cache", size, inodes=inodes))
            mounted = Mount(access_to(server, endpoint), foreign.bucket, base, watchdog, options)
            ending.callback(mounted.clear)
            mounted.start()
            mounts.append(mounted)
            return Drive(mounted, foreign, mounted.path)

        yield mount
        for mounted in mounts:
            if request.node.stash.get(FAILED, True):
                print(f"log of {mounted.base.name}:\n{mounted.log[-8000:]}")
            elif mounted.running:
                mounted.end()
