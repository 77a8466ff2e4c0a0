"""Measure closes on a disk that takes milliseconds for an fsync: `python -m tests.bench.slow_disk [MILLISECONDS]`.

The kernel need not have device-mapper for that: strace holds each fsync of the daemon back before it ends. The modes
take turns, on one server (moto) and one bucket; uploads go on beside. Needs strace, and the right to mount.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.mounting import SOSFS, Access, run_sosfs
from tests.support.processes import Process, free_port, listening
from tests.support.servers import MOTO_START, Server, client_of
from tests.support.watchdog import detach, mounted

FILES, SIZE, ROUNDS = 300, 4096, 3
CALLS = "fsync,fdatasync,syncfs"
MODES = ("journal", "writeback")
READY = 60.0  # seconds


def created(endpoint: str, mode: str, milliseconds: int, base: Path) -> tuple[float, int]:
    """Seconds for the files to be created and closed, and how often the disk was waited for."""
    (path := base / "mnt").mkdir(parents=True)
    server = Server("moto", endpoint)
    environment = Access(endpoint, server.key, server.secret).environment(base)
    tracing = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", str(base / "calls"), "-e", f"trace={CALLS}"]
    tracing += ["-e", f"inject={CALLS}:delay_exit={1000 * milliseconds}"]
    mounting = [*SOSFS, "mount", "-f", "bucket", str(path), "--endpoint", endpoint, "--durability", mode]
    command = [*tracing, *mounting, "--cache-dir", str(base / "cache")]
    with (base / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        until = time.monotonic() + READY
        while not mounted(path):
            if process.poll() is not None or time.monotonic() > until:
                sys.exit((base / "log").read_text())
            time.sleep(0.05)
        time.sleep(2)  # what the beginning has written is on the disk
        body, before = os.urandom(SIZE), _calls(base)
        begun = time.monotonic()
        for number in range(FILES):
            (path / f"{base.name}-{number}").write_bytes(body)
        took = time.monotonic() - begun
        calls = _calls(base) - before
        run_sosfs(["umount", path], environment)
        process.wait(READY)
    finally:
        detach(str(path))
        process.kill()
    return took, calls


def _calls(base: Path) -> int:
    return len(re.findall(r"\b(?:fsync|fdatasync|syncfs)\(", (base / "calls").read_text()))


def main() -> None:
    """Prints a line for each mode."""
    milliseconds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    found: dict[str, list[tuple[float, int]]] = {mode: [] for mode in MODES}
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = Process(command, base / "server")
        try:
            process.until(lambda: listening(port), MOTO_START)
            endpoint = f"http://127.0.0.1:{port}"
            client_of(Server("moto", endpoint)).create_bucket(Bucket="bucket")
            for turn in range(ROUNDS):
                for mode in MODES:
                    found[mode].append(created(endpoint, mode, milliseconds, base / f"{mode}{turn}"))
        finally:
            process.end()
    for mode, measured in found.items():
        took, calls = (statistics.median(column) for column in zip(*measured, strict=True))
        print(f"{mode}: {FILES} files of {SIZE} bytes in {took:.2f} s, {calls:.0f} syncs of {milliseconds} ms")


if __name__ == "__main__":
    main()
