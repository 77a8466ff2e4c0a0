"""Mode, owner, times, headers and metadata of objects: asked for, changed, brought into the bucket.

Trio thread only. How they stand in an object is in `user_metadata`.
"""
