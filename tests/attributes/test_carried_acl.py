"""`--acls`: what is renamed, rewritten or given other attributes keeps its ACL, or is not asked for one."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, trio_test

from sosfs.attributes.carried_acl import AGAIN, CarriedAcls
from sosfs.config.choices import Acls, Canned
from sosfs.config.credentials import Credentials
from sosfs.s3.bucket import S3Store
from sosfs.s3.endpoint import S3Target
from sosfs.tree.inodes import Defaults, Inodes
from tests.conftest import Mounter
from tests.support.drive import Drive, eventually, sync
from tests.support.fake_store import FakeStore
from tests.support.faults import LOGIN, Answer, Page
from tests.support.foreign import Foreign
from tests.support.proxy import Proxy
from tests.support.subjects import Fixed
from tests.support.traffic import Op, Request, Traffic

BOTH = pytest.mark.parametrize("server", ["moto", "ceph"], indirect=True)
MOTO = pytest.mark.parametrize("server", ["moto"], indirect=True)
FILES = ("file", "d/a", "d/b", "changed", "appended", "given")
PATIENT = ("--ttl", "300")


def put_public(foreign: Foreign) -> None:
    for key in FILES:
        foreign.client.put_object(Bucket=foreign.bucket, Key=key, Body=b"content", ACL="public-read")


def is_public(foreign: Foreign, key: str) -> bool:
    grants = foreign.client.get_object_acl(Bucket=foreign.bucket, Key=key)["Grants"]
    return any(grant["Grantee"].get("URI", "").endswith("AllUsers") for grant in grants)


def change_all(drive: Drive) -> list[str]:
    """Renames a file and a directory, rewrites, appends, chmods; the keys that there are then."""
    (drive.here / "file").rename(drive.here / "moved")
    (drive.here / "d").rename(drive.here / "e")
    (drive.here / "changed").write_bytes(b"other")
    with (drive.here / "appended").open("ab") as file:
        file.write(b"more")
    (drive.here / "given").chmod(0o600)
    sync(drive.here / "given")
    return ["moved", "e/a", "e/b", "changed", "appended", "given"]


def asked_for_acls(traffic: Traffic) -> int:
    return traffic.count(Op.GET_ACL, Op.PUT_ACL)


def asked_for_rules(traffic: Traffic) -> int:
    return sum("ownershipControls" in request.query for request in traffic.of(Op.SETTING))


def is_about_rules(request: Request) -> bool:
    return "ownershipControls" in request.query


@BOTH
@pytest.mark.promise(7)
def test_ignored_acls_cost_no_request_and_what_exists_gets_the_one_of_the_mount(
    foreign: Foreign, mounter: Mounter, proxy: Proxy
) -> None:
    put_public(foreign)
    drive = mounter(proxy.endpoint, *PATIENT, "--acls", "ignore")
    with proxy.recording() as traffic:
        keys = change_all(drive)
    assert (asked_for_acls(traffic), asked_for_rules(traffic)) == (0, 0), str(traffic)
    assert [key for key in keys if is_public(foreign, key)] == []

    (drive.here / ".sosfs/acl/moved").write_text("public-read\n")
    assert is_public(foreign, "moved"), "an ACL that is asked for is set all the same"


@BOTH
@pytest.mark.promise(7)
def test_kept_acls_are_asked_for_and_stay(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    put_public(foreign)
    drive = mounter(proxy.endpoint, *PATIENT, "--acls", "keep")
    with proxy.recording() as traffic:
        keys = change_all(drive)
    assert traffic.count(Op.GET_ACL) == len(FILES), str(traffic)
    assert asked_for_rules(traffic) == 0
    assert [key for key in keys if not is_public(foreign, key)] == []


@BOTH
def test_with_an_acl_of_the_mount_ignoring_gives_that_to_all(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put_all(dict.fromkeys(FILES, b"content"))
    drive = mounter(proxy.endpoint, *PATIENT, "--acls", "ignore", "--acl", "public-read")
    with proxy.recording() as traffic:
        keys = change_all(drive)
    assert asked_for_acls(traffic) == 0, str(traffic)
    assert [key for key in keys if not is_public(foreign, key)] == []


@BOTH
@pytest.mark.promise(7)
def test_a_bucket_without_ownership_rules_is_asked_once_and_keeps_acls(
    foreign: Foreign, mounter: Mounter, proxy: Proxy
) -> None:
    """Ceph 16 does not know the question, and answers with a listing."""
    put_public(foreign)
    drive = mounter(proxy.endpoint, *PATIENT)
    with proxy.recording() as traffic:
        keys = change_all(drive)
    assert traffic.count(Op.GET_ACL) == len(FILES), str(traffic)
    assert asked_for_rules(traffic) == 1
    assert [key for key in keys if not is_public(foreign, key)] == []


def enforce_owner(foreign: Foreign) -> None:
    rules = {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    foreign.client.put_bucket_ownership_controls(Bucket=foreign.bucket, OwnershipControls=rules)  # type: ignore[arg-type]


@MOTO
def test_where_the_owner_owns_all_no_acl_is_asked_for(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put_all(dict.fromkeys(FILES, b"content"))
    enforce_owner(foreign)
    drive = mounter(proxy.endpoint, *PATIENT)
    with proxy.recording() as traffic:
        change_all(drive)
    assert asked_for_acls(traffic) == 0, str(traffic)
    assert asked_for_rules(traffic) == 1


@MOTO
@pytest.mark.promise(7)
def test_an_acl_that_was_set_through_the_mount_is_kept_whatever_the_rules_say(
    foreign: Foreign, mounter: Mounter, proxy: Proxy
) -> None:
    foreign.put_all(dict.fromkeys(FILES, b"content"))
    enforce_owner(foreign)
    drive = mounter(proxy.endpoint, *PATIENT)
    (drive.here / "given").rename(drive.here / "first")  # by now the rules are known
    (drive.here / ".sosfs/acl/file").write_text("public-read\n")
    assert is_public(foreign, "file")
    with proxy.recording() as traffic:
        (drive.here / "file").rename(drive.here / "moved")
    assert traffic.count(Op.GET_ACL) == 1, str(traffic)
    assert is_public(foreign, "moved")


@MOTO
@pytest.mark.promise(7)
def test_rules_that_are_changed_through_the_mount_hold_at_once(
    foreign: Foreign, mounter: Mounter, proxy: Proxy
) -> None:
    put_public(foreign)
    enforce_owner(foreign)
    drive = mounter(proxy.endpoint, *PATIENT)
    (drive.here / "given").rename(drive.here / "first")  # by now the rules are known
    (drive.here / ".sosfs/bucket/ownership").write_text("ObjectWriter\n")
    (drive.here / "file").rename(drive.here / "moved")
    assert is_public(foreign, "moved")


def test_rules_that_let_acls_go_are_looked_at_again() -> None:
    """Somebody else may have changed them while the bucket is mounted, for weeks perhaps."""

    class Bucket(FakeStore):
        has_rules, asked = True, 0

        async def has_acls(self) -> bool:
            self.asked += 1
            return not self.has_rules

    async def look() -> None:
        bucket = Bucket()
        acls = CarriedAcls(Inodes("", Defaults(0, 0, 0o022, 0)), bucket, Acls.AUTO, new_acl=Canned.PRIVATE)
        assert [await acls.are_kept(), await acls.are_kept(), bucket.asked] == [False, False, 1]
        await trio.sleep(AGAIN)
        assert [await acls.are_kept(), await acls.are_kept(), bucket.asked] == [False, False, 2]
        bucket.has_rules = False
        await trio.sleep(AGAIN)
        assert [await acls.are_kept(), await acls.are_kept(), bucket.asked] == [True, True, 3]
        await trio.sleep(AGAIN)
        assert [await acls.are_kept(), bucket.asked] == [True, 3]

    trio.run(look, clock=MockClock(autojump_threshold=0))


@MOTO
@pytest.mark.promise(7)
@pytest.mark.parametrize("answer", [Answer(403, "AccessDenied"), Page(200, body=LOGIN), Answer(501, "NotImplemented")])
def test_what_is_no_answer_leaves_acls_kept(foreign: Foreign, mounter: Mounter, proxy: Proxy, answer: Answer) -> None:
    put_public(foreign)
    drive = mounter(proxy.endpoint, *PATIENT)
    with proxy.broken(answer, is_about_rules) as rule:
        (drive.here / "file").rename(drive.here / "moved")
        (drive.here / "changed").rename(drive.here / "again")
    assert rule.hits >= 1
    assert is_public(foreign, "moved") and is_public(foreign, "again")
    eventually(lambda: not foreign.exists("changed"))


@trio_test
async def test_of_sos_acls_are_kept_whatever_its_rules_say() -> None:
    """It shows fresh buckets as if they had no ACLs. Nothing is asked: there is no network here."""
    target = S3Target("bucket", "https://sos-ch-gva-2.exo.io", "ch-gva-2", Fixed(Credentials("key", "secret")))
    store = S3Store(target)
    assert await store.has_acls()
    store.close()
