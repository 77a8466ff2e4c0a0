"""Tests of `sosfs.disk`."""
