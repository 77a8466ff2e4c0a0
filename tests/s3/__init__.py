"""Tests of `sosfs.s3`."""
