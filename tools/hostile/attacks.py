"""What one user can do to a mount that others use, as functions that go on until they are killed.

Each runs in a process of its own, with the top of the mount as its working directory, as a user
without rights: all modules are loaded before, for the interpreter may be out of reach then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import time
from collections.abc import Callable
from typing import NoReturn

SPARSE_BYTES = 20 << 30
OPEN_FILES = 10_000
DIRECTORIES = 20_000
DEPTH = 2_000
_PAUSE_S = 0.05
_STUCK_S = 1.0  # after which an open of a FIFO is given up

Attack = Callable[[int], NoReturn]  # gets the number of the process


def sparse(number: int) -> NoReturn:
    """Closes of sparse files, some of which begin with data."""
    name = f"h-sparse{number}"
    while True:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        if number % 2:
            os.write(fd, b"x")
        os.ftruncate(fd, SPARSE_BYTES)
        os.close(fd)


def headers(number: int) -> NoReturn:
    """Files of a few MiB that claim to be what they are not."""
    made = [make() for make in (_lists, _names, _arrays, _archive)]
    while True:
        for name, content in made:
            with contextlib.suppress(OSError), open(f"h-{number}-{name}", "wb") as file:
                file.write(content)


def _lists() -> tuple[str, bytes]:
    header = b'{"a":[' + b"[]," * 2_700_000 + b"[]]}"
    return "a.safetensors", struct.pack("<Q", len(header)) + header + bytes(8)


def _names() -> tuple[str, bytes]:
    entry = '"%x":{"dtype":"U8","shape":[],"data_offsets":[0,0]}'
    header = "{" + ",".join(entry % number for number in range(90_000)) + "}"
    return "b.safetensors", struct.pack("<Q", len(header)) + header.encode()


def _arrays() -> tuple[str, bytes]:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }\n"
    one = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + b"\x80\2."
    return "c.npy", one * 100_000


def _archive() -> tuple[str, bytes]:
    count, entry = 60_000, b"PK\1\2" + bytes(24) + b"\1" + bytes(17) + b"a"
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, count * 47, 4, 0)
    return "d.pt", b"PK\3\4" + entry * count + end


def fifos(number: int) -> NoReturn:
    """A FIFO takes the place of a file that is held by its number."""
    while True:
        child = os.fork()
        if child == 0:
            name = f"h-fifo{number}"
            with contextlib.suppress(OSError):
                os.unlink(name)
            with open(name, "w") as file:
                file.write("mine")
            fd = os.open(name, os.O_PATH)
            os.unlink(name)
            os.mkfifo(name)
            with contextlib.suppress(OSError):
                os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_TRUNC)
            os._exit(0)
        _await(child)


def _await(child: int) -> None:
    deadline = time.monotonic() + _STUCK_S
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(_PAUSE_S)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def stopped(number: int) -> NoReturn:
    """Writers that were stopped amid what they do, some with a name that others are to open."""
    for count in range(20):
        child = os.fork()
        if child == 0:
            fd = os.open(f"h-stopped{number}-{count}", os.O_WRONLY | os.O_CREAT, 0o600)
            os.write(fd, bytes(1 << 20))
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
    while True:
        with contextlib.suppress(OSError), open(f"h-stopped{number}-again", "wb") as file:
            file.write(b"x")


def open_files(number: int) -> NoReturn:
    """As many files as one process may have, open for writing."""
    folder = f"h-open{number}"
    os.mkdir(folder, 0o700)
    held = []
    with contextlib.suppress(OSError):
        for count in range(OPEN_FILES):
            held.append(os.open(f"{folder}/{count}", os.O_RDWR | os.O_CREAT, 0o600))
            os.write(held[-1], b"x")
    while True:
        with contextlib.suppress(OSError):
            os.listdir(folder)
        with contextlib.suppress(OSError), open(f"{folder}/again", "wb") as file:
            file.write(b"x")


def directories(number: int) -> NoReturn:
    """Many directories, made and listed with their status."""
    for count in range(DIRECTORIES):
        with contextlib.suppress(OSError):
            os.makedirs(f"h-dirs{number}/{count}", 0o700, exist_ok=True)
    while True:
        with contextlib.suppress(OSError), os.scandir(f"h-dirs{number}") as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)


def tree(number: int) -> NoReturn:
    """A tree that is deeper than a path may be long, with saves at its end."""
    os.mkdir(f"h-tree{number}", 0o700)
    os.chdir(f"h-tree{number}")
    with contextlib.suppress(OSError):
        for _ in range(DEPTH):
            os.mkdir("deeper", 0o700)
            os.chdir("deeper")
    while True:
        with contextlib.suppress(OSError), open("save", "wb") as file:
            file.write(bytes(4096))
        with contextlib.suppress(OSError):
            os.rename("save", "saved")


ATTACKS: dict[str, tuple[Attack, int]] = {  # and by how many processes at a time
    "sparse": (sparse, 20),
    "headers": (headers, 6),
    "stopped": (stopped, 2),
    "open": (open_files, 1),
    "directories": (directories, 2),
    "tree": (tree, 2),
    "fifos": (fifos, 4),
}
