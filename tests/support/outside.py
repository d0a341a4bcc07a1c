"""Files of each format, and what people do to them behind ckptfs."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from safetensors.torch import save

FLOATS = 250_000


def _floats(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(FLOATS).astype(np.float32)


def _pt(seed: int, *, crc: bool = True) -> bytes:
    file = io.BytesIO()
    torch.serialization.set_crc32_options(crc)
    try:
        torch.save({"weights": torch.from_numpy(_floats(seed)), "step": seed}, file)
    finally:
        torch.serialization.set_crc32_options(True)
    return file.getvalue()


def _shard(seed: int) -> bytes:
    """Archives end to end, as DCP writes them."""
    return _pt(seed) + _pt(seed + 100)


def _array(seed: int, how: Callable[..., None]) -> bytes:
    file = io.BytesIO()
    how(file, _floats(seed))
    return file.getvalue()


def _h5(seed: int) -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w") as h5:
        h5["weights"] = _floats(seed)
    return file.getvalue()


def _raw(seed: int) -> bytes:
    return random.Random(seed).randbytes(4 * FLOATS)


def _config(seed: int) -> dict[str, object]:
    return {"lr": seed / 10, "layers": list(range(50)), "name": "größer"}


def _yaml(seed: int) -> bytes:
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in _config(seed).items()).encode()


FORMATS: dict[str, Callable[[int], bytes]] = {
    "model.pt": _pt,
    "nocrc.pt": lambda seed: _pt(seed, crc=False),
    "__0_0.distcp": _shard,
    "arrays.npz": lambda seed: _array(seed, np.savez),
    "packed.npz": lambda seed: _array(seed, np.savez_compressed),
    "array.npy": lambda seed: _array(seed, np.save),
    "model.safetensors": lambda seed: save({"w": torch.from_numpy(_floats(seed))}),
    "model.h5": _h5,
    "model.bin": _raw,
    "data.gz": lambda seed: gzip.compress(_raw(seed), 1),
    "data.bz2": lambda seed: bz2.compress(_raw(seed)),
    "data.xz": lambda seed: lzma.compress(_raw(seed), preset=0),
    "config.json": lambda seed: json.dumps(_config(seed)).encode(),
    "config.yaml": _yaml,
    "notes.txt": lambda seed: f"run {seed}\nloss fell\n".encode() * 40,
    "train.py": lambda seed: f"def lr(step):\n    return {seed} * (step + 1)\n".encode() * 30,
    "metrics": lambda seed: f"step,loss\n{seed},0.5\n".encode() * 40,
}
TEXTS = frozenset({"config.json", "config.yaml", "notes.txt", "train.py", "metrics"})
NAMED_TEXTS = TEXTS - {"metrics"}


# --- what is done to them ------------------------------------------------------------------------


def overwrite(path: Path, _: bytes) -> None:
    """dd conv=notrunc"""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(random.Random(size).randbytes(max(64, size // 20)))


def flip(path: Path, _: bytes) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        byte = file.read(1)
        file.seek(size // 2)
        file.write(bytes([byte[0] ^ 0x80]))


def cut(path: Path, _: bytes) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size * 2 // 3)


def empty(path: Path, _: bytes) -> None:
    with path.open("r+b") as file:
        file.truncate(0)


def zero(path: Path, _: bytes) -> None:
    """A copy that allocated the whole and wrote a third of it."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 3)
        file.write(bytes(size - size // 3))


def half_copied(path: Path, new: bytes) -> None:
    """cp or rsync --inplace that was killed."""
    with path.open("r+b") as file:
        file.write(new[: len(new) // 3])


def saved(path: Path, new: bytes) -> None:
    """The file is truncated and written, as programs do it."""
    path.write_bytes(new)


def added_to(path: Path, new: bytes) -> None:
    with path.open("ab") as file:
        file.write(new)


DAMAGES = (overwrite, flip, cut, empty, zero, half_copied)
SERVED, DAMAGED, EITHER = "served", "damaged", "either"


def expected(name: str, how: Callable[[Path, bytes], None]) -> str:
    """The table: what a changed file is, where ``new`` is another save of its kind. EITHER: of
    what was done nothing tells, as the result is a text of the same language."""
    if how is saved:
        return SERVED
    if how is added_to:  # what is whole twice, is whole
        return DAMAGED if name in ("model.safetensors", "config.json") else SERVED
    if name in TEXTS:
        return _expected_of_text(name, how)
    return DAMAGED


def _expected_of_text(name: str, how: Callable[[Path, bytes], None]) -> str:
    if how in (overwrite, flip, zero):  # no UTF-8 any more
        return DAMAGED if name in NAMED_TEXTS else EITHER
    if how is empty:
        return SERVED if name in NAMED_TEXTS - {"config.json"} else DAMAGED
    return DAMAGED if how is cut and name == "config.json" else EITHER
