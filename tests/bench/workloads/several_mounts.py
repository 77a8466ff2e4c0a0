"""Eight mounts of one bucket beside one with as many programs: what it costs that they know nothing of each other."""

from __future__ import annotations

import functools
from pathlib import Path

from tests.bench.material import SMALL
from tests.bench.scale import Scale
from tests.bench.stage import Stage
from tests.bench.workloads.small import CREATE, READ, Workers
from tests.bench.workloads.tree import list_files
from tests.bench.workloads.workload import Act, Unit, Workload, parallel

PROGRAMS = 8


def _tops(stage: Stage, mounts: int) -> list[Path]:
    """Of each program the top of its mount."""
    return stage.tops(mounts) * (PROGRAMS // mounts)


def create(stage: Stage, *, mounts: int) -> None:
    """Each program makes files in a directory of its own."""
    names = [f"{number:06}" for number in range(stage.scale.small_files)]
    for below in ("", *(f"/{program}" for program in range(PROGRAMS))):
        stage.client.put_directory(f"{stage.prefix}{below}")
    places = [top / stage.prefix / str(program) for program, top in enumerate(_tops(stage, mounts))]
    shares = [(place, names[program::PROGRAMS]) for program, place in enumerate(places)]
    with Workers(CREATE, shares) as workers, stage.clock():
        workers.go()
    stage.expect(len(names), len(names) * len(SMALL))


def read(stage: Stage, *, mounts: int) -> None:
    """All programs read all small files, cold."""
    names = [f"{stage.dataset.small()}/{number:06}" for number in range(stage.scale.small_files)]
    with Workers(READ, [(top, names) for top in _tops(stage, mounts)]) as workers, stage.clock():
        workers.go()


def list_tree(stage: Stage, *, mounts: int) -> None:
    """Each program lists the tree with attributes, cold."""
    below = stage.dataset.tree()
    tops = _tops(stage, mounts)
    with stage.clock():
        parallel(lambda program: list_files(tops[program] / below, stage.scale), PROGRAMS)


def _created(scale: Scale) -> float:
    return scale.small_files


def _read(scale: Scale) -> float:
    return scale.small_files * PROGRAMS


def _listed(scale: Scale) -> float:
    return scale.tree_files * PROGRAMS


def _workloads(mounts: int) -> list[Workload]:
    words = "one mount" if mounts == 1 else f"{mounts} mounts"

    def workload(name: str, title: str, act: Act, *, stores: bool = False) -> Workload:
        amount = {"create": _created, "read": _read, "list": _listed}[name]
        full, whole = f"mounts{mounts}_{name}", f"{title}, 8 programs on {words}"
        return Workload(full, whole, Unit.FILES, amount, act, stores=stores, counted=True)

    return [
        workload("create", "create 4 KiB files", functools.partial(create, mounts=mounts), stores=True),
        workload("read", "cold read of the same 4 KiB files", functools.partial(read, mounts=mounts)),
        workload("list", "ls -lR of the same tree, cold", functools.partial(list_tree, mounts=mounts)),
    ]


SEVERAL_MOUNTS = [*_workloads(1), *_workloads(PROGRAMS)]
