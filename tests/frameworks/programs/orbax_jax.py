"""Orbax's CheckpointManager on JAX: a directory a step, committed by its rename."""

from __future__ import annotations

import os
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import loop
import orbax.checkpoint as ocp


def train(directory: str, steps: int) -> None:
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    manager = ocp.CheckpointManager(directory, options=options)

    def load() -> tuple[int, Any] | None:
        step = manager.latest_step()
        if step is None:
            return None
        target = jax.tree.map(jax.numpy.asarray, loop.weights(0))
        return step, manager.restore(step, args=ocp.args.StandardRestore(target))

    def save(step: int, state: Any) -> None:
        assert manager.save(step, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()

    def state_of(step: int) -> Any:
        return jax.tree.map(jax.numpy.asarray, loop.weights(step))

    loop.train(steps, load, save, state_of)
