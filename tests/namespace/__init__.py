"""Tests of `sosfs.namespace`."""
