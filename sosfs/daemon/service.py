"""The protocol of what a mount serves: one bucket, or all of an account.

Concurrency: trio thread only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import pyfuse3

from sosfs.buckets.registry import BucketRegistry
from sosfs.buckets.root_directory import RootOperations
from sosfs.buckets.routing import BucketRouting
from sosfs.concurrency.tasks import Background
from sosfs.config.credentials import CredentialSource
from sosfs.config.parameters import Settings
from sosfs.control.layout import account_tree_of
from sosfs.control.nodes import Tree
from sosfs.control.rejected_texts import Rejections
from sosfs.filesystem.bucket import BucketMount
from sosfs.fuse.control_tree import ControlOperations
from sosfs.fuse.notifier import KernelNotifier
from sosfs.ipc.commands import Work
from sosfs.ipc.status import Status
from sosfs.s3.limits import Limits
from sosfs.tree.inodes import Defaults


class Service(Protocol):
    """What a mount serves.

    reach -> begin -> (requests of the kernel) -> let_go -> drain -> keep -> close, and close after a failure as well
    """

    @property
    def operations(self) -> pyfuse3.Operations:
        """What answers the kernel, from `begin` on."""

    @property
    def errands(self) -> Mapping[str, Work]:
        """What commands may have it do, from `begin` on."""

    @property
    def state_dir(self) -> Path:
        """Where its journal is."""

    @property
    def may_write(self) -> bool:
        """Whether anything may be changed, from `reach` on: else it is mounted read-only."""

    @property
    def pending(self) -> int:
        """How many changes are not stored yet."""

    async def reach(self) -> None:
        """Finds out whether it can be served. Raises StoreError with a reason in words, and OSError."""

    async def learn(self) -> None:
        """Finds out what the server can do, where that was spared because nothing was to be changed.

        Raises StoreError.
        """

    def tell_others(self, *, writes: bool) -> None:
        """Whether what is learned may be put into buckets for others, where it is shared."""

    async def begin(self, background: Background) -> None:
        """Builds what answers the kernel, and takes up what an earlier mount left."""

    def sweep(self) -> None:
        """Frees what nobody needs any more."""

    async def store_all(self) -> None:
        """Everything is stored afterwards. Raises what is not."""

    async def let_go(self) -> None:
        """Nothing more is said to the kernel unasked; its connection may then go."""

    async def drain(self) -> None:
        """Sends what is not stored; what cannot be sent stays in the journal."""

    async def keep(self) -> None:
        """Whatever is not stored is in the journal afterwards; what is read ahead for nobody is not waited for."""

    def close(self) -> None:
        """Lets others have the journal."""

    def status(self) -> Status:
        """What it says of itself."""


def service_of(settings: Settings, source: CredentialSource, moment: Callable[[], Status], limits: Limits) -> Service:
    """What these settings ask for. Raises OSError EBUSY where another mount has the journal."""
    if settings.bucket:
        return BucketMount(settings, source, moment, limits=limits, kernel=KernelNotifier())
    buckets = BucketRegistry(settings, source, moment, limits, KernelNotifier())
    rejections = Rejections()
    defaults = Defaults(settings.uid, settings.gid, settings.umask, time.time_ns())
    top = RootOperations(buckets, defaults, rejections, ttl=settings.ttl)
    tree = ControlOperations(Tree(account_tree_of(rejections, buckets.status)))
    buckets.operations = BucketRouting(buckets, top, tree)
    return buckets
