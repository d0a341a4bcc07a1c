"""The same operation on a mount and on a plain directory, and what may differ between them.

Each side has workers (``twin_worker.py``): processes that are siblings, so that none sees what
another one is writing. :class:`Model` knows, of every file of the plain side, which of the listed
differences (docs/design.md, "Differences from a plain filesystem") concern it at this moment.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import stat
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twin_worker import expanded

LIMIT_S = 30.0
USERS = (0, 0, 65534)  # of the workers of a side
_WORKER = Path(__file__).with_name("twin_worker.py")


class Stuck(BaseException):
    """No answer in time. No Exception, so that it is not tried again and again."""


@dataclass
class Answer:
    result: tuple[str, Any]
    before: list[tuple[Any, ...] | None]
    after: list[tuple[Any, ...] | None]

    @property
    def ok(self) -> bool:
        return self.result[0] == "ok"


class Worker:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
        )
        assert self._process.stdin and self._process.stdout
        self._orders, self._answers = self._process.stdin, self._process.stdout

    def send(self, what: str, *arguments: Any, watched: tuple[str | int, ...] = ()) -> None:
        pickle.dump((what, arguments, watched), self._orders)
        self._orders.flush()

    def answer(self) -> Answer:
        if not select.select([self._answers], [], [], LIMIT_S)[0]:
            raise Stuck("a worker does not answer")
        return Answer(*pickle.load(self._answers))

    def end(self) -> None:
        self._process.kill()
        self._orders.close()
        self._answers.close()
        self._process.wait(LIMIT_S)


@dataclass(eq=False)
class Description:
    """One open file description of both sides."""

    inode: int  # on the plain side
    path: str
    writing: bool
    in_place: bool
    is_file: bool
    holders: set[tuple[int, int]]  # (worker, slot)
    flushed: bool = False
    direct: bool = False  # O_DIRECT
    stale: bool = False  # keeps a version that is no longer, or not, what the path shows


@dataclass
class Model:
    """Which files of the plain side are more than one version on the mount."""

    open: dict[tuple[int, int], Description] = field(default_factory=dict)
    # file -> workers that see the version that is being written beside the committed one
    flight: dict[int, set[int]] = field(default_factory=dict)
    split: set[int] = field(default_factory=set)  # their versions have gone different ways

    def of(self, inode: int) -> list[Description]:
        return list({id(d): d for d in self.open.values() if d.inode == inode}.values())

    def hidden(self, inode: int | None, worker: int) -> bool:
        """Whether a path of this file may show this worker another version."""
        if inode is None:
            return False
        return inode in self.split or worker not in self.flight.get(inode, {worker})

    def opened(
        self, worker: int, slot: int, found: Description, flags: int, before: os.stat_result | None
    ) -> None:
        inode, others = found.inode, self.of(found.inode)
        self.open[worker, slot] = found
        if before is None:  # made by this open; numbers of removed inodes come back
            self.split.discard(inode)
            self.flight.pop(inode, None)
            return
        if not found.is_file or found.in_place:
            return
        if not found.writing:
            found.stale = self.hidden(inode, worker)
            return
        joinable = any(d.writing and not (d.flushed or d.stale or d.in_place) for d in others)
        empty = before.st_size == 0 and flags & os.O_ACCMODE == os.O_RDWR
        seen = not self.hidden(inode, worker)
        private = flags & os.O_TRUNC and not (joinable and empty and seen)
        if joinable and not private:
            if inode in self.flight:
                self.flight[inode].add(worker)
            return
        if before.st_nlink > 1 or any(d.writing for d in others):
            self.split.add(inode)
        self._new_version(inode, worker)
        found.stale = False

    def _new_version(self, inode: int, worker: int) -> None:
        for description in self.of(inode):
            description.stale = True
        self.flight[inode] = {worker}

    def closed(self, worker: int, slot: int) -> Description:
        description = self.open.pop((worker, slot))
        description.holders.discard((worker, slot))
        description.flushed = True
        if not any(d.writing for d in self.of(description.inode)):
            self.flight.pop(description.inode, None)
        return description

    def truncated(self, worker: int, status: os.stat_result, in_place: bool) -> None:
        """By its path, without a descriptor: a commit of its own, or a cut of what is written."""
        inode = status.st_ino
        if in_place:
            return
        if any(d.writing and not d.stale for d in self.of(inode)):
            if self.hidden(inode, worker):
                self.split.add(inode)
            return
        if status.st_nlink > 1:
            self.split.add(inode)
        for description in self.of(inode):
            description.stale = True

    def renamed(self, source: os.stat_result | None, target: os.stat_result | None) -> None:
        """What was not committed yet stands beside what was at its new name."""
        if source is None or target is None:
            return
        inode = source.st_ino
        writers = [d for d in self.of(inode) if d.writing and not d.stale and not d.in_place]
        if writers:
            users = {worker for d in writers for worker, _ in d.holders}
            self.flight.setdefault(inode, set()).update(users)

    def replaced(self, source: os.stat_result | None, target: os.stat_result | None) -> None:
        """History keeps it, which its other names and descriptors show as one link more."""
        if source is None or target is None or source.st_ino == target.st_ino:
            return
        if stat.S_ISREG(target.st_mode):
            self.split.add(target.st_ino)

    def written(self, description: Description) -> None:
        if description.stale:
            self.split.add(description.inode)

    def masked(self, description: Description) -> bool:
        return description.stale or description.inode in self.split


class Different(AssertionError):
    pass


class Twins:
    """The two directories, their workers, and the model of the current example."""

    def __init__(self, mounted: Path, plain: Path, abort: Callable[[], None]) -> None:
        self.roots = mounted, plain
        self._abort = abort
        self.sides = [[Worker() for _ in USERS] for _ in self.roots]
        self.model = Model()
        self.operations = self.succeeded = 0
        self.recent: deque[Any] = deque(maxlen=60)
        self.over = False  # the current example is: an answer failed to come, or was different
        self._examples = 0
        self.here = plain
        for workers, root in zip(self.sides, self.roots, strict=True):
            workers[0].send("mkdir", str(root / "top"), 0o755)
            assert workers[0].answer().ok

    def end(self) -> None:
        for workers in self.sides:
            for worker in workers:
                worker.end()

    def ask(self, worker: int, what: str, *arguments: Any, watched: Any = ()) -> list[Answer]:
        """One operation on both sides at once."""
        self.operations += 1
        self.recent.append((worker, what, *arguments))
        for workers in self.sides:
            workers[worker].send(what, *arguments, watched=tuple(watched))
        answers = self._answers(worker, self.sides)
        self.succeeded += answers[1].ok
        return answers

    def _answers(self, worker: int, sides: list[list[Worker]]) -> list[Answer]:
        try:
            return [workers[worker].answer() for workers in sides]
        except Stuck:
            self.over = True
            self._abort()
            raise Stuck("\n".join(map(str, self.recent))) from None

    def start(self) -> None:
        """A small tree on each side; nothing is open."""
        self._examples += 1
        self.recent.clear()
        self.over = False
        name = f"example{self._examples}"
        self.model = Model()
        for workers, root in zip(self.sides, self.roots, strict=True):
            for what, arguments in (
                ("enter", (str(root / "top"), 0)),
                ("mkdir", (name, 0o777)),
                ("chmod", (name, 0o777)),
            ):
                workers[0].send(what, *arguments)
                answer = workers[0].answer()
                assert answer.ok, answer
            for worker, uid in zip(workers, USERS, strict=True):
                worker.send("enter", str(root / "top" / name), uid)
                assert worker.answer().ok
            workers[0].send("populate")
            answer = workers[0].answer()
            assert answer.ok, answer
        self.here = self.roots[1] / "top" / name

    def settle(self) -> None:
        """What a close left to its RELEASE is done on return: fsync of a directory waits for it."""
        for wait, workers in zip((True, False), self.sides, strict=True):
            workers[1].send("settle", wait)
        assert all(answer.ok for answer in self._answers(1, self.sides))

    def plain(self, path: str, follow: bool = True) -> os.stat_result | None:
        try:
            return os.stat(self.here / expanded(path), follow_symlinks=follow)
        except OSError:
            return None

    def real_name(self, path: str) -> str:
        try:
            return os.path.basename(os.path.realpath(self.here / expanded(path)))
        except OSError:
            return ""

    # --- comparing -------------------------------------------------------------------------------

    def _different(self, text: str) -> Different:
        """With what led to it: a difference of timing is not found again by shrinking."""
        self.over = True
        return Different("\n".join([text, "after", *map(str, self.recent)]))

    def compare(
        self,
        worker: int,
        question: Any,
        answers: list[Answer],
        *,
        masked: bool = False,
        commits: bool = False,
        joins: bool = False,
        allowed: Callable[[Any, Any], bool] = lambda ours, theirs: False,
    ) -> None:
        """``masked``: the value belongs to another version. ``commits``: the operation may
        publish, which moves the change time of the file and the times of its directory.
        ``joins``: an empty file is truncated by who joins its writers, which moves no time."""
        ours, theirs = answers
        if (
            not masked
            and _value(ours) != _value(theirs)
            and not allowed(ours.result, theirs.result)
        ):
            raise self._different(f"{question}\nmount: {_short(ours)}\nplain: {_short(theirs)}")
        for watched in zip(ours.before, ours.after, theirs.before, theirs.after, strict=True):
            self._compare_watched(worker, question, watched, commits, joins)

    def _compare_watched(
        self, worker: int, question: Any, watched: Any, commits: bool, joins: bool
    ) -> None:
        before, after, plain_before, plain_after = watched
        if plain_after is not None and self.model.hidden(plain_after[0], worker):
            return
        if plain_before is not None and self.model.hidden(plain_before[0], worker):
            return
        if (after is None) != (plain_after is None):
            raise self._different(
                f"{question}\nthere afterwards: mount {after}, plain {plain_after}"
            )
        if after is None:
            return
        if after[3:] != plain_after[3:]:
            raise self._different(
                f"{question}\nlinks, mode: mount {after[3:]}, plain {plain_after[3:]}"
            )
        if before is None or plain_before is None or plain_before[0] != plain_after[0]:
            return  # times of two files say nothing: they may have been made in one tick
        moved = [before[i] != after[i] for i in (1, 2)]
        expected = [plain_before[i] != plain_after[i] for i in (1, 2)]
        is_directory = stat.S_ISDIR(after[4])
        for name, ours, theirs in zip(("mtime", "ctime"), moved, expected, strict=True):
            free = (commits and ours and (is_directory or name == "ctime")) or (joins and theirs)
            if ours != theirs and not free:
                raise self._different(f"{question}\n{name} moved: mount {ours}, plain {theirs}")

    def compare_trees(self, worker: int) -> None:
        ours, theirs = (answer.result[1] for answer in self.ask(worker, "snapshot"))
        if ours.keys() != theirs.keys():
            raise self._different(f"names: mount {sorted(ours)}, plain {sorted(theirs)}")
        links: dict[int, int] = {}
        for path, (inode, *facts) in theirs.items():
            own_inode, *own_facts = ours[path]
            if self.model.hidden(inode, worker):
                continue
            if facts != own_facts:
                raise self._different(f"{path}\nmount: {own_facts}\nplain: {facts}")
            if links.setdefault(inode, own_inode) != own_inode:
                raise self._different(f"{path}: its links are another file on the mount")


def _value(answer: Answer) -> Any:
    kind, value = answer.result
    return kind, value[1:] if isinstance(value, tuple) and len(value) == 9 else value


def _short(answer: Answer) -> str:
    return repr(answer.result)[:300]


@contextlib.contextmanager
def twins(mounted: Path, plain: Path, abort: Callable[[], None]) -> Iterator[Twins]:
    pair = Twins(mounted, plain, abort)
    try:
        yield pair
    finally:
        pair.end()
