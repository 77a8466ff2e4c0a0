"""Tasks, threads, locks, budgets, interrupts and pauses: what the wings above wait with.

Nothing here knows files or S3.
"""
