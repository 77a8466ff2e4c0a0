"""Tests of `sosfs.daemon`."""
