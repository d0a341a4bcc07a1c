"""What the recorded programs do: save as training code does, and say in marks what they were told.

Each runs in a process of its own, through the mount or on the plain filesystem, and draws the same
bytes for a seed. What a library writes is known from the same call in a directory of its own.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from ...harness.study import quiet
from .oracle import Marks

_KEPT = 3
_LONG_BYTES = 1_200_000  # past what is copied when a file is reopened: grows where it lies on ext4


class Writer:
    """A program at work in ``top/folder``. ``scratch`` is no part of what is recorded."""

    def __init__(self, top: Path, folder: str, marks: Marks, scratch: Path, seed: int) -> None:
        self.root, self.folder, self.marks, self.twins = top / folder, folder, marks, scratch
        self.draw = random.Random(f"{folder} {seed}")

    def tell(self, what: str, path: str, **more: Any) -> None:
        self.marks.add(what, path=f"{self.folder}/{path}", **more)

    def tensors(self, numbers: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(self.draw.getrandbits(32))
        return {f"w{n}": torch.rand(numbers // 3, generator=generator) for n in range(3)}

    def twin(self, path: str, save: Callable[[Path], object]) -> bytes:
        """What ``save`` writes to a file of that name."""
        there = self.twins / Path(path).name
        save(there)
        data = there.read_bytes()
        there.unlink()
        return data

    def write(self, path: str, data: bytes, *, pieces: int = 4) -> None:
        """Open, write, close."""
        version = self.marks.content(data)
        with open(self.root / path, "wb", buffering=0) as file:
            _write(file.fileno(), data, pieces)
            self.tell("closing", path, version=version)
        self.tell("closed", path, version=version)

    def saved_by(self, path: str, save: Callable[[Path], object]) -> None:
        """By a call that opens and closes the file itself."""
        version = self.marks.content(self.twin(path, save))
        self.tell("closing", path, version=version)
        save(self.root / path)
        self.tell("closed", path, version=version)

    def move(self, path: str, target: str, version_of: bytes) -> None:
        version = self.marks.content(version_of)
        self.tell("closing", target, version=version)
        self.tell("removing", path)
        os.replace(self.root / path, self.root / target)
        self.tell("removed", path)
        self.tell("closed", target, version=version)

    def remove(self, path: str) -> None:
        self.tell("removing", path)
        os.unlink(self.root / path)
        self.tell("removed", path)

    def killed_in_save(self, path: str, size: int, *, synced: bool = False) -> None:
        """Another writer begins to replace ``path``, and is killed before it closes it."""
        data = self.draw.randbytes(size)
        version = self.marks.content(data)
        pid = os.fork()
        if pid == 0:
            fd = os.open(self.root / path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            self.tell("staged", path, version=version)
            _write(fd, data, 3)
            if synced:
                os.fsync(fd)
                self.tell("synced", path, version=version, size=len(data))
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)


def _write(fd: int, data: bytes, pieces: int) -> None:
    step = max(1, -(-len(data) // pieces))
    for at in range(0, len(data), step):
        view = memoryview(data)[at : at + step]
        while view:
            view = view[os.write(fd, view) :]


def overwrite(writer: Writer) -> None:
    """torch.save over one file."""
    for step in range(9):
        state = writer.tensors(writer.draw.choice([3_000, 12_000, 40_000]))
        writer.saved_by("last.pt", partial(torch.save, state))
        if step % 3 == 1:
            writer.killed_in_save("last.pt", 60_000, synced=step == 4)
    data = writer.twin("last.pt", partial(torch.save, writer.tensors(400_000)))
    writer.write("last.pt", data, pieces=9)


def numbered(writer: Writer) -> None:
    """One file a step, the oldest removed; a pointer to the newest, replaced last."""
    for step in range(8):
        state = writer.tensors(writer.draw.choice([2_000, 15_000]))
        path = f"step-{step}.pt"
        writer.saved_by(path, partial(torch.save, state))
        name = f"{path}\n".encode() * 40
        writer.write("latest.tmp", name, pieces=1)
        writer.move("latest.tmp", "latest", name)
        if step >= _KEPT:
            writer.remove(f"step-{step - _KEPT}.pt")
    writer.killed_in_save("step-9.pt", 50_000)


def tensors(writer: Writer) -> None:
    """safetensors, which renames a temporary file before it has closed it."""
    for step in range(8):
        state = writer.tensors(writer.draw.choice([2_000, 20_000]))
        for path in ("model.safetensors", f"step-{step}.safetensors"):
            writer.saved_by(path, partial(safetensors.torch.save_file, state))
        if step >= 2:
            writer.remove(f"step-{step - 2}.safetensors")
    writer.killed_in_save("model.safetensors", 30_000)


def distributed(writer: Writer) -> None:
    """torch.distributed.checkpoint: a directory a step, its metadata last."""
    for step in range(5):
        state = {"model": writer.tensors(9_000), "step": torch.tensor(step)}
        folder, began = writer.root / f"step-{step}", writer.marks.now()
        with quiet():
            save_distributed(state, storage_writer=FileSystemWriter(folder), no_dist=True)
        for found in sorted(folder.iterdir()):  # its metadata names a random id: no twin has it
            path, version = f"{folder.name}/{found.name}", writer.marks.content(found.read_bytes())
            if found.name == ".metadata":  # made under another name, closed and renamed
                writer.tell("closing", f"{path}.tmp", version=version, at=began)
                writer.tell("removing", f"{path}.tmp", at=began)
            writer.tell("closing", path, version=version, at=began)
            writer.tell("closed", path, version=version)


def small(writer: Writer) -> None:
    """Many small files, in directories that are made for them."""
    for turn in range(2):
        for folder in ("a", "b/c"):
            (writer.root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(9):
                data = writer.draw.randbytes(writer.draw.randint(1, 9_000))
                writer.write(f"{folder}/{number}.bin", data, pieces=2)
        writer.killed_in_save(f"a/{turn}.bin", 5_000, synced=True)


def append(writer: Writer) -> None:
    """A long file that is gone on with, and a log, which is written in place."""
    data = writer.draw.randbytes(_LONG_BYTES)
    writer.write("long.bin", data)
    lines = b""
    log = writer.marks.content(b"".join(_line(n) for n in range(99)))
    for step in range(10):
        added = writer.draw.randbytes(writer.draw.choice([700, 9_000, 90_000]))
        data += added
        version = writer.marks.content(data)
        with open(writer.root / "long.bin", "ab", buffering=0) as file:
            _write(file.fileno(), added, 2)
            writer.tell("closing", "long.bin", version=version)
        writer.tell("closed", "long.bin", version=version)
        with open(writer.root / "train.log", "ab", buffering=0) as file:
            file.write(_line(step))
            lines += _line(step)
            os.fsync(file.fileno())
        writer.tell("appended", "train.log", version=log, size=len(lines))


def _line(step: int) -> bytes:
    return f"step {step}: loss {1 / (step + 1):.4f}, and what else is worth a line\n".encode()


WORKLOADS: dict[str, Callable[[Writer], None]] = {
    "overwrite": overwrite,
    "numbered": numbered,
    "safetensors": tensors,
    "dcp": distributed,
    "small": small,
    "append": append,
}
