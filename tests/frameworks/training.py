"""Training programs that are killed in the middle of their saves, and resumed.

The moment of a kill is counted, not timed: a save is watched from outside as a sequence of changes
of the directory (names, inodes, sizes, times, the stage included), and the program dies at the nth.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mounts import PYTHON, Served, ckptfs

PROGRAMS = Path(__file__).with_name("programs")
LIMIT_S = 60.0
_MANY = 1000  # saves, more than a killed program comes to
_ATTEMPTS = 50

Event = dict[str, Any]
Snapshot = dict[str, tuple[int, int, int]]  # path: inode, size, mtime
Point = Callable[[Snapshot, Snapshot], bool]  # before the save, and now
GetFramework = Callable[[str], "Framework"]


class Unresumable(Exception):
    """The program raised when it tried to resume."""


class NeverKilled(Exception):
    """The saves were over before the moment was seen."""


class Framework:
    """The program ``programs/NAME.py``: a framework loaded once, a forked trainer per order."""

    def __init__(self, name: str, log: Path) -> None:
        self.name, self._log = name, log
        with open(log, "ab") as errors:
            self._process = subprocess.Popen(
                [PYTHON, "zygote.py", name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=PROGRAMS,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            )
        assert self.event()["event"] == "ready"

    def waiting(self) -> bool:
        """Whether it has told something that was not read yet."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def event(self) -> Event:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], LIMIT_S)
        assert ready, f"{self.name} does not answer: {self._log.read_text()[-4000:]}"
        line = bytearray()
        while not line.endswith(b"\n"):  # unbuffered, so that select tells the truth
            byte = os.read(self._process.stdout.fileno(), 1)
            assert byte, f"{self.name} ended: {self._log.read_text()[-4000:]}"
            line += byte
        return dict(json.loads(line))

    def start(self, directory: Path, **order: Any) -> Run:
        assert self._process.stdin is not None
        order = {"do": "train", "directory": str(directory), **order}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return Run(self, self.event()["pid"])

    def run(self, directory: Path, **order: Any) -> list[Event]:
        """A whole run. Raises Unresumable if the program raised."""
        run = self.start(directory, **order)
        run.until("ended")
        if run.failed:
            raise Unresumable(run.failed)
        assert run.events[-1]["status"] == 0, run.events
        return run.events[:-1]

    def resume(self, directory: Path, **order: Any) -> tuple[int, str]:
        """Step and digest of what a fresh process resumes from; step 0 if from nothing."""
        (resumed,) = self.run(directory, steps=0, **order)
        return _state(resumed)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@dataclass
class Run:
    """One trainer."""

    framework: Framework
    pid: int
    events: list[Event] = field(default_factory=list)
    failed: str = ""

    def until(self, *names: str) -> Event:
        while True:
            event = self.framework.event()
            self.events.append(event)
            if event["event"] == "failed":
                self.failed = event["error"]
            if event["event"] in names:
                return event
            assert event["event"] != "ended", (self.failed, self.events)

    def kill(self) -> None:
        """It and whoever belongs to it; returns once all are gone."""
        os.killpg(self.pid, signal.SIGKILL)
        self.until("ended")

    def states(self, name: str) -> list[tuple[int, str]]:
        return [_state(event) for event in self.events if event["event"] == name]


def _state(event: Event) -> tuple[int, str]:
    return event["step"], event["digest"] if event["step"] else ""


def snapshot(below: Path) -> Snapshot:
    found: Snapshot = {}
    for folder, _, names in os.walk(below):
        for name in names:
            path = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(path)
                of = status.st_ino, status.st_size, status.st_mtime_ns
                found[os.path.relpath(path, below)] = of
    return found


def changes(below: Path, over: Callable[[], bool]) -> Iterator[Snapshot]:
    """What the directory looks like after each change, until it is over."""
    last = snapshot(below)
    while not over():
        now = snapshot(below)
        if now != last:
            last = now
            yield now
        else:
            time.sleep(0.0005)  # leave it the processor


def watched(run: Run, below: Path) -> int:
    """How many changes a save that nothing disturbs is seen to make."""
    run.until("saving")
    count = sum(1 for _ in changes(below, run.framework.waiting))
    run.until("saved")
    return count


def kill_at_change(
    framework: Framework, directory: Path, below: Path, dice: random.Random, **order: Any
) -> Run:
    """A run that was killed in one of its saves, at a change drawn from those that saves make."""
    for _ in range(_ATTEMPTS):
        run = framework.start(directory, steps=_MANY, **order)
        count = max(1, watched(run, below))
        run.until("saving")
        at = dice.randint(1, count)
        for seen, _ in enumerate(changes(below, framework.waiting), 1):
            if seen == at:
                break
        run.kill()
        if run.events[-2]["event"] == "saving":  # it had not finished the save when it died
            return run
    raise NeverKilled("in a save")


def kill_when(
    framework: Framework, directory: Path, below: Path, point: Point, **order: Any
) -> Run:
    """A run that was killed in a save that left the directory at ``point``."""
    for _ in range(_ATTEMPTS):
        run = framework.start(directory, steps=_MANY, **order)
        watched(run, below)
        run.until("saving")
        before = snapshot(below)
        for now in changes(below, framework.waiting):
            if point(before, now):
                break
        run.kill()
        if point(before, snapshot(below)):
            return run
    raise NeverKilled("at that point of a save")


@dataclass
class Outcome:
    """What a fresh process made of the directory after a kill."""

    resumed: tuple[int, str]
    before: tuple[int, str]  # the last save that was finished
    killed_in: tuple[int, str]
    error: str = ""

    @property
    def right(self) -> bool:
        return not self.error and self.resumed in (self.before, self.killed_in)


def survive(
    framework: Framework, directory: Path, below: Path, kills: int = 5, **order: Any
) -> list[Outcome]:
    """Save, kill, resume, again and again, each time from what the last kill left."""
    dice = random.Random(framework.name)
    outcomes = []
    for _ in range(kills):
        run = kill_at_change(framework, directory, below, dice, **order)
        outcome = Outcome((0, ""), run.states("saved")[-1], run.states("saving")[-1])
        try:
            outcome.resumed = framework.resume(directory, **order)
        except Unresumable as error:
            outcome.error = str(error)
        outcomes.append(outcome)
        if not outcome.right:
            break
    return outcomes


def resumes_after_kills(
    mount: Served, program: Framework, kills: int = 5, **order: Any
) -> list[Outcome]:
    """Saves load as they were; then kills, and what was made of each. What is left is clean."""
    saved = program.run(mount.path, steps=2, **order)[-1]
    assert program.resume(mount.path, **order) == (2, saved["digest"])
    outcomes = survive(program, mount.path, mount.below, kills, **order)
    mount.wait_until(lambda: not mount.status()["writing"])
    assert ckptfs("verify", mount.path).returncode == 0
    return outcomes
