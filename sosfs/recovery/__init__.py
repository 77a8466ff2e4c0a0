"""What a mount does with what an earlier one left behind.

Trio thread only, before the kernel's first request. Imported by `filesystem` alone.
"""
