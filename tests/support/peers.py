"""Other programs on the test's bucket, run as their users run them: s3fs, rclone and s3cmd, the real ones.

Each shares nothing with sosfs but the bucket. One that is not installed fails the test that asks for it.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import require
from tests.support.servers import Server
from tests.support.watchdog import Watchdog, detach, mounted

READY = 30.0  # seconds to mount; half a second on an idle machine
RUN = 60.0  # seconds for one command


def program(name: str) -> str:
    """A program that pip has put beside the interpreter, or that is in PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise RuntimeError(f"{name} not found: it comes with the extra `dev` (pip install -e '.[dev]')")
    return found


@dataclass(frozen=True)
class Peers:
    """The programs, set up for one bucket. Their files are below `base`."""

    server: Server
    bucket: str
    base: Path
    watchdog: Watchdog

    @property
    def remote(self) -> str:
        """The bucket as rclone names it."""
        return f"peer:{self.bucket}"

    @property
    def url(self) -> str:
        """The bucket as s3cmd names it."""
        return f"s3://{self.bucket}"

    @contextmanager
    def s3fs(self) -> Iterator[Path]:
        """The bucket mounted with s3fs."""
        require("s3fs", package="s3fs")
        secret = self.base / "passwd-s3fs"
        secret.touch(mode=0o600)
        secret.write_text(f"{self.server.key}:{self.server.secret}\n")
        options = f"url={self.server.endpoint},use_path_request_style,endpoint=us-east-1,passwd_file={secret}"
        path = self._mountpoint()
        with self._mounted(["s3fs", self.bucket, str(path), "-f", "-o", options], path):
            yield path

    @contextmanager
    def rclone_mount(self) -> Iterator[Path]:
        """The bucket mounted with rclone; a file is uploaded when it is closed, soon."""
        path = self._mountpoint()
        options = ["--vfs-cache-mode=writes", "--vfs-write-back=0s", "--links", "--s3-directory-markers"]
        command = [program("rclone"), "mount", self.remote, str(path), "--cache-dir", str(self.base / "rclone")]
        with self._mounted([*command, *options], path):
            yield path

    def rclone(self, *arguments: str | Path) -> str:
        """Runs rclone, which must succeed, and returns all it says; `remote` is the bucket."""
        return self._run(program("rclone"), *arguments)

    def s3cmd(self, *arguments: str | Path) -> str:
        """Runs s3cmd, as `rclone`; `url` is the bucket."""
        host = self.server.endpoint.removeprefix("http://")
        access = ["--access_key", self.server.key, "--secret_key", self.server.secret, "--no-ssl"]
        return self._run(program("s3cmd"), "-c", os.devnull, *access, "--host", host, "--host-bucket", host, *arguments)

    def _run(self, *command: str | Path) -> str:
        done = subprocess.run(
            list(map(str, command)), env=self._environment(), capture_output=True, text=True, timeout=RUN, check=False
        )
        assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def _environment(self) -> Mapping[str, str]:
        remote = {
            "TYPE": "s3",
            "PROVIDER": "Ceph",
            "ENDPOINT": self.server.endpoint,
            "ACCESS_KEY_ID": self.server.key,
            "SECRET_ACCESS_KEY": self.server.secret,
            "REGION": "us-east-1",
            "FORCE_PATH_STYLE": "true",
        }
        clean = {"PATH": os.environ["PATH"], "HOME": str(self.base), "LANG": "C.UTF-8", "RCLONE_CONFIG": os.devnull}
        return {**clean, **{f"RCLONE_CONFIG_PEER_{name}": value for name, value in remote.items()}}

    def _mountpoint(self) -> Path:
        path = self.base / f"mnt-{time.monotonic_ns()}"
        path.mkdir()
        return path

    @contextmanager
    def _mounted(self, command: list[str], path: Path) -> Iterator[None]:
        log = self.base / f"{path.name}.log"
        with log.open("ab") as out:
            process = subprocess.Popen(command, env=self._environment(), stdout=out, stderr=out, start_new_session=True)
        self.watchdog.watch(process.pid, path)
        try:
            deadline = time.monotonic() + READY
            while not mounted(path):
                said = log.read_text(errors="replace")[-2000:]
                assert process.poll() is None and time.monotonic() < deadline, f"{command[0]} did not mount:\n{said}"
                time.sleep(0.02)
            yield
            subprocess.run(["fusermount3", "-u", str(path)], timeout=RUN, check=True)
            process.wait(RUN)
        finally:
            process.kill()
            detach(str(path))
            process.wait(20)
            self.watchdog.forget(process.pid)


@dataclass(frozen=True)
class Seen:
    """What lstat(2) and readlink(2) tell of one name; a directory's size is each file system's own affair."""

    mode: str
    uid: int
    gid: int
    mtime_ns: int
    size: int
    target: str

    @staticmethod
    def at(path: Path) -> Seen:
        """As it is now."""
        found = path.lstat()
        size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
        target = os.readlink(path) if stat.S_ISLNK(found.st_mode) else ""
        return Seen(stat.filemode(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns, size, target)


def seen_below(top: Path) -> dict[str, Seen]:
    """All names below a directory; each is listed first, as every walk does."""
    return {
        str(Path(folder, name).relative_to(top)): Seen.at(Path(folder, name))
        for folder, directories, files in os.walk(top)
        for name in [*directories, *files]
    }
