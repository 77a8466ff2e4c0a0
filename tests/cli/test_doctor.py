"""What `sosfs doctor BUCKET` says of a bucket, of a key's rights in it and of the server, and what it leaves there.

The program as a user types it, on both servers; the limited keys are those of Ceph's second user, who may do
what the bucket's policy or ACL lets him. What is sent is seen by a proxy.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sosfs.cli.doctor import bucket_count, machine
from sosfs.cli.doctor.findings import Verdict
from tests.conftest import access_to, new_bucket
from tests.support.faults import Answer
from tests.support.foreign import Foreign
from tests.support.mounting import Access, run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import Op, on

RIGHTS = ("list", "get", "delete", "put", "copy", "multipart", "read ACL", "write ACL")
READING = {"GET", "HEAD"}


@dataclass
class Examined:
    """What the doctor said."""

    code: int
    document: Mapping[str, Any]

    def __getitem__(self, what: str) -> tuple[str, str]:
        """Verdict and detail of the one finding of this name."""
        found = [(row["verdict"], row["detail"]) for row in self.document["findings"] if row["what"] == what]
        assert len(found) == 1, (what, self.document)
        return found[0]

    def of(self, verdict: str) -> list[str]:
        """What has this verdict."""
        return [row["what"] for row in self.document["findings"] if row["verdict"] == verdict]

    def has(self, what: str) -> bool:
        return any(row["what"] == what for row in self.document["findings"])


@dataclass
class Practice:
    """Where doctors are asked: a home, and what they are asked of."""

    home: Path

    def done(self, access: Access, source: str, *options: str) -> subprocess.CompletedProcess[str]:
        return run_sosfs(["doctor", source, "--endpoint", access.endpoint, *options], access.environment(self.home))

    def ask(self, access: Access, source: str, *options: str) -> Examined:
        done = self.done(access, source, "--json", *options)
        assert done.stderr == ""
        assert access.secret not in done.stdout
        return Examined(done.returncode, json.loads(done.stdout))


@pytest.fixture
def doctor(tmp_path: Path) -> Practice:
    return Practice(tmp_path)


def second(server: Server, endpoint: str = "") -> Access:
    """The second user's access."""
    return Access(endpoint or server.endpoint, server.key2, server.secret2)


def test_a_whole_key(doctor: Practice, server: Server, foreign: Foreign, proxy: Proxy) -> None:
    foreign.put_all({"p/file": b"mine", "other": b"too"})
    found = doctor.ask(access_to(server, proxy.endpoint), f"{foreign.bucket}/p")
    assert found.code == 0, found.document
    assert found.document["ok"]
    assert [found[f"right: {name}"] for name in RIGHTS] == [("ok", "allowed")] * len(RIGHTS)
    assert found["server: copies"][0] == found["server: ACLs"][0] == found["server: UploadPartCopy"][0] == "ok"
    assert found["server: If-None-Match"][0] == found["server: If-Match"][0] == "ok"
    assert ("no quotes" in found["server: If-Match"][1]) == (server.name == "ceph")
    assert found["bucket: versioning"] == ("note", "off")
    assert found["server: pinned removals"][0] == ("note" if server.name == "ceph" else "ok")
    written = {request.key for request in proxy.requests if request.method not in READING} - {""}  # "": DeleteObjects
    assert len(written) == 2
    assert all(re.fullmatch(r"p/\.sosfs-probe-[0-9a-f-]{36}", key) for key in written)
    assert (foreign.keys(), foreign.uploads()) == (["other", "p/file"], [])


def test_nothing_is_left_in_a_bucket_that_keeps_versions(doctor: Practice, server: Server, foreign: Foreign) -> None:
    foreign.keep_versions()
    found = doctor.ask(access_to(server), foreign.bucket)
    assert found.code == 0
    verdict, detail = found["bucket: versioning"]
    assert verdict == "warning"
    assert detail.startswith("enabled: what is overwritten")
    kept = foreign.client.list_object_versions(Bucket=foreign.bucket)
    assert (kept.get("Versions", []), kept.get("DeleteMarkers", [])) == ([], [])


def test_read_only_writes_nothing(doctor: Practice, server: Server, foreign: Foreign, proxy: Proxy) -> None:
    found = doctor.ask(access_to(server, proxy.endpoint), foreign.bucket, "--read-only")
    assert found.code == 0
    assert found["right: get"] == ("ok", "allowed")
    assert {request.method for request in proxy.requests} <= READING


@pytest.mark.parametrize(
    ("action", "when", "denied"),
    [
        ("put_acl", on(Op.PUT_ACL), {"right: write ACL": "note"}),
        ("get_acl", on(Op.GET_ACL), {"right: read ACL": "warning", "bucket: ACL": "note"}),
        ("copy", on(Op.COPY), {"right: copy": "warning", "server: ACLs": "unknown"}),
        ("multipart", on(Op.CREATE_MULTIPART), {"right: multipart": "warning"}),
        ("get", on(Op.GET), {"right: get": "fail"}),
        ("list", on(Op.LIST), {"right: list": "fail"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_right_that_is_missing_is_named(
    doctor: Practice, moto: Server, action: str, when: Any, denied: Mapping[str, str]
) -> None:
    foreign = new_bucket(moto)
    with Proxy(moto.endpoint) as proxy:
        proxy.inject(Answer(403, "AccessDenied"), when)
        found = doctor.ask(access_to(moto, proxy.endpoint), foreign.bucket)
    assert {what: found[what][0] for what in denied} == denied
    others = {f"right: {name}" for name in RIGHTS} - denied.keys()
    assert {found[what] for what in others} == {("ok", "allowed")}
    assert found.code == ("fail" in denied.values())
    assert foreign.keys() == []


def test_what_could_not_be_removed_is_not_written(doctor: Practice, moto: Server) -> None:
    foreign = new_bucket(moto)
    with Proxy(moto.endpoint) as proxy:
        proxy.inject(Answer(403, "AccessDenied"), on(Op.DELETE))
        found = doctor.ask(access_to(moto, proxy.endpoint), foreign.bucket)
        assert {request.op for request in proxy.requests if request.method not in READING} == {Op.DELETE}
    assert found["right: delete"] == ("warning", "not allowed")
    assert found["right: put"][0] == "unknown"
    assert (found.code, foreign.keys()) == (0, [])


def test_a_server_without_acls_or_part_copies(doctor: Practice, moto: Server) -> None:
    foreign = new_bucket(moto)
    with Proxy(moto.endpoint) as proxy:
        proxy.inject(Answer(501, "NotImplemented"), on(Op.GET_ACL, Op.PUT_ACL, Op.COPY_PART))
        found = doctor.ask(access_to(moto, proxy.endpoint), foreign.bucket)
    assert "does not have it" in found["right: read ACL"][1]
    assert found["server: UploadPartCopy"][0] == "warning"
    assert (found.code, found["right: multipart"]) == (0, ("ok", "allowed"))
    assert foreign.uploads() == []


class TestLimitedKeysOnCeph:
    """A second user who may do what somebody lets him, on a server that enforces it."""

    def test_nothing(self, doctor: Practice, ceph: Server) -> None:
        foreign = new_bucket(ceph)
        found = doctor.ask(second(ceph), foreign.bucket)
        assert found.code == 1
        assert found.of("fail") == ["right: list"]

    def test_listing_only(self, doctor: Practice, ceph: Server) -> None:
        foreign = new_bucket(ceph)
        foreign.put("secret", b"mine")
        foreign.client.put_bucket_acl(Bucket=foreign.bucket, GrantRead="id=bob", GrantFullControl="id=alice")
        with Proxy(ceph.endpoint) as proxy:
            found = doctor.ask(second(ceph, proxy.endpoint), foreign.bucket)
            assert proxy.count(Op.PUT) == 0
        assert found.code == 0
        assert found["right: list"] == ("ok", "allowed")
        assert found["right: get"] == ("warning", "allowed, but 'secret' is refused: each object's own ACL decides")
        assert found["right: delete"] == ("warning", "not allowed")
        assert "not allowed" in found["bucket: ACL"][1]
        assert foreign.get("secret") == b"mine"

    def test_a_policy_for_files_under_a_prefix(self, doctor: Practice, ceph: Server) -> None:
        foreign = new_bucket(ceph)
        arn, principal = f"arn:aws:s3:::{foreign.bucket}", {"AWS": ["arn:aws:iam:::user/bob"]}
        operations = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
        statements = [
            {"Effect": "Allow", "Principal": principal, "Action": ["s3:ListBucket"], "Resource": [arn]},
            {"Effect": "Allow", "Principal": principal, "Action": operations, "Resource": [f"{arn}/p/*"]},
        ]
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        foreign.client.put_bucket_policy(Bucket=foreign.bucket, Policy=policy)
        inside = doctor.ask(second(ceph), f"{foreign.bucket}/p")
        assert inside.code == 0, inside.document
        assert {inside[f"right: {name}"] for name in ("list", "get", "delete", "put")} == {("ok", "allowed")}
        outside = doctor.ask(second(ceph), foreign.bucket)
        assert outside["right: delete"] == ("warning", "not allowed")
        assert foreign.keys() == []

    @pytest.mark.parametrize(
        ("key", "secret", "said"),
        [
            ("ALICEKEY", "wrong-secret", "the secret key is wrong"),
            ("NOBODY", "wrong-secret", "does not know this access key"),
        ],
    )
    def test_a_wrong_key_is_one_line(self, doctor: Practice, ceph: Server, key: str, secret: str, said: str) -> None:
        foreign = new_bucket(ceph)
        done = doctor.done(Access(ceph.endpoint, key, secret), foreign.bucket)
        assert done.returncode == 1
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
        assert re.match(rf"FAIL +key +refused: .*{said} -> ", line)
        assert "right:" not in done.stdout
        assert secret not in done.stdout + done.stderr


def test_a_missing_bucket_is_one_line(doctor: Practice, server: Server) -> None:
    done = doctor.done(access_to(server), "no-such-bucket-anywhere")
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert re.fullmatch(r"FAIL +bucket +'no-such-bucket-anywhere': there is no such bucket -> check its name", line)


@pytest.mark.parametrize(("under", "verdict"), [("", "warning"), ("p/q/", "warning"), ("elsewhere/", "note")])
def test_rules_that_remove_files(doctor: Practice, ceph: Server, under: str, verdict: str) -> None:
    foreign = new_bucket(ceph)
    rule: Any = {"ID": "r", "Status": "Enabled", "Filter": {"Prefix": under}, "Expiration": {"Days": 7}}
    foreign.client.put_bucket_lifecycle_configuration(Bucket=foreign.bucket, LifecycleConfiguration={"Rules": [rule]})
    found = doctor.ask(access_to(ceph), f"{foreign.bucket}/p", "--read-only")
    assert found["bucket: lifecycle"][0] == verdict
    assert ("after 7 days" in found["bucket: lifecycle"][1]) == (verdict == "warning")


def test_a_bucket_that_anybody_may_write(doctor: Practice, ceph: Server) -> None:
    foreign = new_bucket(ceph)
    foreign.client.put_bucket_acl(Bucket=foreign.bucket, ACL="public-read-write")
    found = doctor.ask(access_to(ceph), foreign.bucket, "--read-only")
    assert found["bucket: ACL"] == ("warning", "anybody may write into it and delete from it")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ('PRUNEFS="nfs fuse.sosfs tmpfs"\n', Verdict.OK),
        ('# fuse.sosfs\nPRUNEFS = "nfs fuse.sosfs2"\n', Verdict.WARNING),
        ("", Verdict.WARNING),
    ],
)
def test_what_locate_would_read_each_day_is_told(
    text: str, verdict: Verdict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "updatedb.conf").write_text(text)
    monkeypatch.setattr(machine, "UPDATEDB", tmp_path / "updatedb.conf")
    (finding,) = machine.search_index()
    assert finding.verdict is verdict
    assert verdict is Verdict.OK or "fuse.sosfs" in finding.advice
    monkeypatch.setattr(machine, "UPDATEDB", tmp_path / "nowhere")
    assert list(machine.search_index()) == []


def test_the_buckets_of_the_account_are_counted(doctor: Practice, server: Server, foreign: Foreign) -> None:
    verdict, detail = doctor.ask(access_to(server), foreign.bucket)["buckets"]
    assert verdict == "note"
    assert int(detail.split()[0]) == len(foreign.client.list_buckets()["Buckets"])


@pytest.mark.parametrize(("count", "verdict"), [(3, Verdict.NOTE), (18, Verdict.WARNING), (20, Verdict.WARNING)])
def test_exoscales_quota_of_buckets_is_told(count: int, verdict: Verdict) -> None:
    found = bucket_count.judged(count, is_exoscale=True)
    assert (found.verdict, found.detail) == (verdict, f"{count} of the 20 that an organisation has at first")
