"""Formats and settings that the other programs do not come to: one function each."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any

import loop
import numpy
import torch

Load = Callable[[str], tuple[int, Any]]
Save = Callable[[str, int, Any], object]


def _one_file(
    directory: str, name: str, steps: int, load: Load, save: Save, state_of: Any = loop.weights
) -> None:
    path = os.path.join(directory, name)
    loop.train(
        steps,
        lambda: load(path) if os.path.exists(path) else None,
        lambda step, state: save(path, step, state),
        state_of,
    )


def _tensors(step: int) -> dict[str, Any]:
    return {name: torch.from_numpy(value) for name, value in loop.weights(step).items()}


def torch_legacy(directory: str, steps: int) -> None:
    _one_file(
        directory,
        "model.pt",
        steps,
        torch.load,
        lambda path, step, state: torch.save(
            (step, state), path, _use_new_zipfile_serialization=False
        ),
        _tensors,
    )


def pickled(directory: str, steps: int) -> None:
    def load(path: str) -> Any:
        with open(path, "rb") as file:
            return pickle.load(file)

    def save(path: str, step: int, state: Any) -> None:
        with open(path, "wb") as file:
            pickle.dump((step, state), file, protocol=5)

    _one_file(directory, "model.pkl", steps, load, save)


def joblib_dump(directory: str, steps: int, compress: int = 0) -> None:
    import joblib

    def save(path: str, step: int, state: Any) -> None:
        joblib.dump((step, state), path, compress=compress)

    _one_file(directory, "model.joblib", steps, joblib.load, save)


def npz(directory: str, steps: int) -> None:
    def load(path: str) -> Any:
        with numpy.load(path) as file:
            return int(file["step"]), {name: file[name] for name in file if name != "step"}

    def save(path: str, step: int, state: Any) -> None:
        numpy.savez(path, step=step, **state)

    _one_file(directory, "model.npz", steps, load, save)


def safetensors_held(directory: str, steps: int) -> None:
    """A reader keeps the version before it mapped over each save."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    def load(path: str) -> Any:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return int(file.metadata()["step"]), state

    def save(path: str, step: int, state: Any) -> None:
        if not os.path.exists(path):
            save_file(state, path, {"step": str(step)})
            return
        with safe_open(path, "pt") as file:
            old = int(file.metadata()["step"])
            save_file(state, path, {"step": str(step)})
            assert torch.equal(file.get_tensor("layer7"), _tensors(old)["layer7"])

    _one_file(directory, "model.safetensors", steps, load, save, _tensors)


def hdf5_swmr(directory: str, steps: int) -> None:
    import h5py

    def load(path: str) -> Any:
        with h5py.File(path, "r", libver="latest", swmr=True) as file:
            return int(file["step"][()]), {n: file[n][:] for n in file if n != "step"}

    def save(path: str, step: int, state: Any) -> None:
        with h5py.File(path, "w", libver="latest") as file:
            file["step"] = step
            for name, value in state.items():
                file.create_dataset(name, value.shape, value.dtype, maxshape=(None,), chunks=True)
            file.swmr_mode = True
            for name, value in state.items():
                file[name][:] = value
                file[name].flush()

    _one_file(directory, "model.h5", steps, load, save)


def dcp_files(directory: str, steps: int, overwrite: bool = False, **options: Any) -> None:
    """FileSystemWriter; with ``overwrite`` every step goes to one and the same folder."""
    import torch.distributed.checkpoint as dcp
    from torch_dcp import load_from, newest, state_of

    latest = os.path.join(directory, "latest")

    def load() -> tuple[int, Any] | None:
        if overwrite:
            return load_from(latest if os.path.exists(f"{latest}/.metadata") else None)
        return load_from(newest(directory))

    def save(step: int, state: Any) -> None:
        folder = latest if overwrite else os.path.join(directory, str(step))
        writer = dcp.FileSystemWriter(folder, overwrite=True, **options)
        dcp.save(state, storage_writer=writer)

    loop.train(steps, load, save, state_of)


def zarr_groups(directory: str, steps: int) -> None:
    """A store a step; the attribute that is written last tells whole ones."""
    import zarr

    def load() -> tuple[int, Any] | None:
        for step in sorted(map(int, os.listdir(directory)), reverse=True):
            try:
                group = zarr.open_group(os.path.join(directory, str(step)), mode="r")
            except FileNotFoundError:
                continue
            if group.attrs.get("whole"):
                return step, {name: group[name][:] for name in group}
        return None

    def save(step: int, state: Any) -> None:
        group = zarr.open_group(os.path.join(directory, str(step)), mode="w")
        for name, value in state.items():
            group.create_array(name, data=value, chunks=(50_000,))
        group.attrs["whole"] = True

    loop.train(steps, load, save)


def linked_best(directory: str, steps: int) -> None:
    """timm: a temporary file, the old name unlinked, renamed, hard links to it."""

    def load(path: str) -> Any:
        return torch.load(path)

    def save(path: str, step: int, state: Any) -> None:
        temporary, best = f"{path}.tmp", os.path.join(directory, "best.pt")
        torch.save((step, state), temporary)
        os.replace(temporary, path)
        numbered = os.path.join(directory, f"checkpoint-{step}.pt")
        for name in (numbered, best):
            if os.path.exists(name):
                os.unlink(name)
            os.link(path, name)
        if step > 3:
            older = os.path.join(directory, f"checkpoint-{step - 3}.pt")
            if os.path.exists(older):
                os.unlink(older)

    _one_file(directory, "last.pt", steps, load, save, _tensors)


def reopened(directory: str, steps: int) -> None:
    """CheckFreq: saved in place, opened again to append, fsynced."""

    def save(path: str, step: int, state: Any) -> None:
        torch.save((step, state), path)
        with open(path, "a+") as file:
            os.fsync(file.fileno())

    _one_file(directory, "model.chk", steps, torch.load, save, _tensors)


def latest_file(directory: str, steps: int) -> None:
    """DeepSpeed: a folder a step, then its name in ``latest``, in place."""
    latest = os.path.join(directory, "latest")

    def load() -> Any:
        if not os.path.exists(latest):
            return None
        with open(latest) as file:
            folder = os.path.join(directory, file.read())
        parts = [torch.load(os.path.join(folder, f"rank{rank}.pt")) for rank in range(2)]
        assert parts[0]["step"] == parts[1]["step"]
        return parts[0]["step"], {**parts[0]["model"], **parts[1]["model"]}

    def save(step: int, state: Any) -> None:
        folder = os.path.join(directory, f"global_step{step}")
        os.makedirs(folder, exist_ok=True)
        names = sorted(state)
        for rank in range(2):
            model = {name: state[name] for name in names[rank::2]}
            torch.save({"step": step, "model": model}, os.path.join(folder, f"rank{rank}.pt"))
        with open(latest, "w") as file:
            file.write(f"global_step{step}")

    loop.train(steps, load, save, _tensors)


def unfinished_marker(directory: str, steps: int) -> None:
    """NeMo: what carries a marker is not whole."""

    def load() -> Any:
        found = [int(n[:-3]) for n in os.listdir(directory) if n.endswith(".pt")]
        whole = [n for n in found if not os.path.exists(os.path.join(directory, f"{n}-unfinished"))]
        if not whole:
            return None
        return torch.load(os.path.join(directory, f"{max(whole)}.pt"))

    def save(step: int, state: Any) -> None:
        marker = os.path.join(directory, f"{step}-unfinished")
        with open(marker, "w"):
            pass
        torch.save((step, state), os.path.join(directory, f"{step}.pt"))
        os.unlink(marker)

    loop.train(steps, load, save, _tensors)
