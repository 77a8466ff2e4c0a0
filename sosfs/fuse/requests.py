"""Kernel requests under way, and those that nobody waits for any more.

A program that waits for FUSE sits in the kernel until its request is answered. A signal that would end or interrupt it
stays pending meanwhile, and pyfuse3 passes on none of the kernel's interrupts. So for requests older than `PATIENT`
seconds the caller's pending signals are looked for in /proc (proc(5): SigPnd, ShdPnd, less SigBlk and SigIgn), and
its request ends with EINTR: within `PATIENT` + `LOOK` + one second of a Ctrl-C.

Where the kernel does not say who calls (a read, a write, a close), it is whoever has a signal pending, sleeps in a
system call that no signal wakes (state D), and has opened this file or has it open: during a close it no more has.

What makes, moves or removes a name goes on by itself to its end when its caller is gone (`apart`): half done it would
be worse than done. The kernel's lock on its directories has gone with the caller: so who would change names there waits
here for its end, as everybody waits there for a caller that stays; and who opens a file there to write to it, which
would be removed or replaced with what is written. All else ends as after a lost answer, which every step is made for.

Concurrency: trio thread only; /proc is read in a thread.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any

import trio

from sosfs.concurrency.fairness import CALLER
from sosfs.concurrency.interrupt import CURRENT, Interrupt, waited
from sosfs.concurrency.tasks import Background
from sosfs.concurrency.threads import LOCAL

log = logging.getLogger(__name__)

PROC = Path("/proc")
PATIENT = 0.8  # seconds that a request may take before anybody asks who waits for it
LOOK = 0.3  # seconds between two looks
# Those by which somebody wants a program to end. Others (SIGALRM, SIGCHLD, SIGWINCH) have handlers in programs that do
# not expect EINTR of a file; where they end a program, the kernel has made them SIGKILL already.
ENDING = sum(
    1 << (number - 1) for number in (Signals.SIGHUP, Signals.SIGINT, Signals.SIGQUIT, Signals.SIGKILL, Signals.SIGTERM)
)


@dataclass(frozen=True, slots=True)
class Opened:
    """What a handle is of: its path as /proc shows it, and the thread that has opened it (0: not known)."""

    path: str
    opener: int


NOTHING = Opened("", 0)

Places = frozenset[int]  # the numbers of the directories in which a request changes names
NOWHERE = Places()


@dataclass(eq=False, slots=True, weakref_slot=True)
class Call:
    """One kernel request. `pid` is the calling thread's, 0 where the kernel does not say; `opened` what it is about."""

    name: str
    pid: int
    opened: Callable[[], Opened]
    since: float  # trio time
    interrupt: Interrupt = field(default_factory=Interrupt)
    places: Places = NOWHERE

    @property
    def age(self) -> float:
        """Seconds."""
        return trio.current_time() - self.since

    def process(self) -> int:
        """The id of the calling process, 0 where it is not known."""
        thread = self.pid or self.opened().opener
        return _process_of(thread) if thread else 0


ENDURING: ContextVar[Call | None] = ContextVar("enduring", default=None)  # what a task does to its end


class KernelRequests:
    """The requests under way."""

    def __init__(self) -> None:
        self._calls: set[Call] = set()
        self._left: set[Call] = set()  # what goes on without its caller
        self._ended = trio.lowlevel.ParkingLot()
        self._background: Background | None = None

    def __iter__(self) -> Iterator[Call]:
        """The requests under way, the oldest first."""
        return iter(sorted(self._calls, key=lambda call: call.since))

    def attach(self, background: Background) -> None:
        """From now on what cannot be given up runs in the background."""
        self._background = background

    async def serve(
        self,
        name: str,
        pid: int,
        opened: Callable[[], Opened],
        work: Callable[[], Awaitable[Any]],
        places: Places = NOWHERE,
    ) -> Any:
        """Does `work` for a caller; EINTR once that is gone."""
        call = Call(name, pid, opened, trio.current_time())
        self._calls.add(call)
        token, caller = CURRENT.set(call.interrupt), CALLER.set(call.process)
        try:
            if places:
                await self.freed(places)
            return await work()
        finally:
            CALLER.reset(caller)
            CURRENT.reset(token)
            self._calls.discard(call)

    @property
    def has_left(self) -> bool:
        """Whether something goes on for a caller that is gone."""
        return bool(self._left)

    def is_free(self, places: Places) -> bool:
        """Whether nothing changes names in these directories for a caller that is gone."""
        return not any(places & call.places for call in self._left)

    async def freed(self, places: Places) -> None:
        """Nothing changes names in these directories for a caller that is gone afterwards. Raises EINTR."""
        while not self.is_free(places):
            await waited(self._ended.park)

    async def all_ended(self) -> None:
        """Nothing goes on for a caller that is gone afterwards. Raises EINTR."""
        while self._left:
            await waited(self._ended.park)

    @staticmethod
    def also_in(directory: int) -> None:
        """What is done now changes names in this directory too, as in one that is replaced."""
        if (call := ENDURING.get()) is not None:
            call.places |= {directory}

    @contextmanager
    def at_once(self, pid: int) -> Iterator[None]:
        """Within, without an await, something is done for a caller: what goes on of it in the background counts for it.

        It is no request under way, since nobody ever sees it wait.
        """
        caller = CALLER.set(partial(_process_of, pid) if pid else None)
        try:
            yield
        finally:
            CALLER.reset(caller)

    async def apart(
        self,
        name: str,
        pid: int,
        work: Callable[[], Awaitable[Any]],
        undo: Callable[[Any], Awaitable[None]],
        places: Places,
    ) -> Any:
        """As `serve`, for work that goes on when its caller is gone; `undo` then gets what it returns."""
        if self._background is None:
            return await work()
        call = Call(name, pid, lambda: NOTHING, trio.current_time(), places=places)
        done, results, errors = trio.Event(), list[Any](), list[Exception]()

        async def run() -> None:
            ENDURING.set(call)
            CURRENT.set(Interrupt())  # that nobody sets
            CALLER.set(call.process)
            try:
                results.append(await work())
            except Exception as error:  # noqa: BLE001 - whoever waits raises it
                errors.append(error)
            done.set()
            if call not in self._left:
                return
            try:
                if errors:
                    log.warning("%s, whose caller was gone: %s", name, errors[0])
                else:
                    await undo(results[0])
            finally:
                self._left.remove(call)
                self._ended.unpark_all()

        self._calls.add(call)
        try:
            await call.interrupt.ends(partial(self.freed, places))
            self._background.spawn(run)
            await self._end_of(call, done)
        finally:
            self._calls.discard(call)
        if errors:
            raise errors[0]
        return results[0]

    async def _end_of(self, call: Call, done: trio.Event) -> None:
        """Waits for what goes on apart. Raises EINTR where its caller is gone before that."""
        try:
            await call.interrupt.ends(done.wait)
        except OSError:
            if not done.is_set():
                self._left.add(call)
                raise

    async def watch(self) -> None:
        """Ends the requests whose callers are gone, until cancelled."""
        while True:
            await trio.sleep(LOOK)
            old = [call for call in self._calls if call.age > PATIENT and not call.interrupt.is_set]
            if old:
                asked = [(call, call.opened() if not call.pid else NOTHING) for call in old]
                for call in await LOCAL.run(_gone, asked):
                    log.info("%s: given up, for its caller is gone", call.name)
                    call.interrupt.set()


CALLERS = KernelRequests()  # pyfuse3 serves one mount a process


def _gone(asked: Iterable[tuple[Call, Opened]]) -> list[Call]:
    """The calls whose callers are to end. Blocking."""
    gone, unknown = [], []
    for call, opened in asked:
        if call.pid:
            gone += [call] * _is_ending(PROC / str(call.pid))
        elif opened.opener and _is_stuck(PROC / str(opened.opener)):
            gone.append(call)
        elif opened.path:
            unknown.append((call, opened.path))
    if unknown:
        stuck = [process for process in _processes() if _is_stuck(process)]
        held = set(itertools.chain.from_iterable(map(_held, stuck)))
        gone += [call for call, path in unknown if path in held]
    return gone


@functools.lru_cache(1024)  # a number that comes back as another thread's costs somebody a turn, and nothing else
def _process_of(thread: int) -> int:
    """The process that a thread is of: itself where that is gone already, or not to be seen from here."""
    try:
        fields = dict(line.split(":", 1) for line in (PROC / str(thread) / "status").read_text().splitlines())
        return int(fields["Tgid"])
    except (OSError, ValueError, KeyError):
        return thread


def _processes() -> list[Path]:
    return [entry for entry in PROC.iterdir() if entry.name.isdigit()]


def _is_stuck(process: Path) -> bool:
    """Whether one of its threads has an ending signal pending and sleeps where no signal wakes it."""
    try:
        return any(_is_ending(thread, asleep=True) for thread in (process / "task").iterdir())
    except OSError:  # it has ended
        return False


def _is_ending(thread: Path, *, asleep: bool = False) -> bool:
    try:
        fields = dict(line.split(":", 1) for line in (thread / "status").read_text().splitlines() if ":" in line)
    except (OSError, ValueError):
        return False
    pending = _mask(fields, "SigPnd") | _mask(fields, "ShdPnd")
    deaf = _mask(fields, "SigBlk") | _mask(fields, "SigIgn")
    return bool(pending & ~deaf & ENDING) and not (asleep and fields.get("State", "").split()[:1] != ["D"])


def _mask(fields: dict[str, str], name: str) -> int:
    return int(fields.get(name, "0"), 16)


def _held(process: Path) -> Iterator[str]:
    """What a process has open. Nothing of one whose descriptors are not to be seen."""
    try:
        descriptors = list((process / "fd").iterdir())
    except OSError:
        return
    for descriptor in descriptors:
        try:
            yield str(descriptor.readlink()).removesuffix(" (deleted)")
        except OSError:
            continue
