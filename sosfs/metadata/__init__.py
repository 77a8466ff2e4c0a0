"""How attributes stand in an object: user metadata, system headers, and changes over both.

Pure values and functions, safe from any thread.
"""
