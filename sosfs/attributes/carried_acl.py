"""Which ACL an object has to carry that is copied or rewritten: copies and PUTs reset it (SOS "ACL").

With `--acls keep` the object is asked for its own before. With `ignore` none is: what is made has the ACL of `--acl`,
as with all other tools. `auto` is `keep`, unless the bucket's ownership rules say that ACLs have no effect in it
(BucketOwnerEnforced). It is asked for these by the first question that arises, and again while it said so, for rules
change: `AGAIN` seconds later, or when they were changed through the mount. An answer that is none, a refusal and a
bucket without rules leave it at `keep`, and so does an ACL that is set all the same, by `--acl` or through the mount.
SOS is always `keep`: it shows fresh buckets as if they had such rules, and has ACLs in them.

Concurrency: trio thread only.
"""

from __future__ import annotations

import errno
import logging
import math
from collections import Counter

import trio

from sosfs.concurrency.locks import FairLock
from sosfs.config.choices import Acls, Canned
from sosfs.errors import Cause, StoreError
from sosfs.s3.protocol import Acl, ObjectStore
from sosfs.tree.inodes import Inode, Inodes

log = logging.getLogger(__name__)

DIRECTORIES_MAX = 10_000  # of which it is remembered that ACLs could be read in them
AGAIN = 300.0  # seconds for which ACLs are let go without another look at the bucket's rules
DENIALS = 3  # refused ACL reads, with none allowed, after which they are not asked again


class CarriedAcls:
    """The ACLs that the copies of a mount carry. `new_acl` is what a new object gets."""

    def __init__(self, inodes: Inodes, store: ObjectStore, rule: Acls, *, new_acl: Canned) -> None:
        self._inodes = inodes
        self._store = store
        self._new_acl = new_acl
        self._is_auto = rule is Acls.AUTO
        self._rule = Acls.KEEP if rule is Acls.AUTO and new_acl is not Canned.PRIVATE else rule
        self._look_again = math.inf  # the trio time
        self._asking = FairLock()
        self._answered: set[str] = set()  # directories in which ACLs could be read
        self._denials = 0
        self._refused: Counter[str] = Counter()  # by key, of those directories

    async def are_kept(self) -> bool:
        """Whether what is copied keeps its ACL. With `auto` the bucket may be asked for its ownership rules."""
        if trio.current_time() >= self._look_again:
            self.rules_changed()
        if self._rule is Acls.AUTO:
            async with self._asking:
                if self._rule is Acls.AUTO:
                    await self._find_rule()
        return self._rule is not Acls.IGNORE

    async def _find_rule(self) -> None:
        try:
            has_acls = await self._store.has_acls()
        except StoreError as error:
            if error.errno == errno.EINTR:
                return  # who asked does not wait any more: the next one asks
            log.info("ACLs are kept, for whether the bucket has any is not known: %s", error)
            has_acls = True
        if self._rule is Acls.AUTO:  # none was set meanwhile
            self._rule = Acls.KEEP if has_acls else Acls.IGNORE
            self._look_again = math.inf if has_acls else trio.current_time() + AGAIN

    def rules_changed(self) -> None:
        """The bucket's ownership rules may be others by now: with `auto` they are asked for again."""
        if self._is_auto and self._rule is Acls.IGNORE:
            self._rule, self._look_again = Acls.AUTO, math.inf

    def was_set(self) -> None:
        """The server took an ACL: with `auto` they are kept from now on, whatever its rules say."""
        if self._is_auto:
            self._rule = Acls.KEEP

    async def of(self, inode: Inode) -> Acl | None:
        """The object's ACL where it is not the default one; None too where the key may not read it, or it is let go."""
        if trio.current_time() < inode.acl_private_until:
            return None
        return await self.of_key(self._inodes.key(inode))

    async def of_key(self, key: str) -> Acl | None:
        """As `of`, for a key.

        Raises EACCES where ACLs could be read beside it: that may pass, and who went on without would reset it. One
        that is refused again and again is its owner's, and not for us to read.
        """
        if not await self.are_kept() or (self._denials >= DENIALS and not self._answered):
            return None
        directory = key[: key.rfind("/") + 1]
        try:
            acl = await self._store.get_acl(key)
        except StoreError as error:
            if error.cause is Cause.DENIED and directory in self._answered:
                self._refused[key] += 1
                if self._refused[key] <= DENIALS:
                    raise
            if error.cause in (Cause.DENIED, Cause.UNSUPPORTED):
                self._denials += 1
                return None
            if error.cause is Cause.ABSENT:
                return None
            raise
        if len(self._answered) < DIRECTORIES_MAX:
            self._answered.add(directory)
        self._refused.pop(key, None)
        return None if acl.is_private and self._new_acl is Canned.PRIVATE else acl
