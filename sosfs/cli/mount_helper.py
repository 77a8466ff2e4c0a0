"""`mount.sosfs` and `mount.fuse.sosfs`, which mount(8) calls for a line of /etc/fstab.

mount.sosfs BUCKET[/PREFIX] DIRECTORY [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sosfs.cli import main as program
from sosfs.cli import usage
from sosfs.cli.standard_output import none_closed
from sosfs.config import parameters
from sosfs.config.parameters import SettingError
from sosfs.daemon import launch, remount
from sosfs.daemon.launch import Exit
from sosfs.daemon.mountpoint import StartError

INTERRUPTED, FAILURE = 8, 32  # mount(8): "user interrupt", "mount failure"
EXITS = {
    0: "mounted",
    1: "wrong options, one line says which",
    8: "interrupted by Ctrl-C",
    32: "not mounted, one line says why",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Mounts as mount(8) asks and returns the exit code."""
    none_closed()
    options = _parser().parse_args(arguments)
    try:
        if remount.is_asked(options.options):
            return remount.run(options.directory, options.options, really=not options.fake)
        layer = parameters.from_options(",".join(options.options))
        if options.fake:
            return Exit.OK
        return program.mount(options.source, options.directory, [layer])
    except SettingError as error:
        launch.report(error)
        return Exit.FAILED  # 1 is wrong usage to mount(8), 2 would be a fault of the system
    except (StartError, OSError) as error:
        launch.report(error)
        return FAILURE
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = usage.Parser(
        prog="mount.sosfs",
        description="Mounts a bucket for mount(8).",
        epilog="exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXITS.items()),
    )
    parser.add_argument("source", metavar="BUCKET[/PREFIX]")
    parser.add_argument("directory", metavar="DIRECTORY")
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="OPTIONS")
    parser.add_argument("-f", dest="fake", action="store_true", help="check the options only")
    for flag in "snv":
        parser.add_argument(f"-{flag}", action="store_true", help="accepted, as mount(8) passes it")
    for flag in "Nt":
        parser.add_argument(f"-{flag}", help="accepted, as mount(8) passes it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
