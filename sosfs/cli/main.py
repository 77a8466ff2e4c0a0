"""The commands a user types, their options and exit codes.

Exit codes: 0 well; 1 failed, with one line on standard error; 2 wrong usage; 3 (umount) the time ran out or
changes are left over. What a command needs is imported when it runs: `sosfs mount` forks before anything
that starts a thread is loaded, and `sosfs --help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sosfs
from sosfs.cli import option_table
from sosfs.config import key_search, moments, parameters, values, zones
from sosfs.config.credentials import Surroundings
from sosfs.config.key_search import Finder
from sosfs.config.parameters import SettingError, Settings
from sosfs.config.zones import Naming, Place
from sosfs.daemon import launch, mountpoint
from sosfs.daemon.launch import Exit
from sosfs.daemon.mountpoint import StartError
from sosfs.log import level

# The parameters on which it depends whether a mount can work.
EXAMINED = (
    "endpoint",
    "zone",
    "profile",
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
    parser = _parser()
    options = _parsed(parser, arguments)
    try:
        return int(options.run(options))
    except SettingError as error:
        launch.report(error)
        return Exit.USAGE
    except (StartError, OSError) as error:
        return launch.report(error)
    except KeyboardInterrupt:
        return 130  # as a shell says it


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options. An optional word that stands after an option (`mount BUCKET -f DIR`) argparse leaves over."""
    options, over = parser.parse_known_args(arguments)
    if len(over) == 1 and not over[0].startswith("-") and vars(options).get("directory", over) is None:
        options.directory = over[0]
    elif over:
        parser.error(f"unrecognized arguments: {' '.join(over)}")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sosfs", description="Mounts buckets of Exoscale Simple Object Storage, or of any S3 store, as a drive."
    )
    parser.add_argument("--version", action="version", version=f"sosfs {sosfs.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    _add_mount(commands)
    _add_acl(commands)

    umount = commands.add_parser("umount", help="unmount and wait until every change is in the bucket")
    umount.add_argument("directory", metavar="MOUNTPOINT")
    umount.add_argument("--timeout", type=float, metavar="SECONDS", help="wait no longer, then exit with 3")
    umount.set_defaults(run=_umount)

    status = commands.add_parser("status", help="tell what a mount is doing")
    status.add_argument("directory", metavar="MOUNTPOINT")
    status.add_argument("--json", action="store_true", help="as one JSON document")
    status.set_defaults(run=_status)

    _add_caches(commands)
    _add_restore(commands)
    _add_versions(commands)
    _add_bench(commands)
    _add_doctor(commands)

    demo = commands.add_parser("demo", help="try it: a bucket on a small server of its own, mounted until Ctrl-C")
    demo.add_argument("directory", metavar="DIR", nargs="?", help="where to mount (default: a new directory)")
    demo.set_defaults(run=_demo)

    table = commands.add_parser("options")  # no help: it is for those who write the README
    table.add_argument("readme", type=Path)
    table.set_defaults(run=_options)
    return parser


def _add_mount(commands: Any) -> None:
    mount = commands.add_parser(
        "mount",
        help="mount a bucket, or all of them",
        description="Mounts a bucket, or without one all buckets of the account; returns when it is ready.",
        usage="%(prog)s [BUCKET[/PREFIX]] MOUNTPOINT [options]",
    )
    mount.add_argument("source", metavar="[BUCKET[/PREFIX]]")
    mount.add_argument("directory", metavar="MOUNTPOINT", nargs="?")
    mount.add_argument(
        "-o", dest="fstab", action="append", default=[], metavar="NAME=VALUE,...", help="options as in fstab"
    )
    parameters.add_arguments(mount)
    mount.set_defaults(run=_mount)


def _add_acl(commands: Any) -> None:
    acl = commands.add_parser("acl", help="show or change who may read and write files of a mount")
    of_acl = acl.add_subparsers(metavar="get|set", required=True)
    acl_get = of_acl.add_parser("get", help="show ACLs")
    acl_set = of_acl.add_parser("set", help="replace ACLs")
    acl_set.add_argument(
        "text", metavar="ACL", help="a canned ACL such as public-read, grants with commas between them, or - for stdin"
    )
    for command, run in ((acl_get, _acl_get), (acl_set, _acl_set)):
        command.add_argument("-r", "--recursive", action="store_true", help="all files below a directory")
        command.add_argument("paths", metavar="PATH", nargs="+")
        command.set_defaults(run=run)


def _add_caches(commands: Any) -> None:
    warm = commands.add_parser(
        "warm",
        help="fetch files ahead, so that reading them is local",
        description="Brings files of a mount into its caches: attributes, and with --cache-size their bytes. "
        "They stay there over a remount. Ctrl-C stops it; called again it goes on.",
    )
    warm.set_defaults(run=_warm)
    drop = commands.add_parser(
        "drop",
        help="forget what is cached of files, so that the bucket is asked",
        description="Forgets all that a mount and the kernel have cached of files, for instance after another "
        "program has changed the bucket. What is not in the bucket yet stays.",
    )
    drop.set_defaults(run=_drop)
    for command in (warm, drop):
        command.add_argument("paths", metavar="PATH", nargs="+", help="a file or directory in a mount")


def _add_restore(commands: Any) -> None:
    restore = commands.add_parser(
        "restore",
        help="bring back deleted or changed files, on a bucket with versions",
        description="Brings files and trees back: what is deleted, a changed file that is named itself, or with --at "
        "all as it was then. Files that have come since stay. Ctrl-C stops it; called again it goes on.",
    )
    restore.add_argument(
        "--at", type=_moment, metavar="TIME", help="as it was then: 2026-11-01, 2026-11-01T12:30Z, '2 hours ago'"
    )
    restore.add_argument("-n", "--dry-run", action="store_true", help="only list what would be restored")
    restore.add_argument("paths", metavar="PATH", nargs="+", help="a file or directory in a mount, deleted or not")
    restore.set_defaults(run=_restore)


def _add_versions(commands: Any) -> None:
    versions = commands.add_parser("versions", help="list the versions of files, or remove old ones")
    rule = versions.add_mutually_exclusive_group()
    rule.add_argument(
        "--prune", type=_count, metavar="KEEP", help="keep as many versions of each file, remove the others"
    )
    rule.add_argument("--older", type=_age, metavar="AGE", help="remove what was replaced or deleted so long ago: 30d")
    versions.add_argument("--yes", action="store_true", help="do not ask before removing")
    versions.add_argument("--json", action="store_true", help="list as one JSON document")
    versions.add_argument("paths", metavar="PATH", nargs="+", help="a file or directory in a mount, deleted or not")
    versions.set_defaults(run=_versions)


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


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure how fast a mount is",
        description="Measures a mount, or any directory to compare it with: large file, small files, latencies. "
        "Writes into a directory of its own, and removes it.",
    )
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
    bench.set_defaults(run=_bench)


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="check what a mount needs and show what was found where",
        description="Checks what a mount needs. Writes nothing into the bucket but scratch keys, removed again.",
    )
    doctor.add_argument("source", metavar="BUCKET[/PREFIX]", nargs="?")
    doctor.add_argument("directory", metavar="MOUNTPOINT", nargs="?")
    doctor.add_argument("--json", action="store_true", help="as one JSON document")
    parameters.add_arguments(doctor, EXAMINED)
    doctor.set_defaults(run=_doctor)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _mount(options: argparse.Namespace) -> int:
    layers = [parameters.given(options), *map(parameters.from_options, reversed(options.fstab))]
    if options.directory is None:
        return mount(parameters.ALL, options.source, layers)
    return mount(options.source, options.directory, layers)


def mount(source: str, directory: str, layers: Sequence[Any]) -> int:
    """Mounts with these layers of parameters above those of the files: the common end of `sosfs mount` and fstab's."""
    bucket, prefix = parameters.split_source(source)
    path = mountpoint.canonical(directory)

    def read() -> Settings:
        return parameters.settle(bucket, prefix, path, [*layers, *parameters.from_files(bucket, parameters.files())])

    settings = read()
    level.follow(lambda: read().log_level)
    finder = Finder(lambda: Surroundings.of_process(settings.profile))
    settings = located(settings, finder)
    mountpoint.prepare(settings)
    if settings.sse_c_key and settings.endpoint.startswith("http:"):
        print("sosfs: over http everybody on the way sees the encryption key; most servers refuse it", file=sys.stderr)
    return launch.run(settings, finder)


def located(settings: Settings, finder: Finder) -> Settings:
    """The settings with the endpoint and zone that hold, warning of a zone that does not look like one."""
    named = Place(settings.endpoint, settings.zone)
    place = key_search.place(named, finder.found, Surroundings.of_process(settings.profile))
    if settings.zone and not settings.endpoint and not zones.is_usual(settings.zone):
        print(f"sosfs: {settings.zone!r} does not look like a zone (as ch-dk-2 does); trying it", file=sys.stderr)
    return settings.placed(place, Naming.STATED if named.is_fixed else Naming.ASSUMED)


def _umount(options: argparse.Namespace) -> int:
    from sosfs.cli import umount  # noqa: PLC0415

    return umount.run(mountpoint.canonical(options.directory), seconds=options.timeout)


def _status(options: argparse.Namespace) -> int:
    from sosfs.cli import status as status_command  # noqa: PLC0415

    return status_command.run(mountpoint.canonical(options.directory), json=options.json)


def _acl_get(options: argparse.Namespace) -> int:
    from sosfs.cli import acl as acl_command  # noqa: PLC0415

    return acl_command.get(options.paths, recursive=options.recursive)


def _acl_set(options: argparse.Namespace) -> int:
    from sosfs.cli import acl as acl_command  # noqa: PLC0415

    return acl_command.put(options.text, options.paths, recursive=options.recursive)


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
    form = findings.Form.JSON if options.json else findings.Form.TEXT
    return doctor_plan.run(parameters.settle(bucket, prefix, path or Path("/"), layers), path, form)


def _demo(options: argparse.Namespace) -> int:
    from sosfs.cli import demo  # noqa: PLC0415

    return demo.run(Path(options.directory).absolute() if options.directory else None)


def _options(options: argparse.Namespace) -> int:
    readme: Path = options.readme
    readme.write_text(option_table.in_readme(readme.read_text(encoding="utf-8")), encoding="utf-8")
    return Exit.OK
