"""What requests do, without FUSE: functions over the context of a mount, a file a subject.

What an operation needs that may be slow (fsync, digest, copy, verify) it returns as ``Slow``, which
the session runs elsewhere, so that the loop goes on answering. Expected failures are ``OSError``
and ``CkptfsError``, which carry their errno.

Threading: an operation may run in any thread; ``Mount.lock`` guards the tables.
"""
