"""The tables of the README and of the page on speed are written of what was measured, all of it or nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.bench import published
from tests.bench.fakes import complete, measured
from tests.bench.goals import AT_LEAST
from tests.bench.results import Results, Setting
from tests.bench.scale import QUICK
from tests.bench.systems.system import ROOT

BEFORE = "# Top\n\n<!-- speed -->\nan old figure: 17\n<!-- end of speed -->\n\nbelow\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree with both pages, and the results beside."""
    for page in ("README.md", "sosfs/docs/speed.md"):
        path = tmp_path / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(BEFORE)
    (tmp_path / "out").mkdir()
    for name in ("results.json", "results.md", "chart.svg"):
        (tmp_path / "out" / name).write_text(name)
    return tmp_path


def publish(results: Results, root: Path, *, before: Results | None = None) -> None:
    published.publish(results, root / "out", root, before=before)


def test_the_pages_of_the_project_have_the_marks() -> None:
    for page in ("README.md", "sosfs/docs/speed.md"):
        assert len(published.MARKS.findall((ROOT / page).read_text())) == 1


def test_the_readme_gets_six_rows_with_commit_and_cores(root: Path) -> None:
    publish(complete(published.SHOWN), root)
    text = (root / "README.md").read_text()
    assert text.startswith("# Top\n") and text.endswith("\nbelow\n") and "old figure" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) == 6
    assert "commit `abc1234`" in text and "server on core 0" in text and "medium size" in text
    # sosfs 4 times as fast as s3fs, the journal 4 times as fast as rclone; all else beside rclone 2 and 4 times.
    assert rows[0].startswith("| sequential write / read | **4.0** / **2.0** | **4.0** / **4.0** |")
    assert rows[0].endswith("| 1.2 / 1.2 | 0.2 / 0.2 |")
    assert rows[4] == "| `ls -lR`, cold | 2.0 | **4.0** | 2.0 | **4.0** | 3 | 0.2 |"
    assert "| 3; 2 |" in rows[3]


def test_links_of_the_pages_lead_to_something(root: Path) -> None:
    publish(complete(published.SHOWN), root)
    for page in ("README.md", "sosfs/docs/speed.md"):
        links = re.findall(r"\]\(([^)]+)\)", (root / page).read_text())
        assert links and all((root / page).parent.joinpath(link).exists() for link in links)


def test_the_results_are_kept_beside(root: Path) -> None:
    publish(complete(published.SHOWN), root)
    assert (root / published.MEASURED / "medium/results.md").read_text() == "results.md"


def test_the_page_has_every_row_that_is_measured(root: Path) -> None:
    publish(complete([*published.SHOWN, "untar"]), root)
    text = (root / "sosfs/docs/speed.md").read_text()
    assert "| untar |" in text and "| git clone |" not in text
    publish(complete(AT_LEAST), root)
    assert "| git clone |" in (root / "sosfs/docs/speed.md").read_text()


def test_what_is_missing_is_said_and_nothing_written(root: Path) -> None:
    results = complete(published.SHOWN)
    results.cells = [each for each in results.cells if (each.workload, each.system) != ("tree_remove", "rclone")]
    with pytest.raises(published.NotComplete, match="tree_remove at ceph, 0 ms is not measured yet"):
        publish(results, root)
    assert (root / "README.md").read_text() == BEFORE and not (root / published.MEASURED).exists()


def test_what_failed_is_shown_as_failed(root: Path) -> None:
    results = complete(published.SHOWN)
    failed = results.cell(Setting("ceph", 20), "tree_copy", "sosfs")
    assert failed
    failed.measures, failed.failure = [], "no end after 240 s"
    publish(results, root)
    assert "| `cp -r` of a tree | **4.0** | **4.0** | failed |" in (root / "README.md").read_text()


def test_what_two_runs_do_not_agree_on_is_told_of_both(root: Path) -> None:
    """A tenth is agreement. Of two that differ the worse one is what tells whether the goal was reached."""
    before = complete(published.SHOWN)
    before.commit = "def5678"
    _take(before, "seq_write", 1.05)
    _take(before, "seq_read", 2.5)
    _take(before, "tree_list", 1.0, 0.8)
    publish(complete(published.SHOWN), root, before=before)
    text = (root / "README.md").read_text()
    assert "| sequential write / read | **4.0** / 0.8 to 2.0 |" in text
    assert "| `ls -lR`, cold | 2.0 | 2.5 to 4.0 |" in text
    assert "| 0.2 / 0.2 to 0.6 |" in text, "the CPU time too"
    assert "commit `abc1234`" in text and "commit `def5678`" in text
    assert Results.read(root / published.MEASURED / "medium/earlier.json") == before
    publish(complete(published.SHOWN), root)
    assert "def5678" not in (root / "README.md").read_text()
    assert not (root / published.MEASURED / "medium/earlier.json").exists()


def _take(results: Results, workload: str, bucket: float, journal: float = 0.5) -> None:
    """What a workload took in each round without latency, in seconds, on sosfs in both modes."""
    for system, seconds in (("sosfs", bucket), ("sosfs-journal", journal)):
        found = results.cell(Setting("ceph", 0), workload, system)
        assert found
        found.measures = [measured(seconds, seconds / 2)] * 2


def test_a_row_that_one_run_lacks_is_told_of_the_other_alone(root: Path) -> None:
    before = complete([*published.SHOWN, "git_clone"])
    publish(complete([*published.SHOWN, "untar"]), root, before=before)
    text = (root / "sosfs/docs/speed.md").read_text()
    assert "| untar | **4.0** | **4.0** | **4.0** | **4.0** | 3; 2 | 0.2 |" in text
    assert "| git clone |" not in text, "what was not measured again is no longer so"
    assert "what it did not measure is of one run" in text


def test_figures_of_another_size_are_not_shown(root: Path) -> None:
    results = complete(published.SHOWN)
    results.scale = QUICK
    with pytest.raises(published.NotComplete, match="the pages show the medium size"):
        publish(results, root)
