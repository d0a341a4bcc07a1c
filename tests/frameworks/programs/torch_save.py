"""torch.save over one file."""

from __future__ import annotations

import os
from typing import Any

import loop
import torch


def state_of(step: int) -> dict[str, Any]:
    return {name: torch.from_numpy(value) for name, value in loop.weights(step).items()}


def train(directory: str, steps: int) -> None:
    path = os.path.join(directory, "last.pt")

    def load() -> tuple[int, Any] | None:
        if not os.path.exists(path):
            return None
        found = torch.load(path)
        return found["step"], found["model"]

    def save(step: int, state: Any) -> None:
        torch.save({"step": step, "model": state}, path)

    loop.train(steps, load, save, state_of)
