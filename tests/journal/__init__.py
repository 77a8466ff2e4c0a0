"""Tests of `sosfs.journal`."""
