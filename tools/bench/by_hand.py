"""What is saved in the rows of the benchmark, and what careful training code does by hand."""

from __future__ import annotations

import hashlib
import importlib
import os
from pathlib import Path
from typing import Any

from ckptfs.errors import UsageError


def torch_or_fail() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise UsageError(f"this row needs torch: pip install 'ckptfs[torch]' ({error})") from None


def state_of(size_bytes: int) -> dict[str, object]:
    """A state dict of random data: zeros would flatter whoever compresses or leaves holes."""
    torch = torch_or_fail()
    torch.manual_seed(1)
    words = max(1, size_bytes // 16 // 8)
    return {f"layer.{i}": torch.empty(words, dtype=torch.int64).random_() for i in range(16)}


def synced(path: Path, flags: int = os.O_RDONLY) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def save_by_hand(state: object, path: Path) -> None:
    """What careful training code does today."""
    draft = path.with_suffix(".tmp")
    torch_or_fail().save(state, str(draft))
    synced(draft)
    digest = hashlib.sha256()
    with draft.open("rb") as file:
        while data := file.read(4 << 20):
            digest.update(data)
    fd = os.open(draft, os.O_RDONLY)
    finish_by_hand(fd, path, digest.hexdigest().encode())


def finish_by_hand(fd: int, path: Path, digest_or_data: bytes) -> None:
    """From the bytes to a durable, recorded name."""
    os.setxattr(fd, "user.sha256", hashlib.sha256(digest_or_data).hexdigest().encode())
    os.fsync(fd)
    os.close(fd)
    path.with_suffix(".tmp").rename(path)
    synced(path.parent, os.O_RDONLY | os.O_DIRECTORY)
