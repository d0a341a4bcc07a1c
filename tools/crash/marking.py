"""The recorded daemon: it says in the marks which step of a commit it has reached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ckptfs.osfs import FileSystem, OsFs
from ckptfs.tools.crash.oracle import Marks
from ckptfs.tools.faults import BROKEN, Call, Intercepted

MARKING = f"{__name__}:marking"  # for ``tools.hooked``


class Marking(Intercepted):
    """Says in the marks which step a commit has reached."""

    def __init__(self, below: FileSystem | Intercepted, marks: Marks) -> None:
        super().__init__(below)
        self._marks = marks

    def around(self, call: Call) -> Any:
        if call.method == "step":
            self._marks.add("step", name=str(call.arguments[0].value))
        return call.run()


def marking(fs: OsFs, argument: str) -> FileSystem:
    """``argument``: folder and log of the recording, and how the commit is broken."""
    folder, log, broken = json.loads(argument)
    below = BROKEN[broken](fs) if broken else fs
    return Marking(below, Marks(Path(folder), Path(log))).fs
