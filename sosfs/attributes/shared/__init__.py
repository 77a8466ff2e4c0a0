"""Attributes that mounts of several machines share by a small index in the bucket (`--shared-attributes`).

A HEAD for each file is what the first `ls -lR` on a machine costs. A mount with this option puts what it has learned
anyway into objects below one hidden prefix, and reads what others have put there before it asks for a file:

    PREFIX.sosfs-attributes/v1           the root: all entries, or, if they are too many, which leaf has which
    PREFIX.sosfs-attributes/v1-HEX       a leaf: the entries of a range of places

`PREFIX` is that of the mount. So a key that is limited to it can use the index, requests never leave it, and mounts of
the same prefix share one; mounts of different prefixes do not, for the keys of one may not be the other's to see.

An entry holds the key, the ETag, the size and Last-Modified, and headers and metadata. It is used where the listing of
now shows the same ETag, size and time, and nowhere else: whoever changes bytes or metadata makes another time. Seconds
are all that HEAD tells, so an entry goes into the index only if the server's own clock, when it answered, was
`SETTLED` seconds past the object's time: no later change can have that time too. What was younger then, and what the
mount has written itself (no answer tells the time of that), is asked for once more before. So no entry can be stale
while it is used, whoever wrote it, and a lost or a half merged one costs a HEAD and nothing else.

Places (folder, name) are sorted, so a directory's files stand together and so does a tree. A root takes up to 20,000
entries: a tree of that size is one GET. Beyond that it is split at directories into leaves, which nobody changes: who
has more to say writes new ones and then the root, on the condition that it is what was read; the loser reads again.
Where the server knows no conditions the last one wins, and what the other one knew is written with its next turn.

What is there may be anybody's: `table` takes nothing that is not whole and of bounded size, and a refused object is
one line in the log. Whoever may write there may write objects, and so attributes, anyway. It is stored privately
whatever `--acl` says, with the mount's SSE-C key, and no mount shows it in its root.

A cache and nothing more: nothing waits for it but the first question for attributes, for one GET, and the end of
`sosfs umount`, for a bounded time.
"""
