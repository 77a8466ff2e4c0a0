"""The workloads, in the order in which they are run and shown. To add one is to add it to one of these lists."""

from __future__ import annotations

from tests.bench.workloads.bulk import BULK
from tests.bench.workloads.load import LOAD
from tests.bench.workloads.several_mounts import SEVERAL_MOUNTS
from tests.bench.workloads.small import SMALL_FILES
from tests.bench.workloads.tools import TOOLS
from tests.bench.workloads.tree import TREE
from tests.bench.workloads.workload import Workload

__all__ = ["WORKLOADS", "Workload"]

WORKLOADS: dict[str, Workload] = {
    workload.name: workload for workload in [*BULK, *SMALL_FILES, *TREE, *TOOLS, *LOAD, *SEVERAL_MOUNTS]
}
