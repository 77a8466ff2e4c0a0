"""What was read, kept: blocks in memory and on disk, attributes on disk, and read-ahead within a file.

Trio thread only; the disk is read and written in threads. A block belongs to one version of an object and is never
changed.
"""
