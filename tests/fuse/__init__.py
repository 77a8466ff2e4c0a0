"""Tests of `sosfs.fuse`."""
