"""`sosfs bench`: that it measures what it says, and leaves nothing behind, whatever ends it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
from collections.abc import Iterator
from numbers import Real
from pathlib import Path

import pytest

from tests.conftest import Mounter
from tests.support.drive import Drive, eventually
from tests.support.foreign import Foreign
from tests.support.mounting import SOSFS, run_sosfs
from tests.support.proxy import Proxy
from tests.support.traffic import Op

SIZE, FILES = 9 << 20, 24
QUICK = ("--size", "9M", "--files", str(FILES), "--threads", "3")
MOTO = pytest.mark.parametrize("server", ["moto"], indirect=True)  # it brings no request that others do not


def begun(drive: Drive, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SOSFS, "bench", str(drive.here), *options],
        env=drive.mount.environment,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ours(key: str) -> bool:
    """Whether it is a file of the benchmark's."""
    return key.startswith(".sosfs-bench-")


def numbers(found: object) -> Iterator[float]:
    """All numbers of a document."""
    if isinstance(found, dict):
        for value in found.values():
            yield from numbers(value)
    elif isinstance(found, list):
        for value in found:
            yield from numbers(value)
    elif isinstance(found, Real):
        yield float(found)


@pytest.mark.parametrize("server", ["ceph"], indirect=True)
def test_a_mount_is_measured_cold_and_left_as_it_was(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put("mine", b"mine")
    drive = mounter(proxy.endpoint, "--durability", "journal", "--ttl", "600")
    with proxy.recording() as traffic:
        done = run_sosfs(["bench", drive.here, "--json", *QUICK], drive.mount.environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert foreign.keys() == ["mine"], "it returned before all was removed"
    document = json.loads(done.stdout)
    found = list(numbers(document))
    assert len(found) > 100
    assert all(number > 0 and math.isfinite(number) for number in found)
    assert document["note"] == ""
    assert [(row["group"], row["threads"], row["name"]) for row in document["results"]] == [
        ("large file", 1, "write until stored"),
        ("large file", 1, "read, cold"),
        ("large file", 1, "read again"),
        ("large file", 1, "read 4 KiB anywhere, cold"),
        *(
            ("small files", threads, name)
            for threads in (1, 3)
            for name in ("create until stored", "list, cold", "stat, listed", "read, cold", "read again", "remove")
        ),
    ]
    for row in document["results"]:
        assert row["operations"] == {"large file": 9, "small files": FILES}[row["group"]] or "anywhere" in row["name"]
        assert row["median_ms"] <= row["p99_ms"] <= row["seconds"] * 1000 + 1
    large = [request for request in traffic.of(Op.GET) if request.key.endswith("/large")]
    assert sum(request.received for request in large) >= SIZE + (1 << 20), "what was to be cold was not"
    small = [request.key for request in traffic.of(Op.GET) if not request.key.endswith("/large")]
    assert len(set(small)) == 2 * FILES, "with one thread and with three"
    assert len(small) < 3 * FILES, "what was to be warm was not"  # some more: the first to be asked for attributes
    assert os.listdir(drive.here) == ["mine"]


@MOTO
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["large", "small"])
def test_what_is_stopped_leaves_nothing_behind(
    foreign: Foreign, mounter: Mounter, proxy: Proxy, number: signal.Signals, moment: str
) -> None:
    drive = mounter(proxy.endpoint)
    proxy.latency = 0.01
    process = begun(drive, "--size", "200M" if moment == "large" else "1M", "--files", "5000")
    if moment == "large":
        eventually(lambda: any(r.op is Op.UPLOAD_PART and ours(r.key) for r in proxy.requests), seconds=60)
    else:
        eventually(lambda: sum(r.op is Op.PUT and ours(r.key) for r in proxy.requests) > 20, seconds=60)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "sosfs: removing" in err
    assert "Traceback" not in out + err
    assert os.listdir(drive.here) == []
    assert foreign.keys() == []
    assert foreign.uploads() == []


@MOTO
def test_a_mount_that_cannot_be_written_to_is_refused(mounter: Mounter) -> None:
    drive = mounter("", "--read-only")
    done = run_sosfs(["bench", drive.here], drive.mount.environment)
    assert done.returncode == 1
    assert done.stderr == f"sosfs: {drive.here}: mounted read-only, nothing can be written there\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB that is no mount of sosfs."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_any_directory_is_measured_and_the_difference_told(small_disk: Path) -> None:
    done = run_sosfs(["bench", small_disk, "--size", "2M", "--files", "10", "--threads", "1"], dict(os.environ))
    assert (done.returncode, done.stderr) == (0, "")
    assert "only the kernel's pages were dropped" in done.stdout
    assert done.stdout.count("small files, 1 thread") == 1
    assert "read 4 KiB anywhere, cold" in done.stdout
    assert max(map(len, done.stdout.splitlines()[1:])) <= 80
    assert os.listdir(small_disk) == []


def test_too_small_a_disk_is_refused(small_disk: Path) -> None:
    done = run_sosfs(["bench", small_disk, "--size", "9M"], dict(os.environ))
    assert done.returncode == 1
    assert "not enough room: 8.4 MB are free, 10.3 MB are needed (--size, --files)" in done.stderr
    assert os.listdir(small_disk) == []


@pytest.mark.parametrize(("option", "value"), [("--size", "0"), ("--files", "none"), ("--threads", "-1")])
def test_wrong_numbers_are_wrong_usage(tmp_path: Path, option: str, value: str) -> None:
    done = run_sosfs(["bench", tmp_path, f"{option}={value}"], dict(os.environ))
    assert done.returncode == 2
    assert f"argument {option}: '{value}' is no " in done.stderr
