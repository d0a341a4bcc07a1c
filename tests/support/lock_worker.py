"""A process that takes locks as it is told, forks others that do the same, and may be killed.

Reads JSON lines, answers each with one. Run as a script with the descriptors of every process that
there may be, which one it is, and what it has open; imports nothing of ckptfs.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import struct
import sys
from typing import Any

_FLOCK = struct.Struct("hhqqi4x")
_KINDS = {"read": fcntl.F_RDLCK, "write": fcntl.F_WRLCK, "none": fcntl.F_UNLCK}
_NAMES = {number: name for name, number in _KINDS.items()}
_COMMANDS = {  # to look, to take, to wait
    "posix": (fcntl.F_GETLK, fcntl.F_SETLK, fcntl.F_SETLKW),
    "ofd": (36, 37, 38),
}
_FLOCKS = {"read": fcntl.LOCK_SH, "write": fcntl.LOCK_EX, "none": fcntl.LOCK_UN}

_channels: list[tuple[int, int]] = []
_slots: dict[int, int] = {}
_me = 0


class _Signal(Exception):
    pass


def _interrupted(*_: object) -> None:
    raise _Signal


# --- what can be asked ---------------------------------------------------------------------------


def open_(slot: int, path: str, flags: int) -> int:
    _slots[slot] = os.open(path, flags, 0o644)
    return os.fstat(_slots[slot]).st_size


def reopen(slot: int, new: int) -> None:
    _slots[new] = os.open(f"/proc/self/fd/{_slots[slot]}", os.O_RDONLY)


def dup(slot: int, new: int) -> None:
    _slots[new] = os.dup(_slots[slot])


def close(slot: int) -> None:
    os.close(_slots.pop(slot))


def seek(slot: int, offset: int) -> int:
    return os.lseek(_slots[slot], offset, os.SEEK_SET)


def write(slot: int, text: str) -> int:
    return os.pwrite(_slots[slot], text.encode(), 0)


def rename(path: str, new: str) -> None:
    os.rename(path, new)


def unlink(path: str) -> None:
    os.unlink(path)


def lock(slot: int, kind: str, mode: str, waits: bool, *where: int) -> None:
    if kind == "flock":
        fcntl.flock(_slots[slot], _FLOCKS[mode] | (0 if waits else fcntl.LOCK_NB))
        return
    command = _COMMANDS[kind][2 if waits else 1]
    whence, start, length = where
    fcntl.fcntl(_slots[slot], command, _FLOCK.pack(_KINDS[mode], whence, start, length, 0))


def look(slot: int, kind: str, mode: str, *where: int) -> tuple[Any, ...]:
    whence, start, length = where
    asked = _FLOCK.pack(_KINDS[mode], whence, start, length, 0)
    answer = fcntl.fcntl(_slots[slot], _COMMANDS[kind][0], asked)
    found, *rest = _FLOCK.unpack(answer)
    return (_NAMES[found], *rest) if found != fcntl.F_UNLCK else ("none",)


def fork(which: int) -> int:
    global _me
    pid = os.fork()
    if pid == 0:
        _me = which
        return os.getpid()
    return 0


def enter(directory: str) -> None:
    os.chdir(directory)


def end() -> None:
    os._exit(0)


def execute(closing: list[int]) -> None:
    """Become another program, to which the descriptors go but for the ``closing`` ones."""
    for slot, fd in list(_slots.items()):
        os.set_inheritable(fd, slot not in closing)
        if slot in closing:
            del _slots[slot]
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    state = json.dumps([_channels, _me, list(_slots.items())])
    os.execv(sys.executable, [sys.executable, "-S", "-E", __file__, state])


# --- serving -------------------------------------------------------------------------------------


def _order() -> Any:
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(_channels[_me][0], 1)
    return json.loads(line)


def _answer(answer: Any) -> None:
    os.write(_channels[_me][1], json.dumps(answer).encode() + b"\n")


def _run(what: str, arguments: list[Any]) -> tuple[str, Any]:
    try:
        return "ok", globals()[what](*arguments)
    except _Signal:
        return "error", "EINTR"
    except KeyError:
        return "error", "EBADF"
    except OSError as error:
        return "error", errno.errorcode[error.errno or 0]


def main() -> None:
    global _me
    _channels[:], _me, slots = json.loads(sys.argv[1])
    _slots.update((slot, fd) for slot, fd in slots)
    signal.signal(signal.SIGUSR1, _interrupted)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for fd in (fd for channel in _channels for fd in channel):
        os.set_inheritable(fd, True)
    _answer(("ok", os.getpid()))
    while True:
        what, *arguments = _order()
        _answer(_run(what, arguments))


if __name__ == "__main__":
    main()
