"""Tests of `sosfs.tree`."""
