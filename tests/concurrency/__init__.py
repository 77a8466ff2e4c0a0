"""Tests of `sosfs.concurrency`."""
