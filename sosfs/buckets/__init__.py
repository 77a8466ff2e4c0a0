"""All buckets of an account as directories of one mount.

Trio thread only. What one bucket shows is in `filesystem`; here is which of them there are, and which request is for
which. Imported by `daemon`.
"""
