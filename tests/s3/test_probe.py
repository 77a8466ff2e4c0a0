"""What is found out about a server, on a key that is nobody's, and that nothing is left there.

Over a server in memory that honours what a test wants; `test_capabilities` has real ones.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import md5, sha256
from re import findall
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
import trio

from sosfs.config.credentials import Credentials
from sosfs.errors import StoreError
from sosfs.s3 import capabilities, retries
from sosfs.s3.bucket import S3Store
from sosfs.s3.capabilities import Capabilities, Quoting
from sosfs.s3.protocol import Conditions, Right
from tests.s3.test_transport import target_at
from tests.support.drive import fails
from tests.support.scripted import Scripted, Seen, answer
from tests.support.subjects import Fixed


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails is tried again at once, for a moment."""
    monkeypatch.setattr(capabilities, "PAUSE", 0.0)
    monkeypatch.setattr(capabilities, "CLEARING", 0.5)
    monkeypatch.setattr(retries, "PAUSE_FIRST", 0.0)


KEY = ".sosfs-probe-0"
ID = "x-amz-request-id: 7"
ALL = frozenset(
    {"absent", "quoted", "bare", "copy", "part", "complete absent", "complete match", "delete", "batch", "sha"}
)
DONE, EMPTY = answer(200, b"", ID), answer(204, b"", ID, length=-1)


def error(status: int, code: str, message: str = "") -> bytes:
    return answer(status, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode(), ID)


def document(name: str, body: str = "") -> bytes:
    return answer(200, f"<{name}><IsTruncated>false</IsTruncated>{body}</{name}>".encode(), ID)


FAILED, DENIED = error(412, "PreconditionFailed"), error(403, "AccessDenied")


@dataclass
class Server:
    """One key's versions and uploads. `honours` is of `ALL`; `refuses` is asked first, with what a request does."""

    honours: frozenset[str] = ALL
    refuses: Callable[[str, Seen], bytes | None] = lambda name, seen: None
    keeps_versions: bool = False
    retains: str = ""
    current: tuple[str, str] | None = None  # version id and ETag
    old: dict[str, str] = field(default_factory=dict)  # ETags by version ids; "" for a marker
    uploads: dict[str, str] = field(default_factory=dict)  # ETags of their parts
    asked: list[str] = field(default_factory=list)
    lost: int = 0  # the number of the request whose answer is lost
    made: int = 0
    has_theirs: bool = True  # an upload of another key

    @property
    def left(self) -> list[str]:
        """Whatever is there."""
        theirs = [] if self.has_theirs else ["another's upload is gone"]
        return [*self.old, *self.uploads, *(["current"] if self.current else []), *theirs]

    def __call__(self, seen: Seen) -> bytes | None:
        query = dict(parse_qsl(urlsplit(seen.target).query, keep_blank_values=True))
        name = _name(seen, query)
        self.asked.append(name)
        if (refused := self.refuses(name, seen)) is not None:
            return refused
        told: bytes = getattr(self, f"_{name}")(seen, query)
        return None if len(self.asked) == self.lost else told

    def _next(self) -> str:
        self.made += 1
        return f"id{self.made}"

    def _fails(self, condition: str, is_honoured: bool) -> bool:
        """Whether If-Match or If-None-Match does not hold."""
        return is_honoured and condition != "" and condition not in ([f'"{self.current[1]}"'] if self.current else [])

    def _put(self, seen: Seen, _: Mapping[str, str]) -> bytes:
        told = seen.headers.get("if-match", "")
        if told and self.current:
            styles = {f'"{self.current[1]}"': "quoted", self.current[1]: "bare"}
            style = "quoted" if told.startswith('"') else "bare"
            if style in self.honours and styles.get(told) != style:
                return FAILED
            if style not in self.honours and "bare" in self.honours:
                return FAILED  # as Ceph, which compares the quotes, too
        if "if-none-match" in seen.headers and "absent" in self.honours and self.current:
            return FAILED
        due = sha256(seen.body).hexdigest()
        if "sha" in self.honours and seen.headers.get("x-amz-content-sha256", due) != due:
            return error(400, "XAmzContentSHA256Mismatch")
        return self._stored(md5(seen.body).hexdigest())

    def _stored(self, etag: str) -> bytes:
        if self.keeps_versions and self.current:
            self.old[self.current[0]] = self.current[1]
        self.current = (self._next(), etag)
        return answer(200, b"", f'ETag: "{etag}"', ID)

    def _copy(self, seen: Seen, _: Mapping[str, str]) -> bytes:
        if self._fails(seen.headers.get("x-amz-copy-source-if-match", ""), "copy" in self.honours):
            return FAILED
        assert self.current is not None
        self._stored(self.current[1])
        return document("CopyObjectResult", f"<ETag>{self.current[1]}</ETag>")

    def _delete(self, seen: Seen, query: Mapping[str, str]) -> bytes:
        if "versionId" in query:
            self.old.pop(query["versionId"], None)
            if self.current and self.current[0] == query["versionId"]:
                self.current = None
            return EMPTY
        if self.current and self._fails(seen.headers.get("if-match", ""), "delete" in self.honours):
            return FAILED
        if not self.keeps_versions:
            self.current = None
            return EMPTY
        if self.current:
            self.old[self.current[0]], self.current = self.current[1], None
        self.old[marker := self._next()] = ""
        return answer(204, b"", ID, "x-amz-delete-marker: true", f"x-amz-version-id: {marker}", length=-1)

    def _delete_many(self, seen: Seen, _: Mapping[str, str]) -> bytes:
        etags = findall(rb"<ETag>(.*?)</ETag>", seen.body)
        if self.current and "batch" in self.honours and etags and self.current[1].encode() not in etags[0]:
            return document("DeleteResult", f"<Error><Key>{KEY}</Key><Code>PreconditionFailed</Code></Error>")
        self.current = None
        return document("DeleteResult")

    def _versions(self, _: Seen, query: Mapping[str, str]) -> bytes:
        told = ""
        if not KEY.startswith(query["prefix"]):
            return document("ListVersionsResult")
        for version_id, etag in self.old.items():
            kind = "Version" if etag else "DeleteMarker"
            told += (
                f"<{kind}><Key>{KEY}</Key><VersionId>{version_id}</VersionId><ETag>{etag}</ETag><Size>5</Size>"
                f"<LastModified>2020-01-01T00:00:00Z</LastModified></{kind}>"
            )
        return document("ListVersionsResult", told)

    def _lock(self, *_: object) -> bytes:
        if not self.retains:
            return error(404, "ObjectLockConfigurationNotFoundError")
        rule = f"<Rule><DefaultRetention><Mode>{self.retains}</Mode><Days>1</Days></DefaultRetention></Rule>"
        return document("ObjectLockConfiguration", f"<ObjectLockEnabled>Enabled</ObjectLockEnabled>{rule}")

    def _begin(self, *_: object) -> bytes:
        self.uploads[upload := self._next()] = ""
        return document("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")

    def _part(self, seen: Seen, query: Mapping[str, str]) -> bytes:
        if query["uploadId"] not in self.uploads:
            return error(404, "NoSuchUpload")
        self.uploads[query["uploadId"]] = etag = md5(seen.body).hexdigest()
        return answer(200, b"", f'ETag: "{etag}"', ID)

    def _copy_part(self, seen: Seen, query: Mapping[str, str]) -> bytes:
        if self._fails(seen.headers.get("x-amz-copy-source-if-match", ""), "part" in self.honours):
            return FAILED
        self.uploads[query["uploadId"]] = "copied"
        return document("CopyPartResult", "<ETag>copied</ETag>")

    def _complete(self, seen: Seen, query: Mapping[str, str]) -> bytes:
        if query["uploadId"] not in self.uploads:
            return error(404, "NoSuchUpload")
        for name, kind in (("if-match", "complete match"), ("if-none-match", "complete absent")):
            if self._fails(seen.headers.get(name, ""), kind in self.honours):
                return FAILED
        if self.uploads[query["uploadId"]] not in seen.body.decode():
            return error(400, "InvalidPart")
        del self.uploads[query["uploadId"]]
        self._stored("joined-1")
        return document("CompleteMultipartUploadResult", "<ETag>joined-1</ETag>")

    def _abort(self, _: Seen, query: Mapping[str, str]) -> bytes:
        self.has_theirs = self.has_theirs and query["uploadId"] != "others"
        if query["uploadId"] not in self.uploads:
            return error(404, "NoSuchUpload")
        del self.uploads[query["uploadId"]]
        return EMPTY

    def _uploads(self, *_: object) -> bytes:
        one = "<Upload><Key>{}</Key><UploadId>{}</UploadId><Initiated>2020-01-01T00:00:00Z</Initiated></Upload>"
        others = one.format(f"{KEY}-of-another", "others")
        return document("ListMultipartUploadsResult", others + "".join(one.format(KEY, each) for each in self.uploads))


def _name(seen: Seen, query: Mapping[str, str]) -> str:
    """What a request does."""
    if unquote(urlsplit(seen.target).path) == "/bucket":
        return (
            next(name for name in ("versions", "uploads", "delete", "object-lock") if name in query)
            .replace("delete", "delete_many")
            .replace("object-lock", "lock")
        )
    copies = "x-amz-copy-source" in seen.headers
    if seen.method == "POST":
        return "begin" if "uploads" in query else "complete"
    if seen.method == "PUT" and "uploadId" in query:
        return "copy_part" if copies else "part"
    if seen.method == "DELETE":
        return "abort" if "uploadId" in query else "delete"
    return "copy" if copies else "put"


@contextmanager
def _opened(server: Server, **options: Any) -> Iterator[S3Store]:
    with Scripted(server) as scripted:
        store = S3Store(replace(target_at(scripted.endpoint), **options))
        yield store
        store.close()


def probed(server: Server, key: str = KEY, *, storage_class: str = "", **options: Any) -> Capabilities:
    """What is found out. Raises StoreError."""
    with _opened(server, **options) as store:
        probing = partial(store.probe_conditions, key, storage_class=storage_class)
        assert trio.run(probing) is store.conditions
        assert (store.bucket, store.denied) == ("bucket", store.capabilities.denied)
        return store.capabilities


WHOLE = Capabilities(True, True, Quoting.QUOTED, True, True, True, True, True, True)


@pytest.mark.parametrize(
    ("honours", "due"),
    [
        (ALL, WHOLE),
        (ALL - {"absent"}, replace(WHOLE, absent=False)),
        (ALL - {"quoted"}, replace(WHOLE, match=Quoting.BARE)),
        (ALL - {"quoted", "bare"}, replace(WHOLE, match=None)),
        (ALL - {"copy"}, replace(WHOLE, copy_pin=False)),
        (ALL - {"part"}, replace(WHOLE, part_pin=False)),
        (ALL - {"complete match"}, replace(WHOLE, complete=False)),
        (ALL - {"complete absent"}, replace(WHOLE, complete=False)),
        (ALL - {"delete"}, replace(WHOLE, delete_pin=False, batch_pin=False)),
        (ALL - {"batch"}, replace(WHOLE, batch_pin=False)),
        (ALL - {"sha"}, replace(WHOLE, compares=False)),
        (frozenset(), Capabilities(True)),
    ],
    ids=["all", "no absent", "bare", "no match", "no copy", "no part", "no complete match", "no complete absent",
         "no delete", "no batch", "no sha", "nothing"],
)  # fmt: skip
def test_each_thing_that_a_server_honours_is_found_out_by_itself(honours: frozenset[str], due: Capabilities) -> None:
    server = Server(honours - {"bare"} if "quoted" in honours else honours)
    found = probed(server)
    assert found == due
    assert found.conditions is (Conditions.HONOURED if due.absent and due.match else Conditions.IGNORED)
    assert server.left == []


def test_a_server_whose_etags_are_no_hashes_is_known() -> None:
    class Encrypting(Server):
        def _stored(self, etag: str) -> bytes:
            return super()._stored(f"{etag[:30]}{self.made:02}")

    server = Encrypting(ALL - {"bare"})
    assert not probed(server).hashes
    assert server.left == []


def test_nobody_signs_a_hash_that_could_be_compared() -> None:
    """Else what another server refuses for another reason would pass for that."""
    found = probed(Server(ALL - {"bare"}), credentials=Fixed(Credentials("", "")))
    assert found == replace(WHOLE, compares=False)


def test_only_a_refusal_for_the_hash_tells_that_it_is_compared() -> None:
    def of_hash(told: bytes) -> Server:
        def refused(name: str, seen: Seen) -> bytes | None:
            hashed = seen.headers.get("x-amz-content-sha256")
            return told if name == "put" and hashed != sha256(seen.body).hexdigest() else None

        return Server(ALL - {"bare"}, refused)

    assert not probed(of_hash(error(400, "InvalidRequest"))).compares
    assert not probed(of_hash(DENIED)).compares
    assert probed(of_hash(error(400, "BadDigest"))).compares
    with fails(errno.EIO):
        probed(of_hash(error(500, "InternalError")))


@pytest.mark.parametrize("keeps_versions", [False, True])
@pytest.mark.parametrize("patience", [0.0, 5.0])
def test_nothing_is_left_whichever_answer_is_lost(keeps_versions: bool, patience: float) -> None:
    steps = Server(ALL - {"bare"}, keeps_versions=keeps_versions)
    whole = probed(steps)
    for number in range(1, len(steps.asked) + 1):
        server = Server(ALL - {"bare"}, keeps_versions=keeps_versions, lost=number)
        found: Capabilities | None = None
        try:
            found = probed(server, patience=patience)
        except StoreError as lost:
            assert (lost.errno, patience) == (errno.EIO, 0.0)
        assert server.left == [], (number, steps.asked[number - 1])
        if patience:
            assert found is not None
            assert found.conditions is whole.conditions, (number, steps.asked[number - 1])


@pytest.mark.parametrize(
    "told", [error(500, "InternalError"), error(400, "Confused"), answer(403, b"<html/>")], ids=str
)
@pytest.mark.parametrize("name", ["put", "copy", "begin", "part", "copy_part", "complete"])
def test_nothing_is_left_where_one_step_never_works(name: str, told: bytes) -> None:
    server = Server(ALL - {"bare"}, lambda step, _: told if step == name else None)
    with fails(errno.EIO, errno.EINVAL, errno.EACCES):
        probed(server)
    assert server.left == []


@pytest.mark.parametrize("name", ["copy", "copy_part", "complete"])
@pytest.mark.parametrize("told", [error(501, "NotImplemented"), DENIED], ids=["unknown", "denied"])
def test_what_a_server_does_not_do_at_all_it_does_not_honour(name: str, told: bytes) -> None:
    server = Server(ALL - {"bare"}, lambda step, _: told if step == name else None)
    lacking = {"copy": replace(WHOLE, copy_pin=False), "copy_part": replace(WHOLE, part_pin=False)}
    assert probed(server) == lacking.get(name, replace(WHOLE, complete=False))
    assert server.left == []


@pytest.mark.parametrize(
    ("told", "is_known"),
    [
        (error(400, "InvalidArgument"), True), (error(501, "NotImplemented"), True), (error(404, "NoSuchKey"), True),
        (error(500, "InternalError"), False), (answer(412, b"<html/>"), False), (answer(403, b"<html/>"), False),
    ],
    ids=["bad", "unknown", "absent", "failed", "a page, 412", "a page, 403"],
)  # fmt: skip
def test_only_a_server_says_that_it_knows_no_pinned_removal(told: bytes, is_known: bool) -> None:
    """Else other versions than the one that is meant would be removed as long as the mount lasts."""
    server = Server(
        ALL - {"bare"}, lambda name, seen: told if name == "delete" and "if-match" in seen.headers else None
    )
    if is_known:
        assert probed(server) == replace(WHOLE, delete_pin=False, batch_pin=False)
    else:
        with fails(errno.EIO, errno.EACCES):
            probed(server)
    assert server.left == []


@pytest.mark.parametrize(
    ("told", "is_known"),
    [
        (error(400, "MalformedXML"), True), (DENIED, True), (error(501, "NotImplemented"), True),
        (document("DeleteResult", "<Error><Key>other</Key><Code>AccessDenied</Code></Error>"), True),
        (document("DeleteResult", f"<Error><Key>{KEY}</Key><Code>AccessDenied</Code></Error>"), True),
        (error(500, "InternalError"), False),
    ],
    ids=["bad", "denied", "unknown", "of others", "of ours", "failed"],
)  # fmt: skip
def test_a_batch_that_is_refused_pins_nothing(told: bytes, is_known: bool) -> None:
    server = Server(ALL - {"bare"}, lambda name, _: told if name == "delete_many" else None)
    if is_known:
        assert probed(server) == replace(WHOLE, batch_pin=False)
    else:
        with fails(errno.EIO):
            probed(server)
    assert server.left == []


# What a key may not do


def test_a_key_that_may_not_write_stores_nothing() -> None:
    server = Server(refuses=lambda name, _: DENIED if name in ("put", "part", "begin") else None)
    assert probed(server) == Capabilities(denied=frozenset({Right.WRITE}))
    assert "put" in server.asked
    assert (server.asked.count("put"), server.left) == (1, [])


@pytest.mark.parametrize("writes", [True, False])
def test_a_key_that_may_not_remove_stores_nothing(writes: bool) -> None:
    """Whether it may write is tried with a part of an upload that nobody has begun."""
    denied = {"delete"} if writes else {"delete", "part"}
    server = Server(refuses=lambda name, _: DENIED if name in denied else None)
    assert probed(server) == Capabilities(denied=frozenset({Right.DELETE} if writes else {Right.DELETE, Right.WRITE}))
    assert {"put", "begin"}.isdisjoint(server.asked)


def first_begin() -> int:
    """Which request begins an upload."""
    server = Server(ALL - {"bare"})
    probed(server)
    return server.asked.index("begin") + 1


def test_an_upload_that_may_not_be_ended_becomes_an_object_which_may_be_removed() -> None:
    for lost in (0, first_begin()):
        server = Server(ALL - {"bare"}, lambda name, _: DENIED if name == "abort" else None, lost=lost)
        assert probed(server, patience=5.0) == WHOLE
        assert server.left == []


@pytest.mark.parametrize("told", [DENIED, error(501, "NotImplemented")], ids=["denied", "unknown"])
def test_who_may_not_list_uploads_is_not_kept_from_mounting(told: bytes) -> None:
    server = Server(ALL - {"bare"}, lambda name, _: told if name == "uploads" else None)
    assert probed(server) == WHOLE
    assert server.left == []


def test_a_class_that_the_server_does_not_know_is_told_in_its_words() -> None:
    def refused(name: str, seen: Seen) -> bytes | None:
        return error(400, "InvalidStorageClass") if "x-amz-storage-class" in seen.headers else None

    server = Server(refuses=refused)
    with pytest.raises(StoreError, match="InvalidStorageClass"):
        probed(server, storage_class="COLD")
    assert server.left == []
    assert probed(server).known


# Where what is stored may stay


def test_where_versions_are_kept_they_are_removed_and_no_pinned_removal_is_tried() -> None:
    server = Server(ALL - {"bare"}, keeps_versions=True)
    assert probed(server) == replace(WHOLE, delete_pin=False, batch_pin=False, markers=True)
    assert server.left == []


def _of_version(name: str, seen: Seen) -> bytes | None:
    return DENIED if name == "delete" and "versionId" in seen.target else None


def test_where_versions_may_not_be_removed_one_marker_is_left_however_often_it_is_mounted() -> None:
    server = Server(refuses=_of_version, keeps_versions=True)
    for number in range(3):
        assert probed(server, f"{KEY[:-1]}{number}") == Capabilities(markers=True)
        assert (server.left, "put" in server.asked) == (["id1"], False)

    def readonly(name: str, seen: Seen) -> bytes | None:
        return DENIED if name in ("delete", "put", "part", "begin") else None

    server.refuses = readonly
    assert probed(server).denied == {Right.DELETE, Right.WRITE}, "another key's marker says nothing of ours"


def test_another_mounts_scratch_object_is_no_marker() -> None:
    """That has left it for a moment only, and what this key may not do is told."""
    server = Server(refuses=lambda name, _: DENIED if name == "delete" else None, keeps_versions=True)
    server.old["theirs"] = "etag"
    assert probed(server) == Capabilities(denied=frozenset({Right.DELETE}))


def test_a_listing_of_markers_that_fails_is_an_error_and_one_that_is_refused_is_none() -> None:
    def refusing(told: bytes) -> Callable[[str, Seen], bytes | None]:
        return lambda name, seen: told if name == "versions" else _of_version(name, seen)

    with fails(errno.EIO):
        probed(Server(refuses=refusing(error(500, "InternalError")), keeps_versions=True))
    server = Server(refuses=refusing(DENIED), keeps_versions=True)
    assert probed(server) == Capabilities(markers=True)
    assert "put" not in server.asked


@pytest.mark.parametrize(
    ("told", "is_tried"),
    [(None, False), (DENIED, False), (error(404, "ObjectLockConfigurationNotFoundError"), True),
     (error(501, "NotImplemented"), True)],
    ids=["locks", "may not know", "none", "unknown"],
)  # fmt: skip
def test_nothing_is_stored_where_the_bucket_may_lock_it(told: bytes | None, is_tried: bool) -> None:
    server = Server(ALL - {"bare"}, lambda name, _: told if name == "lock" else None, keeps_versions=True)
    server.retains = "GOVERNANCE"
    found = probed(server)
    assert (found.known, found.markers, "put" in server.asked) == (is_tried, True, is_tried)
    assert server.left == []


def test_a_hash_that_is_demanded_tells_of_a_lock() -> None:
    why = error(400, "InvalidRequest", "Content-MD5 is required for Put Object with Object Lock parameters")
    server = Server(refuses=lambda name, _: why if name == "put" else None, keeps_versions=True)
    assert probed(server) == Capabilities(markers=True)
    assert server.left == []
