"""Opens one path twice in every way of a table, and prints what is there afterwards, as JSON.

    python second_opens.py DIRECTORY [CASE…]

Run on a plain directory it gives the oracle for a mount. The second open is made by the process
that made the first, by a child of it, or by a stranger to it.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

OLD = b"\0old" * 30
EARLY, FIRST, SECOND = b"\0early" * 5, b"\0first" * 12, b"\0second" * 6
FLAGS = {
    "made": os.O_RDWR | os.O_CREAT | os.O_EXCL,  # mkstemp
    "wb": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "w+b": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    "r+b": os.O_RDWR,
    "ab": os.O_WRONLY | os.O_APPEND,
}


class Case(NamedTuple):
    who: str  # makes the second open
    first: str  # how the first is made; all but "made" of a file that is there
    early: bool  # the first has written before the second open
    second: str
    writes: str  # who writes after it
    closes: str  # who closes first
    renamed: bool  # between the opens and the writes

    def name(self) -> str:
        return "-".join(str(part) for part in self)

    @property
    def writers(self) -> set[str]:
        wrote = {"first", "second"} if self.writes == "both" else {self.writes}
        return wrote | ({"first"} if self.early else set())


def cases() -> Iterator[Case]:
    yield from itertools.starmap(
        Case,
        itertools.product(
            ("itself", "child", "stranger"),
            ("made", "wb", "w+b", "r+b"),
            (False, True),
            ("wb", "w+b", "r+b", "ab"),
            ("first", "second", "both"),
            ("first", "second"),
            (False, True),
        ),
    )


class Process:
    """Does what it is told, one system call after another."""

    def __init__(self, *, stranger: bool) -> None:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            if stranger and os.fork():
                os._exit(0)  # what it leaves descends from nobody here
            _obey(theirs)
        theirs.close()
        if stranger:
            os.waitpid(pid, 0)
        self._pid, self._socket, self._answers = pid, ours, ours.makefile("r")

    def __call__(self, what: str, *arguments: Any) -> Any:
        self._socket.sendall(json.dumps([what, *arguments]).encode() + b"\n")
        return json.loads(self._answers.readline())

    def end(self) -> None:
        self._answers.close()
        self._socket.close()


def _obey(orders: socket.socket) -> None:
    for line in orders.makefile("r"):
        what, *arguments = json.loads(line)
        orders.sendall(json.dumps(do(what, *arguments)).encode() + b"\n")
    os._exit(0)


def do(what: str, *arguments: Any) -> Any:
    try:
        if what == "open":
            return os.open(*arguments)
        if what == "write":
            return os.write(arguments[0], arguments[1].encode("latin-1"))
        if what == "read":
            with open(arguments[0], "rb") as file:
                return file.read().decode("latin-1")
        assert what == "close"
        return os.close(*arguments)
    except OSError as error:
        return error.strerror


Do = Callable[..., Any]


def run(case: Case, directory: str, other: Do, stranger: Do) -> dict[str, Any]:
    """What a stranger reads at the end, under the name it had and the one it was given."""
    path = f"{directory}/{case.name()}"
    moved = f"{path}.moved"
    if case.first != "made":
        with open(path, "wb") as file:
            file.write(OLD)
    one = do("open", path, FLAGS[case.first], 0o644)
    if case.early:
        do("write", one, EARLY.decode("latin-1"))
    two = other("open", path, FLAGS[case.second], 0o644)
    if case.renamed:
        os.rename(path, moved)
    if case.writes != "second":
        do("write", one, FIRST.decode("latin-1"))
    if case.writes != "first":
        other("write", two, SECOND.decode("latin-1"))
    for who in ("first", "second") if case.closes == "first" else ("second", "first"):
        do("close", one) if who == "first" else other("close", two)
    return {"path": stranger("read", path), "moved": stranger("read", moved)}


def main() -> None:
    directory, wanted = sys.argv[1], set(sys.argv[2:])
    stranger = Process(stranger=True)
    child = Process(stranger=False)
    others: dict[str, Do] = {"itself": do, "child": child, "stranger": stranger}
    reader = Process(stranger=True)
    found = {
        case.name(): run(case, directory, others[case.who], reader)
        for case in cases()
        if not wanted or case.name() in wanted
    }
    for process in (child, stranger, reader):
        process.end()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
