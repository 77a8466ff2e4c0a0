"""Tests of `sosfs.filesystem`."""
