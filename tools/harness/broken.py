"""Commits that are wrong, by what is wrong: what a harness for crashes has to catch. Thread-safe as
far as one commit runs at a time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from ckptfs.records import format as fmt
from ckptfs.versions.life import Step

from .faults import Call, Ignoring, Intercepted

Wrap = Callable[[Any], Intercepted]

_MOMENT_S = 0.02  # in which others may make the disk write


class RenameBeforeFsync(Intercepted):
    """The fsync that follows the record is put off until a moment after the rename."""

    def __init__(self, below: Any) -> None:
        super().__init__(below)
        self.sealed = -1
        self.late: list[Callable[[], Any]] = []

    def around(self, call: Call) -> Any:
        if call.method == "setxattr":
            self.sealed = call.arguments[0]
        if call.method == "fsync" and call.arguments[0] == self.sealed:
            self.sealed = -1
            self.late.append(call.run)
            return None
        result = call.run()
        if call.method == "rename" and self.late:
            time.sleep(_MOMENT_S)
            while self.late:
                with contextlib.suppress(OSError):  # its descriptor is closed: never synced, then
                    self.late.pop()()
        return result


class LateRecord(Intercepted):
    """Records are written late, and nothing makes them durable."""

    def __init__(self, below: Any) -> None:
        super().__init__(below)
        self.late: list[Callable[[], Any]] = []

    def is_time(self, call: Call) -> bool:
        """Whether they are written after this call."""
        raise NotImplementedError

    def around(self, call: Call) -> Any:
        if call.method == "setxattr" and not fmt.is_note(call.arguments[2]):
            self.late.append(call.run)
            return None
        result = call.run()
        while self.late and self.is_time(call):
            with contextlib.suppress(OSError):  # its descriptor is closed: never recorded
                self.late.pop()()
        return result


class RecordAfterFsync(LateRecord):
    """After the fsync that should have made it durable."""

    def is_time(self, call: Call) -> bool:
        return call.method == "fsync"


class RecordAfterSettling(LateRecord):
    """Once the file stands under its name."""

    def is_time(self, call: Call) -> bool:
        return call.method == "step" and call.arguments[0] == Step.SETTLED


def without(*methods: str) -> Wrap:
    """Calls of these do nothing."""
    return lambda fs: Ignoring(fs, lambda call: call.method in methods)


# Commits that are wrong, by what is wrong: what a harness for crashes has to catch.
BROKEN: dict[str, Wrap] = {
    "fsync left out": without("fsync"),
    "directory fsync left out": without("fsync_dir"),
    "rename before fsync": RenameBeforeFsync,
    "record after fsync": RecordAfterFsync,
    "record after settling": RecordAfterSettling,
}
