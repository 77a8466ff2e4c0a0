"""The control tree: what is in it, that nobody meets it by chance, and how texts are opened, written and applied."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Mounter
from tests.support.drive import Drive, digest, fails, names
from tests.support.faults import Answer, Delay
from tests.support.mounting import run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import Op, Request

SETTINGS = ["acl", "cors", "encryption", "lifecycle", "object-lock", "ownership", "policy", "replication", "versioning"]


@pytest.fixture
def control(drive: Drive) -> Path:
    """The tree's root."""
    return drive.mount.path / ".sosfs"


def new(drive: Drive, name: str = "file", body: bytes = b"body") -> Path:
    path = drive.here / name
    path.write_bytes(body)
    return path


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


# The tree


def test_the_tree_is_found_and_not_listed(drive: Drive, control: Path) -> None:
    assert control.is_dir()
    assert ".sosfs" not in names(drive.mount.path)
    assert names(control) == ["acl", "at", "bucket", "errors", "metrics", "status", "versions"]
    assert names(control / "bucket") == SETTINGS
    with fails(errno.ENOENT):
        (control / "nothing").stat()
    with fails(errno.ENOENT, errno.EINVAL):
        (drive.here / ".sosfs").stat()


def test_copies_of_the_mount_do_not_meet_it(mounter: Mounter, tmp_path: Path) -> None:
    drive = mounter()
    new(drive)
    (drive.mount.path / ".sosfs/status").read_text()
    for number, command in enumerate((["cp", "-a", "."], ["rsync", "-aX", "./"])):
        drive.run(*command, tmp_path / str(number))
        assert names(tmp_path / str(number)) == ["file"]
    assert drive.run("find", ".", "-name", "status") == ""


def test_it_has_its_own_numbers(drive: Drive, control: Path) -> None:
    new(drive)
    real = {path.stat().st_ino for path in (drive.mount.path, drive.here, drive.here / "file")}
    hidden = [path.stat().st_ino for path in (control, control / "acl", control / "status", control / "bucket/acl")]
    assert len(set(hidden)) == 4
    assert not real & set(hidden)


def test_an_object_of_this_name_is_beside_it(mounter: Mounter) -> None:
    drive = mounter()
    drive.foreign.put(".sosfs", b"an object")
    drive.mount.remount()
    assert names(drive.mount.path) == ["%~=.sosfs"]
    assert (drive.mount.path / "%~=.sosfs").read_bytes() == b"an object"
    assert (drive.mount.path / ".sosfs").is_dir()


def test_acls_mirror_the_tree(drive: Drive, control: Path) -> None:
    new(drive)
    (drive.here / "d/e").mkdir(parents=True)
    new(drive, "d/e/f")
    new(drive, "ümläut and blank")
    here = control / "acl" / drive.key(drive.here)
    assert names(here) == ["d", "file", "ümläut and blank"]
    assert names(here / "d/e") == ["f"]
    assert "FULL_CONTROL" in (here / "ümläut and blank").read_text()
    with fails(errno.ENOENT):
        (here / "nothing").read_text()
    (drive.here / "file").rename(drive.here / "other")
    assert names(here) == ["d", "other", "ümläut and blank"]
    assert "FULL_CONTROL" in (here / "other").read_text()
    (drive.here / "other").unlink()
    with fails(errno.ENOENT):
        (here / "other").read_text()


@pytest.mark.parametrize(
    "attempt",
    [
        lambda tree, out: (tree / "new").write_text("x"),
        lambda tree, out: (tree / "bucket/new").write_text("x"),
        lambda tree, out: (tree / "d").mkdir(),
        lambda tree, out: (tree / "bucket/cors").unlink(),
        lambda tree, out: (tree / "bucket").rmdir(),
        lambda tree, out: tree.rmdir(),
        lambda tree, out: (tree / "bucket/cors").rename(tree / "bucket/other"),
        lambda tree, out: tree.rename(out / "moved"),
        lambda tree, out: (out / "file").rename(tree / "file"),
        lambda tree, out: (out / "file").rename(tree),
        lambda tree, out: (tree / "bucket/cors").rename(out / "cors"),
        lambda tree, out: (tree / "link").symlink_to("x"),
        lambda tree, out: (tree / "link").hardlink_to(out / "file"),
        lambda tree, out: os.mkfifo(tree / "fifo"),
        lambda tree, out: (tree / "bucket/cors").chmod(0o600),
        lambda tree, out: os.chown(tree / "bucket/cors", 1, 1),
        lambda tree, out: (tree / "status").write_text("x"),
        lambda tree, out: os.truncate(tree / "status", 0),
        lambda tree, out: os.setxattr(tree / "bucket/cors", "user.x", b"x"),
    ],
)
def test_it_is_as_it_is(drive: Drive, control: Path, attempt: Callable[[Path, Path], object]) -> None:
    file = new(drive)
    with fails(errno.EPERM, errno.EACCES, errno.ENOTEMPTY, errno.EXDEV, errno.ENOTDIR, errno.EISDIR, errno.EOPNOTSUPP):
        attempt(control, drive.here)
    assert file.read_bytes() == b"body"
    assert names(control) == ["acl", "at", "bucket", "errors", "metrics", "status", "versions"]


def test_editors_that_replace_files_fail_cleanly(drive: Drive, control: Path) -> None:
    done = subprocess.run(["sed", "-i", "s/off/on/", control / "bucket/versioning"], capture_output=True, check=False)
    assert done.returncode != 0
    assert (control / "bucket/versioning").read_text() == "off\n"


def test_a_prefix_mount_shows_what_is_below_it(mounter: Mounter) -> None:
    whole = mounter()
    whole.foreign.put("p/q/file", b"body")
    part = mounter(source=f"{whole.foreign.bucket}/p/q")
    assert "FULL_CONTROL" in (part.mount.path / ".sosfs/acl/file").read_text()
    assert names(part.mount.path / ".sosfs/acl") == ["file"]


# Reports


def test_status_is_what_the_command_tells(drive: Drive, control: Path) -> None:
    told = json.loads((control / "status").read_text())
    said = json.loads(run_sosfs(["status", "--json", drive.mount.path], drive.mount.environment).stdout)
    assert told.keys() == said.keys()
    assert (told["pid"], told["bucket"], told["state"]) == (drive.mount.pid, drive.foreign.bucket, "mounted")


def test_metrics_are_metrics(drive: Drive, control: Path) -> None:
    def metrics() -> dict[tuple[str, str], float]:
        found = text_string_to_metric_families((control / "metrics").read_text())
        return {(s.name, s.labels.get("operation", "")): s.value for family in found for s in family.samples}

    before = metrics()
    new(drive, body=b"x" * 1000)
    after = metrics()
    assert after["sosfs_mounted", ""] == 1
    assert after["sosfs_sent_bytes_total", ""] - before["sosfs_sent_bytes_total", ""] == 1000
    puts = ("sosfs_requests_total", "PutObject")
    assert after[puts] > before.get(puts, 0)


# Texts


def test_a_text_may_be_read_and_written_piece_by_piece(drive: Drive, control: Path) -> None:
    path = new(drive)
    setting = control / "acl" / drive.key(path)
    text = setting.read_bytes()
    with setting.open("rb", buffering=0) as file:
        pieces = iter(lambda: file.read(7), b"")
        assert b"".join(pieces) == text
    with setting.open("wb", buffering=0) as file:
        for piece in (b"# opened up", b"\npub", b"lic-read"):
            file.write(piece)
    assert "all-users READ" in lines(setting.read_text())
    assert setting.stat().st_size == len(setting.read_bytes())
    with fails(errno.EINVAL), setting.open("r+b", buffering=0) as file:
        file.seek(1 << 16)
        file.write(b"a hole")


def test_nothing_is_sent_before_close(mounter: Mounter, proxy: Proxy) -> None:
    drive = mounter(proxy.endpoint)
    path = new(drive)
    setting = drive.mount.path / ".sosfs/acl/file"
    with proxy.recording() as traffic, setting.open("w", buffering=1) as file:
        file.write("# it is a public one\n")
        file.flush()
        assert traffic.count(Op.PUT_ACL) == 0
        file.write("public-read\n")
    assert traffic.count(Op.PUT_ACL) == 1
    assert len(lines(setting.read_text())) == 3
    assert path.read_bytes() == b"body"


def test_an_unchanged_text_sends_nothing(mounter: Mounter, proxy: Proxy) -> None:
    drive = mounter(proxy.endpoint)
    new(drive)
    control = drive.mount.path / ".sosfs"
    with proxy.recording() as traffic:
        for name in ("acl/file", "bucket/acl", "bucket/cors", "bucket/versioning", "bucket/policy"):
            setting = control / name
            setting.write_text(setting.read_text())
        text = (control / "acl/file").read_text()
        (control / "acl/file").write_text("# another comment\n" + "\n".join(reversed(text.splitlines())))
        os.utime(control / "bucket/cors")
    changing = [request for request in traffic.of(Op.PUT_ACL, Op.SETTING) if request.method != "GET"]
    assert changing == [], str(traffic)


def test_bad_texts_send_nothing(mounter: Mounter, proxy: Proxy) -> None:
    drive = mounter(proxy.endpoint)
    new(drive)
    control = drive.mount.path / ".sosfs"
    bad = {
        "acl/file": b"all-users SEE\n",
        "bucket/acl": b"public-reed\n",
        "bucket/cors": b"{",
        "bucket/versioning": b"maybe\n",
        "bucket/policy": b"\xff\xfe",
    }
    with proxy.recording() as traffic:
        for name, text in bad.items():
            with fails(errno.EINVAL):
                (control / name).write_bytes(text)
    assert [request for request in traffic.of(Op.PUT_ACL, Op.SETTING) if request.method != "GET"] == [], str(traffic)
    told = (control / "errors").read_text().splitlines()
    assert [line.split(" ", 1)[1].split(":", 1)[0] for line in told] == list(bad)


def test_a_shell_hears_of_a_bad_line(drive: Drive, control: Path) -> None:
    """Its `echo bad > file` looks at the answer to write and not at that to close."""
    path = new(drive)
    for name, text in ((f"acl/{drive.key(path)}", "public-reed"), ("bucket/versioning", "on"), ("bucket/cors", "{]")):
        before = (control / name).read_text()
        done = subprocess.run(["sh", "-c", f"echo '{text}' > '{control / name}'"], capture_output=True, check=False)
        assert done.returncode != 0, name
        assert (control / name).read_text() == before


def test_pieces_of_a_good_text_are_no_bad_text(mounter: Mounter) -> None:
    setting = mounter().mount.path / ".sosfs/bucket/cors"
    text = '{\n"CORSRules": [\n{"AllowedMethods": [\n"GET"\n],\n"AllowedOrigins": [\n"*"]\n}\n]}\n'
    with setting.open("w", buffering=1) as file:
        for line in text.splitlines(keepends=True):
            file.write(line)
    assert '"GET"' in setting.read_text()


def test_what_follows_a_refused_line_is_not_the_whole(mounter: Mounter) -> None:
    drive = mounter()
    setting = drive.mount.path / ".sosfs/bucket/cors"
    setting.write_text('{"CORSRules": [{"AllowedMethods": ["GET"], "AllowedOrigins": ["*"]}]}')
    before = setting.read_text()
    drive.shell(f"(echo '{{]'; echo) > {setting} || true")
    drive.shell(f"(echo '{{]' || true) > {setting}")
    assert setting.read_text() == before


def test_emptying_an_acl_is_no_acl(drive: Drive, control: Path) -> None:
    path = new(drive)
    setting = control / "acl" / drive.key(path)
    drive.shell(f": > '{setting}'")
    assert lines(setting.read_text()) != []
    assert "at least one line" in (control / "errors").read_text().splitlines()[-1]
    with fails(errno.EINVAL):
        os.truncate(setting, 0)


def test_versioning_is_a_word(mounter: Mounter) -> None:
    drive = mounter()
    setting = drive.mount.path / ".sosfs/bucket/versioning"

    def state() -> str:
        return str(drive.foreign.client.get_bucket_versioning(Bucket=drive.foreign.bucket).get("Status"))

    assert (setting.read_text(), state()) == ("off\n", "None")
    drive.shell(f"echo enabled > {setting}")
    assert (setting.read_text(), state()) == ("enabled\n", "Enabled")
    setting.write_text(" Suspended ")
    assert (setting.read_text(), state()) == ("suspended\n", "Suspended")
    with fails(errno.EINVAL):
        setting.write_text("off")
    assert state() == "Suspended"


def test_a_policy_is_taken_as_it_is(mounter: Mounter, server: Server) -> None:
    drive = mounter()
    setting = drive.mount.path / ".sosfs/bucket/policy"
    key = new(drive).name
    assert setting.read_text() == ""
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": "*",
                "Action": "s3:GetObject",
                "Resource": f"arn:aws:s3:::{drive.foreign.bucket}/*",
            }
        ],
    }
    setting.write_text(json.dumps(policy))
    assert json.loads(setting.read_text()) == policy
    url = os.getxattr(drive.here / key, "user.sos.url").decode()
    with urllib.request.urlopen(url, timeout=20) as answer:
        assert answer.read() == b"body"
    if server.name == "ceph":  # moto takes anything
        with fails(errno.EINVAL):
            setting.write_text('{"Statement": 7}')
        assert "bucket/policy" in (drive.mount.path / ".sosfs/errors").read_text().splitlines()[-1]
        assert json.loads(setting.read_text()) == policy
    drive.shell(f": > {setting}")
    assert setting.read_text() == ""


@pytest.mark.parametrize(
    ("status", "code", "number"),
    [(403, "AccessDenied", errno.EACCES), (501, "NotImplemented", errno.EOPNOTSUPP), (405, "", errno.EOPNOTSUPP)],
)
def test_what_the_server_refuses_is_told_and_breaks_nothing(
    mounter: Mounter, proxy: Proxy, status: int, code: str, number: int
) -> None:
    drive = mounter(proxy.endpoint)
    path = new(drive)
    control = drive.mount.path / ".sosfs"

    def of_settings(request: Request) -> bool:
        return request.op in (Op.GET_ACL, Op.PUT_ACL, Op.SETTING, Op.LIST_VERSIONS)

    with proxy.broken(Answer(status, code), of_settings):
        for name in ("acl/file", "bucket/acl", "bucket/cors", "bucket/versioning", "bucket/policy"):
            with fails(number):
                (control / name).read_text()
            with fails(number):
                (control / name).write_text("x")
        with fails(number):
            os.getxattr(path, "user.sos.acl")
        with fails(number):
            names(control / "versions")
        path.write_bytes(b"still works")
        path.chmod(0o600)
        path.rename(drive.here / "renamed")
        assert names(control / "acl") == ["renamed"]
        assert (control / "status").read_text()
    assert digest(drive.here / "renamed") == digest(b"still works")


def test_an_answer_that_is_no_acl_keeps_the_object(mounter: Mounter, proxy: Proxy) -> None:
    """A server that knows no ACLs takes the request for one on the object: PUT would replace the object."""
    drive = mounter(proxy.endpoint)
    path = new(drive)
    with proxy.recording() as traffic, proxy.broken(Answer(200, "Body"), lambda request: request.op is Op.GET_ACL):
        with fails(errno.EIO):
            os.setxattr(path, "user.sos.acl", b"public-read")
        with fails(errno.EIO):
            (drive.mount.path / ".sosfs/acl/file").write_text("public-read")
    assert traffic.count(Op.PUT_ACL) == 0
    assert drive.foreign.get("file") == b"body"


def test_many_readers_and_writers(mounter: Mounter, proxy: Proxy) -> None:
    drive = mounter(proxy.endpoint)
    new(drive)
    setting = drive.mount.path / ".sosfs/acl/file"
    wrong: list[object] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                setting.write_text(("public-read", "authenticated-read")[(number + turn) % 2])
                assert len(lines(setting.read_text())) in (2, 3)
        except (OSError, AssertionError) as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    with proxy.broken(Delay(0.01)):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_the_tree_is_the_owners_alone(drive: Drive, control: Path) -> None:
    """With --allow-other nobody may read in it what the files' own modes keep from him."""
    new(drive)

    def mode(name: str) -> int:
        return stat.S_IMODE((control / name).stat().st_mode)

    assert {mode(name) for name in ("acl", "at", "bucket", "versions", f"acl/{drive.key(drive.here)}")} == {0o700}
    assert {mode(f"bucket/{name}") for name in SETTINGS if name != "replication"} == {0o600}
    assert mode("bucket/replication") == 0o400
    assert [mode(name) for name in (".", "status", "metrics", "errors")] == [0o755, 0o444, 0o444, 0o400]
    kept = next((control / "versions" / drive.key(drive.here / "file")).iterdir())
    assert stat.S_IMODE(kept.stat().st_mode) == 0o400


def test_reports_cannot_be_written_even_by_root(control: Path) -> None:
    for name in ("status", "metrics", "errors"):
        with fails(errno.EACCES):
            os.open(control / name, os.O_WRONLY)
