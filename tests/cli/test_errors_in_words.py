"""The one line of a mount that cannot begin: the URL once, what is wrong with it, and which key was meant."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.mounting import Access, run_sosfs
from tests.support.scripted import Scripted, authority

HTML = b"<html><body><h1>Welcome to the router</h1></body></html>"


def mount_line(tmp_path: Path, endpoint: str) -> str:
    """What a mount that fails says."""
    (tmp_path / "mnt").mkdir()
    access = Access(endpoint, "EXOkey", "secret")
    done = run_sosfs(["mount", "bucket", tmp_path / "mnt", "--endpoint", endpoint], access.environment(tmp_path))
    assert done.returncode == 1
    *waiting, line = done.stderr.splitlines()
    assert all("connecting to" in each for each in waiting)
    assert line.count(endpoint) == 1
    assert "Errno" not in line
    return line.removeprefix("sosfs: ").replace(endpoint, "URL")


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A web server that is no S3 server."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(HTML)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(HTML)

        do_HEAD = do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("endpoint", "line"),
    [
        ("http://127.0.0.1:1", "cannot reach URL: connection refused"),
        ("http://no-such-host.invalid", "cannot reach URL: name not found"),
    ],
)
def test_nobody_there(tmp_path: Path, endpoint: str, line: str) -> None:
    assert mount_line(tmp_path, endpoint) == line


@pytest.mark.parametrize("status", [200, 404])
def test_another_server(tmp_path: Path, status: int) -> None:
    with answering(status) as endpoint:
        line = mount_line(tmp_path, endpoint)
    assert re.fullmatch(r"URL is not an S3 server \(.*text/html 'Welcome to the router'\)", line), line


def test_a_certificate_of_nobody(tmp_path: Path) -> None:
    (tmp_path / "ca").mkdir()
    _, tls = authority(tmp_path / "ca")
    with Scripted(lambda *_: b"", tls) as server:
        line = mount_line(tmp_path, server.endpoint)
    assert re.fullmatch(r"cannot reach URL: certificate not trusted \(.+\): see 'sosfs help certificates'", line), line


@pytest.mark.parametrize(
    ("environ", "files", "line"),
    [
        (
            {"EXOSCALE_API_KEY": "EXOk"},
            {},
            "environment, EXOSCALE_API_KEY: the secret (EXOSCALE_API_SECRET) is not set",
        ),
        ({"AWS_SECRET_ACCESS_KEY": "s"}, {}, "environment, AWS_ACCESS_KEY_ID: the key is not set"),
        (
            {},
            {".s3cfg": "[default]\naccess_key = $EXO_SOS_KEY\nsecret_key = s\n"},
            "~/.s3cfg: $EXO_SOS_KEY not set in the environment",
        ),
        ({}, {".s3cfg": "[default]\naccess_key = k\n"}, "~/.s3cfg: no secret_key"),
        (
            {"EXOSCALE_ACCOUNT": "hoem"},
            {".config/exoscale/exoscale.toml": '[[accounts]]\nname = "home"\nkey = "k"\nsecret = "s"\n'},
            "~/.config/exoscale/exoscale.toml: no account 'hoem' (it has home)",
        ),
        (
            {"AWS_PROFILE": "login"},
            {".aws/config": "[profile login]\nlogin_session = x\n"},
            "~/.aws/config, profile login: sosfs cannot use a profile with login_session",
        ),
        ({}, {".aws/config": "[default]\nregion = x\n"}, None),
    ],
)
def test_the_nearest_miss_for_a_key(
    tmp_path: Path, environ: Mapping[str, str], files: Mapping[str, str], line: str | None
) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    clean = Access("", "", "").environment(tmp_path)
    clean = {name: value for name, value in clean.items() if not name.startswith("EXOSCALE")}
    done = run_sosfs(["mount", "bucket", tmp_path], {**clean, **environ})
    assert done.returncode == 1
    if line is None:
        assert done.stderr.startswith("sosfs: no credentials: set EXOSCALE_API_KEY and EXOSCALE_API_SECRET")
    else:
        assert done.stderr == f"sosfs: no credentials: {line}; 'sosfs doctor' shows all places\n"
