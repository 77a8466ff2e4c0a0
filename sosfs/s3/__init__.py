"""The object store: the protocol, and one S3 server behind it.

`protocol` is what everything above sees. `bucket` keeps its promises with `calls`, one HTTP request each, made in
threads over `transport`. What counts as an answer is judged once, in `xml` and `object_answers`.
"""
