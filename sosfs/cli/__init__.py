"""What a user types: one module a command, its words and its exit codes.

Runs in the user's process: blocking, without trio, and nothing heavy is imported before a command needs it. Nothing
imports this wing.
"""
