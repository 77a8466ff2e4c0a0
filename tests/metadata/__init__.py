"""Tests of `sosfs.metadata`."""
