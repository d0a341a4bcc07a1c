"""Locks on the mount are those of a plain directory, request by request.

Processes take, give back and ask for locks of all three kinds on a few bytes of a few files; they
wait, fork, execute, close, exit, are interrupted and killed. ``CKPTFS_OPERATIONS=100000`` makes a
long run, ``CKPTFS_SEED`` another one.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mounts
import pytest
from lock_twins import WORKERS, Raced, Twins

_OPERATIONS = int(os.environ.get("CKPTFS_OPERATIONS", "1500"))
_SEED = int(os.environ.get("CKPTFS_SEED", "0"))
_STEPS = 60  # of an example
_SLOTS = 3  # descriptors of a process
_FILES = ["a.db", "b.db", "m.pt", "n.pt"]  # two are written in place, two in versions
_SIZE = 10
_KINDS = ["posix", "posix", "posix", "ofd", "ofd", "flock"]


class Example:
    """One random run from an empty directory."""

    def __init__(self, pair: Twins, number: int) -> None:
        self.pair, self.random = pair, random.Random(f"{_SEED}.{number}")
        self.open: dict[int, set[int]] = {0: set()}  # of each process, what it has open
        pair.recent.clear()
        for side in pair.sides:
            directory = side.directory / f"example{number}"
            directory.mkdir()
            for name in _FILES:
                (directory / name).write_text("x" * _SIZE)
            assert side.ask(0, "enter", str(directory))[0] == "ok"

    def run(self) -> None:
        try:
            for _ in range(_STEPS):
                self.step()
            self.pair.look_for_more()
            self._close_all()
        except Raced:
            self.pair.restart()

    def _close_all(self) -> None:
        for worker in sorted(self.open, reverse=True):
            if worker:
                (self.pair.kill if worker in self.pair.waiting else self.pair.exit)(worker)
        if 0 in self.pair.waiting:
            self.pair.interrupt(0)
        for slot in self.open[0]:
            self.pair.ask(0, "close", slot)

    def step(self) -> None:
        waiting = sorted(self.pair.waiting)
        free = [worker for worker in self.open if worker not in waiting]
        if waiting and (not free or self.random.random() < 0.07):
            self._end_wait(self.random.choice(waiting))
            return
        worker = self.random.choice(free)
        if not self.open[worker]:
            self._open(worker)
            return
        weights = {
            self._lock: 30,
            self._wait: 16,
            self._look: 16,
            self._open: 6,
            self._again: 5,
            self._close: 8,
            self._fork: 6,
            self._execute: 1,
            self._end: 2,
            self._rename: 2,
            self._unlink: 1,
            self._write: 3,
        }
        todo = self.random.choices(list(weights), list(weights.values()))
        todo[0](worker)

    def _end_wait(self, worker: int) -> None:
        if worker and self.random.random() < 0.4:
            del self.open[worker]
            self.pair.kill(worker)
        else:
            self.pair.interrupt(worker)

    # --- the operations --------------------------------------------------------------------------

    def _slot(self, worker: int) -> int:
        return self.random.choice(sorted(self.open[worker]))

    def _new_slot(self, worker: int) -> int | None:
        return next((n for n in range(_SLOTS) if n not in self.open[worker]), None)

    def _request(self, worker: int) -> tuple[Any, ...]:
        pick = self.random.choice
        mode = pick(["read", "read", "write", "write", "none"])
        start, length = pick([0, 0, 1, 2, 4, 7]), pick([0, 1, 1, 2, 3, 5, -1, -2])
        whence = pick([os.SEEK_SET] * 6 + [os.SEEK_CUR, os.SEEK_END])
        return self._slot(worker), pick(_KINDS), mode, (whence, start, length)

    def _lock(self, worker: int) -> None:
        slot, kind, mode, where = self._request(worker)
        self.pair.ask(worker, "lock", slot, kind, mode, False, *where)

    def _wait(self, worker: int) -> None:
        slot, kind, mode, where = self._request(worker)
        self.pair.wait(worker, slot, kind, mode, True, *where)

    def _look(self, worker: int) -> None:
        slot, kind, mode, where = self._request(worker)
        self.pair.ask(worker, "look", slot, "posix" if kind == "flock" else kind, mode, *where)

    def _open(self, worker: int) -> None:
        slot, flags = self._new_slot(worker), self.random.choice([os.O_RDWR] * 4 + [0, os.O_WRONLY])
        if slot is not None:
            name = self.random.choice(_FILES[: self.random.choice([1, 4])])
            if name.endswith(".db") and self.random.random() < 0.5:
                flags |= os.O_CREAT  # a version that is made by who is killed comes to nothing
            self._opened(worker, slot, "open_", slot, name, flags)

    def _again(self, worker: int) -> None:
        old, new = self._slot(worker), self._new_slot(worker)
        if new is None:
            return
        if self.random.random() < 0.6:
            self._opened(worker, new, "dup", old, new)
        elif self.pair.reopen(worker, old, new):
            self.open[worker].add(new)

    def _opened(self, worker: int, slot: int, *question: Any) -> None:
        if self.pair.ask(worker, *question)[0] == "ok":
            self.open[worker].add(slot)

    def _close(self, worker: int) -> None:
        slot = self._slot(worker)
        self.open[worker].remove(slot)
        self.pair.ask(worker, "close", slot)

    def _fork(self, worker: int) -> None:
        new = next((n for n in range(WORKERS) if n not in self.open), None)
        if new is not None:
            self.open[new] = set(self.open[worker])
            self.pair.fork(worker, new)

    def _execute(self, worker: int) -> None:
        closing = sorted(slot for slot in self.open[worker] if self.random.random() < 0.5)
        self.open[worker] -= set(closing)
        self.pair.execute(worker, closing)

    def _end(self, worker: int) -> None:
        if worker:
            del self.open[worker]
            self.random.choice([self.pair.exit, self.pair.kill])(worker)

    def _rename(self, worker: int) -> None:
        kind = self.random.choice([_FILES[:2], _FILES[2:]])
        self.pair.ask(worker, "rename", *self.random.sample(kind, 2))

    def _unlink(self, worker: int) -> None:
        self.pair.ask(worker, "unlink", self.random.choice(_FILES))

    def _write(self, worker: int) -> None:
        if self.random.random() < 0.5:
            self.pair.ask(worker, "seek", self._slot(worker), self.random.randrange(_SIZE))
        else:
            self.pair.ask(worker, "write", self._slot(worker), "y")


# --- tests ---------------------------------------------------------------------------------------


@pytest.fixture(params=["passthrough", "relayed"])
def pair(disk_dir: Path, request: pytest.FixtureRequest) -> Iterator[Twins]:
    options = ["--no-passthrough"] if request.param == "relayed" else []
    plain = disk_dir.parent / "plain"
    plain.mkdir()
    with mounts.served(disk_dir, *options, limit_s=24 * 3600):
        pair = Twins(disk_dir, plain)
        try:
            yield pair
        finally:
            pair.end()


def test_locks_are_those_of_a_plain_directory(pair: Twins) -> None:
    number = 0
    while pair.operations < _OPERATIONS:
        number += 1
        Example(pair, number).run()
    print(f"{pair.operations} operations; waits that ended: {dict(pair.ended)}")
