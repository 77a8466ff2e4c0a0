"""A server that answers as a test says, byte for byte, and records what it was sent: for what no real server does.

`Scripted` is the server, in a thread for each connection. With `tls` it is one that speaks TLS; as a proxy it sees
absolute URLs or `CONNECT`. Counts of bytes are those that the client's side took, socket buffers included.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Self, cast
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HEAD_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    text: bytes = b""  # the head as it was on the wire


Script = Callable[[Seen], bytes | Iterable[bytes] | None]


def answer(status: int = 200, body: bytes = b"", *fields: str, length: int | None = None) -> bytes:
    """An HTTP answer; `length` is what Content-Length says, -1 for none."""
    told = len(body) if length is None else length
    lines = [*fields, *([f"Content-Length: {told}"] if told >= 0 else [])]
    return "\r\n".join((f"HTTP/1.1 {status} Scripted", *lines, "", "")).encode("latin-1") + body


@dataclass
class Scripted:
    """`script` makes the answer to each request; None, or the end of what it yields, ends the connection."""

    script: Script
    tls: ssl.SSLContext | None = None
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    sent: int = 0  # bytes of answers

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self.endpoint = f"http{'s' if self.tls else ''}://{self.host}"
        self._open: list[socket.socket] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        self._acceptor.join()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return  # closed
            self.connections += 1
            self._open.append(sock)
            threading.Thread(target=self._converse, args=(sock,), daemon=True).start()

    def _converse(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self.tls:
                sock = self.tls.wrap_socket(sock, server_side=True)
                self._open.append(sock)
            reader = cast(BinaryIO, sock.makefile("rb"))
            while (seen := _request(reader)) and self._serve(sock, seen):
                pass
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()

    def _serve(self, sock: socket.socket, seen: Seen) -> bool:
        self.seen.append(seen)
        told = self.script(seen)
        if told is None:
            return False
        for part in [told] if isinstance(told, bytes) else told:
            sock.sendall(part)
            self.sent += len(part)
        return isinstance(told, bytes)


def _request(reader: BinaryIO) -> Seen | None:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = reader.readline(HEAD_MAX)
        if not line:
            return None
        head += line
    first, *rest = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest if line)}
    body = reader.read(int(headers.get("content-length", 0)))
    return Seen(method, target, headers, body, head)


def authority(base: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate authority of the test's own, as a PEM file, and a TLS server whose certificate is from it."""
    now = datetime.datetime.now(datetime.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    root, leaf = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("test root", "test server"))
    ours = keys[0]

    def certified(name: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_root: bool) -> x509.Certificate:
        names = x509.SubjectAlternativeName(
            [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        )
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(root).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
        builder = builder.not_valid_after(now + datetime.timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(ours.public_key())
        builder = builder.add_extension(identifier, critical=False)
        subject = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(subject, critical=False)
        if not is_root:
            builder = builder.add_extension(names, critical=False)
        return builder.sign(ours, hashes.SHA256())

    def pem(certificate: x509.Certificate) -> bytes:
        return certificate.public_bytes(serialization.Encoding.PEM)

    bundle, chain = base / "root.pem", base / "server.pem"
    bundle.write_bytes(pem(certified(root, keys[0], is_root=True)))
    secret = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain.write_bytes(secret + pem(certified(leaf, keys[1], is_root=False)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return bundle, context


def relay(target: str) -> Script:
    """A script that passes each request on to `endpoint`, as a TLS front or a forward proxy does."""
    there = urlsplit(target)

    def script(seen: Seen) -> bytes:
        url = urlsplit(seen.target)
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        server = http.client.HTTPConnection(there.hostname or "", there.port or 80, timeout=30)
        with contextlib.closing(server):
            server.putrequest(seen.method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in seen.headers.items():
                if name == "host":
                    value = there.netloc  # moto would take a bucket's name from it
                if name not in ("connection", "proxy-authorization", "proxy-connection"):
                    server.putheader(name, value)
            server.endheaders(seen.body or None)
            got = server.getresponse()
            body = got.read()
            fields = [
                f"{name}: {value}"
                for name, value in got.getheaders()
                if name.lower() not in ("transfer-encoding", "connection", "content-length")
            ]
            length = int(got.headers.get("Content-Length", len(body)))
            return answer(got.status, body, *fields, length=length)

    return script
