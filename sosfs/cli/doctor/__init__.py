"""`sosfs doctor`: the checks of the machine, the account, the server, the bucket and the key's rights.

Blocking; each check is made by itself, so that one which hangs or fails does not hide the others.
"""
