"""Which names exist: look up, create, rename, remove.

Trio thread only; a change of the tree happens between two awaits, and the keys it concerns are held by
`tree.subtree_lock`. Knows files only as what has to be stored before its name changes.
"""
