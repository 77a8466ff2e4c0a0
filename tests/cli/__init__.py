"""Tests of `sosfs.cli`."""
