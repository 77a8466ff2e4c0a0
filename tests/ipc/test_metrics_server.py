"""Metrics over HTTP: what is answered, to whom, and what slow and hostile clients get."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from sosfs.config import values
from sosfs.config.values import Loopback
from sosfs.ipc import metrics, metrics_server
from sosfs.ipc.status import MountPhase, Status
from tests.support.processes import free_port
from tests.support.waiting import until

STATUS = Status(7, "b", "", "/mnt", "http://localhost", MountPhase.MOUNTED, pending_files=3)
GET = b"GET /metrics HTTP/1.1\r\nHost: localhost:1\r\n\r\n"


def connected(address: Loopback | Path) -> socket.socket:
    if isinstance(address, Path):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(20)
        client.connect(str(address))
        return client
    return socket.create_connection((address.host, address.port), timeout=20)


def exchange(address: Loopback | Path, request: bytes) -> tuple[int, bytes, bytes]:
    """Status, head and body of the answer; 0 for none."""
    with connected(address) as client:
        answer = b""
        with contextlib.suppress(ConnectionError):
            client.sendall(request)
            while more := client.recv(1 << 16):
                answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else 0), head, body


def served(scene: Callable[[Loopback | Path], None], address: Loopback | Path | None = None) -> None:
    """Runs `scene`, which blocks, beside a server."""
    at = address or Loopback("127.0.0.1", free_port())

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(metrics_server.serve, at, lambda: STATUS)
            await trio.to_thread.run_sync(partial(scene, at))
            nursery.cancel_scope.cancel()

    trio.run(run)


@pytest.mark.parametrize("kind", ["port", "ipv6", "socket"])
def test_it_answers_on_a_port_and_on_a_socket_in_both_formats(kind: str, tmp_path: Path) -> None:
    addresses: dict[str, Loopback | Path] = {
        "port": Loopback("127.0.0.1", free_port()),
        "ipv6": Loopback("::1", free_port()),
        "socket": tmp_path / "metrics",
    }

    def scene(at: Loopback | Path) -> None:
        code, head, body = exchange(at, GET)
        assert code == 200
        assert b"Content-Type: text/plain; version=0.0.4" in head
        names = {family.name for family in prometheus(body.decode())}
        assert {"sosfs_pending_files", "sosfs_kernel_request_seconds", "sosfs_s3_retries"} <= names
        accept = b"Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n\r\n"
        code, head, body = exchange(at, GET[:-2] + accept)
        assert (code, body[-6:]) == (200, b"# EOF\n")
        assert b"Content-Type: application/openmetrics-text; version=1.0.0" in head
        families = {family.name: family.samples for family in openmetrics(body.decode())}  # type: ignore[no-untyped-call]
        assert families["sosfs_pending_files"][0].value == 3

    served(scene, addresses[kind])
    assert not (tmp_path / "metrics").exists()


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", 200),
        (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:9\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.1\r\nHost: [::1]:9\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.1\r\nHost: evil.example:9\r\n\r\n", 403),
        (b"GET /metrics HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n", 403),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * (metrics_server.REQUEST_MAX + 1), 400),
    ],
)
def test_each_request_gets_what_it_deserves(request_: bytes, code: int) -> None:
    def scene(at: Loopback | Path) -> None:
        found, head, body = exchange(at, request_)
        assert found == code
        length = int(head.partition(b"Content-Length: ")[2].split()[0])
        assert len(body) == (0 if request_.startswith(b"HEAD") else length)

    served(scene)


def test_clients_that_are_slow_or_many_are_cut_off_and_hold_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "CLIENT_SECONDS", 3.0)

    def scene(at: Loopback | Path) -> None:
        slow = [connected(at) for _ in range(metrics_server.CLIENTS - 1)]
        for client in slow:
            client.sendall(b"GET /met")
        assert exchange(at, GET)[0] == 200  # one place is left
        until(lambda: exchange(at, GET)[0] == 200, "that place is free again")
        while all(is_open(client) for client in slow):
            slow.append(connected(at))
            assert len(slow) < 50, "no one is refused"
        until(lambda: not any(map(is_open, slow)), "their time is over")
        assert exchange(at, GET)[0] == 200
        for client in slow:
            client.close()

    served(scene)


def is_open(client: socket.socket) -> bool:
    client.settimeout(0.05)
    try:
        return client.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionResetError:
        return False


def test_a_client_that_does_not_read_or_goes_away_harms_nobody() -> None:
    def scene(at: Loopback | Path) -> None:
        for _ in range(3):
            with connected(at) as client:
                client.sendall(GET)
        deaf = connected(at)
        deaf.sendall(GET)
        assert exchange(at, GET)[0] == 200
        deaf.close()

    served(scene)


def test_the_loop_turns_while_the_text_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    exposed = metrics.exposed

    def noted(status: Status, accept: str) -> tuple[bytes, str]:
        threads.append(threading.get_ident())
        return exposed(status, accept)

    monkeypatch.setattr(metrics, "exposed", noted)
    served(lambda at: exchange(at, GET) and None)
    assert threads
    assert threading.get_ident() not in threads


def test_a_bug_in_a_metric_ends_no_mount(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def scene(at: Loopback | Path) -> None:
        with monkeypatch.context() as broken:
            broken.setattr(metrics, "exposed", lambda *_: 1 // 0)
            assert exchange(at, GET)[0] == 500
        assert exchange(at, GET)[0] == 200

    served(scene)
    assert "ZeroDivisionError" in caplog.text


def test_a_mount_point_that_is_no_text_is_told_all_the_same() -> None:
    strange = replace(STATUS, mountpoint="/mnt/\udcff\n", bucket="b", prefix="p/")
    assert 'bucket="b/p",mountpoint="/mnt/\\\\udcff\\\\n"' in metrics.text(strange)


def refused(address: Loopback | Path) -> OSError:
    with pytest.raises(BaseExceptionGroup) as caught:
        served(lambda at: None, address)
    (error,) = caught.value.exceptions
    assert isinstance(error, OSError)
    return error


def test_what_is_taken_or_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    assert "something else than a socket" in str(refused(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "precious"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "taken"))
        other.listen()
        assert "somebody else listens" in str(refused(tmp_path / "taken"))
    served(lambda at: None, tmp_path / "taken")  # nobody does any more
    with socket.create_server(("127.0.0.1", 0)) as other_server:
        port = other_server.getsockname()[1]
        assert f"no metrics on 127.0.0.1:{port}: Address already in use" in str(refused(Loopback("127.0.0.1", port)))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9500", Loopback("127.0.0.1", 9500)),
        ("127.1.2.3:1", Loopback("127.1.2.3", 1)),
        ("localhost:9500", Loopback("127.0.0.1", 9500)),
        ("[::1]:9500", Loopback("::1", 9500)),
        ("/run/sosfs/metrics", Path("/run/sosfs/metrics")),
    ],
)
def test_addresses(text: str, address: Loopback | Path) -> None:
    assert values.LISTENING.parse(text) == address
    assert values.LISTENING.parse(values.LISTENING.shown(address)) == address


@pytest.mark.parametrize(
    "text",
    ["0.0.0.0:9500", "[::]:9500", ":9500", "192.0.2.1:80", "example.org:80", "9500", "127.0.0.1", "127.0.0.1:0",
     "127.0.0.1:65536", "127.0.0.1:x", "", "name", "[::ffff:192.0.2.1]:80"],
)  # fmt: skip
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^'.*' is "):
        values.LISTENING.parse(text)
