"""Tests of `sosfs.cache`."""
