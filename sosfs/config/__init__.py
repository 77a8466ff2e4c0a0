"""What a user has set: options, where they are read, zones, and where keys are found.

Immutable values, read before the mount begins; blocking.
"""
