"""Every parameter of a mount, once: name, type, default, help.

The fields of `Settings` are the table. The command line, `-o name=value` of fstab, the TOML files and the
option table of the README are all made from it. What is said closer to the mount holds:

    command line > -o > ~/.config/sosfs/sosfs.toml > /etc/sosfs.toml > default

and in a file, the table `[mount."BUCKET"]` before the top. Values are frozen; pure functions but for the
reading of the files, safe from any thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import hashlib
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from sosfs.config import values
from sosfs.config.choices import Canned, Verify
from sosfs.config.values import Kind, Loopback
from sosfs.config.zones import NOWHERE, Naming, Place

T = TypeVar("T")

PART_SIZE = 8 << 20  # bytes; the smallest at which the slower lane still moves 1 GB/s
MEMORY = 64 << 20
DIRTY_LIMIT = 10 << 30
ALL = "sos://"  # the source of a mount of all buckets, where one has to be named (fstab)
TTL = 10.0  # seconds; as long as an NFS client trusts what it may not be told of


class SettingError(ValueError):
    """A parameter that is unknown or has a value that it cannot have, in words for the user."""


READ_AHEAD = 4096  # KiB that the kernel reads ahead; with its default of 128 a stream is capped at 0.5 GB/s


class Exclusive(Enum):
    """When a file created with O_EXCL claims its name in the bucket."""

    LOCKS = "locks"  # at open where the name looks like a lock, else at close
    ALWAYS = "always"  # at open: one request more for each file
    CLOSE = "close"  # at close: two hosts may both believe that they made it, one gets ESTALE


class Durability(Enum):
    """What close and fsync wait for."""

    BUCKET = "bucket"  # the object is in the bucket
    JOURNAL = "journal"  # bytes and record are on this machine's disk; the upload follows


class Shown(Enum):
    """What stat shows of an object whose metadata nobody has read."""

    EXACT = "exact"  # its own, for which it is asked
    LISTED = "listed"  # what the listing tells, until that answer is there


class LogLevel(Enum):
    """From which weight on a message is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Parameter:
    """What the user is told of a field. `default` is the text in the README where the value would not do."""

    kind: Kind[Any]
    help: str
    default: str = ""
    short: str = ""


def _option(default: T, kind: Kind[Any], help: str, *, shown: str = "", short: str = "") -> T:
    return field(default=default, metadata={"parameter": Parameter(kind, help, shown, short)})


def _of_process(default: Callable[[], T], kind: Kind[Any], help: str, *, shown: str) -> T:
    return field(default_factory=default, metadata={"parameter": Parameter(kind, help, shown)})


def _cache_root() -> Path:
    if os.geteuid() == 0:
        return Path("/var/cache/sosfs")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sosfs"


@dataclass(frozen=True)
class Settings:
    """What one mount was asked for. `bucket` is "" for all buckets of the account.

    `prefix` is "" or ends with a slash. `mountpoint` is absolute with links resolved. `endpoint` is a URL and
    `zones` may be "" once `placed` was applied; `place` and `naming` tell then where they come from. Sizes are
    bytes, `ttl` seconds.
    """

    bucket: str
    prefix: str
    mountpoint: Path
    endpoint: str = _option("", values.URL, "The S3 server. May hold `{zone}`.", shown="that of the zone")
    zone: str = _option(
        "", values.TEXT.named("ZONE"), "Exoscale zone, such as ch-gva-2.", shown="the one the bucket is in"
    )
    profile: str = _option(
        "", values.TEXT.named("NAME"), "AWS profile to take the key from; no other source is looked at.", shown="none"
    )
    uid: int = _of_process(os.getuid, values.USER, "Owner of files whose metadata names none.", shown="who mounts")
    gid: int = _of_process(os.getgid, values.GROUP, "Group of files whose metadata names none.", shown="who mounts")
    umask: int = _option(0o022, values.OCTAL, "Permission bits taken away from files whose metadata holds no mode.")
    allow_other: bool = _option(False, values.FLAG, "Let other users in; the permission bits then decide.")
    read_only: bool = _option(False, values.FLAG, "Refuse every change.")
    noexec: bool = _option(False, values.FLAG, "Let no program be run from the mount.")
    ttl: float = _option(
        TTL, values.SECONDS, "Seconds for which a listing or an attribute is trusted before the bucket is asked again."
    )
    attributes: Shown = _option(
        Shown.EXACT,
        values.choice(Shown),
        "What `stat` shows first: the object's own mode and time (`exact`), or at once the listing's (`listed`).",
    )
    cache_dir: Path | None = _option(
        None,
        values.PATH.named("DIR"),
        "Where the journal, the files being written and the caches are kept. One directory serves one mount.",
        shown="one for each bucket in `~/.cache/sosfs`; for root in `/var/cache/sosfs`",
    )
    durability: Durability = _option(
        Durability.BUCKET,
        values.choice(Durability),
        "What `close` and `fsync` wait for: the `bucket`, or this machine's `journal`, from which uploads follow.",
    )
    dirty_limit: int = _option(
        DIRTY_LIMIT, values.SIZE, "With the journal: bytes that may wait for their upload before writers are slowed."
    )
    memory: int = _option(
        MEMORY, values.SIZE, "Memory for blocks that were read; names of files may take twice as much."
    )
    cache_size: int = _option(0, values.SIZE, "Disk space for blocks that were read, kept over restarts; 0 for none.")
    verify: Verify = _option(
        Verify.ALL, values.choice(Verify), "Compare bytes with the server's checksums of them: `all`, or `none`."
    )
    part_size: int = _option(
        PART_SIZE,
        values.PART,
        "Size of the first parts of a multipart upload; less on a small disk. Later ones grow so that 4 TiB fits.",
    )
    exclusive: Exclusive = _option(
        Exclusive.LOCKS,
        values.choice(Exclusive),
        "When a file created with `O_EXCL` claims its name in the bucket: at open if it looks like a lock file "
        "(`locks`), at open (`always`), or when it is closed (`close`). With the journal, so does `mkdir`.",
    )
    acl: Canned = _option(
        Canned.PRIVATE,
        values.choice(Canned).named("CANNED"),
        "ACL of new objects: `private`, `public-read`, `public-read-write`, `authenticated-read`, `bucket-owner-read` "
        "or `bucket-owner-full-control`. What exists keeps its own, unless the key may not read that.",
    )
    storage_class: str = _option(
        "", values.STORAGE_CLASS, "Storage class of new objects. What exists keeps its own.", shown="STANDARD"
    )
    sse_c_key: Path | None = _option(
        None,
        values.PATH.named("FILE"),
        "Have the server encrypt each object with the key in this file (SSE-C): 32 bytes, or their base64.",
        shown="none",
    )
    requester_pays: bool = _option(
        False, values.FLAG, "Pay for requests and transfer where the bucket's owner does not."
    )
    link_lifetime: float = _option(
        3600.0,
        values.LIFETIME,
        "Seconds for which a link read from `user.sos.presigned-url` is good; a week at most.",
    )
    ca_bundle: Path | None = _option(
        None, values.CERTIFICATES, "Certificate authorities (PEM) to trust, not the system's.", shown="`AWS_CA_BUNDLE`"
    )
    timeout: float = _option(
        60.0, values.PERIOD, "Seconds without a word from the server after which a request has failed."
    )
    patience: float = _option(
        25.0, values.SECONDS, "Seconds for which a failing request is tried again before the error is passed on."
    )
    foreground: bool = _option(False, values.FLAG, "Stay in the foreground and log to the terminal.", short="-f")
    log_level: LogLevel = _option(
        LogLevel.INFO,
        values.choice(LogLevel),
        "What is logged: messages of this weight (`debug`, `info`, `warning`, `error`) and above.",
    )
    log_file: Path | None = _option(
        None, values.PATH.named("FILE"), "Log into this file.", shown="the system log; with `-f` the terminal"
    )
    metrics: Loopback | Path | None = _option(
        None,
        values.LISTENING,
        "Serve metrics for Prometheus over HTTP: `127.0.0.1:PORT`, `[::1]:PORT`, or the path of a unix socket.",
        shown="none",
    )
    place: Place = NOWHERE
    naming: Naming = Naming.STATED

    @property
    def source(self) -> str:
        """What is mounted, as a user names it."""
        return f"{self.bucket}/{self.prefix}" if self.bucket else ALL

    @property
    def state_dir(self) -> Path:
        """The directory of this mount's journal and spool."""
        if self.cache_dir is not None:
            return self.cache_dir
        place = f"{self.endpoint} {self.bucket} {self.prefix}"
        return _cache_root() / f"{self.bucket or 'all'}-{hashlib.sha256(place.encode()).hexdigest()[:12]}"

    @property
    def region(self) -> str:
        """The region that requests are signed for: the zone where there is one."""
        return Place(self.endpoint, self.zone).region

    def placed(self, place: Place, naming: Naming) -> Settings:
        """The same settings at the place that was found for them."""
        return dataclasses.replace(self, endpoint=place.url, zone=place.zone, place=place, naming=naming)


TABLE: Mapping[str, Parameter] = {
    item.name: item.metadata["parameter"] for item in dataclasses.fields(Settings) if item.metadata
}
# Words of mount(8) for the values of flags.
_SWITCHES = {"ro": {"read_only": True}, "rw": {"read_only": False}, "exec": {"noexec": False}}
_DEFAULTS: Mapping[str, Any] = {item.name: item.default for item in dataclasses.fields(Settings)}


def settle(bucket: str, prefix: str, mountpoint: Path, layers: Iterable[Mapping[str, Any]]) -> Settings:
    """The settings of one mount: each value from the first layer that has it, parsed already."""
    chosen: dict[str, Any] = {}
    for layer in reversed(list(layers)):
        chosen.update(layer)
    return Settings(bucket, prefix, mountpoint, **chosen)


def split_source(source: str) -> tuple[str, str]:
    """Bucket and prefix of `BUCKET[/PREFIX]`, which may begin with `sos://` or `s3://`; `sos://` is all buckets."""
    if source == ALL:
        return "", ""
    for scheme in (ALL, "s3://"):
        source = source.removeprefix(scheme)
    bucket, _, prefix = source.partition("/")
    if not bucket:
        raise SettingError("the bucket has no name")
    return bucket, prefix if not prefix or prefix.endswith("/") else f"{prefix}/"


def add_arguments(parser: argparse.ArgumentParser, names: Sequence[str] = tuple(TABLE)) -> None:
    """Adds these parameters as options. What is not given stays out of the namespace."""
    for name in names:
        parameter = TABLE[name]
        flags = [*([parameter.short] if parameter.short else []), f"--{name.replace('_', '-')}"]
        text = parameter.help.replace("`", "").replace("%", "%%")
        if parameter.kind is values.FLAG:
            parser.add_argument(*flags, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
            continue
        parser.add_argument(
            *flags,
            type=values.for_argparse(parameter.kind),
            metavar=parameter.kind.metavar,
            default=argparse.SUPPRESS,
            help=f"{text} (default: {default_of(name).replace('`', '')})",
        )


def given(arguments: argparse.Namespace) -> Mapping[str, Any]:
    """The layer of what the command line said."""
    return {name: value for name, value in vars(arguments).items() if name in TABLE}


def from_options(text: str) -> Mapping[str, Any]:
    """The layer of an `-o` text, `name=value,name,...`. Raises `SettingError`."""
    layer: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        name, equals, value = item.partition("=")
        if name in _SWITCHES:
            layer |= _SWITCHES[name]
            continue
        parameter = _parameter(name, "-o")
        if not equals and parameter.kind is not values.FLAG:
            raise SettingError(f"-o {name} needs a value")
        layer[_plain(name)] = _parsed(parameter.kind, value if equals else "yes", f"-o {name}")
    return layer


def files() -> Sequence[Path]:
    """The TOML files that are read where they exist, the strongest first."""
    own = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return (own / "sosfs/sosfs.toml", Path("/etc/sosfs.toml"))


def from_files(bucket: str, paths: Sequence[Path]) -> Iterator[Mapping[str, Any]]:
    """The layers of the TOML files for one bucket, the strongest first. Raises `SettingError`."""
    for path in paths:
        if not path.exists():
            continue
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingError(f"{path}: {error}") from error
        mounts = document.pop("mount", {})
        if not isinstance(mounts, dict) or not all(isinstance(table, dict) for table in mounts.values()):
            raise SettingError(f'{path}: write the settings of one bucket under [mount."BUCKET"]')
        layers = {name: _from_table(table, f"{path}, mount {name}") for name, table in mounts.items()}
        yield layers.get(bucket or ALL, {})
        yield _from_table(document, str(path))


def _from_table(table: Mapping[str, object], where: str) -> Mapping[str, Any]:
    layer = {}
    for name, value in table.items():
        kind = _parameter(name, where).kind
        text = value if isinstance(value, str) else kind.text(value)
        if text is None:
            raise SettingError(f"{where}: {name} cannot be {value!r}")
        layer[_plain(name)] = _parsed(kind, text, f"{where}: {name}")
    return layer


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _parameter(name: str, where: str) -> Parameter:
    plain = _plain(name)
    if plain not in TABLE:
        near = difflib.get_close_matches(plain, TABLE, n=1, cutoff=0.5)
        raise SettingError(f"{where}: unknown option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return TABLE[plain]


def _parsed(kind: Kind[T], text: str, where: str) -> T:
    try:
        return kind.parse(text)
    except ValueError as error:
        raise SettingError(f"{where}: {error}") from error


def default_of(name: str) -> str:
    """The default of a parameter as the README shows it."""
    parameter = TABLE[name]
    return parameter.default or f"`{parameter.kind.shown(_DEFAULTS[name])}`"
