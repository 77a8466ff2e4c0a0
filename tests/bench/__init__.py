"""The benchmark: sosfs beside s3fs, rclone, JuiceFS and a bare S3 client, on the same machine, server and data.

`python -m tests.bench` from the repository's root; `--help` tells the choices. Every phase that writes ends when the
bytes are in the bucket, which a listing by another client then confirms. The server has its cores and the mounts have
theirs. What was measured is kept after each round, so that a run of half an hour at most goes on where the last ended.
"""
