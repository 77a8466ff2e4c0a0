"""What a running mount tells other processes and does for them, over unix sockets: status, metrics, commands.

The mount's side runs in the trio thread; the side of a command blocks.
"""
