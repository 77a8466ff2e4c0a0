"""A machine with a real systemd: this one's files under an overlay, booted with systemd-nspawn, its network shared.

What is written in it or below its `root` is gone with it; its /tmp is its own. Commands are run in its namespaces with
nsenter, so that nothing but systemd itself has to be up. Needs root, systemd-container and a kernel that lets systemd
run: `unavailable` says what is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from tests.support.processes import Process

BOOT = 60.0  # seconds
COMMAND = 120.0
# The machine begins with what every unit needs; none of this one's own services is its business.
BASE = "basic.target"
MASKED = ("systemd-networkd.service", "systemd-resolved.service", "systemd-udevd.service", "dbus.service")


def unavailable() -> str:
    """Why no machine can be booted here; "" where one can."""
    if os.geteuid() != 0:
        return "booting a systemd needs root"
    if shutil.which("systemd-nspawn") is None:
        return "systemd-nspawn is missing: install systemd-container"
    try:
        with Machine():
            return ""
    except (AssertionError, RuntimeError) as error:
        return f"no systemd boots here: {error}"


class Machine:
    """`with Machine() as machine:` one that is up."""

    def __init__(self) -> None:
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.root = stack.enter_context(_overlay())
            units = self.root / "etc/systemd/system"
            for name in MASKED:
                (units / name).unlink(missing_ok=True)
                (units / name).symlink_to("/dev/null")
            self._process = Process(self._command(), self.root.parent / "console")
            stack.callback(self._process.end)
            self._process.until(self._is_up, BOOT)
            self._undo = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _command(self) -> list[str]:
        return [
            *("env", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1", "SYSTEMD_NSPAWN_LOCK=0"),
            *("systemd-nspawn", "--quiet", f"--directory={self.root}", "--register=no", "--keep-unit"),
            "--link-journal=no",
            *("--bind=/dev/fuse", "--capability=all", "--console=pipe", "--boot"),
            *(f"systemd.unit={BASE}", "systemd.log_target=console", "systemd.firstboot=no"),
        ]

    def _is_up(self) -> bool:
        return self._leader() > 0 and self.run("systemctl", "is-active", BASE, fails=True).stdout == "active\n"

    def _leader(self) -> int:
        """The machine's systemd, as a pid of this one; 0 before it is there."""
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def run(
        self, *command: str | Path, user: str = "root", fails: bool = False, environ: Mapping[str, str] = {}
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in it. Unless it may fail, an exit code other than 0 fails the test."""
        identity = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        done = subprocess.run(
            ["nsenter", f"--target={self._leader()}", "--all", *identity, *map(str, command)],
            env={"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", "SYSTEMD_COLORS": "0", **environ},
            capture_output=True,
            text=True,
            timeout=COMMAND,
            check=False,
        )
        assert fails or done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def log(self, unit: str) -> str:
        """What a unit has said."""
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}").stdout


@contextmanager
def _overlay() -> Iterator[Path]:
    """This machine's files, under which nothing that is written stays."""
    base = Path(tempfile.mkdtemp(prefix="sosfs-machine-"))
    try:
        _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", base)
        for name in ("upper", "work", "root"):
            (base / name).mkdir()
        _mount("-t", "overlay", "-o", f"lowerdir=/,upperdir={base}/upper,workdir={base}/work", "overlay", base / "root")
        yield base / "root"
    finally:
        subprocess.run(["umount", "-R", "-l", base], check=False, stderr=subprocess.DEVNULL)
        base.rmdir()


def _mount(*arguments: str | Path) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr.strip()
