"""This machine's disk: free space, databases that notice a loss, damage that is set aside, the lock of a directory.

Blocking; called in threads. Imported by `journal`, `cache` and `files`.
"""
