"""The benchmark: sosfs beside s3fs, rclone and a bare S3 client, on the same machine, server and data.

`python -m bench` from the repository's root; `--help` tells the choices. Every phase that writes ends when
the bytes are in the bucket, which a listing by another client then confirms.
"""
