"""One bucket as a filesystem: how its parts are put together, what they may use, and what works on all of it.

Trio thread only. Imported by `buckets` and `daemon`.
"""
