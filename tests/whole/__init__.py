"""Tests of the whole: what no wing has alone."""
