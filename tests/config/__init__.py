"""Tests of `sosfs.config`."""
