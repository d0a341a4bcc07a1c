"""What results are to the kernel: the bytes of its replies, and how long it may go by them.

Thread-safe: nothing is kept here.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable

from ..operations import looking
from ..operations.context import Mount
from ..view.answers import Entry, without_names
from ..view.model import File, Handle, Node
from . import wire
from .passthrough import Passthrough

log = logging.getLogger("ckptfs.session")

Shown = Callable[[os.stat_result, int], bytes]

CACHED_S = 10  # also how long an edit below the mount may go unseen by stat
_GOING_NS = 10 * 10**6
# Node 0, "no such name": one is to be looked up once it is asked for, one stays absent for a while.
NO_ENTRY = bytes(wire.ENTRY_OUT.size + wire.ATTR.size)
ABSENT = wire.ENTRY_OUT.pack(0, 0, CACHED_S, 0, 0, 0) + bytes(wire.ATTR.size)


class Answers:
    def __init__(
        self,
        device: int,
        mount: Mount,
        passthrough: Passthrough,
        *,
        shown: Shown,
        name_s: int,
    ) -> None:
        """``shown`` makes the attributes of a status and an inode's number; ``name_s`` is how long
        the kernel may keep a name that lasts."""
        self._device, self._mount, self._passthrough = device, mount, passthrough
        self._shown, self._name_s = shown, name_s

    def entry(self, entry: Entry) -> bytes:
        name_s = self._name_s if entry.name_lasts else 0
        status_s = CACHED_S if entry.status_lasts else 0
        status, status_ns = entry.status, 0
        if entry.going:  # when its dentry is replaced, who watches the file is told
            status, status_s, status_ns = without_names(status), 0, _GOING_NS
        head = wire.ENTRY_OUT.pack(entry.node.id, 0, name_s, status_s, 0, status_ns)
        return head + self._shown(status, _shown_inode(entry.node))

    def attr(self, nodeid: int, status: os.stat_result) -> bytes:
        node = self._mount.nodes.get(nodeid)
        seconds = CACHED_S if looking.status_lasts(self._mount, node, status) else 0
        return wire.ATTR_OUT.pack(seconds, 0, 0) + self._shown(status, _shown_inode(node))

    def opened(self, handle: Handle) -> bytes:
        reply, backing = 0, 0
        if handle.relayed:
            reply |= wire.FOPEN_DIRECT_IO
        else:
            backing = self._passthrough.attach(handle)
            if backing:
                reply |= wire.FOPEN_PASSTHROUGH
        return wire.OPEN_OUT.pack(handle.id, reply, backing)

    def granting(self, request: int) -> Callable[[int], None]:
        return lambda error: self.reply(request, -error)

    def reply(self, unique: int, error: int, payload: bytes = b"") -> None:
        header = wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(payload), error, unique)
        try:
            os.writev(self._device, [header, payload] if payload else [header])
        except OSError as failure:
            if failure.errno not in (errno.ENOENT, errno.ENODEV):  # the caller is gone
                log.error("reply to request %d failed: %s", unique, failure)


def _shown_inode(node: Node) -> int:
    return node.stands_for if isinstance(node, File) else 0
