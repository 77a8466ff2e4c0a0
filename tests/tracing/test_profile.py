"""`sosfs profile`: who asks what, live and at the end."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sosfs.tracing.profile import ITSELF, OTHERS, PROCESSES, Profile
from sosfs.tracing.requests import Caller, KernelRequest, S3Request
from tests.support.drive import Drive
from tests.support.mounting import SOSFS, run_sosfs
from tests.support.waiting import SECONDS

Row = dict[str, Any]


@contextmanager
def profiling(drive: Drive, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A profile that has begun; it is ended as Ctrl-C does, and told by its standard output."""
    command = [*SOSFS, "profile", str(drive.mount.path), *options]
    with subprocess.Popen(
        command, env=drive.mount.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "sosfs: profiling; Ctrl-C ends it\n"
        yield process


def ended(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (0, "")
    return out


def named(rows: Sequence[Row], key: str, value: str) -> Row:
    (row,) = [row for row in rows if row[key] == value]
    return row


def test_it_sums_by_operation_and_by_process_for_so_long_as_was_said(drive: Drive) -> None:
    (drive.here / "there").write_bytes(b"x" * 5000)
    with profiling(drive, "--seconds", "6", "--json") as process:
        drive.shell("dd if=/dev/zero of=new bs=1000 count=7; head -c 5000 there")
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (0, "")
    told = json.loads(out)
    assert told["seconds"] >= 6
    writer, reader = (named(told["processes"], "name", name) for name in ("dd", "head"))
    assert writer["bytes"] == 7000
    assert writer["s3_requests"] >= 1
    assert writer["s3_bytes"] >= 7000
    assert reader["bytes"] == 5000
    assert writer["pid"] != reader["pid"]
    assert named(told["operations"], "operation", "write")["bytes"] == 7000
    assert named(told["operations"], "operation", "read")["bytes"] == 5000
    assert named(told["operations"], "operation", "flush")["s3_bytes"] == 7000
    assert sum(row["calls"] for row in told["operations"]) == sum(row["calls"] for row in told["processes"])


def test_threads_are_one_process(drive: Drive) -> None:
    program = (
        "import threading\n"
        "def write(n): open(f'file{n}', 'wb').write(b'x' * 10)\n"
        "threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]"
    )
    with profiling(drive, "--seconds", "6", "--json") as process:
        drive.run(sys.executable, "-c", program)
        told = json.loads(process.communicate(timeout=SECONDS)[0])
    assert [row["bytes"] for row in told["processes"] if row["bytes"]] == [40]


def test_off_a_terminal_ctrl_c_ends_it_with_one_table(drive: Drive) -> None:
    with profiling(drive) as process:
        drive.shell("echo some > file")
        threading.Event().wait(0.6)  # two looks at the sums: what was done before the last one is in the table
        out = ended(process)
    assert re.search(r"^ ?sh \(\d+\) +\d", out, re.MULTILINE), out
    assert out.count(" process ") == 1
    assert "\x1b" not in out


def test_on_a_terminal_it_is_live(drive: Drive) -> None:
    main, secondary = pty.openpty()
    environment = {**drive.mount.environment, "TERM": "xterm", "COLUMNS": "120"}
    command = [*SOSFS, "profile", str(drive.mount.path)]
    with subprocess.Popen(command, env=environment, stdin=secondary, stdout=secondary, stderr=secondary) as process:
        os.close(secondary)
        shown = b""
        done = threading.Event()
        worker = threading.Thread(target=ask_until, args=(drive.here, done))
        worker.start()
        try:
            while not re.search(rb"statvfs|getattr|lookup", shown):
                assert select.select([main], [], [], SECONDS)[0], shown
                shown += os.read(main, 65536)
        finally:
            done.set()
            worker.join()
            process.send_signal(signal.SIGINT)
        while True:  # until the terminal is closed, which Linux tells as EIO
            try:
                shown += os.read(main, 65536)
            except OSError:
                break
    os.close(main)
    assert process.returncode == 0
    assert b"\x1b" in shown


def ask_until(directory: Path, done: threading.Event) -> None:
    while not done.wait(0.05):
        (directory / "absent").exists()


def test_only_some_profiles_are_made_at_once_and_a_dead_one_is_none(drive: Drive) -> None:
    running = [[*SOSFS, "profile", str(drive.mount.path)] for _ in range(4)]
    processes = [
        subprocess.Popen(command, env=drive.mount.environment, stderr=subprocess.PIPE, text=True, cwd="/")
        for command in running
    ]
    try:
        for process in processes:
            assert process.stderr is not None
            assert "profiling" in process.stderr.readline()
        done = run_sosfs(["profile", drive.mount.path, "--seconds", "1"], drive.mount.environment)
        assert (done.returncode, done.stderr) == (1, "sosfs: 4 profiles of this mount are being made already\n")
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()
    done = run_sosfs(["profile", drive.mount.path, "--seconds", "1"], drive.mount.environment)
    assert (done.returncode, done.stderr) == (0, "sosfs: profiling; Ctrl-C ends it\n")


# The sums


def asked(caller: Caller) -> KernelRequest:
    request = KernelRequest("read")
    request.caller, request.bytes, request.seconds = caller, 10, 0.5
    return request


def test_so_many_processes_are_told_and_the_others_together() -> None:
    profile = Profile()
    for pid in range(1, 2 * PROCESSES + 1):
        profile.kernel_request(asked(Caller(pid, "cc")))
    told = profile.told()["processes"]
    assert len(told) == PROCESSES + 1
    assert (told[-1]["name"], told[-1]["calls"]) == (OTHERS.name, PROCESSES)
    assert sum(row["bytes"] for row in told) == 2 * PROCESSES * 10


def test_what_the_mount_does_by_itself_is_its_own() -> None:
    profile = Profile()
    profile.s3_request(S3Request("GetObject", "key", 0.0, 0.25, 1, 0, 3, 0, 200, None))
    (row,) = profile.told()["processes"]
    assert (row["name"], row["calls"], row["s3_requests"], row["s3_bytes"]) == (ITSELF.name, 0, 1, 3)
