"""The metrics of a mount for Prometheus: names, kinds and help.

Counted is in `tracing.meters` and in `Status`; here it gets its form. `text` may run in a thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sosfs import __version__
from sosfs.ipc.status import MountPhase, Status
from sosfs.log.escaping import printable
from sosfs.tracing.histogram import Histogram
from sosfs.tracing.meters import METERS, Hit


class _Moment(Collector):
    """One status, and the meters of the process, as metrics."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        yield from _of_mount(self._status)
        yield from _of_kernel()
        yield from _of_cache()
        with METERS.lock:
            metrics = list(_of_s3())
        yield from metrics


def _of_mount(now: Status) -> Iterator[Metric]:
    about = GaugeMetricFamily(
        "sosfs_mount", "Always 1; what is mounted where.", labels=["bucket", "mountpoint", "version"]
    )
    source = f"{now.bucket}/{now.prefix}".rstrip("/")
    about.add_metric([printable(source), printable(now.mountpoint), __version__], 1)
    yield about
    yield GaugeMetricFamily(
        "sosfs_mounted", "1 while the mount serves, 0 while it drains.", int(now.state is MountPhase.MOUNTED)
    )
    yield GaugeMetricFamily("sosfs_pending_files", "Changes that are not in the bucket yet.", now.pending_files)
    yield GaugeMetricFamily("sosfs_pending_bytes", "Bytes that are not in the bucket yet.", now.pending_bytes)
    yield GaugeMetricFamily("sosfs_waiting_writers", "Writers that wait for room on the disk.", now.waiting_writers)
    yield GaugeMetricFamily("sosfs_damaged", "Damaged files and changes that were set aside.", len(now.damaged))
    yield GaugeMetricFamily("sosfs_memory_bytes", "Memory for data and names.", now.memory_bytes)
    yield GaugeMetricFamily("sosfs_memory_limit_bytes", "The most memory for data and names.", now.memory_limit)
    yield GaugeMetricFamily("sosfs_resident_bytes", "Memory of the process.", now.resident_bytes)
    kinds = GaugeMetricFamily("sosfs_resident_kind_bytes", "The same by what it is for.", labels=["kind"])
    for kind, size in sorted(now.memory.items()):
        kinds.add_metric([kind], size)
    yield kinds
    yield GaugeMetricFamily("sosfs_disk_free_bytes", "Room on the disk of journal and cache.", now.free_bytes)
    yield CounterMetricFamily("sosfs_sent_bytes", "Bytes of data sent to the bucket.", now.sent_bytes)
    yield CounterMetricFamily("sosfs_received_bytes", "Bytes of data received from it.", now.received_bytes)
    yield GaugeMetricFamily("sosfs_upload_rate_limit_bytes", "Bytes a second up; 0: no limit.", now.upload_rate)
    yield GaugeMetricFamily("sosfs_download_rate_limit_bytes", "Bytes a second down; 0: no limit.", now.download_rate)
    yield GaugeMetricFamily("sosfs_transfers_limit", "Requests side by side at most.", now.transfers)
    yield GaugeMetricFamily("sosfs_transfers_allowed", "Of these, as many as the server bears now.", now.allowed)
    yield GaugeMetricFamily("sosfs_transfers", "Requests under way.", now.under_way)
    yield GaugeMetricFamily("sosfs_transfers_queued", "Requests that wait for their turn.", now.queued)
    yield CounterMetricFamily("sosfs_slow_downs", "Answers that asked for fewer requests.", now.refusals)
    yield _counter("sosfs_requests", "Requests by S3 operation.", "operation", now.requests)


def _of_kernel() -> Iterator[Metric]:
    yield GaugeMetricFamily("sosfs_kernel_requests_under_way", "Kernel requests under way.", METERS.kernel_under_way)
    yield _histogram("sosfs_kernel_request_seconds", "Time of kernel requests by operation.", METERS.kernel)
    errors = CounterMetricFamily(
        "sosfs_kernel_errors", "Kernel requests that ended with an errno.", labels=["operation", "errno"]
    )
    for (operation, name), count in sorted(METERS.kernel_errors.items()):
        errors.add_metric([operation, name], count)
    yield errors
    moved = {name: METERS.kernel_bytes[name] for name in ("read", "write")}
    yield _counter("sosfs_kernel_bytes", "Bytes that programs read and wrote.", "operation", moved)


def _of_cache() -> Iterator[Metric]:
    found = {hit.value: METERS.reads[hit] for hit in Hit}
    yield _counter("sosfs_cache_reads", "Reads by where their blocks were.", "found", found)
    disk = {"hit": METERS.disk_reads[True], "miss": METERS.disk_reads[False]}
    yield _counter("sosfs_disk_cache_reads", "Fetches of which the disk cache had all, or not.", "result", disk)


def _of_s3() -> Iterator[Metric]:
    yield GaugeMetricFamily("sosfs_s3_requests_under_way", "S3 requests under way.", METERS.s3_under_way)
    yield _histogram("sosfs_s3_request_seconds", "Time of S3 requests, with all tries, by operation.", METERS.s3)
    yield _counter("sosfs_s3_retries", "Tries of S3 requests after the first.", "operation", METERS.s3_retries)
    errors = CounterMetricFamily(
        "sosfs_s3_errors", "S3 requests that failed; status none: without answer.", labels=["operation", "status"]
    )
    for (operation, status), count in sorted(METERS.s3_errors.items()):
        errors.add_metric([operation, status], count)
    yield errors
    moved = {name: METERS.s3_bytes[name] for name in ("sent", "received")}
    yield _counter("sosfs_s3_body_bytes", "Bytes of bodies of S3 requests and answers.", "direction", moved)


def _counter(name: str, text: str, label: str, counts: Mapping[str, int]) -> CounterMetricFamily:
    metric = CounterMetricFamily(name, text, labels=[label])
    for value, count in sorted(counts.items()):
        metric.add_metric([value], count)
    return metric


def _histogram(name: str, text: str, histograms: Mapping[str, Histogram]) -> HistogramMetricFamily:
    metric = HistogramMetricFamily(name, text, labels=["operation"])
    for operation, histogram in sorted(histograms.items()):
        buckets = [("+Inf" if math.isinf(bound) else str(bound), count) for bound, count in histogram.cumulative()]
        metric.add_metric([operation], buckets=buckets, sum_value=histogram.seconds)
    return metric


def exposed(status: Status, accept: str) -> tuple[bytes, str]:
    """The metrics in the format that an Accept header asks for, and its Content-Type."""
    form: tuple[Callable[[Collector], bytes], str] = exposition.choose_encoder(accept)
    registry = CollectorRegistry()
    registry.register(_Moment(status))
    return form[0](registry), form[1]


def text(status: Status) -> str:
    """The metrics in Prometheus' text format."""
    return exposed(status, "")[0].decode()
