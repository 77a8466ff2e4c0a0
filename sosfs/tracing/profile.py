"""What was asked of a mount and what it cost, summed by operation and by process while somebody looks."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from typing import Any

from sosfs.tracing.requests import NOBODY, Caller, KernelRequest, S3Request

PROCESSES = 200  # told one by one; a build has thousands
OTHERS = Caller(0, "others")
ITSELF = Caller(0, "sosfs itself")
OWN = "none"  # the operation of what no kernel request was the cause of


@dataclass(slots=True)
class Cost:
    """Kernel requests and what was done for them. S3 requests that run side by side count with all their seconds."""

    calls: int = 0
    errors: int = 0
    seconds: float = 0.0
    bytes: int = 0
    s3_requests: int = 0
    s3_seconds: float = 0.0
    s3_bytes: int = 0


class Profile:
    """The sums, from when it is made."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._operations: dict[str, Cost] = {}
        self._processes: dict[Caller, Cost] = {}

    def kernel_request(self, request: KernelRequest) -> None:
        """Adds one."""
        with self._lock:
            for cost in self._charged(request):
                cost.calls += 1
                cost.errors += bool(request.errno)
                cost.seconds += request.seconds
                cost.bytes += request.bytes

    def s3_request(self, request: S3Request) -> None:
        """Adds one to what it was made for."""
        with self._lock:
            for cost in self._charged(request.cause):
                cost.s3_requests += 1
                cost.s3_seconds += request.seconds
                cost.s3_bytes += request.sent + request.received

    def _charged(self, cause: KernelRequest | None) -> tuple[Cost, Cost]:
        operation = cause.operation if cause else OWN
        caller = cause.caller if cause else ITSELF
        if caller not in self._processes and len(self._processes) >= PROCESSES and caller not in (NOBODY, ITSELF):
            caller = OTHERS
        return self._operations.setdefault(operation, Cost()), self._processes.setdefault(caller, Cost())

    def told(self) -> dict[str, Any]:
        """The sums of now, as JSON has them."""
        with self._lock:
            operations = [{"operation": name, **asdict(cost)} for name, cost in self._operations.items()]
            processes = [{**caller._asdict(), **asdict(cost)} for caller, cost in self._processes.items()]
        return {"operations": operations, "processes": processes}
