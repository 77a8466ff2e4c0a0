"""What goes into a log or to a terminal: from which level on, and with which characters.

Safe from any thread.
"""
