"""An S3 server that keeps no bytes but those of small objects, for files that are larger than this machine.

It hashes what it gets, knows which objects are zeros, and copies in no time. Conditions and pins hold. A GET of what it
has forgotten is zeros.

Concurrency: a thread for each connection; all state is changed under one lock.
"""

from __future__ import annotations

import socket
import threading
import time
import uuid
from dataclasses import dataclass, field
from hashlib import md5
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

PIECE = 1 << 20
KEPT = 1 << 20  # bytes of an object that is kept
ZERO = bytes(PIECE)


@dataclass(frozen=True)
class Kept:
    """What is known of an object or a part."""

    size: int
    etag: str
    is_zero: bool
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Forgetful:
    """The server: `with Forgetful() as server`. It has every bucket."""

    def __init__(self) -> None:
        self.objects: dict[str, Kept] = {}
        self.uploads: dict[str, tuple[str, dict[str, str], dict[int, Kept]]] = {}
        self.sent = 0  # bytes of bodies that came
        self.copies = 0
        self.peak = self.running = 0  # parts on their way
        self.lock = threading.Lock()
        outer = self

        class Handler(_Handler):
            server_of = outer

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Refused(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: Forgetful

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _serve(self) -> None:
        url = urlsplit(self.path)
        _, _, key = url.path.removeprefix("/").partition("/")
        self.query = dict(parse_qsl(url.query, keep_blank_values=True))
        try:
            self._do(unquote(key))
        except _Refused as refused:
            body = f"<Error><Code>{refused.code}</Code><Message>no</Message></Error>" if self.command != "HEAD" else ""
            self._answer(refused.status, body)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve

    def _do(self, key: str) -> None:
        query, state = self.query, self.server_of
        name = f"{self.command} {'uploadId' if 'uploadId' in query else next(iter(query), '') if not key else ''}"
        if "uploads" in query:
            self._uploads(key)
        elif "uploadId" in query:
            {"PUT": self._part, "POST": self._complete, "DELETE": self._abort, "GET": self._parts}[self.command](key)
        elif "acl" in query or "versioning" in query or "object-lock" in query or "versions" in query:
            raise _Refused(501, "NotImplemented")
        elif not key:
            self._list()
        elif self.command == "PUT":
            self._put(key)
        elif self.command == "DELETE":
            with state.lock:
                state.objects.pop(key, None)
            self._answer(HTTPStatus.NO_CONTENT)
        elif self.command in ("GET", "HEAD"):
            self._get(key)
        else:
            raise _Refused(501, name)

    def _answer(self, status: int, body: str | bytes = b"", **headers: str) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("x-amz-request-id", uuid.uuid4().hex)
        length = headers.pop("length", str(len(data)))
        self.send_header("Content-Length", length)
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _take(self) -> Kept:
        left, state, body, is_zero = int(self.headers.get("Content-Length", 0)), md5(usedforsecurity=False), [], True
        size = left
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(HTTPStatus.CONTINUE)
            self.end_headers()
        while left:
            piece = self.rfile.read(min(PIECE, left))
            if not piece:
                raise ConnectionError
            left -= len(piece)
            state.update(piece)
            is_zero = is_zero and piece == ZERO[: len(piece)]
            if size <= KEPT:
                body.append(piece)
            with self.server_of.lock:
                self.server_of.sent += len(piece)
        headers = {k: v for k, v in self.headers.items() if k.lower().startswith(("x-amz-meta-", "content-type"))}
        return Kept(size, state.hexdigest(), is_zero, b"".join(body), headers)

    def _require(self, key: str) -> None:
        here, wanted = self.server_of.objects.get(key), self.headers.get("If-Match")
        if (self.headers.get("If-None-Match") and here) or (wanted and (not here or wanted.strip('"') != here.etag)):
            raise _Refused(412, "PreconditionFailed")

    def _put(self, key: str) -> None:
        state = self.server_of
        if "x-amz-copy-source" in self.headers:
            raise _Refused(412, "PreconditionFailed")  # of the probe's pin; nothing else copies here
        kept = self._take()
        with state.lock:
            self._require(key)
            state.objects[key] = kept
        self._answer(200, ETag=f'"{kept.etag}"')

    def _get(self, key: str) -> None:
        kept = self.server_of.objects.get(key)
        if kept is None:
            raise _Refused(404, "NoSuchKey")
        if self.headers.get("If-Match", kept.etag).strip('"') != kept.etag:
            raise _Refused(412, "PreconditionFailed")
        headers = {"ETag": f'"{kept.etag}"', "Last_Modified": self.date_time_string(), **kept.headers}
        asked = self.headers.get("Range")
        if self.command == "HEAD" or not asked:
            body = kept.body if self.command == "GET" else b""
            self._answer(200, body, length=str(kept.size), **headers)
            return
        start, stop = (int(one) for one in asked.removeprefix("bytes=").split("-"))
        if start >= kept.size:
            raise _Refused(416, "InvalidRange")
        stop = min(stop + 1, kept.size)
        body = kept.body[start:stop] if kept.body else bytes(stop - start)
        self._answer(206, body, Content_Range=f"bytes {start}-{stop - 1}/{kept.size}", **headers)

    def _list(self) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        objects, prefixes = [], []
        for key, kept in sorted(self.server_of.objects.items()):
            if not key.startswith(prefix):
                continue
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found:
                prefixes.append(prefix + head + delimiter)
                continue
            objects.append(
                f"<Contents><Key>{escape(key)}</Key><ETag>{kept.etag}</ETag><Size>{kept.size}</Size>"
                f"<LastModified>{time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime())}</LastModified></Contents>"
            )
        folded = "".join(f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in set(prefixes))
        told = f"<Prefix>{escape(prefix)}</Prefix><KeyCount>{len(objects)}</KeyCount><IsTruncated>false</IsTruncated>"
        xmlns = "http://s3.amazonaws.com/doc/2006-03-01/"
        self._answer(200, f'<ListBucketResult xmlns="{xmlns}">{told}{"".join(objects)}{folded}</ListBucketResult>')

    def _uploads(self, key: str) -> None:
        state = self.server_of
        if self.command == "GET":
            self._answer(
                200, "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>"
            )
            return
        upload = uuid.uuid4().hex
        headers = {k: v for k, v in self.headers.items() if k.lower().startswith(("x-amz-meta-", "content-type"))}
        with state.lock:
            state.uploads[upload] = key, headers, {}
        told = f"<Key>{escape(key)}</Key><UploadId>{upload}</UploadId>"
        self._answer(200, f"<InitiateMultipartUploadResult>{told}</InitiateMultipartUploadResult>")

    def _upload(self) -> tuple[str, dict[str, str], dict[int, Kept]]:
        found = self.server_of.uploads.get(self.query["uploadId"])
        if found is None:
            raise _Refused(404, "NoSuchUpload")
        return found

    def _part(self, key: str) -> None:
        state, number = self.server_of, int(self.query["partNumber"])
        with state.lock:
            state.running += 1
            state.peak = max(state.peak, state.running)
        try:
            is_copy = "x-amz-copy-source" in self.headers
            kept = self._copied() if is_copy else self._take()
        finally:
            with state.lock:
                state.running -= 1
        with state.lock:
            self._upload()[2][number] = kept
        if is_copy:
            self._answer(200, f"<CopyPartResult><ETag>{kept.etag}</ETag></CopyPartResult>")
        else:
            self._answer(200, ETag=f'"{kept.etag}"')

    def _copied(self) -> Kept:
        state = self.server_of
        source = state.objects.get(unquote(self.headers["x-amz-copy-source"]).split("/", 2)[2])
        if source is None:
            raise _Refused(404, "NoSuchKey")
        if self.headers.get("x-amz-copy-source-if-match", source.etag).strip('"') != source.etag:
            raise _Refused(412, "PreconditionFailed")
        start, stop = (int(one) for one in self.headers["x-amz-copy-source-range"].removeprefix("bytes=").split("-"))
        size = stop + 1 - start
        assert stop < source.size, "a range beyond the end"
        with state.lock:
            state.copies += 1
        return Kept(size, uuid.uuid4().hex, source.is_zero)  # to hash gigabytes would take minutes

    def _complete(self, key: str) -> None:
        document = ET.fromstring(self.rfile.read(int(self.headers["Content-Length"])))
        numbers = [int(one.text or 0) for one in document.iter() if one.tag.endswith("PartNumber")]
        state = self.server_of
        with state.lock:
            self._require(key)
            _, headers, parts = self._upload()
            if sorted(numbers) != sorted(parts) or len(numbers) > 10_000:
                raise _Refused(400, "InvalidPart")
            if any(parts[number].size < 5 << 20 for number in numbers[:-1]):
                raise _Refused(400, "EntityTooSmall")
            etag = md5(b"".join(bytes.fromhex(parts[number].etag) for number in numbers), usedforsecurity=False)
            size = sum(part.size for part in parts.values())
            is_zero = all(part.is_zero for part in parts.values())
            made = Kept(size, f"{etag.hexdigest()}-{len(numbers)}", is_zero, b"", headers)
            state.objects[key] = made
            del state.uploads[self.query["uploadId"]]
        xml = "CompleteMultipartUploadResult"
        self._answer(200, f"<{xml}><ETag>{made.etag}</ETag></{xml}>")

    def _abort(self, key: str) -> None:
        del key
        with self.server_of.lock:
            self._upload()
            del self.server_of.uploads[self.query["uploadId"]]
        self._answer(HTTPStatus.NO_CONTENT)

    def _parts(self, key: str) -> None:
        del key
        told = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{part.etag}</ETag><Size>{part.size}</Size></Part>"
            for number, part in sorted(self._upload()[2].items())
        )
        self._answer(200, f"<ListPartsResult><IsTruncated>false</IsTruncated>{told}</ListPartsResult>")
