"""The commands of the manual work as they are written: each block of a page is run by a shell, on mounts that it makes.

Changed are only the name of the bucket and what lies outside the user's home directory. The server is Ceph, which
enforces ACLs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from sosfs.cli import manual
from sosfs.daemon import mountpoint
from sosfs.ipc import status
from tests.conftest import access_to, new_bucket
from tests.support.drive import tree
from tests.support.foreign import Foreign
from tests.support.mounting import ROOT
from tests.support.servers import Server
from tests.support.watchdog import detach

pytestmark = pytest.mark.timeout(280)

SECONDS = 120.0
FILES = {"a.txt": b"a\n", "sub/b.bin": bytes(range(256)) * 100, "sub/deep/c": b""}
WITHOUT_KEY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class Desk:
    """A user's home directory, where `my-bucket` is a new bucket of a server, and `sosfs` is this one."""

    foreign: Foreign
    home: Path
    environment: dict[str, str]

    def run(self, *scripts: str) -> str:
        """Runs blocks of a page, each in a shell of its own that stops at the first failure; all that they print."""
        printed = ""
        for script in scripts:
            done = subprocess.run(
                ["sh", "-euc", self.here(script)],
                cwd=self.home,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
            assert done.returncode == 0, f"{script}\nexit code {done.returncode}\n{done.stdout}{done.stderr}"
            printed += done.stdout
        return printed

    def here(self, script: str) -> str:
        """The script with the names of this test."""
        return script.replace("/mnt/my-bucket", f"{self.home}/mnt").replace("my-bucket", self.foreign.bucket)

    def write(self, directory: str, files: dict[str, bytes]) -> Path:
        """Writes files below a directory of the home."""
        for name, body in files.items():
            path = self.home / directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
        return self.home / directory

    def mounts(self) -> list[Path]:
        """What is mounted in the home."""
        return [each.mountpoint for each in mountpoint.table() if each.mountpoint.is_relative_to(self.home)]


@pytest.fixture
def desk(ceph: Server, tmp_path: Path) -> Iterator[Desk]:
    foreign, home = new_bucket(ceph), tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    program = home / "bin/sosfs"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m sosfs "$@"\n')
    program.chmod(0o755)
    settings = home / ".config/sosfs/sosfs.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f'[mount."{foreign.bucket}"]\ncache_dir = "{tmp_path}/cache"\nlog_file = "{tmp_path}/log"\n')
    environment = {
        **access_to(ceph).environment(home),
        "PATH": f"{home}/bin:{os.environ['PATH']}",
        "EXOSCALE_SOS_ENDPOINT": ceph.endpoint,
        "LC_ALL": "C.UTF-8",
    }
    desk = Desk(foreign, home, environment)
    yield desk
    for path in desk.mounts():
        now = status.fetch(path)
        detach(str(path))
        if now is not None:
            os.kill(now.pid, 9)


def blocks(topic: str, heading: str = "") -> list[str]:
    """The shell blocks of a page, or of one of its sections."""
    text = manual.page(topic)
    if heading:
        text = text.split(f"\n## {heading}", 1)[1].split("\n## ", 1)[0]
    found = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found
    return found


def readable_by_all(url: str) -> bytes:
    """What somebody without a key gets."""
    body: bytes = WITHOUT_KEY.open(url, timeout=SECONDS).read()
    return body


def test_backup_with_restic(desk: Desk) -> None:
    documents = desk.write("documents", FILES)
    desk.run(*blocks("recipes", "Backup with restic"))
    assert tree(desk.home / "restored" / documents.relative_to("/")) == FILES
    assert desk.foreign.files("restic/snapshots/")
    assert desk.mounts() == []


def test_backup_with_borg(desk: Desk) -> None:
    documents = desk.write("documents", FILES)
    desk.run(*blocks("recipes", "Backup with borg"))
    assert tree(desk.home / "restored" / documents.relative_to("/")) == FILES
    assert "borg/config" in desk.foreign.files("borg/")
    assert desk.mounts() == []


def test_mirror_with_rsync(desk: Desk) -> None:
    desk.write("documents", FILES)
    desk.write("images", {"large": os.urandom(20 << 20)})
    desk.run(*blocks("recipes", "Mirror with rsync"))
    assert {key: desk.foreign.get(f"documents/{key}") for key in FILES} == FILES
    assert desk.foreign.get("images/large") == (desk.home / "images/large").read_bytes()


def test_a_web_site(desk: Desk) -> None:
    pages = {"index.html": b"<h1>Welcome</h1>\n", "css/site.css": b"h1 { color: teal }\n"}
    desk.write("html", pages)
    assert desk.run(*blocks("recipes", "A web site")) == "<h1>Welcome</h1>\n"
    for key, body in pages.items():
        assert readable_by_all(f"{desk.environment['EXOSCALE_SOS_ENDPOINT']}/{desk.foreign.bucket}/site/{key}") == body
    head = desk.foreign.head("site/index.html")
    assert (head["ContentType"], head["CacheControl"]) == ("text/html", "max-age=3600")


def test_a_link_for_somebody_without_a_key(desk: Desk) -> None:
    desk.foreign.put("report.pdf", b"a report")
    assert readable_by_all(desk.run(*blocks("recipes", "A link"))) == b"a report"


def test_systemd_understands_the_unit_of_a_drive(desk: Desk) -> None:
    desk.run(*blocks("recipes", "A drive on the desktop"))
    unit = desk.home / ".config/systemd/user/bucket.service"
    text = unit.read_text().replace("/usr/local/bin/sosfs", str(desk.home / "bin/sosfs"))
    unit.write_text(text)
    with tempfile.TemporaryDirectory(dir="/tmp") as runtime:  # a socket's path has 107 bytes at most
        done = subprocess.run(
            ["systemd-analyze", "--user", "--man=no", "verify", unit],
            env={**desk.environment, "XDG_RUNTIME_DIR": runtime},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    # Its command mounts and tells that it is ready, and the other one ends it.
    start, stop = (re.findall(rf"^{name}=-?(.*)$", text, re.MULTILINE)[0] for name in ("ExecStart", "ExecStop"))
    with subprocess.Popen(["sh", "-c", start.replace("%h", "~")], env=desk.environment) as process:
        deadline = time.monotonic() + SECONDS
        while not desk.mounts():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        desk.run(stop.replace("%h", "~"))
        assert process.wait(SECONDS) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="root mounts for others")
def test_several_users(desk: Desk) -> None:
    desk.home.joinpath("mnt").mkdir()
    before, after = blocks("recipes", "Several users")[0].rsplit("sosfs umount", 1)
    desk.foreign.put("foreign", b"of nobody")
    desk.run(before)
    team = desk.home / "mnt/team"
    # As a member of the group would, whatever the temporary directory lets through.
    member = f"import os; os.chdir({str(team)!r}); os.setgroups([100]); os.setgid(65534); os.setuid(4321); "
    member += "open('mine', 'w').close(); print(oct(os.stat('../foreign').st_mode), open('../foreign').read())"
    done = subprocess.run([sys.executable, "-c", member], capture_output=True, text=True, check=False)
    assert (done.stderr, done.stdout) == ("", "0o100660 of nobody\n")
    mine = (team / "mine").stat()
    assert (mine.st_uid, mine.st_gid) == (4321, 100)
    outsider = member.replace("setgroups([100])", "setgroups([])")
    done = subprocess.run([sys.executable, "-c", outsider], capture_output=True, text=True, check=False)
    assert "PermissionError" in done.stderr
    desk.run("sosfs umount" + after)


def test_what_to_do_with_conflicts(desk: Desk) -> None:
    desk.foreign.put("notes.txt", b"theirs\n")
    desk.foreign.put("notes.txt.conflict-host-20261129T120000Z-123456789", b"mine\n")
    printed = desk.run(*blocks("recipes", "What to do with"))
    assert "/bucket/notes.txt.conflict-host-" in printed
    assert "< theirs\n---\n> mine\n" in printed
    assert desk.foreign.files("") == ["notes.txt"]
    assert desk.foreign.get("notes.txt") == b"mine\n"


@pytest.fixture
def mounted(desk: Desk) -> Desk:
    """The desk with `my-bucket` mounted at `~/bucket`, with the files that the examples speak of."""
    for key in ("page.html", "notes.txt", "notes", "report.pdf", "site/index.html", "photos/one.jpg"):
        desk.foreign.put(key, b"first\n")
    desk.run("mkdir ~/bucket; sosfs mount my-bucket ~/bucket")
    return desk


def in_bucket(scripts: Sequence[str]) -> list[str]:
    """Scripts that are written for a shell in the root of the mount."""
    return [f"cd ~/bucket\n{script}" for script in scripts]


def test_attributes(mounted: Desk) -> None:
    printed = mounted.run(*in_bucket(blocks("attributes")), "sosfs umount ~/bucket")
    assert 'user.sos.cache-control="max-age=3600"' in printed
    assert "clean" in printed or "dirty" in printed
    assert mounted.foreign.head("page.html")["CacheControl"] == "max-age=3600"
    assert mounted.foreign.metadata("report.pdf")["author"] == "A. Writer"
    assert mounted.foreign.head("notes")["ContentType"] == "text/plain"
    assert readable_by_all(printed[printed.index("http") :]) == b"first\n"


def test_acls_and_cors(mounted: Desk) -> None:
    printed = mounted.run(*in_bucket(blocks("control-files", "ACLs")))
    assert "all-users READ\n" in printed
    base = f"{mounted.environment['EXOSCALE_SOS_ENDPOINT']}/{mounted.foreign.bucket}"
    assert readable_by_all(f"{base}/page.html") == b"first\n"
    assert readable_by_all(f"{base}/site/index.html") == b"first\n"
    assert b"<Key>page.html</Key>" in readable_by_all(base)
    (cors,) = blocks("control-files", "CORS")
    printed = mounted.run(*in_bucket([cors]))
    assert "https://example.com" in printed
    assert (mounted.home / "bucket/.sosfs/bucket/cors").read_text() == "", "the last line takes them away"


def test_versions_policy_and_status(mounted: Desk) -> None:
    mounted.run(*in_bucket(["echo enabled > .sosfs/bucket/versioning; echo second > notes.txt"]))
    mounted.run(*in_bucket(blocks("control-files", "Versions")))
    assert (mounted.home / "bucket/notes.txt").read_text() == "first\n"
    policy = """{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject",
        "Resource": "arn:aws:s3:::my-bucket/notes"}]}"""
    (mounted.home / "policy.json").write_text(mounted.here(policy))
    mounted.run(*in_bucket(blocks("control-files", "The policy")))
    printed = mounted.run(*in_bucket(blocks("control-files", "Status")))
    assert '"pid"' in printed
    assert "sosfs_" in printed


def test_caches_keys_and_exit_codes(mounted: Desk) -> None:
    assert "attributes only" in mounted.run(*blocks("caches"))
    mounted.run(*blocks("keys"))
    assert mounted.run(*blocks("exit-codes")) == "every change is in the bucket\n"
    assert mounted.mounts() == []
