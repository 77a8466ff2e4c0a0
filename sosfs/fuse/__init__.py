"""The requests of the kernel, translated: numbers to inodes, answers to pyfuse3's types, errors to errnos.

Trio thread only. A handler translates, calls one function below and translates back. With the loop of `daemon` and the
directory of `buckets`, only here is pyfuse3 imported.
"""
