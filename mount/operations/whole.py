"""File operations over the store: names, handles, visibility. No FUSE types.

What an operation needs that may be slow (fsync, digest, copy, verify) it returns as a
:class:`~ckptfs.mount.operations.base.Slow`, which the session runs elsewhere, so that the loop goes
on answering. Expected failures are ``OSError`` and ``CkptfsError``, which carry their errno.

Threading: the tables are guarded by ``versions.lock``; operations may run in any thread.
"""

from __future__ import annotations

from .attributes import Attributes
from .namespace import Namespace


class Operations(Attributes, Namespace):
    """Every operation of a mount."""
