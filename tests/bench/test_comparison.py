"""What follows from what was measured: with whom sosfs is compared, ratios, goals, and what a file keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench import report
from tests.bench.fakes import COUNTED, cell, complete, measured, results
from tests.bench.goals import AT_LEAST, bases, goals
from tests.bench.results import Results, Setting, percentile
from tests.bench.session import runs
from tests.bench.systems import REFERENCES, SYSTEMS, Role
from tests.bench.workloads import WORKLOADS
from tests.bench.workloads.load import KINDS

HERE = Setting("ceph", 0)


def test_stored_bytes_are_compared_at_the_same_durability_and_all_else_with_the_faster_peer() -> None:
    assert bases("tree_copy", "sosfs") == ("s3fs",)
    assert bases("tree_copy", "sosfs-journal") == ("rclone",)
    assert bases("tree_list", "sosfs") == bases("tree_list", "sosfs-journal") == ("s3fs", "rclone")


def test_no_ratio_is_made_with_a_reference() -> None:
    for workload in WORKLOADS:
        for system in ("sosfs", "sosfs-journal"):
            assert all(SYSTEMS[base].role is Role.PEER for base in bases(workload, system))
    assert {SYSTEMS[name].role for name in REFERENCES} == {Role.REFERENCE}
    found = results(
        [cell("tree_list", "sosfs", 2), cell("tree_list", "rclone-default", 1), cell("tree_list", "s3fs", 8)]
    )
    made = found.ratio(HERE, "tree_list", "sosfs", bases("tree_list", "sosfs"))
    assert made is not None and (made.base, made.value) == ("s3fs", 4)


def test_rclone_waits_for_no_upload_before_it_begins_one() -> None:
    assert "--vfs-write-back=0" in SYSTEMS["rclone"].setting
    assert "write-back" not in SYSTEMS["rclone-default"].setting
    assert "--vfs-write-back=100ms" in SYSTEMS["rclone-delayed"].setting


def test_where_it_loses_what_is_renamed_its_shortest_delay_is_a_peer_too() -> None:
    assert bases("git_clone", "sosfs-journal") == ("rclone", "rclone-delayed")
    assert runs("rclone-delayed", WORKLOADS["git_clone"]) and not runs("rclone-delayed", WORKLOADS["untar"])


def test_ratios_are_those_within_rounds() -> None:
    """The machine was half as fast in the second round: no ratio sees that."""
    found = results([cell("tree_list", "sosfs", 1, 2, 1), cell("tree_list", "s3fs", 3, 6, 4)])
    made = found.ratio(HERE, "tree_list", "sosfs", ["s3fs"])
    assert made is not None and (made.value, made.least, made.most) == (3, 3, 4)


def test_who_failed_has_no_ratio_and_is_no_base() -> None:
    found = results(
        [cell("tree_list", "sosfs", 1), cell("tree_list", "s3fs", 1, failure="died"), cell("tree_list", "rclone", 5)]
    )
    made = found.ratio(HERE, "tree_list", "sosfs", bases("tree_list", "sosfs"))
    assert made is not None and made.base == "rclone"
    assert found.ratio(HERE, "tree_list", "s3fs", ["rclone"]) is None


def test_the_journal_is_not_to_be_behind_juicefs_with_write_back() -> None:
    wanted = [goal for goal in goals("untar") if goal.bases == ("juicefs-writeback",)]
    assert [(goal.system, goal.at_least) for goal in wanted] == [("sosfs-journal", 1.0)]
    assert set(AT_LEAST) <= set(WORKLOADS)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_percentiles(share: float, expected: int) -> None:
    assert percentile(range(100, 0, -1), share) == expected
    assert percentile([7], share) == 7


def test_a_file_keeps_everything(tmp_path: Path) -> None:
    whole = complete(["seq_write"])
    calls = {kind: [0.1, 0.2] for kind in KINDS}
    whole.cells += [replace(cell("under_load", "sosfs"), measures=[measured(1, calls=calls)], counted=COUNTED)]
    whole.cells += [cell("untar", "s3fs", failure="no end after 240 s")]
    whole.note("said once")
    whole.note("said once")
    whole.write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == whole
    assert whole.notes == ["said once"]


def test_another_file_is_told_from_ours(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"scale": "medium", "cells": []}')
    with pytest.raises(ValueError, match=r"results\.json is not of this version"):
        Results.read(path)


def row(text: str, *begin: str) -> str:
    """The one line of a report that begins with these fields."""
    found = [line for line in text.splitlines() if line.startswith(f"| {' | '.join(begin)} |")]
    assert len(found) == 1, found
    return found[0]


def test_the_report_tells_which_goals_are_reached_and_with_whom() -> None:
    whole = complete(["tree_copy", "tree_list", "seq_write"])
    text = report.markdown(whole)
    at_0, at_20 = text.split("## ceph, 20 ms")
    copied = "cp -r of a tree, then fsync"
    assert "| 4.00 x s3fs | 3 | yes |" in row(at_0, copied, "sosfs")
    assert "| 2.00 x rclone | 1.2 | yes |" not in at_0  # sequential writes of the journal: 4 times
    assert "4.00 x rclone | 1.2 | yes" in row(at_0, "sequential write, 1 stream", "sosfs-journal")
    assert "2.00 x rclone | 3 | no" in row(at_20, "ls -lR of the tree, cold", "sosfs")
    assert "abc1234" in text and "server on core 0" in text


def test_cpu_is_told_for_each_operation_or_gib_beside_s3fs() -> None:
    text = report.markdown(complete(["tree_list", "seq_write"])).split("## ceph, 20 ms")[0]
    assert "| 1.67 ms, 6.67 ms | yes |" in row(text, "ls -lR of the tree, cold", "sosfs")  # 0.5 s and 2 s of 300 files
    assert "| 2 s/GiB, 8 s/GiB | yes |" in row(text, "sequential write, 1 stream", "sosfs")  # of 256 MiB


def test_goals_hold_at_no_other_latency() -> None:
    cells = [cell("tree_list", "sosfs", 1, rtt=2), cell("tree_list", "s3fs", 2, rtt=2)]
    assert "| 2.00 x s3fs |  |  |" in row(report.markdown(results(cells)), "ls -lR of the tree, cold", "sosfs")


def test_latencies_under_load_are_told_over_all_rounds() -> None:
    calls = {kind: [number / 1000 for number in range(1, 101)] for kind in KINDS}
    loaded = replace(cell("under_load", "sosfs"), measures=[measured(1, calls=calls), measured(1, calls=calls)])
    assert row(report.markdown(results([loaded])), "sosfs", "200") == f"| sosfs | 200 |{' 50 | 99 |' * 4}"


def test_eight_mounts_stand_beside_one_with_their_requests() -> None:
    one = replace(cell("mounts1_create", "sosfs", 2), counted=COUNTED)
    eight = replace(cell("mounts8_create", "sosfs", 1), counted=replace(COUNTED, requests={"PUT": 1000}))
    text = row(report.markdown(results([one, eight])), "create 4 KiB files", "sosfs")
    assert text.endswith("| 100 files/s | 200 files/s | 2 | 5 |")


def test_a_second_run_is_told_to_agree_within_a_tenth() -> None:
    before, now = complete(["tree_list"]), complete(["tree_list"])
    near, far = now.cell(HERE, "tree_list", "sosfs"), now.cell(HERE, "tree_list", "sosfs-journal")
    assert near and far
    near.measures, far.measures = [measured(0.95)], [measured(0.8)]
    text = report.markdown(now, before=before)
    assert row(text, "ceph, 0 ms", "tree_list", "sosfs", "rclone").endswith("| 2.11 | 2.00 | yes |")
    assert row(text, "ceph, 0 ms", "tree_list", "sosfs-journal", "rclone").endswith("| 2.50 | 4.00 | no |")


def test_what_failed_is_said_with_its_reason() -> None:
    text = report.markdown(results([cell("untar", "s3fs", failure="no end after 240 s"), cell("untar", "sosfs", 1)]))
    assert "- ceph, 0 ms, untar, s3fs: no end after 240 s" in text
