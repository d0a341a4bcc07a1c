"""The training program of the demo: knows nothing of ckptfs.

    python train.py CHECKPOINT MEGABYTES STEPS

Trains a small model, saves after every step, resumes from CHECKPOINT if it is there. Prints
``saved STEP FINGERPRINT`` after each save, so that the demo knows which weights are right.
"""

from __future__ import annotations

import hashlib
import os
import sys
from typing import Any

import torch


def fingerprint(state: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for value in state["model"].values():
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:16]


def main() -> None:
    path, megabytes, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.manual_seed(0)
    width = int((megabytes * 2**20 / 4 / 3) ** 0.5)  # the weights and two moments of Adam
    model = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Linear(width, 1))
    optimizer = torch.optim.Adam(model.parameters())
    first = 0
    if os.path.exists(path):
        state = torch.load(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        print(f"resumed {first} {fingerprint(state)}", flush=True)
    for step in range(first + 1, first + steps + 1):
        inputs = torch.randn(16, width)
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, path)
        print(f"saved {step} {fingerprint(state)}", flush=True)


if __name__ == "__main__":
    main()
