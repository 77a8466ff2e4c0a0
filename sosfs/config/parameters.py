"""Every option of a mount, once: name, type, default, help.

The fields of `Settings` are the table. The command line, `-o name=value` of fstab, the TOML files and the
option table of the pages are all made from it. What is said closer to the mount holds:

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
from sosfs.config.choices import Acls, Canned, Share, Verify
from sosfs.config.values import Kind, Loopback
from sosfs.config.zones import NOWHERE, Naming, Place

T = TypeVar("T")

PART_SIZE = 8 << 20  # bytes; the smallest at which uploads still move 1 GB/s
MEMORY = 64 << 20
DIRTY_LIMIT = 10 << 30
TRANSFERS = 48
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
    WRITEBACK = "writeback"  # close: they are written; fsync: on the disk, where all comes within a second


class Shown(Enum):
    """What `stat` shows of an object whose metadata nobody has read."""

    EXACT = "exact"  # its own, for which it is asked
    LISTED = "listed"  # what the listing shows, until that answer is there


class LogLevel(Enum):
    """From which weight on a message is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Group(Enum):
    """How parameters are sorted for the user."""

    EVERYDAY = "everyday"
    CACHES = "caches"
    TUNING = "tuning"


@dataclass(frozen=True, slots=True)
class Parameter:
    """What the user is told of a field. `default` is the text in the table where the value would not do."""

    kind: Kind[Any]
    help: str
    group: Group
    default: str = ""
    short: str = ""


def _option(default: T, kind: Kind[Any], help: str, group: Group, *, shown: str = "", short: str = "") -> T:
    return field(default=default, metadata={"parameter": Parameter(kind, help, group, shown, short)})


def _of_process(default: Callable[[], T], kind: Kind[Any], help: str, group: Group, *, shown: str) -> T:
    return field(default_factory=default, metadata={"parameter": Parameter(kind, help, group, shown)})


def cache_root() -> Path:
    """Where the directories are that nobody has named with `--cache-dir`.

    A relative $XDG_CACHE_HOME is none (XDG base directories): what a mount has left there no other would find.
    """
    if os.geteuid() == 0:
        return Path("/var/cache/sosfs")
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "sosfs"


@dataclass(frozen=True)
class Settings:
    """What one mount was asked for. `bucket` is "" for all buckets of the account.

    `prefix` is "" or ends with a slash. `mountpoint` is absolute with links resolved. `endpoint` is a URL and
    `zone` may be "" once `placed` was applied; `place` and `naming` say then where they come from. Sizes are
    bytes, `ttl` seconds. `named` is the source as the user wrote it, which the mount table shows.
    """

    bucket: str
    prefix: str
    mountpoint: Path
    endpoint: str = _option(
        "", values.URL, "The S3 server. May hold `{zone}`.", Group.EVERYDAY, shown="that of the zone"
    )
    zone: str = _option(
        "",
        values.TEXT.named("ZONE"),
        "Exoscale zone, such as ch-gva-2.",
        Group.EVERYDAY,
        shown="the one the bucket is in",
    )
    profile: str = _option(
        "",
        values.TEXT.named("NAME"),
        "AWS profile to take the key from; no other source is looked at.",
        Group.EVERYDAY,
        shown="none",
    )
    anonymous: bool = _option(
        False,
        values.FLAG,
        "Use no key, for a public bucket: it is read-only unless anybody may write to it.",
        Group.EVERYDAY,
    )
    uid: int = _of_process(
        os.getuid, values.USER, "Owner of files whose metadata names none.", Group.EVERYDAY, shown="who mounts"
    )
    gid: int = _of_process(
        os.getgid, values.GROUP, "Group of files whose metadata names none.", Group.EVERYDAY, shown="who mounts"
    )
    umask: int = _option(
        0o022, values.OCTAL, "Permission bits taken away from files whose metadata holds no mode.", Group.EVERYDAY
    )
    allow_other: bool = _option(
        False, values.FLAG, "Let other users in; the permission bits then decide.", Group.EVERYDAY
    )
    read_only: bool = _option(False, values.FLAG, "Refuse every change.", Group.EVERYDAY)
    noexec: bool = _option(False, values.FLAG, "Let no program be run from the mount.", Group.EVERYDAY)
    ttl: float = _option(
        TTL,
        values.SECONDS,
        "Seconds for which a listing or an attribute is trusted before the bucket is asked again.",
        Group.CACHES,
    )
    attributes: Shown = _option(
        Shown.EXACT,
        values.choice(Shown),
        "What `stat` shows first: the object's own mode and time (`exact`), or at once the listing's (`listed`).",
        Group.CACHES,
    )
    shared_attributes: bool = _option(
        False,
        values.FLAG,
        "Share attributes with mounts on other machines by an index in the bucket, below `.sosfs-attributes`.",
        Group.CACHES,
    )
    cache_dir: Path | None = _option(
        None,
        values.PATH.named("DIR"),
        "Where the journal, the files being written and the caches are kept. One directory serves one mount.",
        Group.CACHES,
        shown="one for each bucket in `~/.cache/sosfs`; for root in `/var/cache/sosfs`",
    )
    durability: Durability = _option(
        Durability.BUCKET,
        values.choice(Durability),
        "What `close` and `fsync` wait for: the `bucket`; this machine's `journal`, from which uploads follow; with "
        "`writeback` only `fsync` waits for that, and a power cut can take the last second of the rest.",
        Group.EVERYDAY,
    )
    dirty_limit: int = _option(
        DIRTY_LIMIT,
        values.SIZE,
        "Bytes that stay here of a file which is being written, at least three parts: a longer one goes up meanwhile. "
        "With the journal also bytes that may wait for their upload before writers are slowed.",
        Group.CACHES,
    )
    memory: int = _option(
        MEMORY, values.MEMORY, "Memory for blocks that were read; names of files may take twice as much.", Group.CACHES
    )
    cache_size: int = _option(
        0, values.CACHE, "Disk space for blocks that were read, kept over restarts; 0 for none.", Group.CACHES
    )
    cache_free: Share | None = _option(
        None,
        values.FREE,
        "Free space that is kept on the disk of the cache directory. Blocks that were read give way first, then "
        "writers are slowed as on a small disk.",
        Group.CACHES,
        shown="none for files being written; for blocks `1G` or `5%`, the larger",
    )
    upload_rate: int = _option(
        0,
        values.RATE,
        "Bytes a second that go to the server at most, all requests together; 0 for no limit.",
        Group.TUNING,
    )
    download_rate: int = _option(
        0,
        values.RATE,
        "Bytes a second that come from the server at most, all requests together; 0 for no limit.",
        Group.TUNING,
    )
    transfers: int = _option(
        TRANSFERS,
        values.TRANSFERS,
        "Requests to the server side by side; fewer for a while when it asks for that (503, 429).",
        Group.TUNING,
    )
    verify: Verify = _option(
        Verify.ALL,
        values.choice(Verify),
        "Compare bytes with the server's checksums of them: `all`, or `none`.",
        Group.TUNING,
    )
    part_size: int = _option(
        PART_SIZE,
        values.PART,
        "Size of the first parts of a multipart upload; less on a small disk. Later ones grow so that 4 TiB fits.",
        Group.TUNING,
    )
    exclusive: Exclusive = _option(
        Exclusive.LOCKS,
        values.choice(Exclusive),
        "When a file created with `O_EXCL` claims its name in the bucket: at open if it looks like a lock file "
        "(`locks`), at open (`always`), or when it is closed (`close`). With the journal, so does `mkdir`.",
        Group.TUNING,
    )
    acl: Canned = _option(
        Canned.PRIVATE,
        values.choice(Canned).named("CANNED"),
        "ACL of new objects: `private`, `public-read`, `public-read-write`, `authenticated-read`, `bucket-owner-read` "
        "or `bucket-owner-full-control`. What exists keeps its own, unless the key may not read that.",
        Group.EVERYDAY,
    )
    acls: Acls = _option(
        Acls.AUTO,
        values.choice(Acls),
        "Whether what is renamed, rewritten or given other attributes keeps its ACL, which costs a request more "
        "(`keep`), or gets that of `--acl` (`ignore`). `auto` keeps it, unless the bucket's ownership rules say that "
        "ACLs have no effect.",
        Group.TUNING,
    )
    storage_class: str = _option(
        "",
        values.STORAGE_CLASS,
        "Storage class of new objects. What exists keeps its own.",
        Group.EVERYDAY,
        shown="STANDARD",
    )
    sse_c_key: Path | None = _option(
        None,
        values.PATH.named("FILE"),
        "Have the server encrypt each object with the key in this file (SSE-C): 32 bytes, or their base64.",
        Group.EVERYDAY,
        shown="none",
    )
    requester_pays: bool = _option(
        False, values.FLAG, "Pay for requests and transfer where the bucket's owner does not.", Group.EVERYDAY
    )
    link_lifetime: float = _option(
        3600.0,
        values.LIFETIME,
        "Seconds for which a link read from `user.sos.presigned-url` is good; a week at most.",
        Group.TUNING,
    )
    ca_bundle: Path | None = _option(
        None,
        values.CERTIFICATES,
        "Certificate authorities (PEM) to trust, not the system's.",
        Group.EVERYDAY,
        shown="`AWS_CA_BUNDLE`",
    )
    timeout: float = _option(
        60.0, values.PERIOD, "Seconds without a word from the server after which a request has failed.", Group.TUNING
    )
    patience: float = _option(
        25.0,
        values.SECONDS,
        "Seconds for which a failing request is tried again before the error is passed on.",
        Group.TUNING,
    )
    foreground: bool = _option(
        False, values.FLAG, "Stay in the foreground and log to the terminal.", Group.EVERYDAY, short="-f"
    )
    slow_request: float = _option(
        120.0,
        values.SECONDS,
        "Seconds after which a request that waits has the log told all that is under way; 0 for never.",
        Group.TUNING,
    )
    log_level: LogLevel = _option(
        LogLevel.INFO,
        values.choice(LogLevel),
        "What is logged: messages of this weight (`debug`, `info`, `warning`, `error`) and above.",
        Group.EVERYDAY,
    )
    log_file: Path | None = _option(
        None,
        values.PATH.named("FILE"),
        "Log into this file.",
        Group.EVERYDAY,
        shown="the system log; with `-f` the terminal",
    )
    metrics: Loopback | Path | None = _option(
        None,
        values.LISTENING,
        "Serve metrics for Prometheus over HTTP: `127.0.0.1:PORT`, `[::1]:PORT`, or the path of a unix socket.",
        Group.TUNING,
        shown="none",
    )
    place: Place = NOWHERE
    naming: Naming = Naming.STATED
    named: str = ""

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
        return cache_root() / f"{self.bucket or 'all'}-{hashlib.sha256(place.encode()).hexdigest()[:12]}"

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
# fmt: off
# Words of fstab(5) that mount(8) and systemd read for themselves, or that are true of every FUSE mount.
GENERIC = frozenset(
    {
        "defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev", "async",
        "sync", "dirsync", "relatime", "norelatime", "strictatime", "nostrictatime", "atime", "noatime",
        "diratime", "nodiratime", "lazytime", "nolazytime", "suid", "nosuid", "dev", "nodev",
        "iversion", "noiversion", "silent", "loud", "fail",
    }
)
# fmt: on
COMMENTS = ("x-", "comment=", "uhelper=", "helper=")  # in whatever case
# Words of mount(8) for the values of flags.
_SWITCHES = {"ro": {"read_only": True}, "rw": {"read_only": False}, "exec": {"noexec": False}}
_DEFAULTS: Mapping[str, Any] = {item.name: item.default for item in dataclasses.fields(Settings)}


def resolve(bucket: str, prefix: str, mountpoint: Path, layers: Iterable[Mapping[str, Any]]) -> Settings:
    """The settings of one mount: each value from the first layer that has it, parsed already."""
    chosen: dict[str, Any] = {}
    for layer in reversed(list(layers)):
        chosen.update(layer)
    if chosen.get("anonymous") and chosen.get("profile"):
        raise SettingError("--anonymous uses no key, and --profile names one: leave one of them out")
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
    """Adds these parameters as options, by group. What is not given stays out of the namespace."""
    for group in Group:
        within = parser.add_argument_group(group.value)
        for name in (name for name in names if TABLE[name].group is group):
            _add_argument(within, name)


def _add_argument(group: argparse._ArgumentGroup, name: str) -> None:
    parameter = TABLE[name]
    text = parameter.help.replace("`", "").replace("%", "%%")
    if parameter.kind is values.FLAG:
        group.add_argument(
            *flags(name), action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=f"{text} (default: no)"
        )
        return
    group.add_argument(
        *flags(name),
        type=values.for_argparse(parameter.kind),
        metavar=parameter.kind.metavar,
        default=argparse.SUPPRESS,
        help=f"{text} (default: {default_of(name).replace('`', '')})".replace("%", "%%"),  # argparse expands it
    )


def flags(name: str) -> Sequence[str]:
    """How a parameter is written on the command line."""
    short = TABLE[name].short
    return (*([short] if short else []), f"--{name.replace('_', '-')}")


def given(arguments: argparse.Namespace) -> Mapping[str, Any]:
    """The layer of what the command line said."""
    return {name: value for name, value in vars(arguments).items() if name in TABLE}


def from_options(text: str) -> Mapping[str, Any]:
    """The layer of an `-o` text, `name=value,name,...`, as fstab has it. Raises `SettingError`."""
    layer: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        if item in GENERIC or item.lower().startswith(COMMENTS):
            continue
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
            raise SettingError(f"{where}: {name} cannot be {value!r}" + (f"; {kind.hint}" if kind.hint else ""))
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
    """The default of a parameter as the table shows it."""
    parameter = TABLE[name]
    return parameter.default or f"`{parameter.kind.shown(_DEFAULTS[name])}`"
