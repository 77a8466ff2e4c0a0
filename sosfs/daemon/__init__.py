"""The process of a mount: fork, mount point, signals, readiness, the loop and its end.

Everything until the fork is blocking and imports no library that starts threads; everything after it is the one trio
thread. Only `cli` imports this wing.
"""
