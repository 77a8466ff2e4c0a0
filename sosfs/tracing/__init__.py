"""What requests cost, and who is told: each kernel request, and the S3 requests that are made for it.

Always counted (`meters`); line by line (`access_log`) and summed by program (`profile`) while somebody looks.
Kernel requests end in the trio thread, S3 requests in any.
"""
