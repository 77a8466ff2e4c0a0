"""A signal that comes at the moment of the mount is heeded as any later one: whoever sees the mount may send it."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import access_to, new_bucket
from tests.support.drive import eventually
from tests.support.mounting import ROOT, SOSFS, Mount
from tests.support.servers import Server
from tests.support.watchdog import Watchdog, mounted

# The program as it is installed, but that a signal comes as soon as the kernel has the mount.
AT_ONCE = """
import os, pyfuse3
attach = pyfuse3.init
def init(*arguments, **options):
    attach(*arguments, **options)
    os.kill(os.getpid(), int(os.environ["AT_ONCE"]))
pyfuse3.init = init
"""


@pytest.fixture
def plain(moto: Server, watchdog: Watchdog, tmp_path: Path) -> Mount:
    """A mount that is not started yet; its daemon gets the signal `AT_ONCE` as soon as it is there."""
    (tmp_path / "sitecustomize.py").write_text(AT_ONCE)
    mount = Mount(access_to(moto), new_bucket(moto).bucket, tmp_path, watchdog)
    mount.environment["PYTHONPATH"] = f"{tmp_path}:{ROOT}"
    return mount


@pytest.mark.promise(12)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_to_end_leaves_no_dead_mount(plain: Mount, number: signal.Signals) -> None:
    command = [*SOSFS, "mount", "-f", plain.source, str(plain.path), "--endpoint", plain.access.endpoint]
    done = subprocess.run(
        [*command, "--cache-dir", str(plain.cache)],
        env={**plain.environment, "AT_ONCE": str(int(number))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, mounted(plain.path)) == (0, False), done.stderr


def test_to_read_the_key_again_does_not_end_it(plain: Mount) -> None:
    plain.environment["AT_ONCE"] = str(int(signal.SIGHUP))
    with plain:
        eventually(lambda: "the key was read again" in plain.log)
        assert list(plain.path.iterdir()) == []
        plain.environment["PYTHONPATH"] = str(ROOT)
