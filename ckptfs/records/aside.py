"""Salvage and quarantine: files that were put aside, each with a note beside it. Thread-safe."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass

from ckptfs.disk import osfs
from ckptfs.disk.filesystem import FileSystem, Status
from ckptfs.disk.locks import leaf
from ckptfs.records import format as fmt
from ckptfs.records import parts
from ckptfs.records.parts import write_whole


@dataclass(frozen=True)
class Amount:
    """Of files."""

    count: int
    size_bytes: int

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.count + other.count, self.size_bytes + other.size_bytes)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.count - other.count, self.size_bytes - other.size_bytes)

    def fits(self, other: Amount) -> bool:
        return self.count <= other.count and self.size_bytes <= other.size_bytes


class Aside:
    """Of one directory: what was put into either folder."""

    def __init__(self, fs: FileSystem, salvage: int, quarantine: int) -> None:
        self.fs, self.salvage, self.quarantine = fs, salvage, quarantine
        self.added = Amount(0, 0)  # since it was opened
        self._counting = leaf()

    def put(self, at: int, name: str, folder: int, story: dict[str, object]) -> str:
        """Move a file to salvage or quarantine with a note beside it, if there is room for one.
        Returns its new name."""
        aside = fmt.new_txid()
        note = json.dumps({**story, "time_ns": self.fs.now_ns()}).encode() + b"\n"
        make = osfs.O_WRONLY | osfs.O_CREAT | osfs.O_EXCL
        try:
            with osfs.opened(self.fs, folder, f"{aside}{fmt.NOTE}", make) as fd:
                write_whole(self.fs, fd, note)
        except OSError:  # a full disk: the file must not stay in stage for it
            with contextlib.suppress(OSError):
                self.fs.unlink(folder, f"{aside}{fmt.NOTE}")
        self.fs.rename(at, name, folder, aside)
        with contextlib.suppress(OSError), self._counting:
            self.added += Amount(1, held_bytes(self.fs.lstat(folder, aside)))
        return aside

    def amount(self) -> Amount:
        """What lies in salvage and quarantine. Reads no note."""
        total = Amount(0, 0)
        for folder in (self.salvage, self.quarantine):
            for name in self.fs.listdir(folder):
                if not name.endswith(fmt.NOTE):
                    with contextlib.suppress(FileNotFoundError):
                        total += Amount(1, held_bytes(self.fs.lstat(folder, name)))
        return total

    def drop(self, folder: int, entry: str) -> None:
        for name in (entry, f"{entry}{fmt.NOTE}"):
            with contextlib.suppress(FileNotFoundError):
                self.fs.unlink(folder, name)

    def entries(self, folder: int) -> list[dict[str, object]]:
        """What lies in salvage or quarantine, oldest first: the notes, each with ``id``, ``size``,
        ``uid`` and, whatever stands in them, ``time_ns``, ``path``, ``reason`` of their types."""
        found: list[dict[str, object]] = []
        for name in self.fs.listdir(folder):
            if name.endswith(fmt.NOTE):
                continue
            with contextlib.suppress(FileNotFoundError):  # another thread may let it go
                if osfs.is_regular(self.fs.lstat(folder, name)):
                    found.append(self.story(folder, name))
        return sorted(found, key=lambda story: (int(str(story["time_ns"])), str(story["id"])))

    def story(self, folder: int, name: str) -> dict[str, object]:
        """Of one entry. Raises FileNotFoundError."""
        status = self.fs.lstat(folder, name)
        story: dict[str, object] = {}
        with contextlib.suppress(OSError):
            story = parts.parse(parts.read(self.fs, folder, f"{name}{fmt.NOTE}"))
        if not parts.is_time(story.get("time_ns")):
            story["time_ns"] = max(0, status.st_mtime_ns)
        if not isinstance(story.get("path"), str):
            story["path"] = None
        if not isinstance(story.get("reason"), str):
            story["reason"] = "no note"
        return {**story, "id": name, "size": held_bytes(status), "uid": status.st_uid}


def held_bytes(status: Status) -> int:
    """Of a file that may have a hole; of what is no file nothing."""
    return min(status.st_size, osfs.allocated_bytes(status)) if osfs.is_regular(status) else 0
