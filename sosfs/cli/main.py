"""The program: its commands, their options and exit codes.

Exit codes: 0 well; 1 failed, with one line on standard error; 2 wrong usage; 3 (umount) the time ran out or changes
are left over; 78 (mount) failed, and fails again until what was asked for is changed. What a command needs is imported
when it runs: `sosfs mount` forks before anything that starts a thread is loaded, and `sosfs --help` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sosfs
from sosfs.cli import option_table, usage
from sosfs.cli.standard_output import none_closed, until_unread
from sosfs.config import key_search, moments, parameters, values, zones
from sosfs.config.credentials import Anonymous, Found, Surroundings
from sosfs.config.key_search import Finder
from sosfs.config.parameters import LogLevel, SettingError, Settings
from sosfs.config.zones import Naming, Place
from sosfs.daemon import launch, mountpoint, remount
from sosfs.daemon.launch import Exit
from sosfs.daemon.mountpoint import StartError
from sosfs.log import level

# The parameters on which it depends whether a mount can work.
EXAMINED = (
    "endpoint",
    "zone",
    "profile",
    "anonymous",
    "allow_other",
    "read_only",
    "cache_dir",
    "durability",
    "sse_c_key",
    "requester_pays",
    "ca_bundle",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code."""
    none_closed()
    try:
        return until_unread(lambda: _run(arguments))
    except OSError as error:
        return launch.report(error)


def _run(arguments: Sequence[str] | None) -> int:
    parser = command_line()
    options = _parsed(parser, arguments)
    if not hasattr(options, "run"):
        parser.print_help(sys.stderr)
        return Exit.USAGE
    if looks_into := getattr(options, "looks_into", None):
        from sosfs.cli import supervision  # noqa: PLC0415

        return supervision.run(lambda: _done(options), looks_into(options))
    return _done(options)


def _done(options: argparse.Namespace) -> int:
    """Does what the options say and returns the exit code."""
    try:
        return int(options.run(options))
    except SettingError as error:
        launch.report(error)
        return Exit.USAGE
    except BrokenPipeError:
        raise  # it depends on whose
    except (StartError, OSError) as error:
        return launch.report(error)
    except KeyboardInterrupt:
        return 130  # as a shell says it


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options. An optional word that stands after an option (`mount BUCKET -f DIR`) argparse leaves over."""
    options, over = parser.parse_known_args(arguments)
    are_words = not any(word.startswith("-") for word in over)
    if len(over) == 1 and are_words and vars(options).get("directory", over) is None:
        options.directory = over[0]
    elif over and are_words and "paths" in options:
        options.paths = [*options.paths, *over]
    elif over:
        parser.error(f"unrecognized arguments: {' '.join(over)}")
    return options


def command_line() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = usage.Parser(
        prog="sosfs",
        description=usage.PROGRAM,
        epilog="'sosfs COMMAND --help' shows options, examples and exit codes, 'sosfs help' the pages of the manual.",
    )
    parser.add_argument("--version", action="version", version=f"sosfs {sosfs.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")

    _add_mount(commands)
    umount = usage.add(commands, "umount")
    umount.add_argument("directory", metavar="MOUNTPOINT")
    how = umount.add_mutually_exclusive_group()
    how.add_argument("--timeout", type=float, metavar="SECONDS", help="wait no longer, then exit with 3")
    how.add_argument("-l", "--lazy", action="store_true", help="detach it even while it is in use, and do not wait")
    umount.set_defaults(run=_umount)

    _add_status(commands)
    _add_pending(commands)
    _add_acl(commands)
    _add_objects(commands)
    _add_limit(commands)
    _add_clean(commands)
    _add_log(commands)
    _add_profile(commands)
    _add_caches(commands)
    _add_restore(commands)
    _add_versions(commands)
    _add_bench(commands)
    _add_doctor(commands)

    demo = usage.add(commands, "demo")
    demo.add_argument("directory", metavar="DIR", nargs="?", help="where to mount (default: a new directory)")
    demo.set_defaults(run=_demo)

    help_ = usage.add(commands, "help")
    help_.add_argument("topic", metavar="TOPIC", nargs="?", help="a page of the manual, or a command")
    help_.set_defaults(run=lambda options: _help(options, commands.choices))

    tables = commands.add_parser("options")  # no help: it is for those who write the pages
    tables.add_argument("page", type=Path)
    tables.set_defaults(run=_options)
    return parser


def _supervise(*commands: argparse.ArgumentParser) -> None:
    """What these commands have as PATH lies in mounts of ours, whose daemons may hang."""
    for command in commands:
        command.set_defaults(looks_into=lambda options: options.paths or ["."])


def _add_mount(commands: Any) -> None:
    mount = usage.add(commands, "mount")
    mount.add_argument(
        "source", metavar="[BUCKET[/PREFIX]]", help="what to mount; without it all buckets of the account"
    )
    mount.add_argument("directory", metavar="MOUNTPOINT", nargs="?", help="an empty directory")
    mount.add_argument(
        "-o",
        dest="fstab",
        action="append",
        default=[],
        metavar="NAME=VALUE,...",
        help="options as in fstab; remount,ro and remount,rw switch a mount that is there",
    )
    parameters.add_arguments(mount)
    mount.set_defaults(run=_mount)


def _add_acl(commands: Any) -> None:
    acl = usage.add(commands, "acl")
    of_acl = acl.add_subparsers(metavar="get|set", required=True)
    acl_get = usage.add(of_acl, "acl get")
    acl_set = usage.add(of_acl, "acl set")
    acl_set.add_argument(
        "text", metavar="ACL", help="a canned ACL such as public-read, grants with commas between them, or - for stdin"
    )
    for command, run in ((acl_get, _acl_get), (acl_set, _acl_set)):
        command.add_argument("-r", "--recursive", action="store_true", help="all files below a directory")
        command.add_argument("paths", metavar="PATH", nargs="+", help="a file in a mount; with -r a directory")
        command.set_defaults(run=run)
        _supervise(command)


def _add_objects(commands: Any) -> None:
    _add_entries(commands, "headers")
    _add_entries(commands, "metadata")
    _add_du(commands)
    _add_link(commands)


def _add_entries(commands: Any, kind: str) -> None:
    of_kind = usage.add(commands, kind).add_subparsers(metavar="get|set|unset", required=True)
    for name, run, words in (
        ("get", _entries_get, "NAME"),
        ("set", _entries_set, "NAME=VALUE"),
        ("unset", _entries_unset, "NAME"),
    ):
        command = usage.add(of_kind, f"{kind} {name}")
        command.add_argument("-r", "--recursive", action="store_true", help="all files below a directory")
        if name == "get":
            command.add_argument("--all", action="store_true", help="all that a file has; without NAME")
        if (kind, name) == ("headers", "set"):
            command.add_argument("--guess", action="store_true", help="the Content-Type that the name tells")
        command.add_argument("words", metavar=words, nargs=1, help="which one")
        command.add_argument("paths", metavar="PATH", nargs="*", help="a file in a mount; with -r a directory")
        command.set_defaults(run=run, kind=kind, looks_into=lambda options: [*options.words, *options.paths])


def _add_du(commands: Any) -> None:
    du = usage.add(commands, "du")
    du.add_argument("--json", action="store_true", help="as one JSON document")
    du.add_argument("paths", metavar="PATH", nargs="*", help="a file or directory in a mount (default: here)")
    du.set_defaults(run=_du)
    _supervise(du)


def _add_link(commands: Any) -> None:
    link = usage.add(commands, "link")
    link.add_argument(
        "--expires", metavar="TIME", help="how long it is good: 15m, 7d at most (default: the mount's --link-lifetime)"
    )
    kind = link.add_mutually_exclusive_group()
    kind.add_argument("--put", action="store_true", help="to upload a file of that name, which need not be there")
    kind.add_argument("--public", action="store_true", help="the plain URL, and whether anybody may read it")
    link.add_argument("--virtual-host", action="store_true", help="with the bucket in the name of the host")
    link.add_argument("path", metavar="PATH", help="a file in a mount")
    link.set_defaults(run=_link, looks_into=lambda options: [options.path])


def _add_limit(commands: Any) -> None:
    limit = usage.add(commands, "limit")
    limit.add_argument("directory", metavar="MOUNTPOINT")
    parameters.add_arguments(limit, ("upload_rate", "download_rate", "transfers"))
    limit.set_defaults(run=_limit)


def _add_clean(commands: Any) -> None:
    clean = usage.add(commands, "clean")
    clean.add_argument("source", metavar="BUCKET", nargs="?", help="only what mounts of this bucket have left")
    what = clean.add_mutually_exclusive_group()
    what.add_argument(
        "--uploads", action="store_true", help="end all unfinished uploads of the bucket, whoever began them"
    )
    what.add_argument(
        "--shared-attributes",
        action="store_true",
        help="remove, instead, what mounts with --shared-attributes have put into the bucket",
    )
    clean.add_argument("--yes", action="store_true", help="do not ask before that")
    clean.add_argument("-n", "--dry-run", action="store_true", help="only show what would be done")
    clean.add_argument(
        "--cache-dir",
        type=values.for_argparse(values.PATH),
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="a cache directory, or one that holds some (default: where mounts make them)",
    )
    parameters.add_arguments(clean, ("endpoint", "zone", "profile", "requester_pays", "ca_bundle"))
    clean.set_defaults(run=_clean)


def _add_status(commands: Any) -> None:
    status = usage.add(commands, "status")
    status.add_argument("directory", metavar="PATH", nargs="?", help="a mount point, or anything in a mount")
    status.add_argument("--json", action="store_true", help="as one JSON document; with --watch one a line")
    status.add_argument("--watch", action="store_true", help="live, with rates, until Ctrl-C")
    status.set_defaults(run=_status)


def _add_pending(commands: Any) -> None:
    pending = usage.add(commands, "pending")
    pending.add_argument("directory", metavar="PATH", nargs="?", help="a file or directory in a mount")
    pending.add_argument("--json", action="store_true", help="as one JSON document")
    pending.set_defaults(run=_pending)
    retry = usage.add(commands, "retry")
    retry.add_argument("directory", metavar="PATH", help="a file or directory in a mount, or a mount point")
    retry.set_defaults(run=_retry)


def _add_caches(commands: Any) -> None:
    warm = usage.add(commands, "warm")
    warm.set_defaults(run=_warm)
    drop = usage.add(commands, "drop")
    drop.set_defaults(run=_drop)
    for command in (warm, drop):
        command.add_argument("paths", metavar="PATH", nargs="+", help="a file or directory in a mount")
        _supervise(command)


def _add_restore(commands: Any) -> None:
    restore = usage.add(commands, "restore")
    restore.add_argument(
        "--at", type=_moment, metavar="TIME", help="as it was then: 2026-11-01, 2026-11-01T12:30Z, '2 hours ago'"
    )
    restore.add_argument("-n", "--dry-run", action="store_true", help="only list what would be restored")
    restore.add_argument("paths", metavar="PATH", nargs="+", help="a file or directory in a mount, deleted or not")
    restore.set_defaults(run=_restore)
    _supervise(restore)


def _add_versions(commands: Any) -> None:
    versions = usage.add(commands, "versions")
    rule = versions.add_mutually_exclusive_group()
    rule.add_argument(
        "--prune", type=_count, metavar="KEEP", help="keep as many versions of each file, remove the others"
    )
    rule.add_argument("--older", type=_age, metavar="AGE", help="remove what was replaced or deleted so long ago: 30d")
    versions.add_argument("--yes", action="store_true", help="do not ask before removing")
    versions.add_argument("--json", action="store_true", help="list as one JSON document")
    versions.add_argument("paths", metavar="PATH", nargs="+", help="a file or directory in a mount, deleted or not")
    versions.set_defaults(run=_versions)
    _supervise(versions)


def _moment(text: str) -> float:
    try:
        return moments.moment(text, now=time.time())
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _age(text: str) -> float:
    try:
        return moments.span(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _add_log(commands: Any) -> None:
    log = usage.add(commands, "log")
    log.add_argument("directory", metavar="MOUNTPOINT")
    log.add_argument("--access", metavar="FILE|off", help="write an access log into this file, or end it")
    log.add_argument(
        "--level", choices=[one.value for one in LogLevel], help="what goes into the log of the mount from now on"
    )
    log.set_defaults(run=_log)


def _add_profile(commands: Any) -> None:
    profile = usage.add(commands, "profile")
    profile.add_argument("directory", metavar="MOUNTPOINT")
    profile.add_argument(
        "--seconds",
        type=values.for_argparse(values.PERIOD),
        metavar="N",
        help="for how long (default: until Ctrl-C)",
    )
    profile.add_argument("--json", action="store_true", help="as one JSON document, at the end")
    profile.set_defaults(run=_profile)


def _add_bench(commands: Any) -> None:
    bench = usage.add(commands, "bench")
    bench.add_argument("directory", metavar="DIRECTORY", help="a mount point, or a directory that you may write to")
    bench.add_argument(
        "--size",
        type=values.for_argparse(values.SIZE),
        default=256 << 20,
        metavar="SIZE",
        help="of the large file (default: 256M)",
    )
    bench.add_argument("--files", type=_count, default=200, metavar="N", help="small files (default: 200)")
    bench.add_argument(
        "--threads", type=_count, default=8, metavar="N", help="at work on small files, beside one (default: 8)"
    )
    bench.add_argument("--json", action="store_true", help="as one JSON document")
    bench.set_defaults(run=_bench, looks_into=lambda options: [options.directory])


def _add_doctor(commands: Any) -> None:
    doctor = usage.add(commands, "doctor")
    doctor.add_argument("source", metavar="BUCKET[/PREFIX]", nargs="?", help="the bucket to look at")
    doctor.add_argument("directory", metavar="MOUNTPOINT", nargs="?", help="where it is to be mounted")
    doctor.add_argument("--json", action="store_true", help="as one JSON document")
    doctor.add_argument("--all", action="store_true", help="look at the other mounts of this machine as well")
    parameters.add_arguments(doctor, EXAMINED)
    doctor.set_defaults(run=_doctor)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _mount(options: argparse.Namespace) -> int:
    if remount.is_asked(options.fstab):
        return remount.run(options.directory or options.source, options.fstab)
    layers = [parameters.given(options), *map(parameters.from_options, reversed(options.fstab))]
    if options.directory is None:
        return mount(parameters.ALL, options.source, layers)
    return mount(options.source, options.directory, layers)


def mount(source: str, directory: str, layers: Sequence[Any]) -> int:
    """Mounts with these layers of parameters above those of the files: the common end of `sosfs mount` and fstab's."""
    bucket, prefix = parameters.split_source(source)
    path = mountpoint.canonical(directory)

    def read() -> Settings:
        found = [*layers, *parameters.from_files(bucket, parameters.files())]
        return dataclasses.replace(parameters.resolve(bucket, prefix, path, found), named=source)

    settings = read()
    level.follow(lambda: read().log_level)
    keys = source_of(settings)
    settings = located(settings, keys)
    mountpoint.prepare(settings)
    if settings.sse_c_key and settings.endpoint.startswith("http:"):
        print("sosfs: over http everybody on the way sees the encryption key; most servers refuse it", file=sys.stderr)
    return launch.run(settings, keys)


def source_of(settings: Settings) -> Finder | Anonymous:
    """Where the key comes from. Raises `SettingError` where none is wanted and one is needed, and as `Finder` does."""
    if not settings.anonymous:
        return Finder(lambda: Surroundings.of_process(settings.profile))
    if not settings.bucket:
        raise SettingError("--anonymous needs a bucket: nobody has an account whose buckets could be listed")
    return Anonymous()


def located(settings: Settings, source: Finder | Anonymous) -> Settings:
    """The settings with the endpoint and zone that hold, warning of a zone that does not look like one."""
    named = Place(settings.endpoint, settings.zone)
    found = source.found if isinstance(source, Finder) else Found(source.current(), "--anonymous")
    place = key_search.place(named, found, Surroundings.of_process(settings.profile))
    if settings.zone and not settings.endpoint and not zones.is_usual(settings.zone):
        print(f"sosfs: {settings.zone!r} does not look like a zone (as ch-dk-2 does); trying it", file=sys.stderr)
    return settings.placed(place, Naming.STATED if named.is_fixed else Naming.ASSUMED)


def _umount(options: argparse.Namespace) -> int:
    from sosfs.cli import umount  # noqa: PLC0415

    path = mountpoint.canonical(options.directory)
    return umount.lazily(path) if options.lazy else umount.run(path, seconds=options.timeout)


def _status(options: argparse.Namespace) -> int:
    from sosfs.cli import status as status_command  # noqa: PLC0415
    from sosfs.cli import watch  # noqa: PLC0415

    output = status_command.Output.JSON if options.json else status_command.Output.TEXT
    if options.watch:
        return watch.run(options.directory, output)
    return status_command.run(options.directory, output)


def _pending(options: argparse.Namespace) -> int:
    from sosfs.cli import pending  # noqa: PLC0415
    from sosfs.cli import status as status_command  # noqa: PLC0415

    output = status_command.Output.JSON if options.json else status_command.Output.TEXT
    return pending.show(options.directory, output)


def _retry(options: argparse.Namespace) -> int:
    from sosfs.cli import pending  # noqa: PLC0415

    return pending.retry(options.directory)


def _limit(options: argparse.Namespace) -> int:
    from sosfs.cli import limit as limit_command  # noqa: PLC0415

    return limit_command.run(mountpoint.canonical(options.directory), parameters.given(options))


def _clean(options: argparse.Namespace) -> int:
    from sosfs.cli import clean  # noqa: PLC0415

    wishes = clean.Wishes(options.uploads, options.shared_attributes, not options.yes, options.dry_run)
    if options.source is None:
        if options.shared_attributes:
            raise SettingError("--shared-attributes needs a bucket: sosfs clean BUCKET --shared-attributes")
        if options.uploads:
            raise SettingError("--uploads needs a bucket: sosfs clean BUCKET --uploads")
        return clean.of_machine(getattr(options, "cache_dir", None), wishes)
    bucket, prefix = parameters.split_source(options.source)
    layers = [parameters.given(options), *parameters.from_files(bucket, parameters.files())]
    settings = parameters.resolve(bucket, prefix, Path("/"), layers)
    keys = source_of(settings)
    return clean.of_bucket(located(settings, keys), keys, wishes)


def _log(options: argparse.Namespace) -> int:
    from sosfs.cli import log as log_command  # noqa: PLC0415

    return log_command.run(mountpoint.canonical(options.directory), access=options.access, level=options.level)


def _profile(options: argparse.Namespace) -> int:
    from sosfs.cli import profile  # noqa: PLC0415

    return profile.run(mountpoint.canonical(options.directory), seconds=options.seconds, as_json=options.json)


def _acl_get(options: argparse.Namespace) -> int:
    from sosfs.cli import acl as acl_command  # noqa: PLC0415

    return acl_command.get(options.paths, recursive=options.recursive)


def _acl_set(options: argparse.Namespace) -> int:
    from sosfs.cli import acl as acl_command  # noqa: PLC0415

    return acl_command.put(options.text, options.paths, recursive=options.recursive)


def _entries_get(options: argparse.Namespace) -> int:
    from sosfs.cli import headers  # noqa: PLC0415

    name, paths = _words(options, is_unnamed=options.all)
    kind = headers.Kind(options.kind)
    wanted = None if options.all else headers.entry(kind, name)
    return headers.get(kind, wanted, paths, recursive=options.recursive)


def _entries_set(options: argparse.Namespace) -> int:
    from sosfs.cli import headers  # noqa: PLC0415

    is_guess = getattr(options, "guess", False)
    said, paths = _words(options, is_unnamed=is_guess)
    if is_guess:
        return headers.guess(paths, recursive=options.recursive)
    name, equals, value = said.partition("=")
    if not equals:
        raise SettingError(f"{said!r} is not NAME=VALUE")
    kind = headers.Kind(options.kind)
    return headers.put(kind, headers.entry(kind, name), value, paths, recursive=options.recursive)


def _entries_unset(options: argparse.Namespace) -> int:
    from sosfs.cli import headers  # noqa: PLC0415

    name, paths = _words(options, is_unnamed=False)
    kind = headers.Kind(options.kind)
    return headers.unset(kind, headers.entry(kind, name), paths, recursive=options.recursive)


def _words(options: argparse.Namespace, *, is_unnamed: bool) -> tuple[str, list[str]]:
    """The name, "" where none is wanted, and the paths. Raises `SettingError` without a path."""
    words = [*options.words, *options.paths]
    name, paths = ("", words) if is_unnamed else (words[0], words[1:])
    if not paths:
        raise SettingError(f"of which file? sosfs {options.kind} ... {name} PATH")
    return name, paths


def _du(options: argparse.Namespace) -> int:
    from sosfs.cli import du  # noqa: PLC0415

    return du.run(options.paths, as_json=options.json)


def _link(options: argparse.Namespace) -> int:
    from sosfs.cli import link  # noqa: PLC0415
    from sosfs.filesystem.links import LinkKind  # noqa: PLC0415
    from sosfs.s3.object_urls import Addressing  # noqa: PLC0415

    if options.public and options.expires is not None:
        raise SettingError("--expires: a plain URL never expires")
    kind = LinkKind.UPLOAD if options.put else LinkKind.PUBLIC if options.public else LinkKind.DOWNLOAD
    addressing = Addressing.VIRTUAL_HOST if options.virtual_host else Addressing.PATH
    expires = None if options.expires is None else link.lifetime(options.expires)
    return link.run(options.path, kind, addressing, expires=expires)


def _warm(options: argparse.Namespace) -> int:
    from sosfs.cli import warm_and_drop  # noqa: PLC0415

    return warm_and_drop.warm(options.paths)


def _drop(options: argparse.Namespace) -> int:
    from sosfs.cli import warm_and_drop  # noqa: PLC0415

    return warm_and_drop.drop(options.paths)


def _restore(options: argparse.Namespace) -> int:
    from sosfs.cli import restore  # noqa: PLC0415

    return restore.run(options.paths, options.at, restore.Run.DRY if options.dry_run else restore.Run.REAL)


def _versions(options: argparse.Namespace) -> int:
    from sosfs.cli import versions  # noqa: PLC0415

    if options.prune is not None:
        return versions.prune(options.paths, {"keep": str(options.prune)}, is_agreed=options.yes)
    if options.older is not None:
        return versions.prune(options.paths, {"older": repr(options.older)}, is_agreed=options.yes)
    return versions.show(options.paths, as_json=options.json)


def _bench(options: argparse.Namespace) -> int:
    from sosfs.cli import bench, workloads  # noqa: PLC0415

    extent = workloads.Extent(options.size, options.files, options.threads)
    return bench.run(mountpoint.canonical(options.directory), extent, as_json=options.json)


def _doctor(options: argparse.Namespace) -> int:
    from sosfs.cli.doctor import findings  # noqa: PLC0415
    from sosfs.cli.doctor import plan as doctor_plan  # noqa: PLC0415

    bucket, prefix = parameters.split_source(options.source) if options.source else ("", "")
    path = mountpoint.canonical(options.directory) if options.directory else None
    layers = [parameters.given(options), *parameters.from_files(bucket, parameters.files())]
    form = findings.Output.JSON if options.json else findings.Output.TEXT
    mounts = doctor_plan.Mounts.ALL if options.all else doctor_plan.Mounts.NAMED
    return doctor_plan.run(parameters.resolve(bucket, prefix, path or Path("/"), layers), path, form, mounts)


def _demo(options: argparse.Namespace) -> int:
    from sosfs.cli import demo  # noqa: PLC0415

    return demo.run(Path(options.directory).absolute() if options.directory else None)


def _help(options: argparse.Namespace, commands: Mapping[str, argparse.ArgumentParser]) -> int:
    from sosfs.cli import manual  # noqa: PLC0415

    return manual.show(options.topic, commands)


def _options(options: argparse.Namespace) -> int:
    page: Path = options.page
    page.write_text(option_table.in_page(page.read_text(encoding="utf-8")), encoding="utf-8")
    return Exit.OK
