"""The texts of `.sosfs/bucket`: what a server gets of them, what is shown of what it says, and what is refused.

In one process, over a server that keeps what it is given; real ones are in `test_control_tree` and
`test_protection_files`.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import botocore.session
import pytest
import trio

from sosfs.concurrency.interrupt import CURRENT, Interrupt
from sosfs.config.credentials import Credentials
from sosfs.control import acl_text, encryption_text, lifecycle_text, object_lock_text, ownership_text, replication_text
from sosfs.control.layout import tree_of
from sosfs.control.nodes import Audience, Fixed, Folder, TextFile, Tree
from sosfs.control.rejected_texts import Rejections
from sosfs.control.settings_files import StatusReport
from sosfs.fuse.control_tree import ControlOperations
from sosfs.s3.bucket import S3Store
from sosfs.s3.bucket_settings import BucketSettings
from sosfs.s3.endpoint import Payer
from sosfs.s3.protection_settings import ProtectionSettings
from tests.s3.test_transport import KEY, TOKEN, target_at
from tests.support.drive import fails
from tests.support.scripted import Scripted, Seen, answer

ID = "x-amz-request-id: 7"
OWNER: Any = SimpleNamespace(uid=0, gid=0, pid=1)
UNSET = {
    "cors": "NoSuchCORSConfiguration",
    "policy": "NoSuchBucketPolicy",
    "lifecycle": "NoSuchLifecycleConfiguration",
    "object-lock": "ObjectLockConfigurationNotFoundError",
    "ownershipControls": "OwnershipControlsNotFoundError",
    "encryption": "ServerSideEncryptionConfigurationNotFoundError",
    "replication": "ReplicationConfigurationNotFoundError",
}
ACL = (
    b"<AccessControlPolicy><Owner><ID>me</ID></Owner><AccessControlList><Grant><Grantee "
    b'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="CanonicalUser"><ID>me</ID></Grantee>'
    b"<Permission>FULL_CONTROL</Permission></Grant></AccessControlList></AccessControlPolicy>"
)
RULE = {"Expiration": {"Days": 90}, "ID": "logs", "Filter": {"Prefix": "logs/"}, "Status": "Enabled"}
RULES = json.dumps({"Rules": [RULE]}, indent=2)
CORS = json.dumps({"CORSRules": [{"AllowedMethods": ["GET"], "AllowedOrigins": ["*"]}]}, indent=2)
POLICY = '{"Version": "2012-10-17", "Statement": []}'
REPLICATED = (
    b"<ReplicationConfiguration><Role>arn:aws:iam::1:role/r</Role><Rule><ID>copy</ID><Status>Enabled</Status>"
    b"<Destination><Bucket>arn:aws:s3:::other</Bucket></Destination></Rule></ReplicationConfiguration>"
)


def error(status: int, code: str) -> bytes:
    return answer(status, f"<Error><Code>{code}</Code></Error>".encode(), ID)


class Keeping:
    """A server that keeps what it is given, by sub-resource, and tells it as it was given."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {"acl": ACL}
        self.refuses: dict[str, bytes] = {}  # by method
        self.changes: list[str] = []
        self.seen: list[Seen] = []

    def __call__(self, seen: Seen) -> bytes:
        self.seen.append(seen)
        name = urlsplit(seen.target).query.partition("=")[0]
        if seen.method != "GET":
            self.changes.append(f"{seen.method} {name}")
        if refused := self.refuses.get(seen.method):
            return refused
        if seen.method == "GET":
            return self._told(name)
        if seen.method == "PUT":
            self.kept[name] = seen.body
            return answer(200, b"", ID)
        self.kept.pop(name, None)
        return answer(204, b"", ID, length=-1)

    def _told(self, name: str) -> bytes:
        if name in self.kept:
            return answer(200, self.kept[name], ID)
        if name == "versioning":
            return answer(200, b"<VersioningConfiguration/>", ID)
        return error(404, UNSET[name])


@pytest.fixture(autouse=True, scope="module")
def _one_loader() -> Iterator[None]:
    """What botocore knows of S3 is read once, which is nearly all that one of these tests takes."""
    loader = botocore.session.create_loader()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", lambda *_: loader)
        yield


@dataclass
class Bucket:
    """`.sosfs` of a mount, as programs have it, and the server."""

    server: Keeping
    settings: BucketSettings
    protection: ProtectionSettings
    operations: ControlOperations
    rejections: Rejections
    told: list[str]

    async def _number(self, path: str) -> int:
        number = self.operations.tree.root.number
        for name in path.split("/"):
            number = int((await self.operations.lookup(number, name.encode(), OWNER)).st_ino)
        return number

    async def read(self, name: str) -> str:
        """As `cat`."""
        handle = (await self.operations.open(await self._number(f"bucket/{name}"), os.O_RDONLY, OWNER)).fh
        text = await self.operations.read(handle, 0, 1 << 20)
        await self.operations.release(handle)
        return bytes(text).decode()

    async def write(self, name: str, text: str) -> None:
        """As `cat >`, which closes whatever its write is told."""
        number = await self._number(f"bucket/{name}")
        handle = (await self.operations.open(number, os.O_WRONLY | os.O_TRUNC, OWNER)).fh
        try:
            if text:
                await self.operations.write(handle, 0, text.encode())
        finally:
            try:
                await self.operations.flush(handle)
            finally:
                await self.operations.release(handle)

    @property
    def errors(self) -> list[str]:
        """What `.sosfs/errors` says, without the times."""
        return [line.partition(" ")[2] for line in self.rejections.text().splitlines()]


@contextmanager
def _bucket(server: Keeping, endpoint: str, **options: Any) -> Iterator[Bucket]:
    target = replace(target_at(endpoint), **options)
    store = S3Store(target)
    settings, rejections, told = BucketSettings(target, store.dispatcher), Rejections(), list[str]()
    protection = ProtectionSettings(
        settings, on_lock=lambda: told.append("lock"), on_ownership=lambda: told.append("ownership")
    )
    root = SimpleNamespace(number=1, lookups=0)
    namespace: Any = SimpleNamespace(inodes=SimpleNamespace(root=root))
    nothing: Any = None
    top = tree_of(namespace, nothing, settings, protection, rejections, Fixed("versions", {}), Fixed("at", {}), nothing)
    yield Bucket(server, settings, protection, ControlOperations(Tree(top)), rejections, told)
    store.close()


def run(work: Callable[[Bucket], Awaitable[None]], server: Keeping | None = None, **options: Any) -> Bucket:
    """The bucket after `work`."""
    script = server or Keeping()
    with Scripted(script) as scripted, _bucket(script, scripted.endpoint, **options) as bucket:
        trio.run(work, bucket)
        return bucket


# Each setting: its name, a text, what is shown of it, what is shown where nothing is set, and what the server got.
TEXTS: dict[str, tuple[str, str, str, str, bytes]] = {
    "cors": (CORS + "\n", CORS + "\n", "", "cors", b"<AllowedMethod>GET</AllowedMethod>"),
    "lifecycle": (RULES + "\n", RULES + "\n", lifecycle_text.HELP, "lifecycle", b"<Days>90</Days>"),
    "policy": (POLICY, POLICY, "", "policy", POLICY.encode()),
    "ownership": (
        "objectwriter\n", ownership_text.HELP + "ObjectWriter\n", ownership_text.HELP, "ownershipControls",
        b"<ObjectOwnership>ObjectWriter</ObjectOwnership>",
    ),
    "encryption": (
        "aws:kms my-key bucket-key\n", encryption_text.HELP + "aws:kms my-key bucket-key\n", encryption_text.HELP,
        "encryption", b"<KMSMasterKeyID>my-key</KMSMasterKeyID>",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_a_setting_is_read_written_and_emptied_and_what_is_so_already_is_not_sent(name: str) -> None:
    text, shown, unset, query, sent = TEXTS[name]

    async def work(bucket: Bucket) -> None:
        assert await bucket.read(name) == unset
        await bucket.write(name, text)
        assert sent in bucket.server.kept[query]
        assert await bucket.read(name) == shown
        await bucket.write(name, await bucket.read(name))
        await bucket.write(name, text + ("# a comment\n" if name not in ("cors", "policy") else ""))
        assert bucket.server.changes == [f"PUT {query}"]
        await bucket.write(name, "")
        assert bucket.server.changes[1:] == [f"DELETE {query}"]
        assert await bucket.read(name) == unset
        await bucket.write(name, "\n")
        assert bucket.server.changes[2:] == []

    bucket = run(work)
    assert bucket.errors == []
    assert bucket.told == (["ownership"] * 2 if name == "ownership" else [])


def test_a_default_retention_is_emptied_by_a_lock_without_one() -> None:
    async def work(bucket: Bucket) -> None:
        assert await bucket.read("object-lock") == object_lock_text.ABSENT + object_lock_text.HELP
        await bucket.write("object-lock", "# none\n")
        assert bucket.server.changes == []
        await bucket.write("object-lock", "compliance 1 year\n")
        assert bucket.told == ["lock"]
        assert b"<Mode>COMPLIANCE</Mode><Years>1</Years>" in bucket.server.kept["object-lock"]
        assert await bucket.read("object-lock") == object_lock_text.HELP + "COMPLIANCE 1 year\n"
        await bucket.write("object-lock", "COMPLIANCE 1 year\n")
        await bucket.write("object-lock", "GOVERNANCE 30 days\n")
        assert b"<Mode>GOVERNANCE</Mode><Days>30</Days>" in bucket.server.kept["object-lock"]
        await bucket.write("object-lock", "")
        assert bucket.server.changes == ["PUT object-lock"] * 3
        kept = bucket.server.kept["object-lock"]
        assert b"<ObjectLockEnabled>Enabled</ObjectLockEnabled>" in kept
        assert b"Rule" not in kept
        assert await bucket.read("object-lock") == object_lock_text.HELP

    run(work)


@pytest.mark.parametrize("code", ["InvalidBucketState", "InvalidBucket"])
def test_a_bucket_that_takes_no_object_lock_is_told_so(code: str) -> None:
    async def work(bucket: Bucket) -> None:
        bucket.server.refuses["PUT"] = error(400, code)
        with fails(errno.EOPNOTSUPP):
            await bucket.write("object-lock", "GOVERNANCE 30 days\n")
        for told, number in ((error(403, "AccessDenied"), errno.EACCES), (error(400, "MalformedXML"), errno.EINVAL)):
            bucket.server.refuses["PUT"] = told
            with fails(number):
                await bucket.write("object-lock", "GOVERNANCE 30 days\n")
        bucket.server.kept["object-lock"] = b"<ObjectLockConfiguration/>"
        assert (await bucket.read("object-lock")).startswith(object_lock_text.ABSENT)

    bucket = run(work)
    assert (bucket.told, len(bucket.errors)) == ([], 3)


def test_a_rule_for_all_files_says_so() -> None:
    """A server takes none without a filter or a prefix."""

    async def work(bucket: Bucket) -> None:
        text = json.dumps({"Rules": [{name: RULE[name] for name in ("ID", "Status", "Expiration")}]})
        await bucket.write("lifecycle", text)
        assert b"<Prefix" in bucket.server.kept["lifecycle"]
        await bucket.write("lifecycle", text + "\n")
        assert bucket.server.changes == ["PUT lifecycle"]

    run(work)


def test_both_units_of_a_default_retention_may_be_told() -> None:
    server = Keeping()
    server.kept["object-lock"] = (
        b"<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>"
        b"<Mode>GOVERNANCE</Mode><Days>0</Days><Years>2</Years></DefaultRetention></Rule></ObjectLockConfiguration>"
    )

    async def work(bucket: Bucket) -> None:
        assert (await bucket.read("object-lock")).endswith("\nGOVERNANCE 2 years\n")

    run(work, server)


def test_versioning_is_a_word_that_never_becomes_off_again() -> None:
    async def work(bucket: Bucket) -> None:
        assert await bucket.read("versioning") == "off\n"
        await bucket.write("versioning", "off")
        assert bucket.server.changes == []
        await bucket.write("versioning", " Enabled\n")
        assert b"<Status>Enabled</Status>" in bucket.server.kept["versioning"]
        assert await bucket.read("versioning") == "enabled\n"
        await bucket.write("versioning", "enabled")
        with fails(errno.EINVAL):
            await bucket.write("versioning", "off\n")
        for text in ("on\n", "on"):
            with fails(errno.EINVAL):
                await bucket.write("versioning", text)
        await bucket.write("versioning", "suspended")
        assert bucket.server.changes == ["PUT versioning"] * 2
        assert await bucket.read("versioning") == "suspended\n"

    bucket = run(work)
    assert bucket.errors[0] == "bucket/versioning: line 1: versioning that was enabled once can only be suspended"
    assert "'on' is none of off, enabled, suspended" in bucket.errors[1]


def test_the_acl_of_a_bucket_is_by_name_or_line_by_line() -> None:
    shown = acl_text.help_text(acl_text.OF_BUCKETS) + "owner me\nuser me FULL_CONTROL\n"

    async def work(bucket: Bucket) -> None:
        assert await bucket.read("acl") == shown
        await bucket.write("acl", "user me FULL_CONTROL\n")
        assert bucket.server.changes == []
        await bucket.write("acl", "all-users READ\n")
        assert bucket.server.changes == ["PUT acl"]
        assert await bucket.read("acl") == shown.replace("me FULL_CONTROL\n", "me FULL_CONTROL\nall-users READ\n")
        await bucket.write("acl", "public-read\n")
        assert bucket.server.seen[-1].headers["x-amz-acl"] == "public-read"
        bucket.server.kept["acl"] = ACL
        for text in ("bucket-owner-read", "owner other", "user me FULL_CONTRO"):
            with fails(errno.EINVAL):
                await bucket.write("acl", text)
        with fails(errno.EINVAL):
            await bucket.write("acl", "# nobody\n")
        node = bucket.operations.tree[await bucket._number("bucket/acl")]
        assert isinstance(node, TextFile)
        with fails(errno.EINVAL):
            node.check(b"bucket-owner-read\n")  # of objects alone

    bucket = run(work)
    assert bucket.server.changes == ["PUT acl"] * 2
    assert bucket.errors[1] == "bucket/acl: line 1: the owner is me and cannot be changed"


def test_where_a_bucket_is_replicated_to_is_only_read() -> None:
    async def work(bucket: Bucket) -> None:
        assert await bucket.read("replication") == replication_text.NONE
        bucket.server.kept["replication"] = b"<ReplicationConfiguration><Role/></ReplicationConfiguration>"
        assert await bucket.read("replication") == replication_text.NONE
        bucket.server.kept["replication"] = REPLICATED
        assert '"Bucket": "arn:aws:s3:::other"' in await bucket.read("replication")
        with fails(errno.EACCES):
            await bucket.write("replication", "")
        number = await bucket._number("bucket/replication")
        node = bucket.operations.tree[number]
        assert isinstance(node, TextFile)
        with fails(errno.EACCES):
            await node.write(b"{}")

    assert run(work).server.changes == []


BAD = {
    "cors": ("{]", "no JSON"),
    "lifecycle": ('{"Rules": [{}]}', "rule 1 has no Status"),
    "policy": (b"\xff".decode("latin-1"), ""),
    "ownership": ("nobody", "line 1: 'nobody' is none of"),
    "encryption": ("AES265", "line 1: 'AES265' is none of"),
    "object-lock": ("GOVERNANCE 0 days", "line 1: 0 days"),
    "acl": ("public-reed", "line 1: 'public-reed' is neither"),
    "versioning": ("maybe", "line 1: 'maybe' is none of"),
}


@pytest.mark.parametrize("name", [name for name in BAD if name != "policy"])
def test_a_bad_text_sends_nothing_and_is_told_with_its_line(name: str) -> None:
    """A shell looks at the answer to its `write` alone, so a line that is wrong is told there."""
    text, why = BAD[name]

    async def work(bucket: Bucket) -> None:
        for written in (text, f"{text}\n"):
            with fails(errno.EINVAL):
                await bucket.write(name, written)
        handle = (
            await bucket.operations.open(await bucket._number(f"bucket/{name}"), os.O_WRONLY | os.O_TRUNC, OWNER)
        ).fh
        with fails(errno.EINVAL):
            await bucket.operations.write(handle, 0, f"{text}\n".encode())

    bucket = run(work)
    assert (bucket.server.changes, len(bucket.errors)) == ([], 3)
    assert [line for line in bucket.errors if not line.startswith(f"bucket/{name}: ") or why not in line] == []


def test_what_is_no_text_is_refused_with_its_line() -> None:
    async def work(bucket: Bucket) -> None:
        node = bucket.operations.tree[await bucket._number("bucket/policy")]
        assert isinstance(node, TextFile)
        with fails(errno.EINVAL):
            await node.write(b"{\n\n\xff}")
        with fails(errno.EINVAL):
            node.check(b"\xff\n")

    bucket = run(work)
    assert bucket.server.seen == []
    assert bucket.errors == ["bucket/policy: line 3: not UTF-8", "bucket/policy: line 1: not UTF-8"]


@pytest.mark.parametrize("name", [name for name in BAD if name != "acl"])
def test_what_the_server_refuses_is_told_and_what_is_not_known_is_not_replaced(name: str) -> None:
    """A server that does not know a setting takes the PUT of one for a bucket that is to be made."""
    text = {name: made[0] for name, made in TEXTS.items()} | {
        "object-lock": "GOVERNANCE 30 days",
        "versioning": "enabled",
    }

    async def work(bucket: Bucket) -> None:
        bucket.server.refuses["PUT"] = error(403, "AccessDenied")
        with fails(errno.EACCES):
            await bucket.write(name, text[name])
        assert len(bucket.server.changes) == 1
        refusals = [(error(403, "AccessDenied"), errno.EACCES), (error(501, "NotImplemented"), errno.EOPNOTSUPP)]
        refusals += [(error(404, "NoSuchBucket"), errno.EIO), (answer(404, b"<html/>"), errno.EIO)]
        refusals += [(answer(200, b"<html/>"), errno.EIO), (answer(200, b""), errno.EIO)]
        known = errno.EIO if name in ("cors", "versioning", "policy") else errno.EOPNOTSUPP
        for told, number in (*refusals, (answer(200, b"<ListBucketResult/>", ID), known)):
            bucket.server.refuses["GET"] = told
            with fails(number, errno.ENXIO):
                await bucket.read(name)
            with fails(number, errno.ENXIO):
                node = bucket.operations.tree[await bucket._number(f"bucket/{name}")]
                assert isinstance(node, TextFile)
                await node.write(text[name].encode())
            with fails(number, errno.ENXIO):
                await node.write({"versioning": b"suspended", "object-lock": b"COMPLIANCE 2 days"}.get(name, b""))

    bucket = run(work)
    assert len(bucket.server.changes) == 1
    assert all(line.startswith(f"bucket/{name}: ") for line in bucket.errors)
    assert len(bucket.errors) == 15
    assert bucket.told == []


def test_a_setting_that_cannot_be_removed_is_not_said_to_be() -> None:
    async def work(bucket: Bucket) -> None:
        await bucket.write("ownership", "ObjectWriter")
        bucket.server.refuses["DELETE"] = error(403, "AccessDenied")
        node = bucket.operations.tree[await bucket._number("bucket/ownership")]
        assert isinstance(node, TextFile)
        with fails(errno.EACCES):
            await node.write(b"")

    assert run(work).told == ["ownership"]


@pytest.mark.parametrize("name", ["ownership", "object-lock"])
@pytest.mark.parametrize("odd", [None, error(500, "InternalError")], ids=["no answer", "failure"])
def test_what_may_be_set_without_an_answer_is_heard_of(name: str, odd: bytes | None) -> None:
    """Written once more it is not sent, for the server has it."""
    text = {"ownership": "ObjectWriter\n", "object-lock": "GOVERNANCE 30 days\n"}[name]

    class Mute(Keeping):
        def __call__(self, seen: Seen) -> Any:
            told = super().__call__(seen)
            return odd if seen.method == "PUT" else told

    async def work(bucket: Bucket) -> None:
        with fails(errno.EIO):
            await bucket.write(name, text)
        sent = len(bucket.server.changes)
        await bucket.write(name, text)
        assert len(bucket.server.changes) == sent

    assert run(work, Mute()).told == ["ownership" if name == "ownership" else "lock"]


def test_requests_for_settings_are_signed_with_the_key_of_now_and_say_who_pays() -> None:
    key = [KEY]
    source = SimpleNamespace(current=lambda: key[0], refresh=lambda: key[0])

    async def work(bucket: Bucket) -> None:
        await bucket.read("cors")
        key[0] = Credentials("ANOTHER", "secret")
        await bucket.write("cors", CORS)
        key[0] = Credentials("", "")
        await bucket.read("cors")

    seen = run(work, credentials=source, payer=Payer.REQUESTER).server.seen
    signed = [
        ("AKTEST/" in one.headers.get("authorization", ""), one.headers.get("x-amz-security-token")) for one in seen
    ]
    assert signed == [(True, TOKEN), (False, None), (False, None), (False, None), (False, None)]
    assert ["ANOTHER/" in one.headers.get("authorization", "") for one in seen] == [False, True, True, True, False]
    assert "authorization" not in seen[4].headers
    assert {one.headers["x-amz-request-payer"] for one in seen} == {"requester"}
    assert "content-md5" in seen[3].headers


@pytest.mark.promise(11)
@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("answers", [False, True], ids=["silent", "asks for patience"])
def test_who_waits_for_a_setting_can_be_stopped(method: str, answers: bool) -> None:
    """As by Ctrl-C in the middle of a request, or between two tries."""
    asked, released, interrupt = threading.Event(), threading.Event(), Interrupt()

    class Failing(Keeping):
        def __call__(self, seen: Seen) -> bytes:
            if seen.method != method:
                return super().__call__(seen)
            asked.set()
            if answers:
                return answer(503, b"", "Retry-After: 60")
            released.wait(20)
            return super().__call__(seen)

    async def work(bucket: Bucket) -> None:
        async with trio.open_nursery() as nursery:
            token = CURRENT.set(interrupt)
            with fails(errno.EINTR):
                nursery.start_soon(stop)
                await (bucket.read("policy") if method == "GET" else bucket.write("policy", POLICY))
            CURRENT.reset(token)

    async def stop() -> None:
        await trio.to_thread.run_sync(asked.wait, 30)
        interrupt.set()

    run(work, Failing(), patience=100.0)
    released.set()


def test_an_answer_that_is_none_of_a_setting_is_told_at_once_and_a_lost_one_is_asked_for_again() -> None:
    told = iter([answer(200, b"<html/>"), None, error(404, UNSET["policy"]), answer(200, b"<html/>")])

    class Odd(Keeping):
        def __call__(self, seen: Seen) -> Any:
            self.seen.append(seen)
            return next(told)

    async def work(bucket: Bucket) -> None:
        with fails(errno.EIO):
            await bucket.read("cors")
        assert await bucket.read("policy") == ""
        with fails(errno.EIO):
            await bucket.read("policy")

    assert len(run(work, Odd(), patience=100.0).server.seen) == 4


def test_a_server_that_asks_to_be_left_alone_is_left_alone_with_settings_too() -> None:
    told = iter([answer(503, b"", "Retry-After: 1"), error(404, UNSET["policy"])])
    seen: list[float] = []

    class Busy(Keeping):
        def __call__(self, _: Seen) -> bytes:
            seen.append(time.monotonic())
            return next(told)

    async def work(bucket: Bucket) -> None:
        assert await bucket.read("policy") == ""

    run(work, Busy(), patience=20.0)
    assert seen[1] - seen[0] >= 1


# The tree


def test_what_is_where_and_for_whom() -> None:
    async def work(bucket: Bucket) -> None:
        async def modes(folder: Any) -> dict[str, int]:
            assert isinstance(folder, Folder)
            return {name.decode(): node.permissions for name, node in (await folder.children()).items()}

        top = bucket.operations.tree.root
        assert await modes(top) == {
            "acl": 0o700, "bucket": 0o700, "versions": 0o700, "at": 0o700, "status": 0o444, "metrics": 0o444,
            "errors": 0o400,
        }  # fmt: skip
        assert top.permissions == 0o755
        settings = await modes(await bucket.operations.tree.root.child(b"bucket"))
        assert settings == dict.fromkeys(settings, 0o600) | {"replication": 0o400}
        assert set(settings) == {*BAD, "replication"}
        with fails(errno.ENOENT):
            await bucket._number("bucket/nothing")

    run(work)


def test_others_are_told_numbers_and_no_names() -> None:
    """Errors speak of files that modes may keep from them."""
    plain = SimpleNamespace(to_json=lambda: "numbers")
    status: Any = SimpleNamespace(to_json=lambda: "numbers and names", without_names=lambda: plain)

    async def main() -> None:
        report = StatusReport(lambda: status)
        assert await report.shown_to(Audience.OWNER) == "numbers and names\n"
        assert await report.shown_to(Audience.OTHERS) == "numbers\n"
        with fails(errno.EACCES):
            await report.write(b"")

    trio.run(main)
