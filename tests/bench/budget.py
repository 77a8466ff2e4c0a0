"""How long one run of the benchmark may take, and what ends it when it takes longer all the same.

Nothing is begun once the budget is spent. Should something then still not come to its end, a thread of this process
interrupts it, and a little later kills it: the watchdog, whose input ends with that, clears the mounts away, and the
servers die with who started them. What was measured is in the results by then.
"""

from __future__ import annotations

import os
import signal
import threading
import time

GRACE = 60.0  # seconds that what has begun may go on beyond the budget
INTERRUPT = 20.0  # seconds after that until it is interrupted
KILL = 25.0  # seconds from there until it is killed


class OutOfTime(Exception):
    """The budget is spent; a later run goes on."""


class Budget:
    """Minutes from now. `enforce` once, in the main process."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + minutes * 60

    def left(self) -> float:
        """Seconds; negative when it is spent."""
        return self._end - time.monotonic()

    def check(self, needed: float = 0.0) -> None:
        """Raises `OutOfTime` where fewer seconds than needed are left."""
        if self.left() < max(needed, 0.001):
            raise OutOfTime(f"{max(self.left(), 0):.0f} s are left of the time for this run")

    def limit(self, wanted: float) -> float:
        """What a measurement that may take `wanted` seconds gets."""
        return min(wanted, max(self.left(), 0.0) + GRACE)

    def enforce(self) -> None:
        """From now on a run that does not end by itself is ended."""
        threading.Thread(target=self._end_it, daemon=True).start()

    def _end_it(self) -> None:
        for number, after in ((signal.SIGTERM, GRACE + INTERRUPT), (signal.SIGKILL, GRACE + INTERRUPT + KILL)):
            time.sleep(max(0.0, self.left() + after))
            os.kill(os.getpid(), number)
