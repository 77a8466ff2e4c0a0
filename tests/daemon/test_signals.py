"""A signal that comes at the moment of the mount is heeded as any later one: whoever sees the mount may send it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from sosfs.ipc import status
from tests.conftest import access_to, new_bucket
from tests.support.drive import eventually
from tests.support.faults import Hang
from tests.support.mounting import ROOT, SOSFS, Mount, run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import SECONDS
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


# The program as it is installed, but that a signal comes when all is sent, while the access log is closed.
LATE = """
import os, signal, trio, trio.testing
from sosfs.daemon.observation import Observation
async def close(self):
    os.kill(os.getpid(), signal.SIGTERM)
    await trio.testing.wait_all_tasks_blocked(0.01)
Observation.close = close
"""


def test_to_end_what_has_ended_is_no_crash(plain: Mount, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(LATE)
    plain.start()
    plain.stop()


def test_a_key_file_that_was_named_from_where_it_was_mounted_is_found_again(plain: Mount, tmp_path: Path) -> None:
    access = plain.access
    (tmp_path / "keys").write_text(
        f"[default]\naws_access_key_id={access.key}\naws_secret_access_key={access.secret}\n"
    )
    environment = {name: value for name, value in plain.environment.items() if not name.startswith("EXOSCALE")}
    environment |= {"AWS_SHARED_CREDENTIALS_FILE": "keys", "PYTHONPATH": str(ROOT)}
    command = [*SOSFS, "mount", plain.source, str(plain.path), "--endpoint", access.endpoint]
    command += ["--cache-dir", str(plain.cache), "--log-file", str(plain.logfile)]
    subprocess.run(command, env=environment, cwd=tmp_path, timeout=60, check=True)
    try:
        now = status.fetch(plain.path)
        assert now is not None
        os.kill(now.pid, signal.SIGHUP)
        eventually(lambda: "read again" in plain.log)
        assert "the key was read again" in plain.log, plain.log
    finally:
        run_sosfs(["umount", plain.path], environment)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_to_end_while_the_server_is_waited_for_is_heeded_at_once(plain: Mount, number: signal.Signals) -> None:
    with socket.socket() as listener:  # takes connections and answers none
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        command = [*SOSFS, "mount", "-f", plain.source, str(plain.path), "--endpoint", endpoint]
        environment = {**plain.environment, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            [*command, "--cache-dir", str(plain.cache)], env=environment, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            assert "connecting" in process.stderr.readline()
            process.send_signal(number)
            try:
                assert process.wait(SECONDS) == -number
            finally:
                process.kill()


def test_a_mount_that_came_while_the_server_was_waited_for_is_left_as_it_is(plain: Mount, tmp_path: Path) -> None:
    """Mounted over, it would be in nobody's sight, and its status with it."""
    plain.environment["PYTHONPATH"] = str(ROOT)
    with Proxy(plain.access.endpoint) as proxy, proxy.broken(Hang()) as rule:
        command = [*SOSFS, "mount", "-f", plain.source, str(plain.path), "--endpoint", proxy.endpoint]
        command += ["--cache-dir", str(tmp_path / "other"), "--timeout", "1"]
        with subprocess.Popen(command, env=plain.environment, stderr=subprocess.PIPE, text=True) as late:
            eventually(lambda: rule.hits > 0)
            with plain:
                proxy.heal()
                try:
                    _, told = late.communicate(timeout=60)
                finally:
                    late.kill()
                assert (late.returncode, "has a mount already" in told) == (1, True), told
                now = status.fetch(plain.path)
                assert now is not None
                assert now.pid == plain.pid
