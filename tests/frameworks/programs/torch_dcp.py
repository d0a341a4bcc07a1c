"""torch.distributed.checkpoint: a directory a step, committed by its ``.metadata``."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import loop
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from zygote import digest, tell


def state_of(step: int, rank: int = 0) -> dict[str, Any]:
    prefix = f"rank{rank}."
    state = {name: torch.from_numpy(value) for name, value in loop.weights(step, prefix).items()}
    return {**state, f"{prefix}step": torch.tensor(step)}


def newest(directory: str) -> str | None:
    """The newest folder that has the file which DCP writes last."""
    steps = [int(name) for name in os.listdir(directory)]
    whole = [n for n in steps if os.path.exists(os.path.join(directory, f"{n}/.metadata"))]
    return os.path.join(directory, str(max(whole))) if whole else None


def load_from(folder: str | None, rank: int = 0) -> tuple[int, Any] | None:
    if folder is None:
        return None
    state = state_of(0, rank)
    dcp.load(state, checkpoint_id=folder)
    return int(state[f"rank{rank}.step"]), state


def train(directory: str, steps: int) -> None:
    def save(step: int, state: Any) -> None:
        dcp.save(state, checkpoint_id=os.path.join(directory, str(step)))

    loop.train(steps, lambda: load_from(newest(directory)), save, state_of)


def train_async(directory: str, steps: int) -> None:
    store = tempfile.mktemp()
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)

    def save(step: int, state: Any) -> None:
        folder = os.path.join(directory, str(step))
        dcp.async_save(state, checkpoint_id=folder).result()

    loop.train(steps, lambda: load_from(newest(directory)), save, state_of)


def train_ranks(directory: str, steps: int, overwrite: bool = False) -> None:
    """Two ranks; with ``overwrite`` every step goes to one and the same folder."""
    store = tempfile.mktemp()
    torch.multiprocessing.start_processes(
        rank_main, (directory, steps, overwrite, store), 2, start_method="fork"
    )


def rank_main(rank: int, directory: str, steps: int, overwrite: bool, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    train_as(rank, directory, steps, overwrite)
    dist.destroy_process_group()


def train_as(rank: int, directory: str, steps: int, overwrite: bool = False) -> None:
    def tell_all(event: str, step: int, state: Any) -> None:
        """From rank 0, about both: it is told once all have come so far."""
        digests: list[Any] = [None, None]
        dist.all_gather_object(digests, (step, digest(state)))
        if rank == 0:
            tell(event, step, digests)

    latest = os.path.join(directory, "latest")
    found = latest if overwrite and os.path.exists(latest) else None
    began, state = load_from(found if overwrite else newest(directory), rank) or (0, None)
    tell_all("resumed", began, state)
    for step in range(began + 1, began + steps + 1):
        state = state_of(step, rank)
        if rank == 1:  # the larger shard, and the later one
            state.update({f"more.{n}": torch.full((4_000_000,), step) for n in range(2)})
        tell_all("saving", step, state_of(step, rank))
        dcp.save(state, checkpoint_id=latest if overwrite else os.path.join(directory, str(step)))
        tell_all("saved", step, state_of(step, rank))


if __name__ == "__main__":  # under torchrun
    import sys

    dist.init_process_group("gloo")
    train_as(dist.get_rank(), sys.argv[1], int(sys.argv[2]))
    dist.destroy_process_group()
