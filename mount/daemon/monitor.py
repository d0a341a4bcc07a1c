"""By what a daemon is watched: metrics, and a command that it runs when something happened."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Callable, Iterable
from typing import Any

from ckptfs.disk import osfs
from ckptfs.errors import CannotServe
from ckptfs.records import format as fmt
from ckptfs.store import Store

from . import metrics
from .hook import Hook
from .lowspace import LowSpace
from .options import MountOptions

log = logging.getLogger("ckptfs.monitor")


class Monitor:
    """Of one daemon. ``degraded`` says what it lacks."""

    def __init__(self, options: MountOptions, *, resumed: bool) -> None:
        """Listens where metrics are asked for. Raises CannotServe where it cannot; a mount that is
        ``resumed`` goes on without them."""
        self.degraded: list[str] = []
        self._server: metrics.Server | None = None
        self._options = options
        self._hook: Hook | None = None
        self._aside: dict[int, tuple[int, int]] = {}  # mtime of the folder, bytes in it
        if options.metrics:
            try:
                self._server = metrics.Server(options.metrics)
            except CannotServe as error:
                if not resumed:
                    raise
                log.error("%s", error)
                self.degraded.append(str(error))

    def watch(self, store: Store, staged: Callable[[], Iterable[int]]) -> None:
        """From here on events are heard. ``staged`` gives descriptors of what is being written."""
        self._space = LowSpace(store, staged)
        if self._options.on_event:
            where = self._options.directory, self._options.mountpoint
            self._hook = Hook(self._options.on_event, store.alarms.untold, *where)
            store.alarms.listener = self._hook.wake

    def begin(self) -> None:
        """What may be stopped and begun again."""
        self._space.start()
        if self._hook is not None:
            self._hook.start()

    def stop(self) -> None:
        """No thread is left that changes anything, and no process."""
        self._space.stop()
        if self._hook is not None:
            self._hook.stop()

    def conditions(self) -> list[str]:
        """What is so by now, and said in the log already."""
        low = self._space.look()
        return [low] if low else []

    def start(self, status: Callable[[], dict[str, Any]]) -> None:
        if self._server is not None:
            self._server.start(lambda: {"served": True, **status()})

    def status(self, store: Store, conditions: list[str]) -> dict[str, Any]:
        """``conditions`` are those of this moment."""
        found: dict[str, Any] = {"tally": store.tally.told(), "low_space": bool(conditions)}
        found["free_bytes"] = None
        with contextlib.suppress(OSError):
            found["free_bytes"] = store.fs.space(store.root).free_bytes
            for folder, what in (
                (store.layout.salvage, fmt.SALVAGE),
                (store.layout.quarantine, fmt.QUARANTINE),
            ):
                found[f"{what}_bytes"] = self._bytes_in(folder)
        return found

    def _bytes_in(self, folder: int) -> int:
        """Added up only when something came or went."""
        now_ns = os.fstat(folder).st_mtime_ns
        seen_ns, total = self._aside.get(folder, (-1, 0))
        if now_ns != seen_ns:
            total = 0
            for name in os.listdir(folder):
                with contextlib.suppress(FileNotFoundError):
                    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    total += stat.S_ISREG(found.st_mode) and osfs.allocated_bytes(found)
            self._aside[folder] = now_ns, total
        return total
