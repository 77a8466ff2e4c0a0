"""`umount.fuse.sosfs`, which umount(8) calls for a mount of ours.

umount.fuse.sosfs DIRECTORY [-flnrv] [-N NAMESPACE] [-t TYPE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sosfs.cli import umount, usage
from sosfs.cli.mount_helper import FAILURE, INTERRUPTED
from sosfs.cli.standard_output import none_closed
from sosfs.daemon import launch, mountpoint
from sosfs.daemon.launch import Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Unmounts as umount(8) asks and returns the exit code."""
    none_closed()
    options = _parser().parse_args(arguments)
    try:
        path = mountpoint.canonical(options.directory)
        if options.l:
            return umount.lazily(path)
        return Exit.OK if umount.run(path) == Exit.OK else FAILURE
    except OSError as error:
        launch.report(error)
        return FAILURE
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = usage.Parser(
        prog="umount.fuse.sosfs",
        description="Unmounts a bucket for umount(8).",
        epilog="exit codes: 0 every change is in the bucket, or -l was given; 32 not unmounted, or changes are left",
    )
    parser.add_argument("directory", metavar="DIRECTORY")
    parser.add_argument("-l", action="store_true", help="detach now, do not wait")
    for flag in "fnrv":
        parser.add_argument(f"-{flag}", action="store_true", help="accepted, as umount(8) passes it")
    for flag in "Nt":
        parser.add_argument(f"-{flag}", help="accepted, as umount(8) passes it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
