"""Inodes, directories, their listings, and how keys become names.

Trio thread only. An inode knows its parent and its name, never a path.
"""
