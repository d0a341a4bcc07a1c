"""Passthrough: the kernel reads, writes and maps the backing file itself (Linux 6.9).

The kernel allows one backing file per inode, and no relayed open beside a passthrough one, so a
node is carried one way for as long as it is open at all. Refusals (no CAP_SYS_ADMIN, a stacked
filesystem, an old kernel) are remembered for ``status``; the session relays then.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from dataclasses import dataclass

from ckptfs.disk import osfs
from ckptfs.disk.locks import leaf
from ckptfs.records import format as fmt
from ckptfs.records.layout import Layout

from ..processes.mounts import mounts
from ..view.model import Handle
from . import wire

_FINAL = frozenset({errno.EPERM, errno.EACCES, errno.ENOTTY, errno.EOPNOTSUPP, errno.ELOOP})


@dataclass
class _Carried:
    backing_id: int  # 0: relayed
    handles: int


class Passthrough:
    def __init__(self, device: int, *, enabled: bool) -> None:
        self.enabled = enabled
        self.active = False
        self.refusal = "" if enabled else "switched off"
        self.agreed = False
        self._device = device
        self.carried: dict[int, _Carried] = {}
        self._lock = leaf()

    def resume(self, carried: dict[int, _Carried], *, agreed: bool) -> None:
        """What an earlier program has open, and whether the kernel agreed to it then."""
        self.carried, self.agreed, self.active = carried, agreed, agreed and self.enabled
        if self.enabled and not agreed:
            self.refusal = "the mount began without it"

    def stack_depth(self, root: int) -> int:
        """2 where the directory lies on overlayfs: with 1 the kernel refuses it with ELOOP."""
        return (2 if _on_overlay(root) else 1) if self.active else 0

    def probe(self, layout: Layout) -> None:
        """Ask the kernel once for a backing file, so that ``active`` is true to the facts."""
        if self.active:
            with osfs.opened(layout.fs, layout.control, fmt.FORMAT, osfs.O_RDONLY) as fd:
                self._close(self._open(fd))

    def attach(self, handle: Handle) -> int:
        """The backing id for an open of the handle's node; 0: relay."""
        with self._lock:
            carried = self.carried.get(handle.opened_node)
            if carried is None:
                backing = 0 if handle.base is not None else self._open(handle.fd)
                carried = self.carried[handle.opened_node] = _Carried(backing, 0)
            carried.handles += 1
            return carried.backing_id

    def detach(self, handle: Handle) -> None:
        with self._lock:
            carried = self.carried.get(handle.opened_node)
            if carried is None or handle.relayed:
                return
            carried.handles -= 1
            if carried.handles == 0:
                del self.carried[handle.opened_node]
                self._close(carried.backing_id)

    def _close(self, backing_id: int) -> None:
        if backing_id:
            with contextlib.suppress(OSError):
                order = backing_id.to_bytes(4, "little")
                fcntl.ioctl(self._device, wire.DEV_IOC_BACKING_CLOSE, order)

    def _open(self, fd: int) -> int:
        if not self.active:
            return 0
        try:
            order = bytearray(wire.BACKING_MAP.pack(fd, 0, 0))
            return int(fcntl.ioctl(self._device, wire.DEV_IOC_BACKING_OPEN, order, True))
        except OSError as error:
            self.refusal = f"the kernel refused a backing file: {os.strerror(error.errno or 0)}"
            if error.errno in _FINAL:
                self.active = False
            return 0


def _on_overlay(fd: int) -> bool:
    device = os.fstat(fd).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    return any(each.device == wanted and each.type == "overlay" for each in mounts())
