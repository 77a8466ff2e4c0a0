"""The systems side by side. To add one is to add it to one of these lists, or a module with a list of its own."""

from __future__ import annotations

from tests.bench.systems.juicefs import JUICEFS
from tests.bench.systems.rclone import RCLONE
from tests.bench.systems.s3fs import S3FS
from tests.bench.systems.sosfs import SOSFS
from tests.bench.systems.system import Closed, Place, Role, System

__all__ = ["COMPARED", "FLOOR", "REFERENCES", "SYSTEMS", "Closed", "Place", "Role", "System"]

SYSTEMS: dict[str, System] = {system.name: system for system in [*SOSFS, *S3FS, *RCLONE, *JUICEFS]}
# What runs without being named; the references beside all rows only.
COMPARED = ("sosfs", "sosfs-journal", "s3fs", "rclone", "rclone-delayed")
REFERENCES = ("rclone-default", "juicefs", "juicefs-writeback")
FLOOR = "floor"  # the bare client
