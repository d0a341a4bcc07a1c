"""A directory that no daemon serves, to a command alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ckptfs.cli.below import Below
from ckptfs.store import Store, keeping_all


@contextlib.contextmanager
def opened_store(below: Below, checksum: str = "blake3") -> Iterator[Store]:
    """The store, to itself."""
    store = Store.open(below.where, keeping_all(checksum))
    below.reopen()
    try:
        yield store
    finally:
        store.close()
