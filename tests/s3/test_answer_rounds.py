"""Rounds of answers that are no answer: whatever stands in for the server's, nothing is absent, empty, foreign or done.

The first round asks a store, kind by kind and call by call, through the proxy. The second goes over one mount with the
programs of a user. What the kinds have in common: an S3 server did not do what it was asked.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from hashlib import md5
from pathlib import Path

import pytest
import trio

from sosfs.config.choices import Canned
from sosfs.errors import Cause, StoreError
from sosfs.s3.bucket import S3Store
from sosfs.s3.protocol import (
    Acl,
    Conditions,
    Failure,
    Grant,
    Guard,
    Properties,
    Version,
)
from tests.conftest import Mounter
from tests.support.drive import sync, tree
from tests.support.faults import INGRESS, LOGIN, Action, Answer, CutResponse, Page, Reset
from tests.support.foreign import Foreign
from tests.support.proxy import Proxy
from tests.support.servers import Bucket, Server
from tests.support.subjects import target_of
from tests.support.traffic import Op, on

XML = "application/xml"
AMONG = (errno.EIO, errno.ETIMEDOUT, errno.EACCES, errno.ENXIO, errno.EINVAL, errno.EFBIG, errno.EOPNOTSUPP)


def xml(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>made by the test</Message></Error>".encode()


KINDS: Mapping[str, Action] = {
    "404 of an ingress": Page(404, body=INGRESS, headers=("Server: nginx",)),
    "404 without a word": Page(404, media=""),
    "404 in JSON": Page(404, body=b'{"message": "no Route matched"}', media="application/json"),
    "404 in other XML": Page(404, body=b"<error>not found</error>", media=XML),
    "404 in XML without a body": Page(404, media=XML),
    "404 of no bucket": Page(404, body=xml("NoSuchBucket"), media=XML),
    "404 of a code nobody knows": Page(404, body=xml("NoSuchThing"), media=XML),
    "503 with the code of an absence": Page(503, body=xml("NoSuchKey"), media=XML),
    "403 of a firewall": Page(403, body=b"<html>Request blocked</html>"),
    "403": Answer(403, "AccessDenied"),
    "401 of a proxy": Page(401, body=LOGIN, headers=("WWW-Authenticate: Basic",)),
    "200 of a login": Page(200, body=LOGIN),
    "200 of nothing": Page(200, media=""),
    "200 of a JSON": Page(200, body=b"{}", media="application/json"),
    "200 of half a document": Page(200, body=b"<?xml version='1.0'?><ListBucketResult><IsTruncated>fal", media=XML),
    "200 of another document": Page(200, body=b"<Ok/>", media=XML),
    "200 of an error": Page(200, body=b" \n" * 400 + xml("InternalError"), media=XML),
    "200 of a refusal": Page(200, body=xml("AccessDenied"), media=XML),
    "204": Page(204, media=""),
    "206 of a login": Page(206, body=LOGIN),
    "302 elsewhere": Page(302, headers=("Location: http://127.0.0.1:9/login",)),
    "304": Page(304, media=""),
    "400 of a gateway": Page(400, body=b"<html>Bad Request</html>"),
    "405 of a gateway": Page(405, body=b"<html>Method Not Allowed</html>"),
    "409 of a gateway": Page(409, body=b"<html>Conflict</html>"),
    "412 of a gateway": Page(412, body=b"<html>Precondition Failed</html>"),
    "413 of a gateway": Page(413, body=b"<html>Request Entity Too Large</html>"),
    "416 of a gateway": Page(416, body=b"<html>Range Not Satisfiable</html>"),
    "429": Answer(429, "SlowDown"),
    "500": Page(500, body=b"<html>oops</html>"),
    "502": Page(502, body=b"<html>Bad Gateway</html>"),
    "503": Answer(503, "SlowDown"),
    "504": Page(504, body=b"<html>Gateway Time-out</html>"),
    "reset": Reset(),
    "cut": CutResponse(30),
}
ALSO = {Op.DELETE_MANY: (Op.DELETE,)}  # a batch that is refused is removed key by key
ASKING = {Op.HEAD, Op.GET, Op.LIST, Op.LIST_UPLOADS, Op.LIST_PARTS, Op.GET_ACL}
# What is no fault there: S3's own answer to a removal is no more than a 204, and only some answers can be cut.
SPARED: Mapping[str, frozenset[Op]] = {
    "204": frozenset({Op.DELETE, Op.ABORT, Op.DELETE_MANY}),
    "cut": frozenset(Op) - {Op.GET, Op.LIST},
}

BODY = bytes(range(256)) * 40
OTHER = b"what else is there"
OBJECTS = {"d/a": BODY, "d/b": OTHER, "d/sub/c": b"below"}
NONE = Properties()
VERSION = Version(md5(BODY).hexdigest(), len(BODY))
Call = Callable[[S3Store, "Prepared"], Awaitable[object]]


class Prepared:
    """What the calls need and what they made."""

    def __init__(self, upload: str) -> None:
        self.upload = upload


async def _delete_many(store: S3Store, _: Prepared) -> None:
    failures: list[Failure] = await store.delete_many(["d/a", "d/b"])
    if failures:
        raise failures[0].error


async def _list_all(store: S3Store, _: Prepared) -> None:
    page = await store.list("d/")
    assert [listed.key for listed in page.objects] == ["d/a", "d/b"]
    assert page.prefixes == ("d/sub/",)


async def _get(store: S3Store, _: Prepared) -> None:
    assert (await store.get("d/a", 7, 5000)).body.tobytes() == BODY[7:5000]


async def _get_pinned(store: S3Store, _: Prepared) -> None:
    found = await store.get("d/a", 0, len(BODY), etag=VERSION.etag)
    assert found.body.tobytes() == BODY


async def _head(store: S3Store, _: Prepared) -> None:
    assert (await store.head("d/a")).version.same_as(VERSION)


async def _complete(store: S3Store, prepared: Prepared) -> None:
    parts = await store.list_parts("joined", prepared.upload)
    await store.complete_multipart("joined", prepared.upload, parts, condition=Guard.ABSENT)


CALLS: Mapping[str, tuple[Op, Call]] = {
    "head": (Op.HEAD, _head),
    "get": (Op.GET, _get),
    "get of a version": (Op.GET, _get_pinned),
    "list": (Op.LIST, _list_all),
    "list uploads": (Op.LIST_UPLOADS, lambda store, _: store.list_uploads("joined")),
    "list parts": (Op.LIST_PARTS, lambda store, prepared: store.list_parts("joined", prepared.upload)),
    "put": (Op.PUT, lambda store, _: store.put("new", OTHER, NONE)),
    "put of a new one": (Op.PUT, lambda store, _: store.put("new", OTHER, NONE, condition=Guard.ABSENT)),
    "put over": (Op.PUT, lambda store, _: store.put("d/a", OTHER, NONE, condition=VERSION)),
    "copy": (Op.COPY, lambda store, _: store.copy("d/a", "new", version=VERSION)),
    "create": (Op.CREATE_MULTIPART, lambda store, _: store.create_multipart("new", NONE)),
    "part": (Op.UPLOAD_PART, lambda store, prepared: store.upload_part("joined", prepared.upload, 1, OTHER)),
    "copy of a part": (
        Op.COPY_PART,
        lambda store, prepared: store.copy_part("joined", prepared.upload, 1, "d/a", VERSION, 0, 5000),
    ),
    "complete": (Op.COMPLETE, _complete),
    "delete": (Op.DELETE, lambda store, _: store.delete("d/a")),
    "delete many": (Op.DELETE_MANY, _delete_many),
    "abort": (Op.ABORT, lambda store, prepared: store.abort_multipart("joined", prepared.upload)),
    "acl": (Op.GET_ACL, lambda store, _: store.get_acl("d/a")),
    "put acl": (Op.PUT_ACL, lambda store, _: store.put_acl("d/a", Canned.PUBLIC_READ)),
    "put grants": (Op.PUT_ACL, lambda store, _: store.put_acl("d/a", Acl("me", (Grant("me", "FULL_CONTROL"),)))),
}


async def _prepared(store: S3Store, foreign: Foreign) -> Prepared:
    foreign.put_all(OBJECTS)
    upload = await store.create_multipart("joined", NONE)
    await store.upload_part("joined", upload, 1, OTHER)
    return Prepared(upload)


def _whole(foreign: Foreign, upload: str) -> None:
    """Nothing has happened in the bucket."""
    listed = foreign.client.list_objects_v2(Bucket=foreign.bucket)["Contents"]
    assert {one["Key"]: one["ETag"].strip('"') for one in listed} == {
        key: md5(body).hexdigest() for key, body in OBJECTS.items()
    }
    uploads = foreign.client.list_multipart_uploads(Bucket=foreign.bucket).get("Uploads", [])
    assert [one["UploadId"] for one in uploads] == [upload]


@pytest.fixture
def opened(server: Server, foreign: Foreign, proxy: Proxy) -> Iterator[S3Store]:
    target = replace(
        target_of(Bucket(server, foreign.bucket, foreign.client), endpoint=proxy.endpoint),
        patience=0.0,
        read_timeout=5.0,
        connect_timeout=1.0,
    )
    store = S3Store(target)
    yield store
    store.close()


@pytest.mark.parametrize("server", ["moto"], indirect=True)
@pytest.mark.parametrize("name", KINDS)
def test_no_answer_but_an_s3_server_s_counts(opened: S3Store, foreign: Foreign, proxy: Proxy, name: str) -> None:
    async def round_() -> None:
        assert await opened.probe_conditions(".probe") is Conditions.HONOURED
        prepared = await _prepared(opened, foreign)
        for call, (op, ask) in CALLS.items():
            if op in SPARED.get(name, ()):
                continue
            with proxy.broken(KINDS[name], on(op, *ALSO.get(op, ()))) as rule:
                try:
                    await ask(opened, prepared)
                except StoreError as error:
                    assert error.errno in AMONG, (call, error)
                    assert error.cause not in (Cause.ABSENT, Cause.CONFLICT), (call, error)
                    if "firewall" in name or "proxy" in name:
                        assert error.cause is Cause.FAILED, (call, error)
                else:
                    pytest.fail(f"{call} was answered")
                assert rule.hits, call
            if op not in ASKING:
                _whole(foreign, prepared.upload)
        for ask in (_head, _get, _list_all):
            await ask(opened, prepared)

    trio.run(round_)


class Directory:
    """A directory in the mount that is worked in while answers are wrong, and what is right afterwards."""

    FILES: Mapping[str, bytes] = {"a": BODY, "old": OTHER, "grows": b"first\n", "moves": b"moved", "goes": b"gone"}

    def __init__(self, path: Path) -> None:
        self.path = path
        self.new: dict[str, tuple[bytes | None, ...]] = {}

    def attempt(self, name: str, action: Callable[[], object], **outcome: bytes | None) -> None:
        """Does something that makes files what `outcome` says, or fails and may have made them so."""
        try:
            action()
        except OSError as error:
            assert error.errno in AMONG, (name, error)
            self.new |= {key: (self.FILES.get(key), body) for key, body in outcome.items()}
        else:
            self.new |= {key: (body,) for key, body in outcome.items()}

    def work(self) -> None:
        """Looks, reads and changes; nothing that is seen is wrong."""
        here = self.path
        self.attempt("ls", lambda: _equal(set(os.listdir(here)), set(self.FILES)))
        self.attempt("stat", lambda: _equal((here / "a").stat().st_size, len(BODY)))
        self.attempt("cat", lambda: _equal((here / "a").read_bytes(), BODY))
        self.attempt("cp", lambda: shutil.copyfile(here / "old", here / "copy"), copy=OTHER)
        self.attempt("append", lambda: _append(here / "grows", b"second\n"), grows=b"first\nsecond\n")
        self.attempt("mv", lambda: os.rename(here / "moves", here / "moved"), moves=None, moved=b"moved")
        self.attempt("rm", lambda: os.unlink(here / "goes"), goes=None)

    def check(self, found: Mapping[str, bytes]) -> None:
        """What is there now is what it was or what it was made to be."""
        assert not any("conflict" in name for name in found)
        for name in {*self.FILES, *self.new, *found}:
            assert found.get(name) in self.new.get(name, (self.FILES.get(name),)), name
        assert ("moves" in found) != ("moved" in found)


def _equal(found: object, wanted: object) -> None:
    assert found == wanted


def _append(path: Path, data: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(data)


CHANGING = frozenset(
    {Op.PUT, Op.COPY, Op.DELETE, Op.DELETE_MANY, Op.CREATE_MULTIPART, Op.UPLOAD_PART, Op.COPY_PART, Op.COMPLETE}
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("server", ["moto"], indirect=True)
@pytest.mark.parametrize("broken", [frozenset(Op), CHANGING], ids=["all", "changes"])
def test_programs_see_what_is_true_or_an_error(
    mounter: Mounter, foreign: Foreign, proxy: Proxy, broken: frozenset[Op]
) -> None:
    """Where looking works, what is to change is reached."""
    for number in range(len(KINDS)):
        foreign.put_all({f"{number}/{name}": body for name, body in Directory.FILES.items()})
    drive = mounter(proxy.endpoint, "--patience", "0", "--timeout", "2", "--ttl", "0.1")
    drive.mount.allow_log(r"WARNING|ERROR")
    for number, (name, action) in enumerate(KINDS.items()):
        print(name)
        here = Directory(drive.here / str(number))
        with proxy.broken(action, on(*(broken - SPARED.get(name, frozenset())))):
            here.work()
        sync(here.path)
        here.check(tree(here.path))
        here.check({key.partition("/")[2]: foreign.get(key) for key in foreign.keys(f"{number}/")})
