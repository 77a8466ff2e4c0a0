"""`--durability writeback` under a real kernel: who waits for this machine's disk, and what the mount says of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Mounter
from tests.support.drive import Drive, eventually, status
from tests.support.faults import Hang
from tests.support.mounting import run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import on
from tests.support.waiting import until

WRITEBACK = ("--durability", "writeback")
CALLS = "fsync,fdatasync,syncfs,sync_file_range,msync"
FILES = 60
LATE = "not in the bucket"


@pytest.fixture
def server(moto: Server) -> Server:
    """One server is enough: what is tested here happens before it."""
    return moto


@pytest.fixture
def drive(mounter: Mounter, proxy: Proxy) -> Iterator[Drive]:
    """A mount whose uploads hang, so that what is counted belongs to closes alone."""
    drive = mounter(proxy.endpoint, *WRITEBACK)
    drive.mount.allow_log(LATE)
    proxy.inject(Hang(), on("PUT"))
    yield drive
    proxy.heal()
    proxy.drop_connections()


@contextmanager
def traced(drive: Drive, directory: Path) -> Iterator[list[str]]:
    """The daemon's calls that wait for the disk; they are there after the block."""
    found: list[str] = []
    out = directory / "calls"
    command = ["strace", "-f", "-qq", "-e", f"trace={CALLS}", "-o", str(out), "-p", str(drive.mount.pid)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        state = Path(f"/proc/{drive.mount.pid}/status")
        until(lambda: not re.search(r"^TracerPid:\s0$", state.read_text(), re.MULTILINE), "it is being traced")
        try:
            yield found
        finally:
            process.terminate()
    found += [line for line in out.read_text().splitlines() if re.search(r"\b\w+\(", line)]


def requests(drive: Drive, operation: str) -> int:
    """How many requests of a kind the kernel has made."""
    text = (drive.mount.path / ".sosfs/metrics").read_text()
    found = re.search(rf'^sosfs_kernel_request_seconds_count{{operation="{operation}"}} (\d+)', text, re.MULTILINE)
    return int(found[1]) if found else 0


@pytest.mark.promise(2)
@pytest.mark.skipif(shutil.which("strace") is None or os.geteuid() != 0, reason="needs strace, and the right to trace")
@pytest.mark.parametrize("size", [4096, 300_000])
def test_files_are_closed_without_waiting_for_the_disk(drive: Drive, tmp_path: Path, size: int) -> None:
    body = os.urandom(size)
    with traced(drive, tmp_path) as calls:
        for number in range(FILES):
            (drive.here / f"new{number}").write_bytes(body)
            (drive.here / f"new{number}").rename(drive.here / f"file{number}")
        (drive.here / "file0").chmod(0o600)
        (drive.here / "file1").unlink()
        (drive.here / "folder").mkdir()
        eventually(lambda: status(drive).unsynced_changes == 0)
    assert 1 <= len(calls) < FILES // 2, calls  # who waited would have synced each twice
    with traced(drive, tmp_path) as calls, (drive.here / "file2").open("ab") as file:
        file.write(b"more")
        file.flush()
        os.fsync(file.fileno())
    assert 1 <= len(calls) <= 4, calls


@pytest.mark.promise(2)
def test_writes_with_o_sync_are_on_the_disk_when_they_return(drive: Drive) -> None:
    before = requests(drive, "fsync")
    file = os.open(drive.here / "log", os.O_CREAT | os.O_WRONLY | os.O_SYNC)
    try:
        for _ in range(3):
            os.write(file, b"a line\n")
        assert requests(drive, "fsync") == before + 3
        assert (status(drive).pending_files, status(drive).unsynced_bytes) == (1, 0)
    finally:
        os.close(file)


@pytest.mark.promise(3)
def test_status_tells_what_a_power_cut_would_take(drive: Drive) -> None:
    told = run_sosfs(["status", drive.mount.path], drive.mount.environment).stdout
    assert "\ndurability writeback: fsync waits for this machine's disk; all is there\n" in told
    for number in range(50):
        (drive.here / f"file{number}").write_bytes(b"12345")
    shown = (drive.mount.path / ".sosfs/status").read_text()
    found = re.search(r'"unsynced_changes": (\d+), "unsynced_bytes": (\d+), "unsynced_since": ([\d.]+)', shown)
    assert found is not None, shown
    assert int(found[1]) <= 1000
    eventually(lambda: status(drive).unsynced_changes == 0)
    assert status(drive).pending_files >= 50
