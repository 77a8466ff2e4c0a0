"""Tests of `sosfs.ipc`."""
