"""Keys of AWS profiles that are no plain pair: of a process, a role, a web identity, single sign-on."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sosfs.config.credentials import CredentialError, Credentials
from tests.config.test_credentials import Home, home
from tests.conftest import Mounter
from tests.support.foreign import Foreign
from tests.support.servers import Server

__all__ = ["home"]

PROCESS = "import json; print(json.dumps({'Version': 1, 'AccessKeyId': 'PROCESSKEY', 'SecretAccessKey': 's', %s}))"


@contextmanager
def answering(answer: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """A service that answers all with one document; its address, and the paths that were asked for."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", paths
        server.shutdown()
        thread.join()


def process(home: Home, more: str = "") -> str:
    """A command that prints a key."""
    script = home.write("key.py", PROCESS % more)
    return f"{sys.executable} {script}"


def test_a_process_gives_the_key_and_its_end(home: Home) -> None:
    command = process(home, "'SessionToken': 't', 'Expiration': '2035-01-02T03:04:05Z'")
    home.write(
        ".aws/config", f"[profile work]\ncredential_process = {command}\nendpoint_url = https://s3.example.net\n"
    )
    found = home.found("work")
    assert found.credentials == Credentials("PROCESSKEY", "s", "t", 2051319845.0)
    assert found.place.endpoint == "https://s3.example.net"
    assert not found.credentials.is_ending


def test_a_plain_pair_comes_before_a_process_and_after_a_role(home: Home, moto: Server) -> None:
    """As botocore has it, and so every AWS tool."""
    home.write(
        ".aws/credentials",
        "[default]\naws_access_key_id = PLAIN\naws_secret_access_key = plain\n"
        "[base]\naws_access_key_id = BASE\naws_secret_access_key = base\n",
    )
    home.write(
        ".aws/config",
        f"[default]\ncredential_process = {process(home)}\n"
        "[profile role]\nrole_arn = arn:aws:iam::123456789012:role/backup\nsource_profile = base\nregion = us-east-1\n",
    )
    assert home.found().credentials.access_key == "PLAIN"
    home.environ["AWS_ENDPOINT_URL_STS"] = moto.endpoint
    found = home.found("role").credentials
    assert found.access_key.startswith("ASIA") and found.token
    assert time.time() < found.expires < time.time() + 7200


def test_a_web_identity_gives_the_key(home: Home, moto: Server) -> None:
    token = home.write("token", "a-token")
    home.write(
        ".aws/config",
        f"[profile web]\nrole_arn = arn:aws:iam::123456789012:role/backup\nweb_identity_token_file = {token}\n"
        "region = us-east-1\n",
    )
    home.environ["AWS_ENDPOINT_URL_STS"] = moto.endpoint
    assert home.found("web").credentials.token


def test_single_sign_on_gives_the_key(home: Home) -> None:
    start = "https://example.awsapps.com/start"
    home.write(
        ".aws/config",
        f"[profile sso]\nsso_start_url = {start}\nsso_region = us-east-1\nsso_account_id = 123456789012\n"
        "sso_role_name = backup\nregion = us-east-1\n",
    )
    with pytest.raises(CredentialError, match="SSO"):
        home.found("sso")
    cached = {"startUrl": start, "region": "us-east-1", "accessToken": "t", "expiresAt": "2035-01-02T03:04:05Z"}
    home.write(f".aws/sso/cache/{hashlib.sha1(start.encode()).hexdigest()}.json", json.dumps(cached))
    role = {"accessKeyId": "SSOKEY", "secretAccessKey": "s", "sessionToken": "t", "expiration": 2051233445000}
    with answering({"roleCredentials": role}) as (address, paths):
        home.environ["AWS_ENDPOINT_URL_SSO"] = address
        assert home.found("sso").credentials == Credentials("SSOKEY", "s", "t", 2051233445.0)
    assert paths[0].startswith("/federation/credentials?")


def test_the_metadata_service_is_never_asked(home: Home) -> None:
    """Not even where a role's profile says so, nor that of a container."""
    home.write(
        ".aws/config",
        "[profile virtual]\nrole_arn = arn:aws:iam::123456789012:role/backup\n"
        "credential_source = Ec2InstanceMetadata\nregion = us-east-1\n"
        "[profile container]\nrole_arn = arn:aws:iam::123456789012:role/backup\n"
        "credential_source = EcsContainer\nregion = us-east-1\n",
    )
    key = {"AccessKeyId": "META", "SecretAccessKey": "s", "Token": "t", "Expiration": "2035-01-02T03:04:05Z"}
    with answering(key) as (address, paths):
        home.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = address
        home.environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = f"{address}/container"
        for profile in ("virtual", "container"):
            with pytest.raises(CredentialError, match=f"profile {profile}"):
                home.found(profile)
    assert paths == []


def test_what_the_resolver_says_is_told_in_one_line(home: Home) -> None:
    home.write(".aws/config", f"[profile broken]\ncredential_process = {sys.executable} -c raise\\ SystemExit(3)\n")
    with pytest.raises(CredentialError) as caught:
        home.found("broken")
    assert "profile broken" in str(caught.value) and "\n" not in str(caught.value)


def test_a_mount_follows_a_key_that_ends(mounter: Mounter, foreign: Foreign, tmp_path: Path, server: Server) -> None:
    """It is read again before its end, and not once too often."""
    runs, directory = tmp_path / "runs", tmp_path / "mount0/home/.aws"
    script = tmp_path / "key.py"
    script.write_text(
        "import datetime, json, pathlib\n"
        f"runs = pathlib.Path({str(runs)!r})\n"
        "with runs.open('a') as file: file.write('x')\n"
        "seconds = 61 if runs.stat().st_size == 1 else 3600\n"
        "end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)\n"
        f"print(json.dumps({{'Version': 1, 'AccessKeyId': {server.key!r}, 'SecretAccessKey': {server.secret!r},\n"
        "    'Expiration': end.isoformat()}))\n"
    )
    directory.mkdir(parents=True)
    (directory / "config").write_text(f"[profile work]\ncredential_process = {sys.executable} {script}\n")
    drive = mounter("", "--profile", "work")
    time.sleep(1.5)
    (drive.here / "one").write_bytes(b"1")
    (drive.here / "two").write_bytes(b"2")
    assert foreign.get("one") + foreign.get("two") == b"12"
    assert runs.read_text() == "xx"
    assert os.listdir(drive.here) == ["one", "two"]
