"""`sosfs demo`: a bucket on a small S3 server of its own, mounted until Ctrl-C.

    server (moto, loopback) -> bucket filled -> mounted -> told to end -> unmounted -> server ended, all removed

It is told to end by Ctrl-C, SIGTERM or the end of its terminal.

Whatever was begun is undone in reverse, also when a step fails. Server and daemon are in sessions of their
own: Ctrl-C reaches this program alone, which finishes the step it is at and then ends them in order.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sosfs.cli import umount
from sosfs.daemon import launch, mountpoint
from sosfs.daemon.launch import Exit
from sosfs.daemon.mountpoint import Detach, StartError
from sosfs.ipc import status
from sosfs.log.escaping import printable

BUCKET = "demo"
LARGE = 20 << 20  # bytes: more than one block, and a multipart upload when it is copied
SERVER_SECONDS = 30.0
END_SECONDS = 10.0
KEY = {"EXOSCALE_API_KEY": "EXOdemo", "EXOSCALE_API_SECRET": "demo"}

WELCOME = """\
A bucket is mounted at {path} (its S3 server: {endpoint}, bucket {bucket!r}).
Try in another terminal:

  ls -lR {path}
  cat {path}/welcome.txt
  cp -r /usr/include/fuse3 {path}/copied && mv {path}/copied {path}/renamed
  echo one more line >> {path}/notes/monday.txt
  {program} status {path}

{endpoint}/{bucket}/pictures/sunrise.png in a browser is the object as any other S3 tool sees it.

Ctrl-C unmounts and removes everything, what you put there too.
"""


def run(directory: Path | None) -> int:
    """Runs the demo until it is stopped. `directory` is made where it is missing."""
    if importlib.util.find_spec("moto") is None:
        raise StartError("the demo's server is missing: pip install 'sosfs[demo]', or run 'make demo'")
    stopped = threading.Event()
    terminal = [stream for stream in (1, 2) if os.isatty(stream)]

    def end(number: int, _: object) -> None:
        if number == signal.SIGHUP:
            _leave(terminal)
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    with contextlib.ExitStack() as stack:
        # Removed last: all that the steps below need lies in it.
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sosfs-demo-")))
        path = mountpoint.canonical(directory or base / "bucket")
        stack.enter_context(_directory(path))
        print("Starting a small S3 server ...", flush=True)
        endpoint = stack.enter_context(_server(base / "server.log"))
        _fill(endpoint)
        stack.enter_context(_mounted(path, endpoint, base))
        shown = printable(str(path))
        print(WELCOME.format(path=shown, endpoint=endpoint, bucket=BUCKET, program=_program()), flush=True)
        stopped.wait()
        print("\nUnmounting ...", flush=True)
    print("Everything is removed.", flush=True)
    return Exit.OK


def _leave(terminal: Sequence[int]) -> None:
    """What is said to these streams from now on is lost: their terminal is gone, and each line would be an error."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in terminal:
        os.dup2(null, stream)
    os.close(null)


def _program() -> str:
    """What to type for `sosfs`: a path where `make demo` has put it in an environment of its own."""
    beside = Path(sys.executable).with_name("sosfs")
    return "sosfs" if shutil.which("sosfs") or not beside.exists() else str(beside)


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[None]:
    """The mount point; removed again if it was not there before."""
    made = not os.path.lexists(path)
    if made:
        path.mkdir(parents=True)
    try:
        yield
    finally:
        if made:
            path.rmdir()


@contextlib.contextmanager
def _server(log: Path) -> Iterator[str]:
    """moto's S3 server on a free port of the loopback interface; gives its URL."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait_for(process, port, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + SERVER_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StartError(f"the S3 server ended: {' '.join(log.read_text(errors='replace').split())[-300:]}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError as error:
            if error.errno != errno.ECONNREFUSED:
                raise
            time.sleep(0.1)
        else:
            return
    raise StartError(f"the S3 server did not answer within {SERVER_SECONDS:.0f} s")


def _fill(endpoint: str) -> None:
    """Makes the bucket and its objects. moto checks no signatures, so plain requests will do."""
    _put(f"{endpoint}/{BUCKET}", b"", {})
    for key, body in _objects().items():
        headers = {"Content-Type": "image/png" if key.endswith(".png") else "text/plain"}
        # Else the server would keep them for their owner, and a browser could not show the picture.
        _put(f"{endpoint}/{BUCKET}/{urllib.parse.quote(key)}", body, {**headers, "x-amz-acl": "public-read"})


def _put(url: str, body: bytes, headers: Mapping[str, str]) -> None:
    request = urllib.request.Request(url, data=body, headers=dict(headers), method="PUT")
    # No proxy of the environment's for the loopback interface.
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=SERVER_SECONDS):
        pass


def _objects() -> Mapping[str, bytes]:
    return {
        "welcome.txt": b"Every file here is an object of the bucket, byte for byte.\n",
        "notes/monday.txt": b"A directory is a prefix of keys.\n",
        "notes/2026/november/plan.txt": b"Prefixes nest as deep as you like.\n",
        "pictures/sunrise.png": _picture(256, 160),
        "large.bin": bytes(range(256)) * (LARGE // 256),
    }


def _picture(width: int, height: int) -> bytes:
    """A small PNG, which any viewer opens out of the mount."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(
        b"\0" + bytes(value for x in range(width) for value in (255 - y // 2, 80 + y, (x * y) % 160))
        for y in range(height)
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, RGB
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@contextlib.contextmanager
def _mounted(path: Path, endpoint: str, base: Path) -> Iterator[None]:
    """The bucket mounted by the program itself, in the background as a user would."""
    command = [sys.executable, "-m", "sosfs", "mount", BUCKET, str(path), "--endpoint", endpoint]
    # "--profile=": whatever the user's own files say, the demo has its own key.
    log = base / "sosfs.log"
    command += ["--cache-dir", str(base / "cache"), "--log-file", str(log), "--profile="]
    done = subprocess.run(
        command, env={**os.environ, **KEY}, stderr=subprocess.PIPE, text=True, start_new_session=True, check=False
    )
    if done.returncode != 0:
        if log.exists():  # it is about to be removed with all the rest
            sys.stderr.write(log.read_text(errors="replace"))
        raise StartError(done.stderr.strip().removeprefix("sosfs: "))
    try:
        yield
    finally:
        _unmount(path)


def _unmount(path: Path) -> None:
    try:
        umount.run(path, seconds=END_SECONDS)
    except OSError as error:
        # Someone works in it. What is in a demo is nobody's last copy, so it goes all the same.
        print(f"sosfs: {launch.one_line(error)}; detaching it", file=sys.stderr)
        now = status.fetch(path)
        mountpoint.detach(path, Detach.LAZY)
        if now is not None:
            os.kill(now.pid, signal.SIGTERM)
