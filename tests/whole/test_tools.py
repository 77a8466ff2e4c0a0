"""Everyday programs on a real kernel mount: what they leave behind is right, and right again after a remount."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.drive import Drive, digest, eventually, names, tree

MOMENT = 1_234_567_890_123_456_789

pytestmark = pytest.mark.parametrize("server", ["ceph"], indirect=True)  # what matters is the kernel's side


@pytest.fixture
def material(tmp_path: Path) -> Path:
    """A tree outside the mount: directories, an empty one too, files of many sizes, odd names, links, old times."""
    top, dice = tmp_path / "material", random.Random(10)
    for number in range(60):
        path = top / f"d{number % 7}" / f"sub {number % 3}" / f"file-{number}.dat"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dice.randbytes(int(dice.random() ** 4 * 300_000)))
        os.utime(path, ns=(MOMENT + number, MOMENT + number))
        path.chmod(dice.choice([0o644, 0o600, 0o755]))
    (top / "empty").mkdir()
    (top / "d0" / "link").symlink_to("sub 0/file-0.dat")
    (top / "d0" / "dangling").symlink_to("../nowhere")
    (top / "naïve %41 +.txt").write_bytes(b"odd\n")
    (top / "large").write_bytes(dice.randbytes(18 << 20))
    return top


def same(left: Path, right: Path) -> None:
    """Both trees have the same names, bytes and links."""
    done = subprocess.run(["diff", "-r", "--no-dereference", left, right], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[:2000] + done.stderr[:2000]


def times(top: Path) -> dict[str, tuple[int, int]]:
    """Mode and time of modification of every file."""
    return {
        str(path.relative_to(top)): (path.stat().st_mode, path.stat().st_mtime_ns)
        for path in top.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def test_cp_mv_find_rm(drive: Drive, material: Path) -> None:
    drive.run("cp", "-r", material, "copy")
    same(material, drive.here / "copy")
    drive.run("mv", "copy", "moved")
    drive.run("cp", "-r", "moved", "twin")
    drive.mount.remount()
    same(material, drive.here / "moved")
    same(material, drive.here / "twin")
    found = drive.run("find", "twin", "-type", "f", "-name", "*.dat").splitlines()
    assert len(found) == 60
    drive.run("rm", "-rf", "moved", "twin")
    assert names(drive.here) == []
    eventually(lambda: drive.foreign.files(drive.key(drive.here) + "/") == [])


def test_cp_preserving_keeps_modes_and_times(drive: Drive, material: Path) -> None:
    drive.run("cp", "-a", material, "copy")
    same(material, drive.here / "copy")
    assert times(drive.here / "copy") == times(material)
    drive.mount.remount()
    assert times(drive.here / "copy") == times(material)
    assert (drive.here / "copy" / "d0" / "link").readlink() == Path("sub 0/file-0.dat")


def test_mv_into_and_out_of_the_mount(drive: Drive, material: Path, tmp_path: Path) -> None:
    shutil.copytree(material, tmp_path / "second", symlinks=True)
    drive.run("mv", tmp_path / "second", "inside")
    assert not (tmp_path / "second").exists()
    same(material, drive.here / "inside")
    drive.run("mv", "inside", tmp_path / "outside")
    same(material, tmp_path / "outside")
    assert names(drive.here) == []


def test_tar_out_and_in(drive: Drive, material: Path, tmp_path: Path) -> None:
    drive.run("tar", "--format=posix", "-cf", tmp_path / "a.tar", "-C", material.parent, material.name)
    drive.run("tar", "-xf", tmp_path / "a.tar")
    same(material, drive.here / "material")
    assert times(drive.here / "material") == times(material)
    drive.run("tar", "-czf", "b.tgz", "material")
    drive.mount.remount()
    drive.run("tar", "-xzf", drive.here / "b.tgz", cwd=tmp_path)
    drive.run("tar", "-df", tmp_path / "a.tar", cwd=drive.here)
    same(material, drive.here / "material")


def rsync(drive: Drive, *arguments: str | Path) -> list[str]:
    """Runs rsync and returns what it changed, one item a line."""
    return drive.run("rsync", "--itemize-changes", *arguments).splitlines()


def test_rsync_first_unchanged_and_changed(drive: Drive, material: Path) -> None:
    assert len(rsync(drive, "-a", f"{material}/", "mirror")) > 60
    same(material, drive.here / "mirror")
    assert rsync(drive, "-a", f"{material}/", "mirror") == []
    drive.mount.remount()
    assert rsync(drive, "-a", f"{material}/", "mirror") == []
    (material / "d1" / "new").write_bytes(b"new")
    (material / "large").write_bytes(b"small now")
    (material / "d2" / "sub 0" / "file-9.dat").unlink()
    changed = rsync(drive, "-a", "--delete", f"{material}/", "mirror")
    assert sorted(line.split(maxsplit=1)[1] for line in changed if not line.startswith(".")) == sorted(
        ["d1/new", "large", "d2/sub 0/file-9.dat"]
    )
    same(material, drive.here / "mirror")
    drive.mount.remount()
    assert rsync(drive, "-a", "--delete", f"{material}/", "mirror") == []


def test_rsync_inplace_and_by_checksum(drive: Drive, material: Path) -> None:
    rsync(drive, "-a", f"{material}/", "mirror")
    body = bytearray((material / "large").read_bytes())
    body[9_000_000:9_000_010] = b"0123456789"
    (material / "large").write_bytes(body)
    rsync(drive, "-a", "--inplace", "--no-whole-file", f"{material}/", "mirror")
    assert digest(drive.stored(drive.here / "mirror" / "large")) == digest(bytes(body))
    assert rsync(drive, "-a", "--checksum", f"{material}/", "mirror") == []


def git(drive: Drive, *arguments: str | Path, cwd: Path | None = None) -> str:
    """Runs git as somebody."""
    who = ("-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main")
    return drive.run("git", *who, *arguments, cwd=cwd)


def test_git_works_inside(drive: Drive, material: Path, tmp_path: Path) -> None:
    repository = drive.here / "repo"
    git(drive, "init", "-q", repository)
    shutil.copytree(material / "d0", repository / "d0", symlinks=True)
    git(drive, "add", "-A", cwd=repository)
    git(drive, "commit", "-q", "-m", "first", cwd=repository)
    (repository / "d0" / "more").write_bytes(b"more\n")
    git(drive, "add", "-A", cwd=repository)
    git(drive, "commit", "-q", "-m", "second", cwd=repository)
    assert git(drive, "status", "--porcelain", cwd=repository) == ""
    git(drive, "checkout", "-q", "-b", "side", "HEAD~1", cwd=repository)
    assert not (repository / "d0" / "more").exists()
    git(drive, "checkout", "-q", "main", cwd=repository)
    git(drive, "gc", "-q", cwd=repository)
    drive.mount.remount()
    git(drive, "fsck", "--full", "--strict", cwd=repository)
    assert git(drive, "status", "--porcelain", cwd=repository) == ""
    git(drive, "clone", "-q", repository, drive.here / "clone")
    same(repository / "d0", drive.here / "clone" / "d0")
    git(drive, "clone", "-q", drive.here / "clone", tmp_path / "outside")
    same(repository / "d0", tmp_path / "outside" / "d0")


def test_sqlite_transactions_hold(drive: Drive) -> None:
    base = drive.here / "base.db"
    drive.run("sqlite3", base, "create table t(n integer primary key, body blob); pragma journal_mode=delete;")
    for number in range(8):
        drive.run(
            "sqlite3",
            base,
            f"begin; insert into t select null, randomblob(2000) from generate_series(1, {50 + number}); commit;",
        )
    drive.run("sqlite3", base, "begin; delete from t; rollback;")
    total = sum(50 + number for number in range(8))
    check = "pragma integrity_check; select count(*) from t;"
    assert drive.run("sqlite3", base, check).split() == ["ok", str(total)]
    drive.mount.remount()
    assert drive.run("sqlite3", base, check).split() == ["ok", str(total)]
    drive.run("sqlite3", base, "delete from t where n % 2; vacuum;")
    assert names(drive.here) == ["base.db"]
    (drive.mount.base / "copy.db").write_bytes(drive.stored(base))
    copied = drive.run("sqlite3", drive.mount.base / "copy.db", check).split()
    assert copied == ["ok", str(total // 2)]


def test_sqlite_two_writers_take_turns(drive: Drive) -> None:
    base = drive.here / "base.db"
    drive.run("sqlite3", base, "create table t(n);")
    loop = "for i in 1 2 3 4 5 6; do sqlite3 -cmd '.timeout 20000' base.db \"insert into t values($i);\"; done"
    drive.shell(f"({loop}) & ({loop}) & wait")
    assert drive.run("sqlite3", base, "select count(*), sum(n) from t;").strip() == "12|42"


def test_editor_saves_by_rename(drive: Drive) -> None:
    path = drive.here / "document.txt"
    for version in range(5):
        body = f"version {version}\n".encode() * (version + 1) * 100
        swap = drive.here / f".document.txt.{version}"
        with swap.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            swap.chmod(path.stat().st_mode & 0o777)
        swap.rename(path)
        directory = os.open(drive.here, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        assert names(drive.here) == ["document.txt"]
        assert drive.stored(path) == body


def test_editor_saves_with_a_backup(drive: Drive) -> None:
    path, backup = drive.here / "document", drive.here / "document~"
    path.write_bytes(b"first")
    for body in (b"second", b"third"):
        path.rename(backup)
        path.write_bytes(body)
        assert path.read_bytes() == body
    assert tree(drive.here) == {"document": b"third", "document~": b"second"}
    drive.mount.remount()
    assert tree(drive.here) == {"document": b"third", "document~": b"second"}


def test_sed_sort_and_split_in_place(drive: Drive) -> None:
    drive.shell("seq 1 20000 > n; sed -i s/1/one/g n; sort -o n n; split -l 5000 n part-; cat part-* | cmp - n; gzip n")
    drive.mount.remount()
    assert drive.shell("zcat n.gz | wc -l").strip() == "20000"
    assert drive.shell("cat part-* | md5sum").split()[0] == drive.shell("zcat n.gz | md5sum").split()[0]


def test_restic_backs_up_into_the_mount(drive: Drive, material: Path, tmp_path: Path) -> None:
    environment = {
        "RESTIC_PASSWORD": "secret",
        "RESTIC_REPOSITORY": str(drive.here / "restic"),
        "XDG_CACHE_HOME": str(tmp_path),
    }

    def restic(*arguments: str | Path) -> None:
        drive.run("restic", "-q", *arguments, environment=environment)

    restic("init")
    restic("backup", material)
    (material / "large").write_bytes(b"small now")
    restic("backup", material)
    drive.mount.remount()
    restic("check", "--read-data")
    restic("restore", "latest", "--target", tmp_path / "back")
    same(material, tmp_path / "back" / material.relative_to("/"))
