"""Servers, proxies, mounts and stores that tests share, and the tests of these."""
