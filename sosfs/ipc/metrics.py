"""The metrics of a mount for Prometheus: names, kinds and help.

Pure functions.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sosfs.ipc.status import MountPhase, Status


class _Moment(Collector):
    """One status as metrics."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        now = self._status
        yield GaugeMetricFamily(
            "sosfs_mounted", "1 while the mount serves, 0 while it drains.", int(now.state is MountPhase.MOUNTED)
        )
        yield GaugeMetricFamily("sosfs_pending_files", "Changes that are not in the bucket yet.", now.pending_files)
        yield GaugeMetricFamily("sosfs_pending_bytes", "Bytes that are not in the bucket yet.", now.pending_bytes)
        yield GaugeMetricFamily("sosfs_damaged", "Damaged files and changes that were set aside.", len(now.damaged))
        yield GaugeMetricFamily("sosfs_memory_bytes", "Memory for data.", now.memory_bytes)
        yield GaugeMetricFamily("sosfs_memory_limit_bytes", "The most memory for data.", now.memory_limit)
        yield CounterMetricFamily("sosfs_sent_bytes", "Bytes of data sent to the bucket.", now.sent_bytes)
        yield CounterMetricFamily("sosfs_received_bytes", "Bytes of data received from it.", now.received_bytes)
        yield GaugeMetricFamily("sosfs_upload_rate_limit_bytes", "Bytes a second up; 0: no limit.", now.upload_rate)
        yield GaugeMetricFamily(
            "sosfs_download_rate_limit_bytes", "Bytes a second down; 0: no limit.", now.download_rate
        )
        yield GaugeMetricFamily("sosfs_transfers_limit", "Requests side by side at most.", now.transfers)
        yield GaugeMetricFamily("sosfs_transfers_allowed", "Of these, as many as the server bears now.", now.allowed)
        yield GaugeMetricFamily("sosfs_transfers", "Requests under way.", now.under_way)
        yield GaugeMetricFamily("sosfs_transfers_queued", "Requests that wait for their turn.", now.queued)
        yield CounterMetricFamily("sosfs_slow_downs", "Answers that asked for fewer requests.", now.refusals)
        requests = CounterMetricFamily("sosfs_requests", "Requests by S3 operation.", labels=["operation"])
        for operation, count in sorted(now.requests.items()):
            requests.add_metric([operation], count)
        yield requests


def text(status: Status) -> str:
    """The metrics of a status in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Moment(status))
    return generate_latest(registry).decode()
