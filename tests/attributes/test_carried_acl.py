"""`--acls`: what is renamed, rewritten or given other attributes keeps its ACL, or is not asked for one."""

from __future__ import annotations

import errno

import pytest
import trio
from trio.testing import MockClock, trio_test, wait_all_tasks_blocked

from sosfs.attributes.carried_acl import AGAIN, DENIALS, CarriedAcls
from sosfs.config.choices import Acls, Canned
from sosfs.config.credentials import Credentials
from sosfs.errors import StoreError
from sosfs.s3.bucket import S3Store
from sosfs.s3.endpoint import S3Target
from sosfs.s3.protocol import Acl, Grant, Properties
from sosfs.tree.inodes import Defaults, Inodes
from tests.conftest import Mounter
from tests.support.drive import Drive, eventually, fails, sync
from tests.support.fake_store import ANYONE, PRIVATE, FakeStore
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


# Without a server

PUBLIC = Acl("owner", (*PRIVATE.grants, Grant(ANYONE, "READ")))


def carried_of(store: FakeStore, rule: Acls = Acls.AUTO, new_acl: Canned = Canned.PRIVATE) -> CarriedAcls:
    return CarriedAcls(Inodes("", Defaults(0, 0, 0o022, 0)), store, rule, new_acl=new_acl)


def refusing(store: FakeStore, operation: str, error: OSError | None, *keys: str) -> None:
    """From now on `operation` ends with this error, of all keys or of these."""

    def fault(what: str, key: str) -> None:
        if error is not None and what == operation and (not keys or key in keys):
            raise error

    store.fault = fault


def denied() -> StoreError:
    return StoreError(errno.EACCES, "GetObjectAcl", code="AccessDenied", status=403)


async def put_each(store: FakeStore, acl: Acl, *keys: str) -> None:
    for key in keys:
        await store.put(key, b"content", Properties(), acl=acl)


class Bucket(FakeStore):
    """One with ownership rules, at first."""

    has_rules, asked = True, 0

    async def has_acls(self) -> bool:
        self.asked += 1
        await self._begin("has_acls", "")
        return not self.has_rules


def test_rules_that_let_acls_go_are_looked_at_again() -> None:
    """Somebody else may have changed them while the bucket is mounted, for weeks perhaps."""

    async def look() -> None:
        bucket = Bucket()
        acls = carried_of(bucket)
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


@pytest.mark.parametrize(
    ("acl", "new_acl", "is_carried"),
    [
        (PUBLIC, Canned.PRIVATE, True),
        (PRIVATE, Canned.PRIVATE, False),  # what any new object gets
        (PRIVATE, Canned.PUBLIC_READ, True),  # which here is another
        (PUBLIC, Canned.PUBLIC_READ, True),
    ],
)
@trio_test
async def test_an_acl_is_carried_unless_it_comes_by_itself(acl: Acl, new_acl: Canned, is_carried: bool) -> None:
    store = FakeStore()
    await put_each(store, acl, "file")
    assert await carried_of(store, Acls.KEEP, new_acl).of_key("file") == (acl if is_carried else None)


@trio_test
async def test_of_what_is_ignored_or_gone_there_is_none() -> None:
    store = FakeStore()
    await put_each(store, PUBLIC, "file")
    assert await carried_of(store, Acls.IGNORE).of_key("file") is None
    assert store.calls["get_acl"] == 0
    assert await carried_of(store, Acls.KEEP).of_key("absent") is None
    refusing(store, "get_acl", StoreError(errno.EIO, "GetObjectAcl", status=503))
    with fails(errno.EIO):
        await carried_of(store, Acls.KEEP).of_key("file")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EOPNOTSUPP])
@trio_test
async def test_a_key_that_may_read_no_acl_is_asked_for_none_before_long(number: int) -> None:
    store = FakeStore()
    keys = [f"{name}/file" for name in "abcdef"]
    await put_each(store, PUBLIC, *keys)
    acls = carried_of(store, Acls.KEEP)
    refusing(store, "get_acl", StoreError(number, "GetObjectAcl", status=403))
    for key in keys:
        assert await acls.of_key(key) is None
    assert store.calls["get_acl"] == DENIALS


@pytest.mark.promise(7)
@trio_test
async def test_where_acls_could_be_read_a_refusal_may_pass_and_one_that_stays_is_its_owners() -> None:
    store = FakeStore()
    await put_each(store, PUBLIC, "d/one", "d/two", "e/one")
    acls = carried_of(store, Acls.KEEP)
    assert await acls.of_key("d/one") == PUBLIC
    refusing(store, "get_acl", denied(), "d/two", "e/one")
    for _ in range(DENIALS - 1):
        with fails(errno.EACCES):
            await acls.of_key("d/two")
    refusing(store, "get_acl", None)
    assert await acls.of_key("d/two") == PUBLIC, "it has passed"
    refusing(store, "get_acl", denied(), "d/two", "e/one")
    for _ in range(DENIALS):
        with fails(errno.EACCES):
            await acls.of_key("d/two")
    assert await acls.of_key("d/two") is None
    for _ in range(2 * DENIALS):
        assert await acls.of_key("e/one") is None, "nothing could be read beside it"
    assert await acls.of_key("d/one") == PUBLIC, "and others are asked for all the same"


@pytest.mark.promise(7)
@trio_test
async def test_where_acls_could_be_read_no_other_answer_is_waited_for() -> None:
    """What is gone has none, and what a server does not know it will not know later."""
    store = FakeStore()
    await put_each(store, PUBLIC, "d/one", "d/two")
    acls = carried_of(store, Acls.KEEP)
    assert await acls.of_key("d/one") == PUBLIC
    assert await acls.of_key("d/absent") is None
    refusing(store, "get_acl", StoreError(errno.EOPNOTSUPP, "GetObjectAcl", status=501), "d/two")
    assert await acls.of_key("d/two") is None


@pytest.mark.promise(7)
@trio_test
async def test_where_acls_could_be_read_what_got_no_answer_counts_as_no_refusal_and_what_is_gone_has_none() -> None:
    store = FakeStore()
    await put_each(store, PUBLIC, "d/one", "d/two")
    acls = carried_of(store, Acls.KEEP)
    assert await acls.of_key("d/one") == PUBLIC
    for _ in range(2):
        refusing(store, "get_acl", StoreError(errno.EIO, "GetObjectAcl", status=503))
        for _ in range(2 * DENIALS):
            with fails(errno.EIO):
                await acls.of_key("d/two")
        refusing(store, "get_acl", denied())
        with fails(errno.EACCES):
            await acls.of_key("d/two")
    refusing(store, "get_acl", None)
    assert await acls.of_key("d/absent") is None
    assert await acls.of_key("d/two") == PUBLIC


@pytest.mark.parametrize(("number", "asked"), [(errno.EIO, 1), (errno.EACCES, 1), (errno.EINTR, 2)])
@trio_test
async def test_without_an_answer_about_rules_acls_are_kept(number: int, asked: int) -> None:
    """Who gave up the question has answered it for nobody else."""
    store = Bucket()
    acls = carried_of(store)
    refusing(store, "has_acls", StoreError(number, "GetBucketOwnershipControls"))
    assert await acls.are_kept()
    refusing(store, "has_acls", None)
    assert await acls.are_kept() == (number != errno.EINTR)
    assert store.asked == asked


@pytest.mark.parametrize(
    ("rule", "new_acl", "is_kept"),
    [(Acls.KEEP, Canned.PRIVATE, True), (Acls.IGNORE, Canned.PRIVATE, False), (Acls.AUTO, Canned.PUBLIC_READ, True)],
)
@trio_test
async def test_who_has_said_it_is_not_overruled_and_no_bucket_is_asked(
    rule: Acls, new_acl: Canned, is_kept: bool
) -> None:
    store = Bucket()
    acls = carried_of(store, rule, new_acl)
    assert await acls.are_kept() == is_kept
    acls.rules_changed()
    assert await acls.are_kept() == is_kept
    acls.was_set()
    assert (await acls.are_kept(), store.asked) == (is_kept, 0)


class Slow(Bucket):
    """Answers when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may = trio.Event()

    async def has_acls(self) -> bool:
        told = await super().has_acls()
        await self.may.wait()
        return told


@pytest.mark.parametrize("is_set", [False, True])
@trio_test
async def test_of_many_who_want_to_know_one_asks_and_what_was_set_meanwhile_holds(is_set: bool) -> None:
    store, kept = Slow(), list[bool]()
    acls = carried_of(store)

    async def ask() -> None:
        kept.append(await acls.are_kept())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        if is_set:
            acls.was_set()
        store.may.set()
    assert (kept, store.asked) == ([is_set] * 3, 1)
