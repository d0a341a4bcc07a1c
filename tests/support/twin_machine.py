"""The machine of test_same_as_plain.py: what it asks of both sides; opening and closing."""

from __future__ import annotations

import os
import stat
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from twin import Answer, Twins
from twin_draws import flags, modes, names, paths, picks, workers
from twin_model import Description, is_text

SLOTS = 8


def around(path: str) -> list[str]:
    """The path and its directory."""
    return [path, os.path.dirname(path.rstrip("/")) or "."] if len(path) < 300 else []


def some_open(machine: Asking) -> bool:
    return bool(machine.model.open)


# With O_DIRECT their buffers must be aligned, and where they lie is chance: see ``direct``.
_BUFFERS = {"read", "pread", "readv", "write", "pwrite", "writev"}


class Asking(RuleBasedStateMachine):
    """One example: operations in a fresh pair of directories."""

    pair: Twins  # of the run

    def __init__(self) -> None:
        super().__init__()
        self.pair.start()
        self.model = self.pair.model

    # --- asking ----------------------------------------------------------------------------------

    def by_path(
        self, worker: int, what: str, path: str, *rest: Any, watched: Any = None, **how: Any
    ) -> Any:
        """An operation on a path: its times, and those of its directory, are watched."""
        if watched is None:
            watched = around(path)
        answers = self.pair.ask(worker, what, path, *rest, watched=watched)
        self.pair.compare(worker, (worker, what, path, *rest), answers, **how)
        return answers[1]

    def by_metadata(
        self, worker: int, what: str, path: str, *rest: Any, follow: bool = True, **how: Any
    ) -> None:
        """As ``by_path``, for what the owner, mode or xattrs of a file may forbid: while somebody
        else writes the file they are those of another version, and such an answer parts the two."""
        status, hidden = self.pair.plain(path, follow), self._hidden(path, worker, follow)
        answers = self.pair.ask(worker, what, path, *rest, watched=around(path))
        masked = hidden and answers[0].result != answers[1].result
        if status is not None and masked and answers[0].ok != answers[1].ok:
            self.model.part(status.st_ino)
        if status is not None and what == "truncate" and answers[1].ok:
            self.model.truncated(worker, status, self.pair.real_path(path))
        elif status is not None:
            self.model.changed_by_path(status.st_ino)
        self.pair.compare(worker, (worker, what, path, *rest), answers, masked=masked, **how)

    def by_slot(
        self,
        pick: int,
        what: str,
        *rest: Any,
        reads: bool = False,
        writes: bool = False,
        **how: Any,
    ) -> Any:
        """An operation on one of the open descriptors."""
        (worker, slot), description = self._picked(pick)
        if description.flags & os.O_DIRECT and what in _BUFFERS:
            return None
        masked = self.model.masked(description)
        # the kernel keeps the times of a FIFO that is written to itself
        watched = (slot,) if not masked and (description.is_file or not writes) else ()
        answers = self.pair.ask(worker, what, slot, *rest, watched=watched)
        if writes and any(answer.ok for answer in answers):
            appends = what == "write" and bool(description.flags & os.O_APPEND)
            self.model.written(description, adds_text=appends and is_text(rest[0]))
        self.pair.compare(
            worker,
            (worker, what, slot, description.path, *rest),
            answers,
            masked=masked and reads,
            inode=description.inode,
            **how,
        )
        return answers[1]

    def _picked(self, pick: int) -> tuple[tuple[int, int], Description]:
        return list(self.model.open.items())[pick % len(self.model.open)]

    def _free_slot(self) -> int:
        taken = {slot for _, slot in (*self.model.open, *self.model.maps)}
        return min(set(range(100)) - taken)

    def _hidden(self, path: str, worker: int, follow: bool = True) -> bool:
        status = self.pair.plain(path, follow)
        return status is not None and self.model.hidden(status.st_ino, worker)

    # --- opening and closing ---------------------------------------------------------------------

    @precondition(lambda self: len(self.model.open) < SLOTS)
    @rule(worker=workers, path=paths, flags=flags, mode=modes)
    def open_any(self, worker: int, path: str, flags: int, mode: int) -> None:
        self._open(worker, path, flags, mode)

    @precondition(lambda self: len(self.model.open) < SLOTS)
    @rule(
        worker=workers,
        path=names,
        flags=st.sampled_from([0, os.O_TRUNC, os.O_TRUNC, os.O_APPEND]),
        mode=modes,
    )
    def open_to_write(self, worker: int, path: str, flags: int, mode: int) -> None:
        self._open(worker, path, flags | os.O_CREAT | os.O_RDWR, mode)

    def _open(self, worker: int, path: str, flags: int, mode: int) -> None:
        before, content = self.pair.plain(path), self.pair.content(path)
        if before is not None and stat.S_ISFIFO(before.st_mode):
            flags |= os.O_NONBLOCK
        if self.pair.relayed:
            flags &= ~os.O_DIRECT  # the daemon takes any alignment
        if before is not None and (stat.S_ISCHR(before.st_mode) or stat.S_ISBLK(before.st_mode)):
            return  # nodev
        slot, at = self._free_slot(), self.pair.real_path(path)
        # what an open makes is a version to be committed, even where it is opened for reading
        writing = bool(flags & (os.O_ACCMODE | os.O_TRUNC)) or before is None
        writing = writing and not flags & os.O_PATH
        hidden = self._hidden(path, worker)
        watched = [*around(path), slot]
        answers = self.pair.ask(worker, "open", slot, path, flags, mode, watched=watched)
        anew, tmpfile = False, flags & os.O_TMPFILE == os.O_TMPFILE
        if all(answer.ok for answer in answers):
            status = answers[1].after[-1]
            assert status is not None
            is_file = stat.S_ISREG(status[4])
            found = Description(
                status[0],
                path,
                at,
                writing,
                is_file and not flags & os.O_PATH,
                flags,
                {(worker, slot)},
                stale=bool(flags & os.O_PATH) and is_file,
            )
            anew = self.model.opened(worker, slot, found, before, content)
        elif any(answer.ok for answer in answers) and (tmpfile or hidden):
            if before is not None and not tmpfile:
                self.model.part(before.st_ino)  # the owner or mode of another version
            self._close_one(worker, slot, answers)
            for answer in answers:
                answer.after[-1] = None
        for answer in answers:
            answer.before.pop(), answer.after.pop()
            if hidden and answer.before:
                answer.before[0] = None  # the path shows another version than before
        self.pair.compare(
            worker,
            (worker, "open", slot, path, flags, oct(mode)),
            answers,
            commits=writing,
            anew=anew,
            masked=hidden and not all(answer.ok for answer in answers),
            allowed=lambda ours, theirs: tmpfile and ours == ("error", "ENOTSUP"),
        )

    def write_once(self, worker: int, path: str, data: bytes, flags: int) -> None:
        """Opened, written and closed."""
        before = set(self.model.open)
        if len(before) >= SLOTS:
            return
        self._open(worker, path, flags | os.O_RDWR, 0o666)
        for at, key in list(enumerate(self.model.open)):
            if key not in before:
                self.by_slot(at, "write", data, writes=True)
                self.close(at)

    def _close_one(self, worker: int, slot: int, answers: list[Answer]) -> None:
        """Of the side whose open went well alone."""
        opened = next(i for i, answer in enumerate(answers) if answer.ok)
        there = self.pair.sides[opened][worker]
        there.send("close", slot)
        there.answer()

    @precondition(some_open)
    @rule(pick=picks)
    def close(self, pick: int) -> None:
        (worker, slot), description = self._picked(pick)
        watched = around(description.path)
        answers = self.pair.ask(worker, "close", slot, watched=watched)
        lost = description.inode in self.model.lost  # every writer of it hears of that
        self.model.closed(worker, slot)
        if description.writing:
            self.pair.settle()
        self.pair.compare(
            worker,
            (worker, "close", slot, description.path),
            answers,
            commits=description.writing,
            masked=lost,
        )

    @precondition(lambda self: 0 < len(self.model.open) < SLOTS)
    @rule(pick=picks)
    def dup(self, pick: int) -> None:
        (worker, _), description = self._picked(pick)
        new = self._free_slot()
        self.by_slot(pick, "dup", new)
        self.model.open[worker, new] = description
        description.holders.add((worker, new))
