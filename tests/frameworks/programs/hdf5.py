"""h5py: a file written anew, and one that is opened read-write and changed."""

from __future__ import annotations

import os
from typing import Any

import h5py
import loop


def _train(path: str, steps: int, mode: str) -> None:
    def load() -> tuple[int, Any] | None:
        if not os.path.exists(path):
            return None
        with h5py.File(path, "r") as file:
            return int(file.attrs["step"]), {name: file[name][:] for name in file}

    def save(step: int, state: Any) -> None:
        with h5py.File(path, mode) as file:
            file.attrs["step"] = step
            for name, value in state.items():
                file.require_dataset(name, value.shape, value.dtype)[:] = value
                file.flush()

    loop.train(steps, load, save)


def train(directory: str, steps: int) -> None:
    _train(os.path.join(directory, "model.h5"), steps, "w")


def update(directory: str, steps: int) -> None:
    _train(os.path.join(directory, "model.h5"), steps, "a")
