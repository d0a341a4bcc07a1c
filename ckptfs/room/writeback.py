"""Writes staged versions out behind their writers, so that little is left to do at close, and has
room made ahead of them: the kernel carries their data, so no request tells how far they are."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from ckptfs.disk import osfs
from ckptfs.disk.filesystem import FileSystem
from ckptfs.disk.locks import leaf
from ckptfs.disk.worker import started
from ckptfs.room.making import DiskRoom
from ckptfs.versions.staged import Staged

_STEP_BYTES = 8 << 20
# A short write is left to the close: there is little to hide of it, and submitting it slowed the
# writer (4,096 writes of 64 KiB, in 0.15 s, took 1.5 times as long).
_DELAY_S = 0.05
# Small and often while data comes: at 0.2 s the pieces were large enough to hold up the writer.
_BUSY_INTERVAL_S, _IDLE_INTERVAL_S = 0.02, 0.1


@dataclass
class _Behind:
    """A staged version, how much of it was handed to the disk, and when that may begin."""

    staged: Staged
    done_bytes: int = 0
    size_bytes: int = 0  # at the last look
    to_come_bytes: int = 0  # of what is being written
    uid: int = -1  # its owner
    due_s: float | None = None  # monotonic; None while there is nothing to hand over


class Writeback:
    """One thread for all staged versions. Nothing is durable by its work."""

    def __init__(self, fs: FileSystem, room: DiskRoom | None = None) -> None:
        """``room``: for what is written is made while the versions grow."""
        self.fs, self._room = fs, room
        self._behind: dict[str, _Behind] = {}
        self._guard = leaf()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = started(self._run, "writeback")

    def add(self, staged: Staged) -> None:
        with self._guard:
            self._behind[staged.txid] = _Behind(staged)
            self._wake.set()

    def remove(self, staged: Staged) -> None:
        """After return the thread no longer touches the version's descriptor."""
        with self._guard:
            self._behind.pop(staged.txid, None)

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            if not self._behind:
                self._wake.wait()
            self._wake.clear()
            busy = [self._step(txid) for txid in list(self._behind)]
            if self._room is not None:
                with self._guard:
                    growing = [each for each in self._behind.values() if each.to_come_bytes]
                to_come = sum(behind.to_come_bytes for behind in growing)
                for uid in {behind.uid for behind in growing}:
                    self._room.ahead_of(to_come, uid)
            self._stopping.wait(_BUSY_INTERVAL_S if any(busy) else _IDLE_INTERVAL_S)

    def _note_growth(self, behind: _Behind, size: int) -> None:
        grown, behind.size_bytes = size - behind.size_bytes, size
        if self._room is not None:
            behind.to_come_bytes = self._room.sizes.still_to_come(behind.staged, size, grown)

    def _step(self, txid: str) -> bool:
        """Hand over what is whole. Returns whether the version grows."""
        with self._guard:
            behind = self._behind.get(txid)
            if behind is None:
                return False
            staged = behind.staged
            try:
                # Not the tail: a writer that appends to a page under writeback waits for it, and
                # with it for all that was handed to the disk before (stable pages).
                status = self.fs.stat(staged.fd)
                size, behind.uid = status.st_size, status.st_uid
                self._note_growth(behind, size)
                end = size - _STEP_BYTES
                end -= end % _STEP_BYTES
                if end < behind.done_bytes + _STEP_BYTES:
                    return False
                if behind.due_s is None:
                    behind.due_s = time.monotonic() + _DELAY_S
                if time.monotonic() < behind.due_s:
                    return True
                fd = osfs.duplicate(staged.fd)
            except OSError as error:
                staged.writeback_error = error
                return False
        try:
            self.fs.start_writeback(fd, behind.done_bytes, end - behind.done_bytes)
        except OSError as error:
            staged.writeback_error = error
        finally:
            self.fs.close(fd)
        behind.done_bytes = end
        return True
