"""Tests of `sosfs.recovery`."""
