"""A bucket is found in whatever zone it is: real mounts, on a server of two zones that answers as SOS does.

Each zone is a port of its own, so that `http://127.0.0.1:{zone}` is the endpoint of all. A HEAD of the bucket
tells the zone at either; all else of the bucket is refused in the zone where it is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sosfs.config.zones import Place
from sosfs.daemon.launch import Exit
from tests.conftest import new_bucket
from tests.support.faults import Answer
from tests.support.foreign import Foreign
from tests.support.mounting import Access, Mount, MountFailed, run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import Op, on
from tests.support.watchdog import Watchdog

TEMPLATE = "http://127.0.0.1:{zone}"


@dataclass
class Zones:
    """A bucket that is in `home`, and another zone."""

    home: Proxy
    other: Proxy
    bucket: Foreign
    server: Server

    def tell(self, region: str, *zones: Proxy) -> None:
        """What a HEAD of the bucket is answered; "" for nothing of a region."""
        headers = (f"x-amz-bucket-region: {region}",) if region else ()
        for zone in zones or (self.home, self.other):
            zone.heal()
            zone.inject(Answer(403, headers=headers), on(Op.HEAD_BUCKET))
        self.other.inject(Answer(301, "PermanentRedirect", headers=(*headers, "Location: http://192.0.2.1/")))

    def mount(self, base: Path, watchdog: Watchdog, *options: str, **environment: str) -> Mount:
        """A mount that is told the endpoints of all zones, and no more than the options say."""
        access = Access(TEMPLATE, self.server.key, self.server.secret)
        mount = Mount(access, self.bucket.bucket, base, watchdog, options)
        mount.environment |= environment
        return mount


def name(zone: Proxy) -> str:
    return str(urlsplit(zone.endpoint).port)


def signed(zone: Proxy) -> list[str]:
    """The requests at a zone that a key has signed."""
    return [str(request) for request in zone.requests if "authorization" in request.headers]


@pytest.fixture
def zones(moto: Server) -> Iterator[Zones]:
    with Proxy(moto.endpoint) as home, Proxy(moto.endpoint) as other:
        found = Zones(home, other, new_bucket(moto), moto)
        found.tell(name(home))
        yield found


def test_the_account_s_zone_is_a_guess_only(zones: Zones, tmp_path: Path, watchdog: Watchdog) -> None:
    with zones.mount(tmp_path, watchdog, EXOSCALE_ZONE=name(zones.other)) as mount:
        (mount.path / "file").write_text("found")
        assert f"is in zone {name(zones.home)}, as {zones.other.endpoint} answered" in mount.log
        assert f'"endpoint": "{zones.home.endpoint}"' in (mount.path / ".sosfs/status").read_text()
    assert zones.bucket.get("file") == b"found"
    assert signed(zones.other) == []
    assert zones.other.count() == 1


def test_a_stated_zone_costs_no_question(zones: Zones, tmp_path: Path, watchdog: Watchdog) -> None:
    with zones.mount(tmp_path, watchdog, "--zone", name(zones.home)):
        pass
    assert (zones.home.count(Op.HEAD_BUCKET), zones.other.count()) == (0, 0)


def test_a_stated_zone_that_is_wrong_is_one_line_with_the_right_one(
    zones: Zones, tmp_path: Path, watchdog: Watchdog
) -> None:
    mount = zones.mount(tmp_path, watchdog, "--zone", name(zones.other))
    with pytest.raises(
        MountFailed, match=rf"is in zone {name(zones.home)}, not in {name(zones.other)}: correct --zone"
    ):
        mount.start()
    assert zones.home.count() == 0


@pytest.mark.parametrize("answer", ["", "sos.evil.example", "9@evil.example", "9/../x", "-", "9" * 64])
def test_an_answer_that_names_no_zone_leaves_the_guess(
    zones: Zones, tmp_path: Path, watchdog: Watchdog, answer: str
) -> None:
    zones.tell(answer, zones.home)
    with zones.mount(tmp_path, watchdog, EXOSCALE_ZONE=name(zones.home)) as mount:
        (mount.path / "file").write_text("here")
        assert f"zone {name(zones.home)} is assumed: {zones.home.endpoint} does not say" in mount.log
    assert zones.bucket.get("file") == b"here"


def test_an_endpoint_without_zones_is_asked_only_why_it_refused(
    zones: Zones, tmp_path: Path, watchdog: Watchdog
) -> None:
    environment = zones.mount(tmp_path, watchdog).environment | {"EXOSCALE_SOS_ENDPOINT": zones.other.endpoint}
    done = run_sosfs(["mount", zones.bucket.bucket, tmp_path / "mnt"], environment)
    assert done.returncode == Exit.LASTING
    assert re.fullmatch(
        rf"sosfs: .* is in region {name(zones.home)}, not in us-east-1: give it as --zone\n", done.stderr
    )
    assert zones.home.count() == 0


@pytest.mark.parametrize("label", ["", "a.b", "a/b", "a:1", "a@b", "A", "a b", "é", "-a", "a" * 64, "a\n"])
def test_a_zone_is_one_label_of_a_host_name(label: str) -> None:
    with pytest.raises(ValueError, match="no name of a zone"):
        Place("https://sos-{zone}.exo.io", "ch-dk-2").moved(label)


@pytest.mark.parametrize(
    ("endpoint", "moved"),
    [
        ("https://sos-{zone}.exo.io", "https://sos-at-vie-1.exo.io"),
        ("http://localhost:9000", "http://localhost:9000"),  # the same server, signing for another region
    ],
)
def test_the_provider_stays_the_same(endpoint: str, moved: str) -> None:
    place = Place(endpoint, "ch-dk-2").moved("at-vie-1")
    assert (place.url, place.region) == (moved, "at-vie-1")


def test_doctor_finds_the_zone(zones: Zones, tmp_path: Path, watchdog: Watchdog) -> None:
    mount = zones.mount(tmp_path, watchdog, EXOSCALE_ZONE=name(zones.other))
    done = run_sosfs(["doctor", zones.bucket.bucket, "--endpoint", TEMPLATE], mount.environment)
    assert done.returncode == 0, done.stdout
    assert re.search(rf"^ok +zone +{name(zones.home)}: .* says that the bucket is there$", done.stdout, re.MULTILINE)
    assert signed(zones.other) == []


def test_doctor_tells_of_a_wrong_one_in_one_line(zones: Zones, tmp_path: Path, watchdog: Watchdog) -> None:
    mount = zones.mount(tmp_path, watchdog)
    arguments = ["doctor", zones.bucket.bucket, "--endpoint", TEMPLATE, "--zone", name(zones.other)]
    done = run_sosfs(arguments, mount.environment)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert f"is in zone {name(zones.home)}, not in {name(zones.other)}" in line
