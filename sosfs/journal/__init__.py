"""What outlives a crash: which changes the bucket lacks, and which uploads were begun.

The database is written in a thread, one transaction at a time; rows are immutable values.
"""
