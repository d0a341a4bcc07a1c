"""What the kernel is told to forget of names and attributes.

Threading: any thread may tell; names are dropped by a thread of their own, in the order they came.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from queue import Queue

from ..operations.context import Caches, Dropped
from . import wire

log = logging.getLogger("ckptfs.session")


class KernelCaches(Caches):
    """Notifications. Dropping a name takes the kernel's lock of the directory, which a request
    that waits for its answer may hold: a thread of its own does it, and nobody waits for that."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._names: Queue[Dropped] = Queue()
        threading.Thread(target=self._drop_names, name="ckptfs-notify", daemon=True).start()

    def drop_attributes(self, nodeid: int) -> None:
        body = wire.INVAL_INODE_OUT.pack(nodeid, wire.ATTRIBUTES_ONLY, 0)
        self._notify(wire.NOTIFY_INVAL_INODE, body)

    def _drop(self, dropped: Dropped) -> None:
        self._names.put(dropped)

    def _drop_names(self) -> None:
        while True:
            dropped = self._names.get()
            try:
                self._drop_name(dropped)
            except Exception:  # others wait for what follows
                log.exception("a notification failed")
            finally:
                self._names.task_done()

    def _drop_name(self, dropped: Dropped) -> None:
        parent_id, name, gone, then, begun = dropped
        begun()
        encoded = os.fsencode(name)
        if gone:
            head = wire.DELETE_OUT.pack(parent_id, gone, len(encoded), 0)
            self._notify(wire.NOTIFY_DELETE, head + encoded + b"\0")
        else:
            head = wire.INVAL_ENTRY_OUT.pack(parent_id, len(encoded), 0)
            self._notify(wire.NOTIFY_INVAL_ENTRY, head + encoded + b"\0")
        then()

    @property
    def busy(self) -> bool:
        return self._names.unfinished_tasks > 0

    def _notify(self, kind: int, body: bytes) -> None:
        with contextlib.suppress(OSError):  # the kernel knows no such node, or the mount is gone
            os.writev(
                self._device,
                [wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(body), kind, 0), body],
            )
