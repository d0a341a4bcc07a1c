"""safetensors' save_file over one file; it renames its temporary file before it closes it."""

from __future__ import annotations

import os
from typing import Any

import loop
from safetensors import safe_open
from safetensors.numpy import save_file


def train(directory: str, steps: int) -> None:
    path = os.path.join(directory, "model.safetensors")

    def load() -> tuple[int, Any] | None:
        if not os.path.exists(path):
            return None
        with safe_open(path, "np") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return int(file.metadata()["step"]), state

    def save(step: int, state: Any) -> None:
        save_file(state, path, {"step": str(step)})

    loop.train(steps, load, save)
