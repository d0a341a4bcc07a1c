"""A directory of a test's own inside a mount that the tests of a module share.

Mounting takes longer than most tests. A mount that a test broke is replaced for the next one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mounts
import pytest
from actors import Actor, actors
from harness import rot

from ckptfs.errors import CannotServe
from ckptfs.mount.operations import sessions
from ckptfs.records.format import Record


class Shared:
    """Serves a directory with the given options from the first use to ``end``."""

    def __init__(self, base: Path, *options: str) -> None:
        self._base, self._options = base, options
        self._served: mounts.Served | None = None
        self._count = 0

    @contextlib.contextmanager
    def tree(self, limit_s: float = mounts.TEST_LIMIT_S) -> Iterator[Tree]:
        if self._served is None or not self._served.mounted():
            self._start()
        assert self._served is not None
        watchdog = threading.Timer(limit_s, self._served.abort)
        watchdog.daemon = True
        watchdog.start()
        self._count += 1
        tree = Tree(self._served, f"t{self._count}")
        tree.path.mkdir()
        try:
            yield tree
            assert "Traceback" not in self._served.log_text(), self._served.log_text()
        except BaseException:
            self._served.end()  # whatever this test left must not fail the next one
            raise
        finally:
            watchdog.cancel()
            if self._served.mounted():
                shutil.rmtree(tree.path, ignore_errors=True)

    def _start(self) -> None:
        directory = self._base / f"served{self._count}"
        directory.mkdir()
        self._served = mounts.Served(directory, *self._options)
        self._served.start()

    def end(self) -> None:
        if self._served is not None:
            self._served.end()


# How a request comes to the store, by the options that choose it.
WAYS = {
    "passthrough": (),
    "relayed": ("--no-passthrough",),
    "fusepy": ("--binding", "fusepy"),
    "refuse": ("--binding", "refuse"),
}


@contextlib.contextmanager
def sharing(base: Path, *options: str) -> Iterator[Shared]:
    """Skips where this machine cannot mount."""
    reason = mounts.why_no_mounts()
    if reason:
        pytest.skip(f"cannot mount here: {reason}")
    shared = Shared(base, *options)
    try:
        yield shared
    finally:
        shared.end()


def needs_binding(name: str) -> None:
    try:
        sessions.load(name)
    except CannotServe as error:
        pytest.skip(str(error))


@contextlib.contextmanager
def shared_by(way: str, factory: pytest.TempPathFactory, *options: str) -> Iterator[Shared]:
    """One of WAYS; a run through libfuse (``pytest --binding``) has only the relay."""
    if mounts.binding() != "kernel" and way != "relayed":
        pytest.skip("libfuse always relays")
    if "--binding" in WAYS[way]:
        needs_binding(way)
    with sharing(factory.mktemp(way), *WAYS[way], *options) as shared:
        yield shared


class Tree:
    """``path`` through the mount, ``below`` beneath it. The test process only looks, or seeds:
    what it held open for writing, every child of its own would see."""

    def __init__(self, served: mounts.Served, name: str) -> None:
        self.mount, self.name = served, name
        self.path = served.path / name
        self._below: Path | None = None

    @property
    def below(self) -> Path:
        if self._below is None:
            self._below = self.mount.below / self.name
        return self._below

    def actors(self, count: int) -> contextlib.AbstractContextManager[list[Actor]]:
        return actors(self.path, count)

    def seed(self, name: str, *versions: bytes | str) -> Path:
        """Commit one version after another."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for version in versions:
            path.write_bytes(version.encode() if isinstance(version, str) else version)
        return path

    def text(self, name: str) -> str | None:
        """What a process without part in it reads; None where nothing is."""
        try:
            return (self.path / name).read_text()
        except FileNotFoundError:
            return None

    def record(self, name: str) -> Record | None:
        """Of the committed version, read below the mount."""
        try:
            return Record.from_bytes(os.getxattr(self.below / name, "user.ckptfs"))
        except OSError:
            return None

    def generation(self, name: str) -> int:
        record = self.record(name)
        return record.generation if record else 0

    def conditions(self) -> dict[str, str]:
        """What ``ckptfs verify`` says of each file."""
        found = {}
        for line in mounts.ckptfs("verify", self.mount.path, "--json").stdout.splitlines():
            row = json.loads(line)
            if "path" in row and row["path"].startswith(f"{self.name}/"):
                found[row["path"].removeprefix(f"{self.name}/")] = row["condition"]
        return found

    def assert_clean(self) -> None:
        conditions = self.conditions()
        assert conditions, "nothing to verify"
        assert set(conditions.values()) == {"ok"}, conditions

    def aside(self, where: str, name: str) -> list[bytes]:
        """What ``salvage`` or ``quarantine`` holds of a path, oldest first."""
        folder = self.mount.below / ".ckptfs" / where
        found = []
        for story in sorted(folder.glob("*.json")):
            if json.loads(story.read_text())["path"] == f"{self.name}/{name}":
                found.append(story.with_suffix("").read_bytes())
        return found

    def events(self, what: str, name: str) -> list[dict[str, Any]]:
        return [e for e in self.mount.events(what) if e["path"] == f"{self.name}/{name}"]

    def settle(self, name: str = "") -> None:
        """Wait for what follows a RELEASE, which no process waits for; of one file, if named."""
        prefix = f"{self.name}/{name}"
        self.mount.wait_until(
            lambda: not any(path.startswith(prefix) for path in self.mount.status()["writing"])
        )

    def rot(self, name: str, offset: int = 0) -> bytes:
        """Flip a bit below the mount. Returns the damaged bytes."""
        rot(self.below / name, offset)
        return (self.below / name).read_bytes()

    def save_and_read_at_once(self) -> None:
        """Two processes save one path again and again, two read it: whole versions only."""
        self.seed("f", "0" * 20_000)
        save = (
            "for n in range(30):\n"
            "    f = open('f', 'w'); f.write(str(n % 10) * 20_000); f.close()\n"
        )
        load = (
            "for _ in range(60):\n"
            "    t = open('f').read(); assert len(t) == 20_000 == t.count(t[0])\n"
        )
        with self.actors(4) as users:
            for user, code in zip(users, (save, save, load, load), strict=True):
                user.send(code)
            for user in users:
                user.answer()
        self.settle()
        self.assert_clean()
