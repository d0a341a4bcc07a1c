"""What a path may hold after a crash, from what its writer was told; and names for what is wrong.

A writer says what it does in marks, each with where the log of the device stood: ``closing`` a
version, from which moment it may appear; ``closed``, from which moment it has to be there;
``removing`` and ``removed`` likewise; ``staged``, for bytes that it will never close; ``synced``,
for what an fsync of an open file returned for. Pure but for ``Marks``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..damage import damage

_NEVER = 1 << 62


class Marks:
    """Appends marks to a file, and keeps the bytes of each version beside it. Lines are written
    whole, so that the daemon may append to the same file."""

    def __init__(self, folder: Path, log: Path) -> None:
        self._contents, self._log = folder / "contents", log
        self._contents.mkdir(exist_ok=True)
        self._fd = os.open(folder / "marks", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def now(self) -> int:
        """Where the log of the device stands."""
        return os.stat(self._log).st_size

    def add(self, what: str, **more: Any) -> None:
        line = {"at": self.now(), "what": what, **more}
        os.write(self._fd, json.dumps(line).encode() + b"\n")

    def content(self, data: bytes) -> int:
        """A number for these bytes."""
        for number in itertools.count(len(os.listdir(self._contents)) + 1):
            with (
                contextlib.suppress(FileExistsError),
                open(self._contents / str(number), "xb") as new,
            ):
                new.write(data)
                return number
        raise AssertionError


def marks_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "marks").read_text("utf-8").splitlines()
    return sorted(map(json.loads, lines), key=lambda mark: int(mark["at"]))


def contents_of(folder: Path) -> dict[int, bytes]:
    return {int(path.name): path.read_bytes() for path in (folder / "contents").iterdir()}


@dataclass(eq=False)
class Change:
    """A version of a path, or its removal (None): possible from ``begun``, due from ``done``."""

    version: int | None
    begun: int
    done: int = _NEVER
    removals: tuple[Change, ...] = ()  # returned before this began: as durable as this is


@dataclass
class Promise:
    """The first ``size`` bytes of a version survive, in salvage if nowhere else, until ``until``:
    from when on what happens to the version says more."""

    path: str
    version: int
    size: int
    begun: int
    until: int = _NEVER


@dataclass
class Oracle:
    """``durable``: whether what a returned close has published survives a power cut."""

    contents: Mapping[int, bytes]
    durable: bool = True
    changes: dict[str, list[Change]] = field(default_factory=dict)
    never: dict[str, set[int]] = field(default_factory=dict)  # staged and not closed
    promises: list[Promise] = field(default_factory=list)
    in_place: dict[str, list[Promise]] = field(default_factory=dict)
    _gone: list[Change] = field(default_factory=list)  # and no publish since

    @classmethod
    def of(
        cls, marks: Sequence[Mapping[str, Any]], contents: Mapping[int, bytes], durable: bool
    ) -> Oracle:
        oracle = cls(contents, durable)
        for mark in marks:
            take: Callable[[Mapping[str, Any]], None] | None
            take = getattr(oracle, f"_{mark['what']}", None)
            if take is not None:
                take(mark)
        return oracle

    # --- marks -----------------------------------------------------------------------------------

    def _closing(self, mark: Mapping[str, Any]) -> None:
        path, version = mark["path"], mark["version"]
        change = Change(version, mark["at"], removals=tuple(self._gone))
        self.changes.setdefault(path, []).append(change)
        for promise in self.promises:
            if (promise.path, promise.version) == (path, version):
                promise.until = min(promise.until, mark["at"])

    def _closed(self, mark: Mapping[str, Any]) -> None:
        change = self.changes[mark["path"]][-1]
        for each in (change, *change.removals):
            each.done = min(each.done, mark["at"])
            if each in self._gone:
                self._gone.remove(each)

    def _removing(self, mark: Mapping[str, Any]) -> None:
        self.changes.setdefault(mark["path"], []).append(Change(None, mark["at"]))

    def _removed(self, mark: Mapping[str, Any]) -> None:
        self._gone.append(self.changes[mark["path"]][-1])

    def _staged(self, mark: Mapping[str, Any]) -> None:
        self.never.setdefault(mark["path"], set()).add(mark["version"])

    def _synced(self, mark: Mapping[str, Any]) -> None:
        self.promises.append(Promise(mark["path"], mark["version"], mark["size"], mark["at"]))

    def _appended(self, mark: Mapping[str, Any]) -> None:
        """fsync of a file that is written in place has returned."""
        promise = Promise(mark["path"], mark["version"], mark["size"], mark["at"])
        self.in_place.setdefault(mark["path"], []).append(promise)

    # --- questions -------------------------------------------------------------------------------

    def allowed(self, path: str, at: int, due: int | None = None) -> list[int | None]:
        """The versions that ``path`` may hold when the power goes at ``at``; None: no file.
        ``due``: what was done until then has to be there; all that was done by default."""
        versions: list[int | None] = [None]
        for change in self.changes.get(path, ()):
            if self.durable and change.done <= (at if due is None else due):
                versions = [change.version]
            elif change.begun <= at:
                versions.append(change.version)
        return versions

    def wrong(self, path: str, at: int, found: bytes | None, due: int | None = None) -> str:
        """What is wrong with a path that holds ``found``; empty if it may."""
        allowed = self.allowed(path, at, due)
        if any(self._is(version, found) for version in allowed):
            return ""
        return self._name(path, allowed, found)

    def _is(self, version: int | None, found: bytes | None) -> bool:
        return found == (None if version is None else self.contents[version])

    def _name(self, path: str, allowed: Sequence[int | None], found: bytes | None) -> str:
        closed = [v for v in self._versions(path) if v is not None]
        same = [version for version in closed if self._is(version, found)]
        if same:
            due = min((version for version in allowed if version is not None), default=_NEVER)
            return "lost though closed" if max(same) < due else "not closed yet"
        never = self.never.get(path, set())
        if any(self._is(version, found) for version in never):
            return "published by a killed writer"
        return damage(found, [self.contents[version] for version in [*closed, *never]])

    def _versions(self, path: str) -> list[int | None]:
        return [change.version for change in self.changes.get(path, ())]

    def lost_bytes(self, at: int, kept: Sequence[bytes]) -> list[str]:
        """Paths whose fsynced bytes are not among ``kept``."""
        return [
            promise.path
            for promise in self.promises
            if promise.begun <= at < promise.until
            and not any(
                data.startswith(self.contents[promise.version][: promise.size]) for data in kept
            )
        ]

    def wrong_in_place(self, path: str, at: int, found: bytes | None) -> str:
        """Of a file that is written in place only what an fsync returned for is promised."""
        due = [promise for promise in self.in_place[path] if promise.begun <= at]
        if not due:
            return ""
        wanted = self.contents[due[-1].version][: due[-1].size]
        return "" if (found or b"").startswith(wanted) else "lost though fsynced"
