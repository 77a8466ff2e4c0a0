"""A reverse proxy between the mount and a real S3 server: it records each request and breaks what it is told to.

Heads pass unchanged, Host included, because the client signed them for this proxy's address and the server
computes the signature from what it receives; only `Expect` (never signed) is answered here.

Concurrency: one thread accepts, one thread serves each client connection with a server connection of its
own. Rules and the record are changed under one lock. `close` ends every connection and joins the threads.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Self
from urllib.parse import urlsplit

from tests.support.faults import (
    Action,
    Answer,
    Body,
    CutRequest,
    CutResponse,
    Delay,
    Flip,
    Hang,
    Meet,
    Moment,
    Reset,
    Rule,
    Throttle,
)
from tests.support.traffic import Predicate, Request, Traffic, on
from tests.support.wire import Gone, Wire, parse_head, without_expect

DOCUMENT_MAX = 1 << 20  # POST bodies up to here are kept for the tests to read
EVERYTHING = 1 << 62


class Conversation:
    """A client connection and the server connection that serves it, in a thread of its own."""

    def __init__(self, proxy: Proxy, sock: socket.socket) -> None:
        self._proxy = proxy
        self._client = Wire(sock)
        self._server: Wire | None = None
        self._spent = False  # part of an upload is still unread: no further request can follow
        self._interrupted = False

    def run(self) -> None:
        """Serves requests until one side is done."""
        try:
            while self._exchange():
                pass
        except (Gone, OSError):
            self._client.reset()  # what the one side suffered, the other shall see
        finally:
            self.close()

    def interrupt(self) -> None:
        """Wakes the thread out of whatever it waits for, and lets it begin nothing more; from another thread."""
        self._interrupted = True
        for wire in (self._client, self._server):
            if wire is not None:
                with contextlib.suppress(OSError):
                    wire.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._client.close()
        if self._server is not None:
            self._server.close()

    def _exchange(self) -> bool:
        head = self._client.read_until(b"\r\n\r\n")
        if not head:
            return False
        line, headers = parse_head(head)
        method, target, _ = line.split(" ", 2)
        request = Request.parse(method, target, headers, time.monotonic())
        action = self._proxy.begin(request)
        try:
            if self._proxy.latency:
                time.sleep(self._proxy.latency)
            return self._act(request, head, action)
        finally:
            request.ended = time.monotonic()

    def _act(self, request: Request, head: bytes, action: Action | None) -> bool:
        rate = 0
        match action:
            case Answer(moment=Moment.BEFORE):
                self._take_upload(request, None)
                return self._answer(request, action)
            case Reset(moment=Moment.BEFORE):
                raise Gone("reset")
            case Hang(moment=Moment.BEFORE):
                self._take_upload(request, None)
                return self._hang()
            case CutRequest(keep):
                self._cut_upload(request, head, keep)
                raise Gone("cut")
            case Delay(seconds):
                time.sleep(seconds)
            case Meet(barrier):
                with contextlib.suppress(threading.BrokenBarrierError):
                    barrier.wait()
            case Throttle(rate):
                pass
        self._forward(request, head, rate, flip=_flip(action, Body.REQUEST))
        return self._give_answer(request, action, rate)

    def _answer(self, request: Request, action: Answer) -> bool:
        request.status = action.status
        self._client.send(action.encode(request))
        return True

    def _hang(self) -> bool:
        while self._client.socket.recv(4096):
            pass
        return False

    def _connect(self) -> Wire:
        if self._server is not None and self._server.ended():
            self._server.close()
            self._server = None
        if self._server is None:
            self._server = Wire(socket.create_connection(self._proxy.target))
        if self._interrupted:  # read after the connection is there for `interrupt` to see: one of the two ends it
            raise Gone("dropped")
        return self._server

    def _forward(self, request: Request, head: bytes, rate: int, *, flip: int | None) -> None:
        server = self._connect()
        server.send(without_expect(head))
        try:
            self._take_upload(request, server, rate=rate, flip=flip)
        except (BrokenPipeError, ConnectionResetError):
            # A server that refuses early closes its end; its answer may be there all the same.
            self._spent = True

    def _take_upload(self, request: Request, sink: Wire | None, *, rate: int = 0, flip: int | None = None) -> None:
        headers = request.headers
        if headers.get("expect", "").lower() == "100-continue":
            self._client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in headers.get("transfer-encoding", "").lower():
            request.sent = self._client.relay_chunked(sink, rate=rate)
            return
        length = int(headers.get("content-length", 0))
        if request.method == "POST" and length <= DOCUMENT_MAX:
            request.document = self._client.read_exactly(length)
            request.sent = length
            if sink:
                sink.send(request.document)
            return
        request.sent = self._client.relay(length, sink, rate=rate, flip=flip)
        if request.sent < length:
            raise Gone("upload cut by the client")

    def _cut_upload(self, request: Request, head: bytes, keep: int) -> None:
        server = self._connect()
        server.send(without_expect(head))
        if request.headers.get("expect"):
            self._client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.sent = self._client.relay(min(keep, int(request.headers.get("content-length", 0))), server)
        server.reset()
        self._server = None

    def _give_answer(self, request: Request, action: Action | None, rate: int) -> bool:
        server = self._server
        assert server is not None
        head = b"HTTP/1.1 100"
        while head.split(b" ", 2)[1].startswith(b"1"):
            head = server.read_until(b"\r\n\r\n")
            if not head:
                raise Gone("no answer")
        line, headers = parse_head(head)
        version, status = line.split(" ")[:2]
        sink = None if isinstance(action, Answer | Reset | Hang) else self._client
        if sink:
            request.status = int(status)
            sink.send(head)
        if isinstance(action, CutResponse):
            length = 0 if request.method == "HEAD" else int(headers.get("content-length", 0))
            request.received = server.relay(min(action.keep, length), sink)
            return False
        flip = _flip(action, Body.RESPONSE)
        whole = self._pass_body(request, headers, sink, rate, has_body=status not in ("204", "304"), flip=flip)
        closing = "close" in (headers.get("connection", "").lower(), request.headers.get("connection", "").lower())
        goes_on = whole and not closing and not self._spent and version != "HTTP/1.0"
        if not goes_on:
            server.close()
            self._server = None
        return self._answer_lost(request, action) if action and not sink else goes_on

    def _answer_lost(self, request: Request, action: Action) -> bool:
        match action:
            case Answer():
                return self._answer(request, action) and not self._spent
            case Hang():
                return self._hang()
        raise Gone("reset")

    def _pass_body(
        self,
        request: Request,
        headers: dict[str, str],
        sink: Wire | None,
        rate: int,
        *,
        has_body: bool,
        flip: int | None,
    ) -> bool:
        server = self._server
        assert server is not None
        if request.method == "HEAD" or not has_body:
            return True
        if "chunked" in headers.get("transfer-encoding", "").lower():
            request.received = server.relay_chunked(sink, rate=rate)
            return True
        if "content-length" not in headers:
            request.received = server.relay(EVERYTHING, sink, rate=rate)
            return False
        length = int(headers["content-length"])
        request.received = server.relay(length, sink, rate=rate, flip=flip)
        if request.received < length:
            raise Gone("answer cut by the server")
        return True


def _flip(action: Action | None, body: Body) -> int | None:
    """Which byte of this body is changed; None for none."""
    return action.at if isinstance(action, Flip) and action.body is body else None


class Proxy:
    """A server's stand-in on a port of its own: `with Proxy(server.endpoint) as proxy: mount(proxy.endpoint)`."""

    def __init__(self, target: str, *, latency: float = 0.0) -> None:
        """Forwards to the endpoint `endpoint` (http only), each request `latency` seconds late."""
        url = urlsplit(target)
        self.target = (url.hostname or "127.0.0.1", url.port or 80)
        self.latency = latency
        self.traffic = Traffic()
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self._conversations: dict[Conversation, threading.Thread] = {}
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._acceptor = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every connection, hanging ones too, and waits for the threads."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        self.drop_connections()

    def drop_connections(self) -> None:
        """Cuts every connection there is, as a server that restarts does; new ones are welcome."""
        with self._lock:
            running = dict(self._conversations)
        for conversation in running:
            conversation.interrupt()
        for thread in running.values():
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return  # closed
            conversation = Conversation(self, sock)
            thread = threading.Thread(target=self._converse, args=(conversation,), name="proxy", daemon=True)
            with self._lock:
                self._conversations[conversation] = thread
                thread.start()  # under the lock: who finds it may join it

    def _converse(self, conversation: Conversation) -> None:
        try:
            conversation.run()
        finally:
            with self._lock:
                del self._conversations[conversation]

    def begin(self, request: Request) -> Action | None:
        """Records a request and says what shall happen to it; for conversations."""
        with self._lock:
            self.traffic.requests.append(request)
            rule = next((rule for rule in self._rules if rule.strikes(request)), None)
            if rule is None:
                return None
            request.fault = str(rule.action)
            return rule.action

    def inject(
        self,
        action: Action,
        when: Predicate | None = None,
        *,
        times: int | None = None,
        chance: float = 1.0,
        seed: int = 0,
    ) -> Rule:
        """From now on does `action` to the requests that `when` picks; earlier rules go first."""
        rule = Rule(action, when or on(), times, chance, random.Random(seed))
        with self._lock:
            self._rules.append(rule)
        return rule

    def heal(self) -> None:
        """Takes all rules back."""
        with self._lock:
            self._rules.clear()

    @contextlib.contextmanager
    def broken(self, action: Action, when: Predicate | None = None, *, times: int | None = None) -> Iterator[Rule]:
        """`inject` for the length of a block."""
        rule = self.inject(action, when, times=times)
        try:
            yield rule
        finally:
            with self._lock:
                self._rules = [other for other in self._rules if other is not rule]

    @property
    def requests(self) -> list[Request]:
        """All requests since the start or the last `reset`."""
        return self.traffic.of()

    def count(self, *ops: str) -> int:
        """How many requests there were of these operations since the start or the last `reset`."""
        return self.traffic.count(*ops)

    def reset(self) -> None:
        """Forgets the requests so far."""
        with self._lock:
            self.traffic = Traffic()

    @contextlib.contextmanager
    def recording(self, *, settle: float = 0.3) -> Iterator[Traffic]:
        """The requests made within the block, those included that follow until all was quiet for `settle` s."""
        self.settle(settle)
        with self._lock:
            first = len(self.traffic.requests)
            source = self.traffic
        part = Traffic()
        try:
            yield part
        finally:
            self.settle(settle)
            part.requests.extend(source.requests[first:])

    def settle(self, quiet: float = 0.3, *, limit: float = 30.0) -> None:
        """Waits until no request is under way and none has begun or ended for `quiet` seconds."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            requests = self.requests
            now = time.monotonic()
            if all(r.ended is not None and now - r.ended >= quiet for r in requests):
                return
            time.sleep(0.02)
        raise TimeoutError(f"requests still come after {limit} s")
