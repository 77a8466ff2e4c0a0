"""Keep the C library and Python from holding on to memory that is free."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging

log = logging.getLogger(__name__)

# mallopt(3), and what a gigabyte written and read back showed:
#   as glibc comes: 250 to 450 MB at the peak, for every thread has a heap of its own that is full of holes
#   each body a mapping of its own: 150 MB, but twice the system time, for every page is faulted in anew
#   two heaps that keep what they have: 220 MB, and the fastest
_SETTINGS = {
    -8: 2,  # M_ARENA_MAX
    -3: 32 << 20,  # M_MMAP_THRESHOLD, bytes; setting it keeps glibc from moving it
    -1: 128 << 20,  # M_TRIM_THRESHOLD, bytes
}


def give_back() -> None:
    """Lets the kernel have the pages that are free within the heaps, where the C library is glibc. Blocks for a ms."""
    with contextlib.suppress(OSError, AttributeError):  # musl gives them back by itself
        ctypes.CDLL(None).malloc_trim(0)


def keep_few_heaps() -> None:
    """Lets bodies be taken from two heaps that all threads share, where the C library is glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError) as error:
        log.debug("no mallopt here: %s", error)
        return
    for name, value in _SETTINGS.items():
        mallopt(name, value)


def collect_seldom() -> None:
    """Lets Python look for garbage that refers to itself at every 20,000th new object, not at each 700th.

    There is next to none of it, while inodes, which live long, are many: a listing of 6,400 files with their
    attributes took 15 % less CPU. What was loaded by now is never looked at again.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
