"""Which bytes a file has: open files, drafts, uploads, commits, what is fetched ahead.

Trio thread only; threads are handed bytes and give bytes back. The life of a draft is drawn in `draft`, that of an
upload in `upload`.
"""
