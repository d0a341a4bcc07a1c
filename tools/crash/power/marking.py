"""The recorded daemon: it says in the marks which step of a commit it has reached."""

from __future__ import annotations

import json
from pathlib import Path

from ckptfs.disk.filesystem import FileSystem
from ckptfs.disk.real import OsFs

from ...harness.broken import BROKEN
from ...harness.faults import Before, Call
from .oracle import Marks

MARKING = f"{__name__}:marking"  # for ``harness.hooked``


def marking(fs: OsFs, argument: str) -> FileSystem:
    """``argument``: folder and log of the recording, and how the commit is broken."""
    folder, log, broken = json.loads(argument)
    marks = Marks(Path(folder), Path(log))

    def mark(call: Call) -> None:
        if call.method == "step":
            marks.add("step", name=call.arguments[0].value)

    return Before(BROKEN[broken](fs) if broken else fs, mark).fs
