"""The same lock requests on a mount and on a plain directory, by processes that may wait.

The plain side says when an operation is over: every process has answered or sleeps in its request,
as ``/proc`` shows. The mount must have given the same answers then, and no other.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

WORKERS = 4  # processes of a side; the first one starts it, and is never killed
LIMIT_S = 20.0
_BARRIERS = 4
_WORKER = Path(__file__).with_name("lock_worker.py")

Answer = tuple[str, Any]


class Different(AssertionError):
    pass


class Raced(Exception):
    """Of several that woke, and want the same, another one was the first on the other side."""


class Side:
    """The processes in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pids: dict[int, int] = {}
        self._orders: list[int] = []
        self._answers: list[int] = []
        channels = []
        for _ in range(WORKERS):
            (order, to_order), (answer, to_answer) = os.pipe(), os.pipe()
            channels.append((order, to_answer))
            self._orders.append(to_order)
            self._answers.append(answer)
        theirs = [fd for channel in channels for fd in channel]
        state = json.dumps([channels, 0, []])
        command = [sys.executable, "-S", "-E", str(_WORKER), state]
        self._first = subprocess.Popen(command, pass_fds=theirs, cwd="/")
        for fd in theirs:
            os.close(fd)
        self._idle = b""
        self.started(0)
        while (call := self._call(0)) == b"running":
            pass
        self._idle = call

    def started(self, worker: int) -> None:
        answer = self.answer(worker)
        assert answer and answer[0] == "ok"
        self.pids[worker] = answer[1]

    def send(self, worker: int, what: str, *arguments: Any) -> None:
        os.write(self._orders[worker], json.dumps([what, *arguments]).encode() + b"\n")

    def answer(self, worker: int, limit_s: float = LIMIT_S) -> Answer | None:
        line, fd = b"", self._answers[worker]
        while not line.endswith(b"\n"):
            if not select.select([fd], [], [], LIMIT_S if line else limit_s)[0]:
                return None
            line += os.read(fd, 1)
        kind, value = json.loads(line)
        return kind, value

    def ask(self, worker: int, what: str, *arguments: Any) -> Answer:
        self.send(worker, what, *arguments)
        answer = self.answer(worker)
        assert answer is not None, (self.directory, worker, what, arguments)
        return answer

    def _call(self, worker: int) -> bytes:
        """The number of the system call in which it sleeps."""
        return Path(f"/proc/{self.pids[worker]}/syscall").read_bytes().split()[0]

    def stands(self, worker: int) -> bool:
        """Whether it sleeps in a request."""
        return self._call(worker) not in (b"running", self._idle)

    def has_answer(self, worker: int) -> bool:
        return bool(select.select([self._answers[worker]], [], [], 0)[0])

    def reach(self, worker: int) -> None:
        """Once it stands in a request, or has an answer."""
        deadline = time.monotonic() + LIMIT_S
        while not (self.stands(worker) or self.has_answer(worker)):
            assert time.monotonic() < deadline

    def signal(self, worker: int, number: int) -> None:
        os.kill(self.pids[worker], number)

    @contextlib.contextmanager
    def dying(self, worker: int) -> Iterator[None]:
        """Its locks have ended once it is gone, or the requests that end them are queued."""
        fd = os.pidfd_open(self.pids[worker])
        try:
            yield
            assert select.select([fd], [], [], LIMIT_S)[0], (self.directory, worker, "does not die")
        finally:
            os.close(fd)
        self.answer(worker, 0)  # what it may have said at last

    def end(self) -> None:
        for pid in self.pids.values():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self._first.wait(LIMIT_S)
        for fd in self._orders + self._answers:
            os.close(fd)


class Twins:
    """Both sides. ``waiting``: the workers that have no answer, and what they asked."""

    def __init__(self, mounted: Path, plain: Path) -> None:
        self.sides = Side(mounted), Side(plain)
        self.waiting: dict[int, Any] = {}
        self.recent: deque[Any] = deque(maxlen=1000)
        self.operations = 0
        self.ended: Counter[str] = Counter()  # waits, by how

    def end(self) -> None:
        for side in self.sides:
            side.end()

    def restart(self) -> None:
        """Both sides with new processes, whatever state they are in."""
        self.end()
        ours, theirs = self.sides
        self.sides = Side(ours.directory), Side(theirs.directory)
        self.waiting.clear()

    def ask(self, worker: int, what: str, *arguments: Any) -> Answer:
        """What cannot wait; the answer of the plain side."""
        self._note(worker, what, *arguments)
        for side in self.sides:
            side.send(worker, what, *arguments)
        found = self._same(worker, (what, *arguments))
        self._settle()
        return found

    def wait(self, worker: int, *arguments: Any) -> None:
        self._note(worker, "lock", *arguments)
        for side in self.sides:
            side.send(worker, "lock", *arguments)
        self.waiting[worker] = ("lock", *arguments)
        self._reach(worker)
        for _ in range(_BARRIERS):
            os.statvfs(self.sides[0].directory)  # threads of the mount may overtake each other
        self._settle()

    def fork(self, worker: int, new: int) -> None:
        self._note(worker, "fork", new)
        for side in self.sides:
            assert side.ask(worker, "fork", new)[0] == "ok"
            side.started(new)

    def execute(self, worker: int, closing: list[int]) -> None:
        self._note(worker, "execute", closing)
        for side in self.sides:
            side.send(worker, "execute", closing)
            side.started(worker)
        self._settle()

    def interrupt(self, worker: int) -> None:
        self._note(worker, "interrupt")
        self._reach(worker)
        for side in self.sides:
            side.signal(worker, signal.SIGUSR1)
        self._same(worker, self.waiting.pop(worker))
        self._settle()

    def kill(self, worker: int) -> None:
        self._note(worker, "kill")
        self._reach(worker)
        for side in self.sides:
            with side.dying(worker):
                side.signal(worker, signal.SIGKILL)
        self._gone(worker)

    def exit(self, worker: int) -> None:
        self._note(worker, "exit")
        for side in self.sides:
            with side.dying(worker):
                side.send(worker, "end")
        self._gone(worker)

    def _reach(self, worker: int) -> None:
        """If it waits, then in the kernel."""
        if worker in self.waiting:
            for side in self.sides:
                side.reach(worker)

    def _gone(self, worker: int) -> None:
        self.waiting.pop(worker, None)
        self._settle()

    def reopen(self, worker: int, slot: int, new: int) -> bool:
        """By its link. The mount refuses that for some files; a close then ends on both sides the
        locks that it ends on the plain one."""
        self._note(worker, "reopen", slot, new)
        ours, theirs = (side.ask(worker, "reopen", slot, new) for side in self.sides)
        if ours != theirs:
            self.sides[0].ask(worker, "dup", slot, new)
            for side in self.sides:
                side.ask(worker, "close", new)
        self._settle()
        return ours == theirs == ("ok", None)

    def _note(self, *question: Any) -> None:
        self.operations += 1
        self.recent.append(question)

    # --- comparing -------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Whoever got its lock, or an error, by the last operation has done so on both sides."""
        ours: dict[int, Answer] = {}
        theirs: dict[int, Answer] = {}
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            self._collect_when_quiet(theirs)
            self._collect(self.sides[0], ours)
            if ours.keys() == theirs.keys():
                break
            if ours.keys() - theirs.keys():
                deadline = min(deadline, time.monotonic() + 0.5)
        self._raise_if_raced(set(ours), set(theirs))
        for worker in ours.keys() | theirs.keys():
            self._compare(worker, self.waiting.pop(worker), ours.get(worker), theirs.get(worker))
            self.ended[str(theirs[worker][1] or "granted")] += 1

    def _collect(self, side: Side, answers: dict[int, Answer]) -> bool:
        """The answers of those who waited. Whether nothing moves: who wakes may wake others."""
        quiet = True
        for worker in self.waiting.keys() - answers.keys():
            quiet = side.stands(worker) and quiet
            answer = side.answer(worker, 0)
            if answer is not None:
                answers[worker] = answer
                quiet = False
        return quiet

    def _collect_when_quiet(self, answers: dict[int, Answer]) -> None:
        plain = self.sides[1]
        while not (self._collect(plain, answers) and self._collect(plain, answers)):
            pass

    def _raise_if_raced(self, ours: set[int], theirs: set[int]) -> None:
        """Who is the first of those that one operation wakes is chance, unless they exclude each
        other and wait for the same."""
        only_ours, only_theirs = ours - theirs, theirs - ours
        if any(self._modes(*two) for two in combinations(ours & theirs, 2)):
            raise Raced
        for some, others in ((only_ours, only_theirs), (only_theirs, only_ours)):
            if not all(any("write" in self._modes(one, other) for other in others) for one in some):
                return
        if only_ours:
            raise Raced

    def _modes(self, *workers: int) -> set[str]:
        """Read or write, or both, if they wait for the same kind of lock."""
        if len({self.waiting[worker][2] == "flock" for worker in workers}) > 1:
            return set()
        return {self.waiting[worker][3] for worker in workers}

    def look_for_more(self) -> None:
        """At the end: nobody on the mount has an answer that has none on the plain side."""
        time.sleep(0.05)
        self._settle()

    def _same(self, worker: int, question: Any) -> Answer:
        ours, theirs = (side.answer(worker) for side in self.sides)
        assert theirs is not None
        self._compare(worker, question, ours, theirs)
        return theirs

    def _compare(self, worker: int, question: Any, *answers: Answer | None) -> None:
        ours, theirs = answers
        if question[0] == "look" and ours and theirs and ours[0] == theirs[0] == "ok":
            ours, theirs = self._owners(question, ours[1], theirs[1])
        if ours != theirs:
            lines = [f"{worker}: {question}", f"mount: {ours}", f"plain: {theirs}", "after"]
            raise Different("\n".join([*lines, *map(str, self.recent)]))

    def _owners(self, question: Any, *found: Any) -> tuple[Any, Any]:
        """With workers in place of processes. The kernel's FUSE client tells no process to who
        asks for an OFD lock, and one to who meets one."""
        named = []
        for side, (mode, *place) in zip(self.sides, found, strict=True):
            workers = {pid: worker for worker, pid in side.pids.items()}
            pid = place.pop() if place else None
            named.append((mode, place, workers.get(pid, pid)))
        if question[2] == "ofd" or named[1][2] == -1:
            named = [(mode, place, None) for mode, place, _ in named]
        return named[0], named[1]
