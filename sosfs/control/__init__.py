"""The tree `.sosfs`: settings, ACLs and versions as files.

Texts are parsed by pure functions (`acl_text`, `cors_text`); what reads and writes the bucket is trio thread only.
Imported by `fuse` and above.
"""
