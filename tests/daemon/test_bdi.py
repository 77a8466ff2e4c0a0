"""What sosfs asks of the kernel for its mount."""

from __future__ import annotations

from sosfs.config.parameters import READ_AHEAD
from sosfs.daemon.bdi import read_ahead_file
from tests.conftest import Mounter
from tests.support.waiting import until


def test_the_kernel_reads_ahead_of_a_stream(mounter: Mounter) -> None:
    drive = mounter()
    file = read_ahead_file(drive.mount.path)
    assert file is not None
    until(lambda: int(file.read_text()) == READ_AHEAD, "a wider read-ahead")
