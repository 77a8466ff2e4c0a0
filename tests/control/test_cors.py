"""CORS rules as text: which are taken, how a bad one is told, and what the server gets and enforces."""

from __future__ import annotations

import errno
import json
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from sosfs.control import cors_text
from sosfs.control.rejected_texts import BadText
from tests.conftest import Mounter
from tests.support.drive import Drive, fails
from tests.support.proxy import Proxy
from tests.support.servers import Server

Rule = dict[str, object]

RULE: Rule = {"AllowedOrigins": ["https://example.com"], "AllowedMethods": ["GET"]}
FULL: Rule = {
    "ID": "one",
    "AllowedOrigins": ["https://*.example.org", "https://example.com"],
    "AllowedMethods": ["GET", "PUT"],
    "AllowedHeaders": ["Content-*", "x-mine"],
    "ExposeHeaders": ["ETag"],
    "MaxAgeSeconds": 3600,
}


def document(*rules: object) -> str:
    return json.dumps({"CORSRules": list(rules)}, indent=1)


@pytest.mark.parametrize("text", ["", " \n", document()])
def test_nothing_is_no_rules(text: str) -> None:
    assert cors_text.parse(text) == []
    assert cors_text.shown([]) == ""


def test_what_is_shown_can_be_written_back() -> None:
    assert cors_text.parse(cors_text.shown([RULE, FULL])) == [RULE, FULL]
    assert cors_text.parse(document({**RULE, "AllowedMethods": ["*"]})) == [{**RULE, "AllowedMethods": ["*"]}]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('{"CORSRules":\n [}', 2, "no JSON"),
        ("[]", 0, "write"),
        ('{"Rules": []}', 0, "write"),
        ('{"CORSRules": {}}', 0, "write"),
        (document("GET"), 0, "rule 1 is no object"),
        (document(RULE, {"AllowedOrigins": ["*"]}), 0, "rule 2 has no AllowedMethods"),
        (document({**RULE, "AllowedOrigins": []}), 0, "rule 1 has no AllowedOrigins"),
        (document({**RULE, "AllowedOrigin": ["*"]}), 10, "did you mean 'AllowedOrigins'"),
        (document({**RULE, "AllowedMethods": ["GET", "GIT"]}), 9, "'GIT' is none of"),
        (document({**RULE, "AllowedMethods": "GET"}), 7, "no list"),
        (document({**RULE, "AllowedOrigins": ["example.com"]}), 5, "no origin"),
        (document({**RULE, "AllowedOrigins": ["https://*.*.com"]}), 5, "no origin"),
        (document({**RULE, "AllowedHeaders": ["x y"]}), 11, "no header"),
        (document({**RULE, "ExposeHeaders": [1]}), 0, "no list of texts"),
        (document({**RULE, "MaxAgeSeconds": "60"}), 10, "no number"),
        (document({**RULE, "MaxAgeSeconds": True}), 10, "no number"),
        (document({**RULE, "MaxAgeSeconds": -1}), 10, "no number"),
        (document({**RULE, "ID": 7}), 0, "no text"),
        (document(*[RULE] * 101), 0, "101 rules"),
    ],
)
def test_a_bad_text_is_told_with_its_line(text: str, line: int, reason: str) -> None:
    with pytest.raises(BadText) as refused:
        cors_text.parse(text)
    assert reason in refused.value.reason
    if line:
        assert refused.value.line == line, refused.value


def rules_of(drive: Drive) -> list[Rule]:
    """What the server has, as another client sees it."""
    try:
        found = drive.foreign.client.get_bucket_cors(Bucket=drive.foreign.bucket)["CORSRules"]
    except ClientError as error:
        assert error.response["Error"]["Code"] == "NoSuchCORSConfiguration"
        return []
    # Ceph keeps what is in a rule in an order of its own.
    return [
        {name: sorted(value) if isinstance(value, list) else value for name, value in rule.items()} for rule in found
    ]


def test_write_read_edit_and_remove(mounter: Mounter, tmp_path: Path) -> None:
    drive = mounter()
    setting = drive.mount.path / ".sosfs/bucket/cors"
    assert setting.read_text() == ""
    setting.write_text(document(FULL))
    assert rules_of(drive) == [FULL]
    text = setting.read_text()
    assert cors_text.same(cors_text.parse(text), [FULL])
    drive.shell(f"sed s/3600/60/ {setting} > {tmp_path}/new && cat {tmp_path}/new > {setting}")
    assert rules_of(drive) == [{**FULL, "MaxAgeSeconds": 60}]
    drive.shell(f": > {setting}")
    assert setting.read_text() == ""
    assert rules_of(drive) == []
    setting.write_text(document(RULE))
    drive.run("truncate", "-s", "0", setting)
    assert rules_of(drive) == []


def test_a_bad_text_changes_and_sends_nothing(mounter: Mounter, proxy: Proxy, tmp_path: Path) -> None:
    drive = mounter(proxy.endpoint)
    setting = drive.mount.path / ".sosfs/bucket/cors"
    setting.write_text(document(RULE))
    (tmp_path / "bad").write_text(document({**RULE, "AllowedMethods": ["GIT"]}))
    with proxy.recording() as traffic:
        with fails(errno.EINVAL):
            setting.write_text(document({**RULE, "MaxAgeSeconds": "x"}))
        copied = subprocess.run(["cp", tmp_path / "bad", setting], capture_output=True, text=True, check=False)
    assert copied.returncode == 1
    assert "Invalid argument" in copied.stderr
    assert [request.method for request in traffic.of("SETTING") if request.method != "GET"] == []
    assert rules_of(drive) == [RULE]
    errors = (drive.mount.path / ".sosfs/errors").read_text().splitlines()
    assert "bucket/cors: line 10: rule 1, MaxAgeSeconds: 'x' is no number" in errors[0]
    assert "bucket/cors: line 8: rule 1, AllowedMethods: 'GIT' is none of" in errors[1]


def test_the_same_rules_send_nothing(mounter: Mounter, proxy: Proxy) -> None:
    drive = mounter(proxy.endpoint)
    setting = drive.mount.path / ".sosfs/bucket/cors"
    setting.write_text(document(RULE))
    with proxy.recording() as traffic:
        setting.write_text(setting.read_text())
        setting.write_text(document({name: RULE[name] for name in reversed(RULE)}))
    assert [request.method for request in traffic.of("SETTING") if request.method != "GET"] == [], str(traffic)


def test_the_server_goes_by_the_rules(mounter: Mounter, server: Server) -> None:
    drive = mounter()

    def preflight(origin: str) -> int:
        url = f"{server.endpoint}/{drive.foreign.bucket}/key"
        asked = {"Origin": origin, "Access-Control-Request-Method": "GET"}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, method="OPTIONS", headers=asked), timeout=20
            ) as got:
                return int(got.status)
        except urllib.error.HTTPError as error:
            return error.code

    (drive.mount.path / ".sosfs/bucket/cors").write_text(document(RULE))
    assert preflight("https://example.com") == 200
    if server.name == "ceph":  # moto allows any origin once there are rules
        assert preflight("https://elsewhere.net") == 403
