"""Whatever programs do while requests are held back, fail, or lose their answer: nothing is lost, nothing is left.

`turmoil`, `crowd` for several programs at once, `labels` for what files have beside their bytes, and `neighbours` for
two mounts of one bucket have the rules.
`SOSFS_FUZZ_RUNS` sets how many runs there are for each durability, `SOSFS_FUZZ_SEED` the seed of the first one; `make
fuzz` does many. A run that fails tells its seed and its steps: with that seed and one run it happens again, and what
was logged is shown too.
"""

from __future__ import annotations

import logging
import os
import tempfile
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from sosfs.config.parameters import Durability
from tests.support.crowd import Crowd, crowd
from tests.support.labels import Labels, labels
from tests.support.neighbours import Neighbours, neighbours
from tests.support.turmoil import Turmoil, turmoil

RUNS = int(os.environ.get("SOSFS_FUZZ_RUNS", "80"))  # for each durability
LONGER = 4  # times as long as the others those of `labels` take
SEED = int(os.environ.get("SOSFS_FUZZ_SEED", "1"))
MEMORY = "/dev/shm"  # a crash here is one of the process: no disk has to be waited for
Made = Callable[[int, Durability, Path], AbstractContextManager[Turmoil | Crowd | Labels | Neighbours]]


def story(made: Made, seed: int, durability: Durability) -> str:
    """What was done and went wrong in a run; "" where nothing did."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as base, made(seed, durability, Path(base)) as run:
        try:
            run.run()
        except Exception as error:  # noqa: BLE001
            return "\n".join([f"seed {seed}: {error!r}", *run.log, *traceback.format_exception(error)])
    return ""


@pytest.mark.promise(3)
@pytest.mark.timeout(60 + RUNS)
@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("made", [turmoil, crowd, labels, neighbours])
def test_what_was_acknowledged_stays_whatever_happens(
    made: Made, durability: Durability, caplog: pytest.LogCaptureFixture
) -> None:
    if RUNS > 1:
        caplog.set_level(logging.CRITICAL, logger="sosfs")
    runs = RUNS if made is not labels else -(-RUNS // LONGER)
    stories = [story(made, seed, durability) for seed in range(SEED, SEED + runs)]
    assert not any(stories), "\n\n".join(filter(None, stories))
