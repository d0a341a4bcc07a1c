"""The same operation on a mount and on a plain directory, and what may differ between them.

Each side has workers (``twin_worker.py``): siblings, none of which sees what another writes, and
a child of the first. The model (``twin_model.py``) knows, of every file of the plain side, which of
the listed differences (docs/design.md, "Differences from a plain filesystem") concern it now.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from twin_model import CHILD_OF, Model
from twin_worker import expanded

LIMIT_S = 30.0
USERS = (0, 0, 65534, 0)  # of the workers of a side
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
    """A process that does what it is told. A child of another one is reached through FIFOs."""

    def __init__(self, parent: Worker | None = None) -> None:
        if parent is None:
            process = subprocess.Popen(
                [sys.executable, "-S", str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd="/",
            )
            assert process.stdin and process.stdout
            self._process: subprocess.Popen[bytes] | None = process
            self._orders, self._answers = process.stdin, process.stdout
            pid = process.pid
        else:
            self._process = None
            self._orders, self._answers, pid = _forked(parent)
        self._pidfd = os.pidfd_open(pid)

    def send(self, what: str, *arguments: Any, watched: tuple[str | int, ...] = ()) -> None:
        pickle.dump((what, arguments, watched), self._orders)
        self._orders.flush()

    def answer(self) -> Answer:
        if not select.select([self._answers], [], [], LIMIT_S)[0]:
            raise Stuck("a worker does not answer")
        return Answer(*pickle.load(self._answers))

    def end(self) -> None:
        """By SIGKILL; its descriptors are closed on return."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        select.select([self._pidfd], [], [], LIMIT_S)
        self._orders.close()
        self._answers.close()
        os.close(self._pidfd)
        if self._process is not None:
            self._process.wait(LIMIT_S)


def _forked(parent: Worker) -> tuple[IO[bytes], IO[bytes], int]:
    with tempfile.TemporaryDirectory(prefix="twins-") as directory:
        paths = [f"{directory}/{name}" for name in ("orders", "answers")]
        for path in paths:
            os.mkfifo(path)
        os.chmod(directory, 0o777)
        parent.send("fork", *paths)
        orders: IO[bytes] = open(paths[0], "wb")  # noqa: SIM115
        answers: IO[bytes] = open(paths[1], "rb")  # noqa: SIM115
        pid = parent.answer().result[1]
    return orders, answers, pid


class Different(AssertionError):
    pass


class Twins:
    """The two directories, their workers, and the model of the current example."""

    def __init__(
        self, mounted: Path, plain: Path, abort: Callable[[], None], relayed: bool
    ) -> None:
        self.relayed = relayed  # the daemon carries the data
        self.roots = mounted, plain
        self._abort = abort
        self.sides = [_side() for _ in self.roots]
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
            for worker in reversed(workers):
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

    def replace(self, worker: int) -> None:
        """Kill it on both sides, with the children that it has, and start it anew."""
        for workers, root in zip(self.sides, self.roots, strict=True):
            children = [child for child, parent in CHILD_OF.items() if parent == worker]
            for each in (*children, worker):
                workers[each].end()
            for each in (worker, *children):
                parent = CHILD_OF.get(each)
                workers[each] = Worker(None if parent is None else workers[parent])
                workers[each].send("enter", str(root / "top" / self.here.name), USERS[each])
                assert workers[each].answer().ok
        self.recent.append((worker, "killed"))

    def files(self) -> dict[int, list[str]]:
        """Inode -> names of the regular files of the plain side."""
        found: dict[int, list[str]] = {}
        for folder, _, names in os.walk(self.here):
            for name in names:
                status = os.lstat(f"{folder}/{name}")
                if stat.S_ISREG(status.st_mode):
                    path = os.path.relpath(f"{folder}/{name}", self.here)
                    found.setdefault(status.st_ino, []).append(path)
        return found

    def content(self, path: str) -> bytes:
        """Of a file of the plain side; nothing if it is none."""
        try:
            fd = os.open(self.here / expanded(path), os.O_NONBLOCK | os.O_NOATIME)
        except OSError:
            return b""
        try:
            return os.read(fd, 1 << 20) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        finally:
            os.close(fd)

    def contents(self) -> dict[int, bytes]:
        return {inode: self.content(names[0]) for inode, names in self.files().items()}

    def make_equal(self, paths: list[str]) -> None:
        """The names of one file, which has parted, stand for equal files again."""
        self.recent.append(("made equal", paths))
        for workers in self.sides:
            workers[0].send("make_equal", paths)
        assert all(answer.ok for answer in self._answers(0, self.sides))

    def shown(self, worker: int, path: str) -> bytes | None:
        """What the mount shows under the path; None if there is nothing."""
        mount = self.sides[0][worker]
        mount.send("read_path", path)
        answer = self._answers(worker, self.sides[:1])[0]
        return answer.result[1] if answer.ok else None

    def expect(self, paths: list[str], contents: set[bytes]) -> None:
        """What the mount shows under these names is one of the contents, or there is none."""
        for path in paths:
            found = self.shown(1, path)
            if found is not None and found not in contents:
                wanted = " or ".join(map(repr, contents))
                raise self._different(f"{path}\nmount: {found!r}\nexpected: {wanted}")

    def wait_for(self, path: str, content: bytes) -> None:
        """Text that is added to shows to everybody soon, and without a close."""
        deadline = time.monotonic() + LIMIT_S
        while (found := self.shown(1, path)) != content:
            if time.monotonic() > deadline:
                raise self._different(f"{path}\nmount: {found!r}\nexpected soon: {content!r}")
            time.sleep(0.02)

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

    def real_path(self, path: str) -> str:
        try:
            return os.path.realpath(self.here / expanded(path))
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
        anew: bool = False,
        inode: int | None = None,
        allowed: Callable[[Any, Any], bool] = lambda ours, theirs: False,
    ) -> None:
        """``masked``: the value belongs to another version. ``commits``: the operation may
        publish, which moves the change time of the file and the times of its directory.
        ``anew``: it truncates a version of its own, which may be made in the tick of the other.
        ``inode``: the file that it is about, on the plain side."""
        ours, theirs = answers
        if (
            not masked
            and self._value(ours, inode) != self._value(theirs, inode)
            and not allowed(ours.result, theirs.result)
        ):
            raise self._different(f"{question}\nmount: {_short(ours)}\nplain: {_short(theirs)}")
        for watched in zip(ours.before, ours.after, theirs.before, theirs.after, strict=True):
            self._compare_watched(worker, question, watched, commits, anew)

    def _value(self, answer: Answer, inode: int | None) -> Any:
        """What is compared. History may have a link to the file. Of reads that are relayed the
        access time tells nothing."""
        kind, value = answer.result
        if not isinstance(value, tuple) or len(value) != 9:
            return kind, value
        _, mode, uid, gid, links, kind_of, size, changed_at, read_at = value
        links = 0 if inode in self.model.kept else links
        changed_at = 0 if inode in self.model.late else changed_at
        read_at = 0 if self.relayed else read_at
        return kind, mode, uid, gid, links, kind_of, size, changed_at, read_at

    def _compare_watched(
        self, worker: int, question: Any, watched: Any, commits: bool, anew: bool
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
        first = 4 if plain_after[0] in self.model.kept else 3
        if after[first:] != plain_after[first:]:
            raise self._different(
                f"{question}\nlinks, mode: mount {after[3:]}, plain {plain_after[3:]}"
            )
        if before is None or plain_before is None or plain_before[0] != plain_after[0]:
            return  # times of two files say nothing: they may have been made in one tick
        moved = [before[i] != after[i] for i in (1, 2)]
        expected = [plain_before[i] != plain_after[i] for i in (1, 2)]
        is_directory = stat.S_ISDIR(after[4])
        for name, ours, theirs in zip(("mtime", "ctime"), moved, expected, strict=True):
            publishes = commits or self.model.restless()
            free = (publishes and ours and (is_directory or name == "ctime")) or (anew and theirs)
            # set by hand to what it was: a commit may have moved it on the mount meanwhile
            free |= is_directory and name == "mtime" and after[1] == plain_after[1]
            free |= plain_after[0] in self.model.late
            if ours != theirs and not free:
                raise self._different(
                    f"{question}\n{name} moved: mount {ours}, plain {theirs}\n"
                    f"mount {before} -> {after}\nplain {plain_before} -> {plain_after}"
                )

    def compare_trees(self, worker: int) -> None:
        ours, theirs = (answer.result[1] for answer in self.ask(worker, "snapshot"))
        if ours.keys() != theirs.keys():
            raise self._different(f"names: mount {sorted(ours)}, plain {sorted(theirs)}")
        links: dict[int, int] = {}
        for path, (inode, *facts) in theirs.items():
            own_inode, *own_facts = ours[path]
            if self.model.hidden(inode, worker):
                continue
            if inode in self.model.kept:
                facts[3] = own_facts[3] = 0
            if inode in self.model.late:
                facts[6] = own_facts[6] = 0
            if self.relayed:
                facts[7] = own_facts[7] = 0
            if facts != own_facts:
                raise self._different(f"{path}\nmount: {own_facts}\nplain: {facts}")
            if links.setdefault(inode, own_inode) != own_inode:
                raise self._different(f"{path}: its links are another file on the mount")


def _short(answer: Answer) -> str:
    return repr(answer.result)[:300]


def _side() -> list[Worker]:
    workers: list[Worker] = []
    for number in range(len(USERS)):
        parent = CHILD_OF.get(number)
        workers.append(Worker(None if parent is None else workers[parent]))
    return workers


@contextlib.contextmanager
def twins(
    mounted: Path, plain: Path, abort: Callable[[], None], relayed: bool = False
) -> Iterator[Twins]:
    pair = Twins(mounted, plain, abort, relayed)
    try:
        yield pair
    finally:
        pair.end()
