"""Metrics of a real mount, and the dashboard over them: by a real Prometheus where Debian's is installed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import sosfs
from tests.conftest import Mounter
from tests.support.drive import Drive
from tests.support.faults import Answer
from tests.support.mounting import run_sosfs
from tests.support.processes import Process, free_port, listening
from tests.support.proxy import Proxy
from tests.support.traffic import on
from tests.support.waiting import until

DASHBOARD = Path(sosfs.__file__).parent / "docs/grafana.json"
PROMETHEUS = shutil.which("prometheus")
SCRAPES = "15s"  # in place of Grafana's $__rate_interval
PROMETHEUS_START = 60.0  # seconds
Samples = dict[tuple[str, ...], float]


def scraped(port: int) -> str:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    client.request("GET", "/metrics")
    answer = client.getresponse()
    assert answer.status == 200
    text = answer.read().decode()
    client.close()
    return text


def samples(text: str) -> Samples:
    """By name and the values of their labels, as these are ordered by their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def expressions() -> dict[str, str]:
    """All expressions of the dashboard with the titles of their panels, as Grafana would send them."""
    document = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in document["panels"]
        for target in panel["targets"]
    }
    return {name: text.replace("$__rate_interval", SCRAPES).replace("$instance", ".*") for name, text in found.items()}


def work(drive: Drive) -> None:
    """What makes each of the metrics move."""
    (drive.here / "file").write_bytes(b"x" * 10_000)
    drive.run("cat", "file")
    name = f"foreign-{os.urandom(4).hex()}"
    drive.foreign.put(name, b"y" * 3000)
    drive.run("cat", drive.mount.path / name)
    with contextlib.suppress(FileNotFoundError):
        (drive.here / f"absent-{os.urandom(4).hex()}").stat()
    drive.run("ls", "-la", drive.here)
    (drive.here / "file").unlink()


def test_a_mount_counts_what_is_asked_of_it(mounter: Mounter, proxy: Proxy) -> None:
    port = free_port()
    drive = mounter(proxy.endpoint, "--metrics", f"127.0.0.1:{port}")
    before = samples(scraped(port))
    (drive.here / "file").write_bytes(b"x" * 10_000)
    assert (drive.here / "file").read_bytes() == b"x" * 10_000
    with pytest.raises(FileNotFoundError):
        (drive.here / "absent").stat()
    after = samples(scraped(port))

    def more(*name: str) -> float:
        return after[name] - before.get(name, 0)

    assert more("sosfs_kernel_bytes_total", "write") == 10_000
    assert more("sosfs_kernel_request_seconds_count", "create") == 1
    assert more("sosfs_kernel_request_seconds_bucket", "+Inf", "create") == 1
    assert more("sosfs_kernel_errors_total", "ENOENT", "lookup") >= 1
    assert more("sosfs_s3_request_seconds_count", "PutObject") == 1
    assert more("sosfs_s3_body_bytes_total", "sent") == 10_000
    assert after["sosfs_mount", drive.foreign.bucket, str(drive.mount.path), sosfs.__version__] == 1
    assert after["sosfs_kernel_requests_under_way",] == after["sosfs_s3_requests_under_way",] == 0
    assert set(samples((drive.mount.path / ".sosfs/metrics").read_text())) >= set(after)


def test_tries_and_errors_are_counted(mounter: Mounter, proxy: Proxy) -> None:
    port = free_port()
    drive = mounter(proxy.endpoint, "--metrics", f"127.0.0.1:{port}")
    drive.mount.allow_log("WARNING")
    before = samples(scraped(port))
    with proxy.broken(Answer(503, "SlowDown"), on("PUT"), times=2):
        (drive.here / "file").write_bytes(b"x")
    after = samples(scraped(port))
    name = ("sosfs_s3_retries_total", "PutObject")
    assert after[name] - before[name] == 2
    with proxy.broken(Answer(403, "AccessDenied"), on("PUT"), times=1), pytest.raises(PermissionError):
        (drive.here / "other").write_bytes(b"x")
    errors = ("sosfs_s3_errors_total", "PutObject", "403")
    final = samples(scraped(port))
    assert final[errors] - before.get(errors, 0) == 1


def test_only_the_loopback_is_served_and_a_taken_port_is_no_mount(mounter: Mounter, tmp_path: Path) -> None:
    drive = mounter()
    place: list[str | Path] = [
        "mount",
        drive.foreign.bucket,
        tmp_path / "other",
        "--endpoint",
        drive.mount.access.endpoint,
    ]
    (tmp_path / "other").mkdir()
    port = int(drive.mount.access.endpoint.rpartition(":")[2])  # the S3 server's
    for address, code in (("0.0.0.0:9500", 2), (f"127.0.0.1:{port}", 1), (str(Path(__file__)), 1)):
        done = run_sosfs([*place, "--metrics", address, "--cache-dir", tmp_path / "cache"], drive.mount.environment)
        assert done.returncode == code, done.stderr
        assert "metrics" in done.stderr
        assert not (tmp_path / "other/.sosfs").exists()
    assert (
        "Address already in use"
        in run_sosfs(
            [*place, "--metrics", f"127.0.0.1:{port}", "--cache-dir", tmp_path / "cache"], drive.mount.environment
        ).stderr
    )


def query(port: int, expression: str) -> list[Mapping[str, Any]]:
    """What Prometheus answers, raised as an error where it does not understand."""
    url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        document = json.load(answer)
    assert document["status"] == "success"
    found: list[Mapping[str, Any]] = document["data"]["result"]
    return found


@contextlib.contextmanager
def prometheus(target: int, base: Path) -> Iterator[int]:
    """A Prometheus that scrapes this port each second; its own port."""
    port = free_port()
    settings = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "sosfs", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
    }
    (base / "prometheus.yml").write_text(json.dumps(settings))  # JSON is YAML
    command = [
        str(PROMETHEUS),
        f"--config.file={base / 'prometheus.yml'}",
        f"--storage.tsdb.path={base / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    process = Process(command, base / "prometheus.log")
    try:
        process.until(lambda: listening(port), PROMETHEUS_START)
        yield port
    finally:
        process.end()


def test_each_expression_of_the_dashboard_shows_something(mounter: Mounter, tmp_path: Path) -> None:
    port = free_port()
    drive = mounter("", "--metrics", f"127.0.0.1:{port}", "--cache-size", "16M", "--ttl", "0")
    work(drive)
    if PROMETHEUS is None:  # then at least each name is one of ours
        names = {name for name, *_ in samples(scraped(port))}
        for title, expression in expressions().items():
            assert set(re.findall(r"sosfs_\w+", expression)) <= names, title
        return
    missing = expressions()
    with prometheus(port, tmp_path) as server:

        def all_show() -> bool:
            work(drive)
            for title, expression in list(missing.items()):
                if any(item["value"][1] != "NaN" for item in query(server, expression)):
                    del missing[title]
            return not missing

        with contextlib.suppress(AssertionError):
            until(all_show, "every panel shows something")
    assert missing == {}


def test_the_dashboard_is_one_of_grafana() -> None:
    document = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert {variable["name"] for variable in document["templating"]["list"]} == {"datasource", "instance"}
    panels = document["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 10
    taken = [spot for panel in panels for spot in spots(**panel["gridPos"])]
    assert len(set(taken)) == len(taken), "panels lie on one another"
    assert max(x for x, _ in taken) < 24
    variables = {name for target in targets(document) for name in re.findall(r"\$(\w+)", target["expr"])}
    assert variables == {"instance", "__rate_interval"}


def spots(x: int, y: int, w: int, h: int) -> list[tuple[int, int]]:
    return [(column, row) for column in range(x, x + w) for row in range(y, y + h)]


def targets(document: Any) -> list[Mapping[str, str]]:
    return [target for panel in document["panels"] for target in panel["targets"]]
