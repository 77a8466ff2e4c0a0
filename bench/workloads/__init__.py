"""The workloads, in the order in which they are run and shown. To add one is to add it to one of these lists."""

from __future__ import annotations

from bench.workloads.bulk import BULK
from bench.workloads.small import SMALL_FILES
from bench.workloads.tools import TOOLS
from bench.workloads.tree import TREE
from bench.workloads.workload import Workload

__all__ = ["WORKLOADS", "Workload"]

WORKLOADS: dict[str, Workload] = {workload.name: workload for workload in [*BULK, *SMALL_FILES, *TREE, *TOOLS]}
