"""`make install` as a packager and a user run it, and what it puts in place: launchers, mount(8)'s helpers, the unit.

One install for the module: into a staging directory that is then moved to where it belongs, so a path that
should not have been kept is one that no longer exists.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from sosfs.ipc import status
from tests.support.mounting import ROOT, alone
from tests.support.servers import Server, client_of
from tests.support.waiting import alive
from tests.support.watchdog import Watchdog, mounted

pytestmark = pytest.mark.timeout(900)
SECONDS = 60.0
INSTALL_SECONDS = 800.0  # builds pyfuse3 when pip has it not in its cache
BODY = b"through the whole way\n"


@dataclass(frozen=True)
class Installed:
    """A finished installation and the source it was made from."""

    prefix: Path
    source: Path
    said: str
    left: frozenset[Path]  # what it has left in its source

    def unit(self) -> Path:
        return self.prefix / "lib/systemd/system/sosfs@.service"

    def exec_line(self, name: str, environ: Mapping[str, str]) -> list[str]:
        """The command of the unit, its variables put in as systemd does: `$NAME` as words, `${NAME}` as one."""
        (line,) = re.findall(rf"^{name}=-?(.*)$", self.unit().read_text(), re.MULTILINE)
        words: list[str] = []
        for word in shlex.split(line):
            if match := re.fullmatch(r"\$(\w+)", word):
                words += environ[match[1]].split()
            else:
                words.append(re.sub(r"\$\{(\w+)\}", lambda match: environ[match[1]], word))
        return words


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    base = tmp_path_factory.mktemp("install")
    source, stage, prefix = base / "source", base / "stage", base / "final"
    leave_out = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", "build", "results")
    shutil.copytree(ROOT, source, ignore=leave_out)
    before = frozenset(source.rglob("*"))
    said = make("install", source, DESTDIR=stage, PREFIX=prefix)
    shutil.move(f"{stage}{prefix}", prefix)
    shutil.rmtree(stage)
    return Installed(prefix, source, said, frozenset(source.rglob("*")) - before)


def make(target: str, source: Path, **variables: object) -> str:
    """Runs make in a source tree, failing with all it said, which is returned otherwise."""
    command = ["make", "-C", str(source), target, f"PYTHON={sys.executable}"]
    command += [f"{name}={value}" for name, value in variables.items()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture
def environ(moto: Server, tmp_path: Path) -> Mapping[str, str]:
    """The environment of a service with a new bucket that has one object, and a mount point."""
    bucket = f"install-{os.urandom(6).hex()}"
    client = client_of(moto)
    client.create_bucket(Bucket=bucket)
    client.put_object(Bucket=bucket, Key="dir/hello.txt", Body=BODY)
    (tmp_path / "mnt").mkdir()
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(tmp_path),
        "BUCKET": bucket,
        "MOUNTPOINT": str(tmp_path / "mnt"),
        "OPTIONS": f"--endpoint {moto.endpoint} --cache-dir {tmp_path}/cache",
        "EXOSCALE_API_KEY": moto.key,
        "EXOSCALE_API_SECRET": moto.secret,
    }


def test_the_program_runs_from_anywhere_whatever_lies_there(installed: Installed, tmp_path: Path) -> None:
    trap = tmp_path / "sosfs"
    trap.mkdir()
    (trap / "__init__.py").write_text("raise SystemExit('trapped')")
    for program, name in (
        ("bin/sosfs", "sosfs"),
        ("sbin/mount.sosfs", "mount.sosfs"),
        ("sbin/mount.fuse.sosfs", "mount.sosfs"),
        ("sbin/umount.fuse.sosfs", "umount.fuse.sosfs"),
    ):
        done = subprocess.run(
            [installed.prefix / program, "--help"],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"usage: {name} ")


def test_the_program_that_is_installed_is_the_one_that_runs(installed: Installed) -> None:
    python = installed.prefix / "lib/sosfs/bin/python"
    out = subprocess.run(
        [python, "-I", "-c", "import sosfs.daemon.mount, os; print(os.path.dirname(sosfs.__file__))"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    ).stdout
    assert Path(out.strip()).is_relative_to(installed.prefix / "lib/sosfs/lib")


def test_manual_and_completion_are_where_programs_look_for_them(installed: Installed) -> None:
    share = installed.prefix / "share"
    for section, name in ((1, "sosfs"), (5, "sosfs.toml"), (8, "mount.sosfs")):
        found = subprocess.run(
            ["man", "-M", share / "man", "-w", str(section), name], capture_output=True, text=True, check=True
        )
        assert Path(found.stdout.strip()) == share / f"man/man{section}/{name}.{section}"
    names = ("bash-completion/completions/sosfs", "zsh/site-functions/_sosfs", "fish/vendor_completions.d/sosfs.fish")
    assert all((share / name).stat().st_mode & 0o777 == 0o644 for name in names)
    shown = subprocess.run(
        [installed.prefix / "bin/sosfs", "help", "recipes"], capture_output=True, text=True, timeout=SECONDS, check=True
    )
    assert shown.stdout == (installed.source / "sosfs/docs/recipes.md").read_text()
    # pip, without make, brings them too.
    assert (installed.prefix / "lib/sosfs/share/man/man1/sosfs.1").exists()


def test_it_leaves_nothing_in_its_source_and_says_nothing_of_pips(installed: Installed) -> None:
    assert installed.left == frozenset()
    assert not re.search("DEPRECATION|WARNING: (?!Location)|notice", installed.said)


def test_one_that_fails_leaves_the_one_that_works(installed: Installed, tmp_path: Path) -> None:
    source = tmp_path / "broken"
    shutil.copytree(installed.source, source)
    (source / "pyproject.toml").write_text("this is no TOML")
    with pytest.raises(AssertionError, match="pyproject"):
        make("install", source, PREFIX=installed.prefix)
    done = subprocess.run([installed.prefix / "bin/sosfs", "--version"], timeout=SECONDS, check=False)
    assert done.returncode == 0
    assert not (installed.prefix / "lib/sosfs.new").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_without_root_it_says_in_one_line_what_to_do() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        Path(directory).chmod(0o755)
        shutil.copy(ROOT / "Makefile", directory)
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "make", "--no-print-directory", "install"],
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    first, *_ = done.stderr.splitlines()
    assert done.returncode == 2
    assert "make install PREFIX=$HOME/.local" in first
    assert "apt-get" not in done.stdout


@pytest.mark.parametrize(
    ("manager", "unit"),
    [("--system", "lib/systemd/system/sosfs@.service"), ("--user", "share/systemd/user/sosfs@.service")],
)
def test_systemd_understands_the_units(installed: Installed, manager: str, unit: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", manager, "verify", "--man=no", installed.prefix / unit],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", ["sosfs@.service", "user/sosfs@.service"])
def test_after_a_crash_no_second_goes_by_before_the_next_start(unit: str) -> None:
    text = (ROOT / "systemd" / unit).read_text()
    assert re.search(r"^Restart=on-failure$", text, re.MULTILINE)
    (pause,) = re.findall(r"^RestartSec=(\d+)ms$", text, re.MULTILINE)
    assert int(pause) <= 100


@pytest.fixture
def service(installed: Installed, environ: Mapping[str, str], watchdog: Watchdog) -> Iterator[subprocess.Popen[bytes]]:
    """The unit's main process, running and ready."""
    home, path = Path(environ["HOME"]), Path(environ["MOUNTPOINT"])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, (home / "log").open("wb") as log:
        manager.bind(str(home / "notify"))
        manager.settimeout(SECONDS)
        process = subprocess.Popen(
            installed.exec_line("ExecStart", environ),
            env={**environ, "NOTIFY_SOCKET": str(home / "notify")},
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
        watchdog.watch(process.pid, path)
        try:
            told = manager.recv(4096).decode()
            assert told.splitlines()[0] == "READY=1"
            assert mounted(path), "ready was told before the mount was there"
            yield process
        finally:
            process.kill()
            process.wait()
            if mounted(path):
                subprocess.run(["fusermount3", "-u", "-z", path], check=True)
            watchdog.forget(process.pid)


def stored(moto: Server, environ: Mapping[str, str], key: str) -> bytes:
    """An object's bytes, as another client reads them."""
    return client_of(moto).get_object(Bucket=environ["BUCKET"], Key=key)["Body"].read()


def test_the_service_starts_serves_and_stops(
    installed: Installed, environ: Mapping[str, str], moto: Server, service: subprocess.Popen[bytes]
) -> None:
    path = Path(environ["MOUNTPOINT"])
    assert (path / "dir/hello.txt").read_bytes() == BODY
    (path / "new.txt").write_bytes(BODY)
    stop = subprocess.run(
        installed.exec_line("ExecStop", environ), env=dict(environ), capture_output=True, timeout=SECONDS, check=False
    )
    assert (stop.returncode, stop.stderr) == (0, b"")
    assert service.wait(SECONDS) == 0
    assert not mounted(path)
    assert stored(moto, environ, "new.txt") == BODY


def test_the_service_drains_when_it_is_only_told_to_end(
    environ: Mapping[str, str], moto: Server, service: subprocess.Popen[bytes]
) -> None:
    """As systemd does when ExecStop has failed, the mount being busy."""
    late = os.open(Path(environ["MOUNTPOINT"]) / "late.txt", os.O_WRONLY | os.O_CREAT)
    os.write(late, BODY)
    service.terminate()
    assert service.wait(SECONDS) == 0
    with pytest.raises(OSError, match="not connected"):
        os.close(late)
    assert stored(moto, environ, "late.txt") == BODY


def test_mount_and_umount_use_the_helpers(
    installed: Installed, environ: Mapping[str, str], moto: Server, tmp_path: Path
) -> None:
    """In a mount namespace of its own where /sbin has them; `umount` returns when the daemon has ended."""
    path = Path(environ["MOUNTPOINT"])
    options = f"_netdev,nofail,noatime,noexec,x-systemd.automount,endpoint={moto.endpoint},cache_dir={tmp_path}/cache"
    table = tmp_path / "fstab"
    table.write_text(f"{environ['BUCKET']} {path} sosfs {options} 0 0\n")
    # Who is root in a user namespace only may not look into what is root's: a home for settings, /run for the daemon.
    script = f"""
        {alone(tmp_path)}
        {"mount -t tmpfs tmpfs /root; mount -t tmpfs tmpfs /run" if os.geteuid() else ""}
        mount -t overlay overlay -o lowerdir={installed.prefix}/sbin:/usr/sbin /usr/sbin
        mount -T {table} {path}
        mount -T {table} -a
        mount -T {table} -a
        findmnt -no SOURCE {path}
        cat {path}/dir/hello.txt
        echo written > {path}/by-fstab.txt
        cp /bin/true {path}/program
        {path}/program 2>/dev/null || echo $? $(stat -c %A {path}/program)
        {installed.prefix}/bin/sosfs status {path} | grep -o 'mounted, pid .*'
        umount {path}
    """
    done = subprocess.run(
        ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else []), "sh", "-eu", "-c", script],
        env=dict(environ),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    source, hello, run, state = done.stdout.splitlines()
    assert source == environ["BUCKET"], "as fstab has it, which is how `mount -a` knows what is mounted"
    assert hello.encode() == BODY.strip()
    assert run == "126 -rwxr-xr-x"
    assert not alive(int(state.split()[-1])), "umount did not wait for the daemon"
    assert stored(moto, environ, "by-fstab.txt") == b"written\n"
    assert status.fetch(path) is None


class TestDebianPackages:
    """What `make` installs on a Debian before it does anything else, with stand-ins for the package tools."""

    @pytest.fixture
    def tools(self, tmp_path: Path) -> Path:
        """A PATH on which gcc is missing, and `apt-get` writes down what it was asked."""
        directory = tmp_path / "bin"
        directory.mkdir()
        scripts = {
            "dpkg-query": 'for last; do :; done; [ "$last" = gcc ] && exit 1; echo install ok installed',
            "apt-get": f'echo "$@" >> {tmp_path}/asked',
            "sudo": 'exec "$@"',
        }
        for name, script in scripts.items():
            (directory / name).write_text(f"#!/bin/sh\n{script}\n")
            (directory / name).chmod(0o755)
        return directory

    def packages(self, path: str) -> str:
        command = ["make", "-C", str(ROOT), "--no-print-directory", "debian-run"]
        done = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def test_only_what_is_missing_is_installed(self, tools: Path) -> None:
        assert self.packages(f"{tools}:/usr/bin:/bin") == "Installing gcc\n"
        update, install = (tools.parent / "asked").read_text().splitlines()
        assert update.startswith("update")
        assert install.startswith("install") and install.endswith(" gcc")

    def test_nobody_is_asked_for_anything_where_all_is_there(self, tools: Path) -> None:
        (tools / "dpkg-query").write_text("#!/bin/sh\necho install ok installed\n")
        assert self.packages(f"{tools}:/usr/bin:/bin") == ""
        assert not (tools.parent / "asked").exists()

    def test_elsewhere_than_on_debian_it_says_what_is_needed(self, tools: Path) -> None:
        (tools / "dpkg-query").unlink()
        for name in ("make", "sh", "id"):
            found = shutil.which(name)
            assert found
            (tools / name).symlink_to(found)
        assert "libfuse3-dev" in self.packages(str(tools))
        assert not (tools.parent / "asked").exists()


def test_uninstall_leaves_nothing(installed: Installed) -> None:
    make("uninstall", installed.source, PREFIX=installed.prefix)
    assert [path for path in installed.prefix.rglob("*") if not path.is_dir()] == []
