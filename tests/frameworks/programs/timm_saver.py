"""timm's CheckpointSaver as its train.py uses it: replaced, then linked; recovery checkpoints."""

from __future__ import annotations

import glob
import importlib.util
import os
import random
import sys
from types import ModuleType
from typing import Any

import loop
import torch
from zygote import tell

EPOCHS, BATCHES = 6, 4


def _saver_class() -> Any:
    """Its own file alone: the package wants torchvision, whose wheels are built for GPUs."""
    package = importlib.util.find_spec("timm")
    assert package is not None and package.submodule_search_locations
    for name in ("timm", "timm.utils"):
        sys.modules[name] = ModuleType(name)
    folder = os.path.join(package.submodule_search_locations[0], "utils")
    sys.modules["timm.utils"].__path__ = [folder]
    model: Any = ModuleType("timm.utils.model")
    model.unwrap_model = lambda model: model
    model.get_state_dict = lambda model, unwrap: unwrap(model).state_dict()
    sys.modules[model.__name__] = model
    return importlib.import_module("timm.utils.checkpoint_saver").CheckpointSaver


CheckpointSaver = _saver_class()


def _saver(directory: str, **more: Any) -> Any:
    torch.manual_seed(0)
    model = torch.nn.Linear(500, 500)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return CheckpointSaver(
        model, optimizer, checkpoint_dir=directory, recovery_dir=directory, **more
    )


def _set(saver: Any, step: int) -> Any:
    with torch.no_grad():
        saver.model.weight.fill_(step)
    return saver.model.state_dict()


def _names(directory: str) -> dict[str, list[str]]:
    """The names of each file, by its first."""
    groups: dict[int, list[str]] = {}
    for name in sorted(os.listdir(directory)):
        if not name.startswith("."):
            groups.setdefault(os.stat(os.path.join(directory, name)).st_ino, []).append(name)
    return {names[0]: names for names in groups.values()}


def _tell(directory: str, step: int) -> None:
    names = _names(directory)
    steps = {
        name: int(torch.load(os.path.join(directory, name))["state_dict"]["weight"][0, 0])
        for name in names
    }
    tell("files", step, names=names, steps=steps)


def trained(directory: str, max_history: int) -> None:
    """Metrics that go up and down; a recovery checkpoint every other batch."""
    saver = _saver(directory, max_history=max_history, decreasing=True)
    for epoch in range(EPOCHS):
        for batch in range(0, BATCHES, 2):
            _set(saver, epoch * BATCHES + batch)
            saver.save_recovery(epoch, batch_idx=batch)
            _tell(directory, epoch)
        _set(saver, epoch * BATCHES + BATCHES)
        best = saver.save_checkpoint(epoch, metric=random.Random(epoch).random())
        tell("best", best=list(best), links=saver.can_hardlink)
        _tell(directory, epoch)
    tell("recovery", found=os.path.basename(saver.find_recovery()))


def train(directory: str, steps: int) -> None:
    """Killed in its saves; resumes from what last names. timm deletes that name ahead of its next
    rename onto it: killed there, the checkpoints that it ranks are what there is."""
    saver = _saver(directory, max_history=2)

    def load() -> Any:
        found: list[Any] = []
        last = glob.glob(os.path.join(directory, "last.pth.tar"))
        for path in last or glob.glob(os.path.join(directory, "checkpoint-*.pth.tar")):
            found.append(torch.load(path))
        if not found:
            return None
        newest = max(found, key=lambda each: each["epoch"])
        saver.load_state_dict(newest["saver"])
        return newest["epoch"], newest["state_dict"]

    loop.train(
        steps,
        load,
        lambda step, _: saver.save_checkpoint(step, metric=random.Random(step).random()),
        lambda step: _set(saver, step),
    )
