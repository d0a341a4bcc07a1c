"""The application of the fault study: what it does on the mount, and what it was told.

It runs in a process of its own, which may get stuck; :class:`Application` starts it and gives up on
it after a while. Every call it makes is reported with its errno, and so are the paths of which it
was told that they are saved.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OLD, NEW, ADDED = b"old " * 700, b"new " * 900, b"added " * 100
LONG = b"lon\0" * (300 << 10)  # of which only what is added is written
CHANGED = b"C" + LONG[1:]
_MANY = 6
_LIMIT_S = 30.0
_SETTLED_S = 10.0

Contents = dict[str, bytes | None]


@dataclass
class Program:
    """One run in a folder."""

    folder: Path
    calls: list[tuple[str, int]] = field(default_factory=list)  # and its errno
    done: list[str] = field(default_factory=list)  # paths that are saved, as it was told
    taken: bool = False  # the new bytes were handed over without an error

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            result = function(*arguments, **named)
        except OSError as error:
            self.calls.append((function.__name__, error.errno or -1))
            raise
        self.calls.append((function.__name__, 0))
        return result

    def save(
        self,
        name: str,
        data: bytes,
        flags: int = os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
        sync: bool = False,
        final: str = "",
    ) -> None:
        """``final``: what it is renamed to before it is closed."""
        fd = self.call(os.open, self.folder / name, flags, 0o644)
        try:
            while data:
                data = data[self.call(os.write, fd, data) :]
            self.taken = True
            if sync:
                self.call(os.fsync, fd)
            if final:
                self.rename(name, final)
        finally:
            self.call(os.close, fd)
        self.done.append(final or name)

    def rename(self, name: str, target: str) -> None:
        self.call(os.rename, self.folder / name, self.folder / target)

    def sync_folder(self) -> None:
        fd = self.call(os.open, self.folder, os.O_RDONLY)
        try:
            self.call(os.fsync, fd)
        finally:
            self.call(os.close, fd)


def _nothing(program: Program) -> None:
    pass


def _once(program: Program) -> None:
    program.save("a", OLD)


def _twice(program: Program) -> None:
    program.save("a", OLD)
    program.save("a", NEW)


def _long(program: Program) -> None:
    program.save("a", LONG)


def _two(program: Program) -> None:
    program.save("a", OLD)
    program.save("b", NEW)


def _rename_onto(program: Program) -> None:
    program.taken = True
    program.rename("b", "a")
    program.done += "ab"


def _unlink(program: Program) -> None:
    program.call(os.unlink, program.folder / "a")
    program.done.append("a")


def _mkdir(program: Program) -> None:
    program.call(os.mkdir, program.folder / "d")
    program.save("d/a", NEW)


def _many(program: Program) -> None:
    for number in range(_MANY):
        program.save(f"{number}", NEW)


def _by_hand(program: Program) -> None:
    """As careful programs do it on any filesystem."""
    program.save("t", NEW, sync=True)
    program.done.clear()  # not yet where it belongs
    program.rename("t", "a")
    program.sync_folder()
    program.done = ["a", "t"]


def _in_folder(program: Program) -> None:
    os.mkdir(program.folder / "d")
    program.save("d/a", OLD)
    program.save("d/a", NEW)


def _rename_folder(program: Program) -> None:
    program.taken = True
    program.rename("d", "e")
    program.done += ["d/a", "e/a"]


@dataclass(frozen=True)
class Scenario:
    prepare: Callable[[Program], None]
    act: Callable[[Program], None]
    old: Contents
    new: Contents
    data: bytes = NEW  # to be found somewhere once it was taken
    loose: str = ""  # a temporary file: there or not where something failed
    alone: bool = False  # its calls grow with what else is in the store
    tells: bool = True  # False: its commit comes after the close, so nobody can be told


SCENARIOS = {
    "new file": Scenario(_nothing, lambda p: p.save("a", NEW), {"a": None}, {"a": NEW}),
    "overwrite": Scenario(_once, lambda p: p.save("a", NEW), {"a": OLD}, {"a": NEW}),
    "rename onto": Scenario(_two, _rename_onto, {"a": OLD, "b": NEW}, {"a": NEW, "b": None}),
    "unlink": Scenario(_twice, _unlink, {"a": NEW}, {"a": None}),
    "append": Scenario(
        _long,
        lambda p: p.save("a", ADDED, os.O_WRONLY | os.O_APPEND),
        {"a": LONG},
        {"a": LONG + ADDED},
        ADDED,
    ),
    "reopen, change": Scenario(
        _long, lambda p: p.save("a", b"C", os.O_RDWR), {"a": LONG}, {"a": CHANGED}, CHANGED
    ),
    "mkdir, save": Scenario(_nothing, _mkdir, {"d/a": None}, {"d/a": NEW}),
    "rename, close": Scenario(
        _once,
        lambda p: p.save("t", NEW, final="a"),
        {"a": OLD, "t": None},
        {"a": NEW, "t": None},
        loose="t",
    ),
    "fsync, close": Scenario(_once, lambda p: p.save("a", NEW, sync=True), {"a": OLD}, {"a": NEW}),
    "many files": Scenario(
        _nothing, _many, {f"{n}": None for n in range(_MANY)}, {f"{n}": NEW for n in range(_MANY)}
    ),
    "truncate": Scenario(
        _once, lambda p: p.save("a", b""), {"a": OLD}, {"a": b""}, b"", tells=False
    ),
    "by hand": Scenario(_once, _by_hand, {"a": OLD, "t": None}, {"a": NEW, "t": None}, loose="t"),
    "rename folder": Scenario(
        _in_folder,
        _rename_folder,
        {"d/a": NEW, "e/a": None},
        {"d/a": None, "e/a": NEW},
        alone=True,
    ),
}


class Stuck(Exception):
    """The application does not answer."""


class Application:
    """The process. Raises Stuck instead of waiting."""

    def __init__(self, root: Path) -> None:
        command = [sys.executable, "-m", "ckptfs.tools.crash.faults.app", str(root)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Application:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, what: str, scenario: str, number: int) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps([what, scenario, number]).encode() + b"\n")
        stdin.flush()
        ready, _, _ = select.select([stdout], [], [], _LIMIT_S)
        answer = stdout.readline() if ready else b""
        if not answer:
            raise Stuck(what)
        return dict(json.loads(answer))


def _answer(root: Path, what: str, name: str, number: int) -> dict[str, Any]:
    scenario, program = SCENARIOS[name], Program(root / f"{number}")
    if what == "look":
        return _look(program.folder, scenario)
    if what == "settle":
        return _settle(root, f"{number}/")
    if what == "prepare":
        os.mkdir(program.folder)
    step = {"prepare": scenario.prepare, "act": scenario.act, "go on": _go_on}[what]
    with contextlib.suppress(OSError):
        step(program)
    return {"calls": program.calls, "done": program.done, "taken": program.taken}


def _go_on(program: Program) -> None:
    program.save("after", OLD)
    assert (program.folder / "after").read_bytes() == OLD


def _look(folder: Path, scenario: Scenario) -> dict[str, Any]:
    """Of each path: ``old``, ``new`` or what else is there."""
    return {name: _state(folder / name, scenario, name) for name in scenario.old}


def _state(path: Path, scenario: Scenario, name: str) -> str:
    content: bytes | None = None
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        pass
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "?")
    if content == scenario.new[name]:
        return "same" if content == scenario.old[name] else "new"
    if content == scenario.old[name]:
        return "old"
    if name == scenario.loose and content == scenario.data:
        return "loose"
    return "nothing" if content is None else f"{len(content)} other bytes"


def _settle(root: Path, below: str) -> dict[str, Any]:
    """Wait until nothing is being written in the folder, and tell what the daemon says."""
    deadline = time.monotonic() + _SETTLED_S
    while True:
        status = json.loads((root / ".ckptfs/status.json").read_text())
        writing = [path for path in status["writing"] if path.startswith(below)]
        if not writing or time.monotonic() > deadline:
            break
        time.sleep(0.002)
    events = [e for e in status["events"] if e["path"].startswith(below)]
    return {
        "writing": writing,
        "degraded": status["degraded"],
        "aborted": [event["path"] for event in events if event["event"] == "aborted"],
    }


def main() -> None:
    root = Path(sys.argv[1])
    for line in sys.stdin.buffer:
        answer = json.dumps(_answer(root, *json.loads(line)))
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
