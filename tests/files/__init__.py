"""Tests of `sosfs.files`."""
