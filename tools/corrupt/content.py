"""Checkpoints in the formats of the study: their bytes, and a fingerprint of their values.

The bytes are made in memory or in a scratch directory outside the mount, so what a mount serves is
compared with something that it never handled.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from blake3 import blake3
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.state_dict_saver import save

from ..harness.study import quiet
from .draw import Trial

_ROW_BYTES = 512
_OVERHEAD_BYTES = {"pt": 1400, "safetensors": 150, "dcp": 4600, "npz": 600, "json": 60}
_MAX_TENSORS = 6


@dataclass(frozen=True)
class Content:
    """One version of a checkpoint."""

    files: Mapping[str, bytes]
    values: str  # fingerprint


def build(trial: Trial, version: int, scratch: Path) -> Content:
    """Version 1 or 2 of the checkpoint of a trial; always the same bytes."""
    size = trial.size_bytes if version == trial.versions else trial.earlier_bytes
    room = _room(trial, size)
    chance = np.random.default_rng([trial.seed, trial.number, version])
    if trial.format == "json":
        value: Any = {"step": version, "rows": list(_rows(chance, room))}
        return Content({trial.target: json.dumps(value).encode()}, fingerprint(value))
    arrays: dict[str, Any] = {
        f"w{n}": np.frombuffer(chance.bytes(4 * length), dtype=np.float32)
        for n, length in enumerate(_lengths(trial, size))
    }
    if trial.format == "npz":
        with io.BytesIO() as file:
            np.savez(file, **arrays)
            return Content({trial.target: file.getvalue()}, fingerprint(arrays))
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    if trial.format == "safetensors":
        return Content({trial.target: safetensors.torch.save(tensors)}, fingerprint(tensors))
    if trial.format == "pt":
        value = {"step": version, "model": tensors}
        with io.BytesIO() as file:
            torch.save(value, file)
            return Content({trial.target: file.getvalue()}, fingerprint(value))
    return _distributed(tensors, version, scratch)


def _rows(chance: np.random.Generator, room: int) -> Iterator[str]:
    for start in range(0, room // 2, _ROW_BYTES):
        yield chance.bytes(min(_ROW_BYTES, room // 2 - start)).hex()


class _Writer(FileSystemWriter):
    version = 0

    def storage_meta(self) -> StorageMeta:
        """Not where it was saved nor by whom, so that the bytes are always the same."""
        return StorageMeta(save_id=str(self.version))


def _distributed(tensors: dict[str, Any], version: int, scratch: Path) -> Content:
    state = {"step": torch.tensor(version), "model": tensors}
    folder = scratch / "dcp"
    writer = _Writer(folder, sync_files=False)
    writer.version = version
    try:
        with quiet():
            save(state, storage_writer=writer, no_dist=True)
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Content(files, fingerprint(state))


def shapes(trial: Trial) -> list[int]:
    """Elements of each tensor of the newest version: what a DCP load asks for."""
    return _lengths(trial, trial.size_bytes)


def _lengths(trial: Trial, size_bytes: int) -> list[int]:
    """As many tensors as fit into the smaller version, so that both have the same names."""
    most = min(trial.size_bytes, trial.earlier_bytes) // 2048
    count = 1 + trial.draw("tensors").randrange(max(1, min(_MAX_TENSORS, most)))
    return [_room(trial, size_bytes) // (4 * count)] * count


def _room(trial: Trial, size_bytes: int) -> int:
    return max(64, size_bytes - _OVERHEAD_BYTES[trial.format])


def fingerprint(value: object) -> str:
    """Of names, types, shapes and bits; not of how they were stored."""
    hasher = blake3()
    for part in _parts(value):
        hasher.update(part)
    return hasher.hexdigest(length=16)


def _parts(value: object) -> Iterator[Any]:
    if isinstance(value, torch.Tensor):
        yield f"{value.dtype} {list(value.shape)}".encode()
        yield value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype} {list(value.shape)}".encode()
        yield np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
    elif isinstance(value, Mapping):
        for name in sorted(value, key=str):
            yield f"{name!r}:".encode("utf-8", "surrogatepass")
            yield from _parts(value[name])
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        yield f"{len(value)} of".encode()
        for item in value:
            yield from _parts(item)
    else:
        yield f"{value!r};".encode("utf-8", "surrogatepass")
