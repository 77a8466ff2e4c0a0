"""Workloads on a tree of many directories: copy in, list, find, archive, compare, remove."""

from __future__ import annotations

from pathlib import Path

from tests.bench.client import each
from tests.bench.material import in_memory, tree_layout
from tests.bench.scale import Scale
from tests.bench.stage import Stage
from tests.bench.systems.system import sync_directory
from tests.bench.workloads.workload import Act, Unit, Workload, tool


def copy(stage: Stage) -> None:
    """`cp -r` into the mount, then fsync of the copy's top directory."""
    source, target = in_memory(stage.material.tree), stage.home / "copy"
    with stage.clock():
        tool("cp", "-r", source, target)
        sync_directory(target)
    layout = tree_layout(stage.scale)
    stage.expect(len(layout), sum(layout.values()))


def copy_bare(stage: Stage) -> None:
    with stage.clock():
        stage.dataset.put_tree(f"{stage.prefix}/copy", by=stage.bare)


def list_files(directory: Path, scale: Scale) -> None:
    """`ls -lR`; the number of its lines is checked."""
    lines = tool("ls", "-lR", directory).splitlines()
    files = sum(line.startswith("-") for line in lines)
    if files != scale.tree_files:
        raise OSError(f"{files} files listed of {scale.tree_files}")


def listed(stage: Stage) -> None:
    below = stage.dataset.tree()
    list_files(stage.top / below, stage.scale)


def list_cold(stage: Stage) -> None:
    stage.dataset.tree()
    with stage.clock():
        listed(stage)


def list_again(stage: Stage) -> None:
    """The same after a remount: what is kept on disk may help, the kernel's memory not."""
    listed(stage)
    stage.remount()
    with stage.clock():
        listed(stage)


def list_bare(stage: Stage) -> None:
    """The listing alone, no metadata of each file."""
    below = stage.dataset.tree()
    with stage.clock():
        stage.bare.sizes(f"{below}/")


def attributes_bare(stage: Stage) -> None:
    """The listing, then a HEAD of each file, 16 at once: only they tell mode, owner and time."""
    below = stage.dataset.tree()
    with stage.clock():
        each(stage.bare.head, stage.bare.sizes(f"{below}/"))


def find(stage: Stage) -> None:
    below = stage.dataset.tree()
    expected = sum(size > 1024 for size in tree_layout(stage.scale).values())
    with stage.clock():
        lines = tool("find", stage.top / below, "-type", "f", "-size", "+2").splitlines()
    if len(lines) != expected:
        raise OSError(f"{len(lines)} files found of {expected}")


def archive(stage: Stage) -> None:
    below = stage.dataset.tree()
    with stage.clock():
        # Given /dev/null itself, tar would read no file.
        tool("sh", "-c", 'tar c "$1" | cat > /dev/null', "sh", stage.top / below)


def archive_bare(stage: Stage) -> None:
    """All bodies, 16 at once."""
    below = stage.dataset.tree()
    with stage.clock():
        sizes = stage.bare.sizes(f"{below}/")
        each(lambda item: stage.bare.get(item[0], 0, item[1]), sizes.items())


def rsync_unchanged(stage: Stage) -> None:
    """`rsync -a` of the mount against an equal local copy: compares sizes and times, moves nothing."""
    below, local = stage.dataset.tree(), stage.material.tree_copy
    with stage.clock():
        said = tool("rsync", "-a", "--stats", f"{stage.top / below}/", f"{local}/")
    if "Number of regular files transferred: 0" not in said:
        raise OSError("rsync saw changes where there are none: the times of the files are not kept")


def remove(stage: Stage) -> None:
    """`rm -rf`, then fsync of the directory above: deletes may travel together."""
    stage.dataset.put_tree(f"{stage.prefix}/tree")
    target = stage.home / "tree"
    with stage.clock():
        tool("rm", "-rf", target)
        sync_directory(stage.home)
    stage.expect(0, 0, below="tree/")


def remove_bare(stage: Stage) -> None:
    """A listing and deletions of 1,000 keys each."""
    stage.dataset.put_tree(f"{stage.prefix}/tree")
    with stage.clock():
        stage.bare.delete(f"{stage.prefix}/tree/")


def _tree(name: str, title: str, run: Act, bare: Act | None, *, stores: bool = False) -> Workload:
    def files(scale: Scale) -> float:
        return scale.tree_files

    return Workload(f"tree_{name}", title, Unit.FILES, files, run, bare, stores=stores)


TREE = [
    _tree("copy", "cp -r of a tree, then fsync", copy, copy_bare, stores=True),
    _tree("list", "ls -lR of the tree, cold", list_cold, attributes_bare),
    _tree("list_again", "ls -lR of the tree, remounted", list_again, list_bare),
    _tree("find", "find -size in the tree, cold", find, list_bare),
    _tree("archive", "tar c of the tree, cold", archive, archive_bare),
    _tree("rsync", "rsync -a of the tree, unchanged", rsync_unchanged, attributes_bare),
    _tree("remove", "rm -rf of the tree", remove, remove_bare),
]
