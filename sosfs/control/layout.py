"""What is where in `.sosfs`, of a mount of one bucket and of one of all. Concurrency: trio thread only."""

from __future__ import annotations

from collections.abc import Callable

from sosfs.control.nodes import Fixed, Folder, Node
from sosfs.control.object_acl import ObjectAcls
from sosfs.control.protection_files import files_of
from sosfs.control.rejected_texts import Rejections
from sosfs.control.settings_files import AclFolder, BucketAcl, Cors, Policy, Report, StatusReport, VersioningState
from sosfs.ipc import metrics
from sosfs.ipc.status import Status
from sosfs.namespace.namespace import Namespace
from sosfs.s3.bucket_settings import BucketSettings
from sosfs.s3.protection_settings import ProtectionSettings


def _reports(rejections: Rejections, status: Callable[[], Status]) -> dict[bytes, Node]:
    return {
        b"status": StatusReport(status),
        b"metrics": Report("metrics", lambda: metrics.text(status()), permissions=0o444),
        b"errors": Report("errors", rejections.text, permissions=0o400),
    }


def account_tree_of(rejections: Rejections, status: Callable[[], Status]) -> Folder:
    """The root of the control tree of a mount of all buckets, each of which has its own."""
    return Fixed("control", _reports(rejections, status), permissions=0o755)


def tree_of(
    namespace: Namespace,
    sharing: ObjectAcls,
    bucket: BucketSettings,
    protection: ProtectionSettings,
    rejections: Rejections,
    versions: Folder,
    past: Folder,
    status: Callable[[], Status],
) -> Folder:
    """The root of the control tree of a mount."""
    settings: dict[bytes, Node] = {
        b"acl": BucketAcl(bucket, rejections),
        b"cors": Cors(bucket, rejections),
        b"versioning": VersioningState(bucket, rejections),
        b"policy": Policy(bucket, rejections),
        **files_of(protection, rejections),
    }
    return Fixed(
        "control",
        {
            b"acl": AclFolder(namespace.inodes.root, namespace, sharing, rejections),
            b"bucket": Fixed("bucket", settings),
            b"versions": versions,
            b"at": past,
            **_reports(rejections, status),
        },
        permissions=0o755,
    )
