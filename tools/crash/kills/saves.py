"""What a save does, file by file, and which bytes stand there afterwards.

Contents follow from trial and version alone and hold no block of zeros, so that every state can be
told apart: old, new, torn, zero-filled; what is no tensor file does not begin like one. Torch and
safetensors are imported where they are needed.
"""

from __future__ import annotations

import enum
import functools
import io
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from .draw import Trial, Work

_SMALL_FILES, _SHARDS, _TENSORS = 12, 4, 3
_NUMBERED_KEPT = 2
_NO_ZEROS = bytes([1, *range(1, 256)])
APPENDED = "tokens.bin"

Files = dict[str, bytes]


class Act(enum.Enum):
    FILE = enum.auto()
    APPEND = enum.auto()
    TORCH = enum.auto()  # into an open file
    TORCH_PATH = enum.auto()
    SAFETENSORS = enum.auto()
    REMOVE = enum.auto()
    FOLDER = enum.auto()

    @property
    def told(self) -> bool:
        """Whether the writer tells its phases."""
        return self in (Act.FILE, Act.APPEND, Act.TORCH)


@dataclass(frozen=True)
class Op:
    act: Act
    name: str
    content: bytes | None = None  # of the whole file, once it is done; None: no file
    start: int = 0  # where what is written begins
    weights: tuple[int, int] = (0, 0)  # a seed, and numbers to a tensor


def weights(seed: int, numbers: int) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {f"layer{n}": torch.rand(numbers, generator=generator) for n in range(_TENSORS)}


def after(before: Mapping[str, bytes], ops: list[Op]) -> Files:
    """The files, once all of ``ops`` are done."""
    files = dict(before)
    for op in ops:
        if op.act is Act.REMOVE:
            files.pop(op.name, None)
        elif op.content is not None:
            files[op.name] = op.content
    return files


def save(trial: Trial, version: int, present: Mapping[str, bytes]) -> list[Op]:
    """The save of a version (from 1 on) where these files are present."""
    return list(_SAVES[trial.work](trial, version, present))


def _bytes(trial: Trial, version: int, name: str, size: int) -> bytes:
    key = f"{trial.what} {trial.seed} {trial.number} {version} {name}"
    return (b"k" + blake3(key.encode()).digest(length=size - 1)).translate(_NO_ZEROS)


def _weights(trial: Trial, version: int) -> tuple[int, int]:
    key = blake3(f"{trial.what} {trial.seed} {trial.number} {version}".encode()).digest(length=7)
    return int.from_bytes(key, "big"), max(64, trial.size_bytes // (4 * _TENSORS))


def _torch(trial: Trial, version: int, name: str) -> Op:
    import torch

    drawn = _weights(trial, version)
    buffer = io.BytesIO()
    torch.save(weights(*drawn), buffer)
    return Op(Act.TORCH, name, buffer.getvalue(), weights=drawn)


def _overwrite(trial: Trial, version: int, _: Mapping[str, bytes]) -> Iterator[Op]:
    yield _torch(trial, version, "model.pt")


def _numbered(trial: Trial, version: int, present: Mapping[str, bytes]) -> Iterator[Op]:
    yield _torch(trial, version, f"step-{version}.pt")
    oldest = f"step-{version - _NUMBERED_KEPT}.pt"
    if oldest in present:
        yield Op(Act.REMOVE, oldest)


def _many(trial: Trial, version: int, _: Mapping[str, bytes]) -> Iterator[Op]:
    for number in range(_SMALL_FILES):
        name = f"part-{number:02}.bin"
        size = max(1024, trial.size_bytes // _SMALL_FILES) + number
        yield Op(Act.FILE, name, _bytes(trial, version, name, size))


def _append(trial: Trial, version: int, present: Mapping[str, bytes]) -> Iterator[Op]:
    base = present.get(APPENDED)
    if base is None:
        yield Op(Act.FILE, APPENDED, _bytes(trial, version, APPENDED, trial.size_bytes))
        return
    added = _bytes(trial, version, APPENDED, trial.size_bytes // 8)
    yield Op(Act.APPEND, APPENDED, base + added, start=len(base))


def _shards(trial: Trial, version: int, _: Mapping[str, bytes]) -> Iterator[Op]:
    folder = f"step-{version}"
    yield Op(Act.FOLDER, folder)
    sizes = [trial.size_bytes // _SHARDS] * _SHARDS
    names = [f"{folder}/__{rank}_0.distcp" for rank in range(_SHARDS)]
    for name, size in zip([*names, f"{folder}/.metadata"], [*sizes, 2048], strict=True):
        yield Op(Act.FILE, name, _bytes(trial, version, name, size))


def _by_path(trial: Trial, version: int, _: Mapping[str, bytes]) -> Iterator[Op]:
    drawn = _weights(trial, version)
    yield Op(Act.TORCH_PATH, "model.pt", _saved_by_path(*drawn), weights=drawn)


@functools.lru_cache(maxsize=4)
def _saved_by_path(seed: int, numbers: int) -> bytes:
    """The archive is named after the file, so what is saved into a buffer differs."""
    import torch

    with tempfile.TemporaryDirectory(prefix="ckptfs-kills-") as folder:
        path = Path(folder, "model.pt")
        torch.save(weights(seed, numbers), path)
        return path.read_bytes()


def _safetensors(trial: Trial, version: int, _: Mapping[str, bytes]) -> Iterator[Op]:
    import safetensors.torch

    drawn = _weights(trial, version)
    content = safetensors.torch.save(weights(*drawn))
    yield Op(Act.SAFETENSORS, "model.safetensors", content, weights=drawn)


_SAVES = {
    Work.OVERWRITE: _overwrite,
    Work.NUMBERED: _numbered,
    Work.MANY: _many,
    Work.APPEND: _append,
    Work.SHARDS: _shards,
    Work.BY_PATH: _by_path,
    Work.SAFETENSORS: _safetensors,
}
