"""Tests of `sosfs.tracing`."""
