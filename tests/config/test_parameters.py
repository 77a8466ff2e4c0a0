"""One table of parameters: the command line, `-o`, TOML and the manual say the same, and wrong names are refused."""

from __future__ import annotations

import argparse
import dataclasses
import os
import pwd
from pathlib import Path
from typing import Any

import botocore
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sosfs.cli import manual, option_table
from sosfs.config import parameters, values
from sosfs.config.choices import Acls, Canned, Share, Verify
from sosfs.config.parameters import Durability, Exclusive, LogLevel, SettingError, Settings, Shown
from sosfs.config.values import Loopback

CERTIFICATES = Path(botocore.__file__).with_name("cacert.pem")

# For each parameter a text, and the value that it must come to by every way.
SAMPLES: dict[str, tuple[str, Any]] = {
    "endpoint": ("http://localhost:9000", "http://localhost:9000"),
    "zone": ("at-vie-1", "at-vie-1"),
    "profile": ("work", "work"),
    "anonymous": ("yes", True),
    "uid": ("1234", 1234),
    "gid": ("root", 0),
    "umask": ("027", 0o027),
    "allow_other": ("yes", True),
    "read_only": ("true", True),
    "noexec": ("yes", True),
    "ttl": ("2.5", 2.5),
    "cache_dir": ("/var/tmp/c", Path("/var/tmp/c")),
    "durability": ("journal", Durability.JOURNAL),
    "dirty_limit": ("2T", 2 << 40),
    "memory": ("1G", 1 << 30),
    "cache_size": ("3G", 3 << 30),
    "cache_free": ("10%", Share(percent=10.0)),
    "upload_rate": ("10M", 10 << 20),
    "download_rate": ("512K", 512 << 10),
    "transfers": ("8", 8),
    "verify": ("none", Verify.NONE),
    "part_size": ("16M", 16 << 20),
    "attributes": ("listed", Shown.LISTED),
    "exclusive": ("always", Exclusive.ALWAYS),
    "acl": ("public-read", Canned.PUBLIC_READ),
    "acls": ("ignore", Acls.IGNORE),
    "shared_attributes": ("yes", True),
    "storage_class": ("STANDARD_IA", "STANDARD_IA"),
    "sse_c_key": ("/var/tmp/k", Path("/var/tmp/k")),
    "requester_pays": ("yes", True),
    "ca_bundle": (str(CERTIFICATES), CERTIFICATES),
    "link_lifetime": ("600", 600.0),
    "timeout": ("7", 7.0),
    "patience": ("9", 9.0),
    "slow_request": ("600", 600.0),
    "foreground": ("on", True),
    "log_level": ("debug", LogLevel.DEBUG),
    "log_file": ("/var/tmp/l", Path("/var/tmp/l")),
    "metrics": ("[::1]:9500", Loopback("::1", 9500)),
}


def settle(*layers: Any) -> Settings:
    return parameters.resolve("b", "", Path("/m"), layers)


def from_command_line(*arguments: str) -> Any:
    parser = argparse.ArgumentParser()
    parameters.add_arguments(parser)
    return parameters.given(parser.parse_args(arguments))


def from_toml(path: Path, text: str, bucket: str = "b") -> Settings:
    path.write_text(text)
    return settle(*parameters.from_files(bucket, [path]))


def test_every_parameter_has_a_sample() -> None:
    assert set(SAMPLES) == set(parameters.TABLE)


def test_no_sample_is_the_default() -> None:
    plain = settle()
    assert all(getattr(plain, name) != value for name, (_, value) in SAMPLES.items() if name != "gid")


@pytest.mark.parametrize("name", SAMPLES)
def test_all_ways_to_say_it_are_one(name: str, tmp_path: Path) -> None:
    text, value = SAMPLES[name]
    flag = f"--{name.replace('_', '-')}"
    spoken = (flag,) if parameters.TABLE[name].kind is values.FLAG else (flag, text)
    expected = dataclasses.replace(settle(), **{name: value})
    assert settle(from_command_line(*spoken)) == expected
    assert settle(parameters.from_options(f"{name}={text}")) == expected
    assert settle(parameters.from_options(f"{name.replace('_', '-')}={text}")) == expected
    assert from_toml(tmp_path / "t", f'{name} = "{text}"') == expected


def test_toml_may_use_its_own_types(tmp_path: Path) -> None:
    found = from_toml(tmp_path / "t", "uid = 7\nallow_other = true\nttl = 3\ntransfers = 9\n")
    assert (found.uid, found.allow_other, found.ttl, found.transfers) == (7, True, 3.0, 9)


def test_what_is_closer_to_the_mount_holds(tmp_path: Path) -> None:
    own, system = tmp_path / "own", tmp_path / "system"
    own.write_text('ttl = 3\n[mount."b"]\nttl = 2\nzone = "ch-gva-2"\n[mount.other]\nzone = "at-vie-1"\n')
    system.write_text('ttl = 5\nmemory = "1M"\n[mount.b]\nttl = 4\nzone = "de-fra-1"\n')
    files = list(parameters.from_files("b", [own, system]))
    found = settle(from_command_line("--umask", "077"), parameters.from_options("ttl=1,umask=0"), *files)
    assert (found.umask, found.ttl, found.zone, found.memory) == (0o077, 1.0, "ch-gva-2", 1 << 20)
    assert settle(*files).ttl == 2.0
    assert settle(*list(parameters.from_files("c", [own, system]))).ttl == 3.0


def test_a_mount_of_all_buckets_has_a_table_of_its_own(tmp_path: Path) -> None:
    text = 'ttl = 3\n[mount."sos://"]\nttl = 4\n'
    assert from_toml(tmp_path / "t", text, bucket="").ttl == 4.0
    assert from_toml(tmp_path / "t", text, bucket="b").ttl == 3.0


def test_no_key_and_a_profile_are_not_both_meant() -> None:
    with pytest.raises(SettingError, match="leave one of them out"):
        settle(from_command_line("--anonymous"), parameters.from_options("profile=p"))
    assert settle(from_command_line("--no-anonymous"), parameters.from_options("anonymous,profile=p")).profile == "p"


def test_comments_of_fstab_are_passed_over_in_whatever_case() -> None:
    assert parameters.from_options("x-systemd.automount,X-mount.mkdir,Comment=a,HELPER=b,_netdev") == {}


def test_files_that_are_not_there_say_nothing(tmp_path: Path) -> None:
    assert settle(*parameters.from_files("b", [tmp_path / "none"])) == settle()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("alow_other = true", "unknown option 'alow_other'; did you mean 'allow_other'"),
        ("colour = 1", "unknown option 'colour'"),
        ('ttl = "soon"', "ttl: 'soon' is no number of seconds"),
        ("ttl = true", "ttl cannot be True"),
        ('umask = "1777"', "umask: '1777'"),
        ("umask = 77", 'umask cannot be 77; write it as "027"'),
        ("uid = 1.5", "uid cannot be 1.5"),
        ('allow_other = "maybe"', "neither yes nor no"),
        ('part_size = "1M"', "between 5M and 5G"),
        ("[mount.b]\nzoned = 1", "mount b: unknown option 'zoned'; did you mean 'zone'"),
        ("mount = 3", "under"),
        ("= 3", "line 1"),
        ("memory = 256", 'memory cannot be 256; write it with a unit, as "64M"'),
        ("memory = 67108864", "memory cannot be 67108864"),
        ('memory = "256"', "memory: '256' is less than 64K"),
        ('memory = "-1M"', "memory: '-1M' is no size"),
        ('memory = "1000T"', "that this machine has"),
        ("memory = 0", "memory cannot be 0"),
        ("cache_size = 10", "cache_size cannot be 10"),
        ('cache_size = "10K"', "cache_size: '10K' is less than 1M, and not 0"),
        ("dirty_limit = 0", "dirty_limit cannot be 0"),
        ("upload_rate = 100", 'write it with a unit, as "10M", or "0" for no limit'),
        ('download_rate = "100"', "download_rate: '100' is less than 1K a second"),
        ("transfers = 1", "transfers: '1' is no number from 2 to 512"),
        ("transfers = -4", "transfers: '-4' is no number"),
        ('cache_free = "100%"', "cache_free: '100%' is no part of a disk"),
        ('cache_free = "-5G"', "cache_free: '-5G' is no part of a disk"),
        ("ttl = inf", "ttl: 'inf' is no number of seconds"),
        ("ttl = nan", "ttl: 'nan' is no number of seconds"),
        ("ttl = -1", "ttl: '-1' is no number of seconds"),
        ("timeout = 0", "timeout: no answer could come within 0 seconds"),
        ("link_lifetime = 0.5", "link_lifetime: '0.5' is not between"),
        ("link_lifetime = 604801", "link_lifetime: '604801' is not between"),
        ('memory = "1K"', "memory: '1K' is less than 64K"),
        ('memory = "4096T"', "memory: '4096T' is more than"),
        ('cache_size = "1K"', "cache_size: '1K' is less than 1M"),
        ('upload_rate = "10"', "upload_rate: '10' is less than 1K"),
        ('part_size = "6G"', "part_size: '6G' is not between"),
        ('endpoint = "https://host/path"', "endpoint: 'https://host/path' is no endpoint"),
        ("uid = true", "uid cannot be True"),
        ("uid = 4294967295", "uid: '4294967295' is no number of a user"),
        ("gid = 10000000000", "gid: '10000000000' is no number of a group"),
        ('log_file = "~nobody-here/log"', "log_file: '~nobody-here/log' begins with the home of somebody"),
    ],
)
def test_bad_files_are_refused_with_a_reason(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(SettingError) as caught:
        from_toml(tmp_path / "sosfs.toml", text)
    assert complaint in str(caught.value)
    assert str(tmp_path / "sosfs.toml") in str(caught.value)


def test_a_mistake_under_another_bucket_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="zoned"):
        from_toml(tmp_path / "t", "[mount.elsewhere]\nzoned = 1", bucket="b")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("tll=3", "did you mean 'ttl'"), ("ttl", "needs a value"), ("memory=64X", "no size"), ("memory=0", "no size")],
)
def test_bad_options_are_refused_with_a_reason(text: str, complaint: str) -> None:
    with pytest.raises(SettingError, match=complaint):
        parameters.from_options(text)


def test_what_mount_calls_them() -> None:
    assert parameters.from_options("ro,noexec") == {"read_only": True, "noexec": True}
    assert parameters.from_options("ro,noexec,rw,exec,") == {"read_only": False, "noexec": False}


@pytest.mark.parametrize(
    ("source", "bucket", "prefix"),
    [
        ("b", "b", ""),
        ("b/", "b", ""),
        ("b/p", "b", "p/"),
        ("b/p/q/", "b", "p/q/"),
        ("sos://b/p", "b", "p/"),
        ("s3://b", "b", ""),
        ("b//p", "b", "/p/"),
    ],
)
def test_source(source: str, bucket: str, prefix: str) -> None:
    assert parameters.split_source(source) == (bucket, prefix)


def test_source_without_a_bucket() -> None:
    with pytest.raises(SettingError):
        parameters.split_source("/p")


def test_defaults_of_the_process() -> None:
    plain = settle()
    assert (plain.uid, plain.gid) == (os.getuid(), os.getgid())
    assert settle(parameters.from_options(f"uid={pwd.getpwuid(0).pw_name}")).uid == 0


def test_state_of_a_user_and_of_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert settle().state_dir.parent == tmp_path / "sosfs"
    monkeypatch.setenv("HOME", "/home/me")
    for nowhere in ("relative", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", nowhere)
        assert settle().state_dir.parent == Path("/home/me/.cache/sosfs"), "wherever it was called"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert settle().state_dir.parent == Path("/var/cache/sosfs")
    assert settle(parameters.from_options("cache_dir=/x")).state_dir == Path("/x")


def test_the_state_of_all_buckets_is_called_so() -> None:
    """`sosfs clean` finds it by that."""
    assert parameters.resolve("", "", Path("/m"), []).state_dir.name.startswith("all-")


def test_paths_are_whole_and_homes_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A daemon works in /."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    found = parameters.from_options("log_file=log,cache_dir=~/cache")
    assert found == {"log_file": tmp_path / "log", "cache_dir": Path("/home/me/cache")}


def test_the_usual_storage_class_is_none() -> None:
    assert parameters.from_options("storage_class=STANDARD") == {"storage_class": ""}


def test_no_two_mounts_share_their_state() -> None:
    places = [
        parameters.resolve(bucket, prefix, Path("/m"), [{"endpoint": endpoint}])
        for bucket in ("a", "b")
        for prefix in ("", "p/")
        for endpoint in ("http://one", "http://two")
    ]
    assert len({settings.state_dir for settings in places}) == len(places)


def test_settings_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        settle().ttl = 3.0  # type: ignore[misc]


@given(st.integers(min_value=1, max_value=1 << 50))
def test_a_size_reads_back_as_it_is_shown(size: int) -> None:
    assert values.SIZE.parse(values.SIZE.shown(size)) == size


@pytest.mark.parametrize(
    ("text", "size"), [("64M", 64 << 20), ("1g", 1 << 30), ("10KiB", 10 << 10), ("3 MB", 3 << 20), ("7", 7)]
)
def test_sizes(text: str, size: int) -> None:
    assert values.SIZE.parse(text) == size


def test_none_is_said_with_a_plain_zero_where_there_can_be_none(tmp_path: Path) -> None:
    found = from_toml(tmp_path / "t", "cache_size = 0\nupload_rate = 0\ndownload_rate = 0\ncache_free = 0\n")
    assert (found.cache_size, found.upload_rate, found.download_rate, found.cache_free) == (0, 0, 0, Share())


@pytest.mark.parametrize(
    ("text", "disk", "kept"), [("10G", 1 << 40, 10 << 30), ("5%", 200 << 30, 10 << 30), ("0.5%", 200, 1)]
)
def test_a_part_of_a_disk(text: str, disk: int, kept: int) -> None:
    share = values.FREE.parse(text)
    assert share is not None and share.of(disk) == kept
    assert values.FREE.parse(values.FREE.shown(share)) == share


def test_the_page_has_the_tables() -> None:
    text = (manual.PAGES / "options.md").read_text(encoding="utf-8")
    assert option_table.in_page(text) == text, "run 'make docs'"
    assert all(f"--{name.replace('_', '-')}" in text for name in parameters.TABLE)
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == ["Everyday", "Caches", "Tuning"]


def test_help_names_all_words_of_a_choice() -> None:
    for parameter in parameters.TABLE.values():
        assert all(f"`{word}`" in parameter.help for word in parameter.kind.words)
