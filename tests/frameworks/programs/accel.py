"""Accelerate's save_state and load_state with automatic naming."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch._dynamo  # as optimizers do at their first step
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from zygote import tell


class Counter:
    step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


def _number(folder: str) -> int:
    return int(folder.rpartition("_")[2])


def train(directory: str, steps: int, choose_whole: bool = False) -> None:
    """Resumes from the newest folder, as Accelerate does; with ``choose_whole`` from the newest
    that has the file which it writes last."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    project = ProjectConfiguration(directory, automatic_checkpoint_naming=True, total_limit=3)
    accelerator = Accelerator(cpu=True, project_config=project)
    model: Any = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(4)))
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=0.01)
    model, optimizer = accelerator.prepare(model, optimizer)
    counter = Counter()
    accelerator.register_for_checkpointing(counter)

    def state() -> Any:
        return [model.state_dict(), optimizer.state_dict()["state"]]

    base = os.path.join(directory, "checkpoints")
    folders = sorted(os.listdir(base), key=_number) if os.path.exists(base) else []
    if folders:
        project.iteration = _number(folders[-1]) + 1
        if choose_whole:
            last = "custom_checkpoint_0.pkl"
            folders = [f for f in folders if os.path.exists(os.path.join(base, f, last))]
            accelerator.load_state(os.path.join(base, folders[-1]))
        else:
            accelerator.load_state()
    tell("resumed", counter.step, state() if folders else None)
    for _ in range(steps):
        optimizer.zero_grad()
        accelerator.backward(model(torch.ones(2, 512)).square().mean())
        optimizer.step()
        counter.step += 1
        tell("saving", counter.step, state())
        accelerator.save_state()
        tell("saved", counter.step, state())
