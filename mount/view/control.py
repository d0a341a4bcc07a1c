"""What the mount shows of ``.ckptfs``: ``status.json``, and ``history`` (``past.py``)."""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Callable
from typing import Any

from ckptfs.records import format as fmt
from ckptfs.store import Store

from .identity import CONTROL_ID, STATUS_ID
from .model import Virtual
from .nodes import NodeTable
from .past import root_of_history


class Control(Virtual):
    """The directory. What is in it is found by name, and not listed."""

    def __init__(
        self, store: Store, nodes: NodeTable, status: Callable[[], dict[str, Any]]
    ) -> None:
        super().__init__(CONTROL_ID, None, fmt.CONTROL, (0, CONTROL_ID, stat.S_IFDIR))
        self._shown = {
            "status.json": StatusFile(self, store, status),
            fmt.HISTORY: root_of_history(self, store, nodes),
        }
        for node in (self, *self._shown.values()):
            nodes.by_id.add(node)
        self._made_ns = time.time_ns()

    def status(self) -> os.stat_result:
        return _status(self, stat.S_IFDIR | 0o755, 0, self._made_ns)

    def child(self, name: str) -> Virtual:
        try:
            return self._shown[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "not shown through the mount") from None


class StatusFile(Virtual):
    """``status.json``, written anew for every open."""

    def __init__(self, above: Virtual, store: Store, status: Callable[[], dict[str, Any]]) -> None:
        name = f"{above.name}/status.json"
        super().__init__(STATUS_ID, above, name, (0, STATUS_ID, stat.S_IFREG))
        self._store, self._status = store, status
        self._made_ns = time.time_ns()

    def status(self) -> os.stat_result:
        size = len(_json(self._status()))
        return _status(self, stat.S_IFREG | 0o444, size, self._made_ns)

    def content(self, uid: int) -> bytes:
        """Names of files are for root, the daemon's user and the directory's owner: others may
        not be allowed to look where those files lie."""
        status = self._status()
        if uid not in (0, os.geteuid(), os.fstat(self._store.root).st_uid):
            status["writing"] = ["?" for _ in status["writing"]]
            for key in ("events", "alarms"):
                status[key] = [{**event, "path": "?", "detail": ""} for event in status[key]]
            for key in ("refused", "restart_waits_for"):
                status[key] = status[key] and "?"
        return _json(status)

    def open(self, uid: int) -> int:
        fd = os.memfd_create("status.json")
        os.write(fd, self.content(uid))
        return fd


def _json(status: dict[str, Any]) -> bytes:
    return json.dumps(status, indent=1).encode() + b"\n"


def _status(node: Virtual, mode: int, size: int, when_ns: int) -> os.stat_result:
    times = {"st_atime_ns": when_ns, "st_mtime_ns": when_ns, "st_ctime_ns": when_ns}
    fields = (mode, node.id, 0, 1, os.getuid(), os.getgid(), size, 0, 0, 0)
    return os.stat_result(fields, times)
