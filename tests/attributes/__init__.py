"""Tests of `sosfs.attributes`."""
