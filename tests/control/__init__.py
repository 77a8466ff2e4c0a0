"""Tests of `sosfs.control`."""
