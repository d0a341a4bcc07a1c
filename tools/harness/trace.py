"""Golden traces: the calls of a filesystem as text that is the same on every run. Thread-safe."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Container
from typing import Any

from ckptfs.disk.filesystem import FileSystem
from ckptfs.records import format as fmt

from .faults import CHANGES, SYNCS, Call, Intercepted

_ID = re.compile(r"[0-9a-f]{16}")


class Recording(Intercepted):
    """A trace of the calls as readable text, the same on every run.

    ``names`` gives the directories that are open already; ``wanted`` selects methods. Files stand
    under the name they were opened by. Transaction ids become ``<tx>``, ``<tx2>`` … in order of
    appearance, lineages ``<lineage>``; below ``.ckptfs`` paths start at its folders.
    """

    def __init__(
        self,
        below: FileSystem | Intercepted,
        names: dict[int, str],
        wanted: Container[str] = CHANGES | SYNCS,
    ) -> None:
        super().__init__(below)
        self.wanted = wanted
        self.trace: list[str] = []
        self._names = dict(names)
        self._labels: dict[str, str] = {}
        self._guard = threading.Lock()

    def around(self, call: Call) -> Any:
        with self._guard:
            line = self._line(call) if call.method in self.wanted else None
        if line is not None:
            self.trace.append(line)
        try:
            result = call.run()
        except OSError as error:
            if line is not None:
                self.trace[-1] += f" -> {errno.errorcode.get(error.errno or 0, 'OSError')}"
            raise
        if call.method in ("open", "open_direct"):
            at, name, *flags = call.arguments
            self._names[result] = self._path(at, name)
            if flags and flags[0] & os.O_CREAT and "create" not in self.wanted:
                self.trace.append(f"create {self._names[result]}")
        return result

    def start(self) -> None:
        """Begin anew, with ids counted from here."""
        self.trace.clear()
        self._labels.clear()

    def text(self) -> str:
        return "".join(f"{line}\n" for line in self.trace)

    def _line(self, call: Call) -> str:
        given = call.arguments
        if call.method in ("rename", "exchange", "link"):
            return f"{call.method} {self._path(*given[:2])} -> {self._path(*given[2:])}"
        if call.method in ("unlink", "mkdir", "rmdir", "lstat", "open", "open_direct"):
            return f"{call.method} {self._path(*given[:2])}"
        name = self._names.get(given[0], f"fd {given[0]}") if given else ""
        return " ".join(filter(None, (call.method, name, self._detail(call))))

    def _detail(self, call: Call) -> str:
        given = call.arguments
        if call.method in ("setxattr", "removexattr", "getxattr"):
            if call.method == "setxattr" and given[1] == fmt.XATTR:
                return "note" if fmt.is_note(given[2]) else "record"
            return str(given[1])
        if call.method == "write":
            return f"{given[2]}+{len(given[1])}" if self._data(given[0]) else ""
        if call.method in ("clean", "start_writeback"):
            return f"{given[1]}+{given[2]}"
        if call.method in ("copy", "copy_metadata", "copy_times"):
            return f"-> {self._names.get(given[1], '?')}"
        return ""

    def _data(self, fd: int) -> bool:
        """Whether the length of what is written says anything: drafts hold ids and counters."""
        return not self._names.get(fd, "").endswith((".<draft>", ".json"))

    def _path(self, at: int, name: str) -> str:
        above = self._names.get(at, "?")
        name = self._label(above, name)
        path = above if name == "." else name if above == "." else f"{above}/{name}"
        return path.removeprefix(f"{fmt.CONTROL}/") or path

    def _label(self, above: str, name: str) -> str:
        head, dot, tail = name.rpartition(".")
        if dot and _ID.fullmatch(tail):
            return f"{'<inode>' if head.isdigit() else head}.<draft>"
        if above == fmt.SIDECAR and name.isdigit():
            return "<inode>"
        stem, dot, suffix = name.partition(".")
        if not _ID.fullmatch(stem):
            return name
        kind = "lineage" if above == fmt.HISTORY else "tx"
        if stem not in self._labels:
            seen = sum(label.startswith(f"<{kind}") for label in self._labels.values())
            self._labels[stem] = f"<{kind}{seen + 1 if seen else ''}>"
        return self._labels[stem] + dot + suffix
