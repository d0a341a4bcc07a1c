"""Whether locks keep what is written under them: ``python -m ckptfs.tools.locks DIR``.

Several processes share one file of a mount in a new directory in DIR. In a round each takes a lock
so many times, and adds a line to the file or 1 to a counter in it. Drawn for each round: by which
call they lock, whether they keep their descriptor or open the file anew for each turn, how they
write, whether the file was there, its name. Afterwards the file must hold exactly that: read
through the mount, and in the plain directory once that is unmounted. The exit code is 1 where
anything is lost. The control, ``--control``, takes no locks: there it is what is to be seen.
"""

from __future__ import annotations

import errno
import fcntl
import math
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

import click

from ckptfs.errors import CannotServe

from .harness.command import end_on_sigterm, own_folder
from .harness.rig import served
from .harness.study import Step, progress

TURNS = 25  # of each process in a round
_ROUNDS_PER_MOUNT = 20
_STUCK_S = 120.0  # for the turns of one process
_OLD_BYTES = 100
_LINE_BYTES, _COUNTER_BYTES = 32, 20

LOCKS: dict[str, Callable[[int, int], object]] = {"flock": fcntl.flock, "lockf": fcntl.lockf}
KEPT, ANEW = "kept open", "opened anew"
OLD, NEW = "old", "new"


def _append(fd: int, line: bytes) -> None:
    os.write(fd, line)


def _seek(fd: int, line: bytes) -> None:
    os.lseek(fd, 0, os.SEEK_END)
    os.sched_yield()
    os.write(fd, line)


def _count(fd: int, _line: bytes) -> None:
    value = int(os.pread(fd, _COUNTER_BYTES, 0) or 0)
    os.sched_yield()
    os.pwrite(fd, _counter(value + 1), 0)


def _counter(value: int) -> bytes:
    return b"%*d" % (_COUNTER_BYTES, value)


def _line(turn: int) -> bytes:
    return f"turn {turn}".ljust(_LINE_BYTES - 1).encode() + b"\n"


WAYS: dict[str, Callable[[int, bytes], None]] = {
    "O_APPEND": _append,
    "SEEK_END": _seek,
    "counter": _count,
}
KINDS = ([*LOCKS], [KEPT, ANEW], [*WAYS], [OLD, NEW], [".pt", ".log", ".bin", ".db"])


class Round(NamedTuple):
    """What is done in it."""

    number: int
    lock: str
    opened: str
    way: str
    file: str
    suffix: str

    @classmethod
    def drawn(cls, seed: int, number: int) -> Round:
        """Always the same for a seed and a number."""
        dice = random.Random(f"{seed}/{number}")
        return cls(number, *(dice.choice(kinds) for kinds in KINDS))

    def __str__(self) -> str:
        return f"round {self.number} ({', '.join(self[1:])})"

    @property
    def name(self) -> str:
        return f"{self.number}{self.suffix}"

    @property
    def before(self) -> bytes:
        """What is in the file ahead of the round."""
        return _counter(0) + b"." * (_OLD_BYTES - _COUNTER_BYTES) if self.file == OLD else b""

    def lost(self, content: bytes, turns: int) -> int:
        """How many of its turns are not in the file; 1 at least where anything is wrong."""
        start, rest = content[: len(self.before)], content[len(self.before) :]
        if self.way == "counter":
            whole = _counter(turns) + self.before[_COUNTER_BYTES:]
            counted = content[:_COUNTER_BYTES].strip()
            missing = turns - (int(counted) if counted.isdigit() else 0)
            return max(missing, int(content != whole))
        lines = {_line(turn) for turn in range(turns)}
        found = [rest[at : at + _LINE_BYTES] for at in range(0, len(rest), _LINE_BYTES)]
        wrong = start != self.before or len(found) > turns
        return max(len(lines - set(found)), int(wrong))


class Loss(NamedTuple):
    round: Round
    where: str
    what: str


def take_turns(path: Path, this: Round, turns: Iterable[int], *, locked: bool) -> None:
    """What one process does in a round."""
    lock, write = LOCKS[this.lock] if locked else _no_lock, WAYS[this.way]
    flags = os.O_RDWR | os.O_CREAT | (os.O_APPEND if this.way == "O_APPEND" else 0)
    fd = os.open(path, flags, 0o600)
    for turn in turns:
        if this.opened == ANEW:
            os.close(fd)
            fd = os.open(path, flags, 0o600)
        lock(fd, fcntl.LOCK_EX)
        write(fd, _line(turn))
        lock(fd, fcntl.LOCK_UN)
    os.close(fd)


def _no_lock(_fd: int, _operation: int) -> None:
    """The control."""


def _process(path: Path, this: Round, process: int, locked: bool, start: Barrier) -> None:
    turns = range(process * TURNS, (process + 1) * TURNS)
    try:
        start.wait(_STUCK_S)
        take_turns(path, this, turns, locked=locked)
    except OSError as error:
        sys.exit(error.errno)
    except ValueError:  # what it read is no number
        sys.exit(errno.EILSEQ)


def play(path: Path, this: Round, processes: int, *, locked: bool) -> list[str]:
    """The round, by processes that begin at once. What they say of themselves, if not that they
    are done."""
    if this.file == OLD:
        path.write_bytes(this.before)
    context = multiprocessing.get_context("fork")
    start = context.Barrier(processes)
    started = [
        context.Process(target=_process, args=(path, this, number, locked, start), daemon=True)
        for number in range(processes)
    ]
    for each in started:
        each.start()
    deadline = time.monotonic() + _STUCK_S
    for each in started:
        each.join(max(0.0, deadline - time.monotonic()))
    ended = [each.exitcode for each in started]
    for each in started:
        each.kill()
    return [_ending(code) for code in ended if code != 0]


def _ending(code: int | None) -> str:
    if code is None:
        return "a process does not end"
    return f"a process ended with {errno.errorcode.get(code, code)}"


def look(path: Path, this: Round, processes: int) -> str:
    """What is wrong with the file; empty if nothing is."""
    try:
        content, size = path.read_bytes(), path.stat().st_size
    except OSError as error:
        return str(error.strerror)
    if size != len(content):
        return f"{size} bytes by stat, {len(content)} by read"
    lost = this.lost(content, processes * TURNS)
    return f"{lost} of {processes * TURNS} turns lost" if lost else ""


def stress(
    folder: Path, rounds: Sequence[Round], processes: int, step: Step, *, locked: bool
) -> list[Loss]:
    """Play the rounds on a mount of ``folder``, and look at each file there and, unmounted, below.
    Raises CannotServe."""
    found = []
    with served(folder):
        for this in rounds:
            path = folder / this.name
            told = play(path, this, processes, locked=locked)
            told.append(look(path, this, processes))
            found += [Loss(this, "through the mount", what) for what in told if what]
            step(1)
    below = [Loss(this, "unmounted", look(folder / this.name, this, processes)) for this in rounds]
    return found + [loss for loss in below if loss.what]


def report(played: Sequence[Round], losses: Sequence[Loss], *, control: bool) -> None:
    lost = {loss.round for loss in losses}
    for loss in losses:
        click.echo(f"{loss.round}: {loss.where}: {loss.what}")
    for kind in chain(*KINDS):
        of_kind = [this for this in played if kind in this]
        click.echo(f"{kind:12} {_counts(of_kind, lost)}")
    click.echo(f"{'all':12} {_counts(played, lost)}")
    if control:
        told = "losses, as expected" if lost else "nothing was lost, so this sees no losses"
        click.echo(f"the control, without locks: {told}")


def _counts(rounds: Sequence[Round], lost: set[Round]) -> str:
    return f"{len(rounds):5} rounds, {len(lost.intersection(rounds))} with losses"


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False))
@click.option("--rounds", type=click.IntRange(1), default=200, show_default=True)
@click.option("--seconds", type=float, default=math.inf, help="Begin no more mounts after this.")
@click.option("--processes", type=click.IntRange(2), default=4, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--control", is_flag=True, help="Take no locks: losses, and exit 1, are expected.")
def main(
    directory: str, rounds: int, seconds: float, processes: int, seed: int, control: bool
) -> None:
    """Write under locks from several processes, through a mount of a new folder of DIRECTORY.

    Exit 0 if nothing was lost, 1 if something was, as it has to be with --control.
    """
    end_on_sigterm()
    end = time.monotonic() + seconds
    left = (Round.drawn(seed, number) for number in range(rounds))
    played: list[Round] = []
    losses: list[Loss] = []
    try:
        with own_folder(directory, "locks") as folder, progress() as steps:
            step = steps.of("rounds", rounds, 0)
            while time.monotonic() < end and (some := list(islice(left, _ROUNDS_PER_MOUNT))):
                losses += stress(folder / "served", some, processes, step, locked=not control)
                played += some
    except CannotServe as error:
        raise click.ClickException(str(error)) from None
    report(played, losses, control=control)
    sys.exit(1 if losses else 0)


if __name__ == "__main__":
    main()
