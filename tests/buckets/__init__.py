"""Tests of `sosfs.buckets`."""
