"""List requests and tasks with their age and where they wait, for the log.

It is logged when somebody asks (SIGUSR1) and when a request is older than the mount's limit.

Concurrency: trio thread only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import trio

from sosfs.fuse.requests import CALLERS, Call

log = logging.getLogger(__name__)

DEPTH = 4  # innermost calls of a task that are shown
LOOKS = 4  # at the ages of requests, within the limit


class Ages(trio.abc.Instrument):
    """When each task began."""

    def __init__(self) -> None:
        self._began: WeakKeyDictionary[trio.lowlevel.Task, float] = WeakKeyDictionary()

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self._began[task] = time.monotonic()

    def of(self, task: trio.lowlevel.Task) -> float:
        """Seconds since the task began."""
        return time.monotonic() - self._began.get(task, time.monotonic())


async def watch(ages: Ages, limit: float) -> None:
    """Logs what is under way when a request gets older than `limit` seconds, until cancelled; 0: never.

    A request that stays is told of again when its age has doubled, so that a log does not fill with one of days.
    """
    told: WeakKeyDictionary[Call, float] = WeakKeyDictionary()
    while limit:
        await trio.sleep(limit / LOOKS)
        old = [call for call in CALLERS if call.age >= told.get(call, limit)]
        if not old:
            continue
        told |= {call: 2 * call.age for call in old}
        log.warning("%s is not answered for %.1f s; under way are:", old[0].name, old[0].age)
        report(ages)


def report(ages: Ages) -> None:
    """Logs all that is under way."""
    for line in lines(ages):
        log.warning("%s", line)


def lines(ages: Ages) -> Iterator[str]:
    """One for each request, the oldest first, and one for each task."""
    for call in CALLERS:
        yield f"request {call.name}, {call.age:.1f} s, {_caller(call)}"
    for task in _tasks():
        yield f"task {task.name}, {ages.of(task):.1f} s, {_where(task)}"


def _caller(call: Call) -> str:
    if not call.pid:
        return call.opened().path
    try:
        command = (Path("/proc") / str(call.pid) / "comm").read_text().strip()
    except OSError:
        command = "gone"
    return f"for {command} (pid {call.pid})"


def _tasks() -> Iterator[trio.lowlevel.Task]:
    root = trio.lowlevel.current_root_task()
    todo = [root] if root else []
    while todo:
        task = todo.pop()
        yield task
        todo.extend(child for nursery in task.child_nurseries for child in nursery.child_tasks)


def _where(task: trio.lowlevel.Task) -> str:
    """The innermost calls, the last one being what it waits in."""
    calls: list[str] = []
    inner: Any = task.coro
    while inner is not None:
        frame = getattr(inner, "cr_frame", None) or getattr(inner, "gi_frame", None)
        if frame is not None:
            calls.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}:{frame.f_lineno}")
        inner = getattr(inner, "cr_await", None) or getattr(inner, "gi_yieldfrom", None)
    return " > ".join(calls[-DEPTH:]) or "not begun"
