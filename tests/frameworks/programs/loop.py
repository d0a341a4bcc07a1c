"""A training loop for what only saves and loads: the state of a step follows from its number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
from zygote import tell

LAYERS, NUMBERS = 8, 250_000  # 8 MB


def weights(step: int, prefix: str = "") -> dict[str, Any]:
    generator = numpy.random.default_rng(step)
    return {
        f"{prefix}layer{n}": generator.random(NUMBERS, dtype=numpy.float32) for n in range(LAYERS)
    }


def train(
    steps: int,
    load: Callable[[], tuple[int, Any] | None],
    save: Callable[[int, Any], None],
    state_of: Callable[[int], Any] = weights,
) -> None:
    """Resume from what ``load`` finds, then save ``steps`` times."""
    began, state = load() or (0, None)
    tell("resumed", began, state)
    for step in range(began + 1, began + steps + 1):
        state = state_of(step)
        tell("saving", step, state)
        save(step, state)
        tell("saved", step, state)
