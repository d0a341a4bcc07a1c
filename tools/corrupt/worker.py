"""Loads damaged checkpoints in a process of its own: a damaged pickle may crash or hang."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed

from ..harness.study import quiet
from .content import fingerprint

_LIMIT_S = 30.0
_PER_BYTE_S = 1e-7
_START_S = 120.0
_MEMORY_BYTES = 16 << 30
_FAITHFUL = ("loaded right", "loaded wrong")

Shapes = list[int]


def _dcp(folder: Path, shapes: Shapes) -> object:
    tensors = {f"w{n}": torch.zeros(length) for n, length in enumerate(shapes)}
    state = {"step": torch.tensor(0), "model": tensors}
    with quiet():
        load_distributed(state, storage_reader=FileSystemReader(folder), no_dist=True)
    return state


def _npz(path: Path, _: Shapes) -> object:
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


LOADERS: dict[str, tuple[str, Callable[[Path, Shapes], object]]] = {
    "torch.load": ("pt", lambda path, _: torch.load(path)),
    "torch.load mmap": ("pt", lambda path, _: torch.load(path, mmap=True)),
    "safetensors": ("safetensors", lambda path, _: safetensors.torch.load_file(path)),
    "DCP load": ("dcp", _dcp),
    "numpy.load": ("npz", _npz),
    "json.load": ("json", lambda path, _: json.loads(path.read_text("utf-8"))),
}


def noticed(outcome: str) -> bool:
    """Whether a loader let nothing through: it raised, crashed or hung."""
    return outcome not in _FAITHFUL


class Loaders:
    """The process, and what its loaders say of a file."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Loaders:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def try_all(self, form: str, path: Path, shapes: Shapes, values: str) -> dict[str, str]:
        """What each loader of the format makes of it: ``loaded right`` or ``wrong`` (compared with
        the fingerprint of the right values), ``raised …``, ``crashed …`` or ``hung``."""
        names = [name for name, (loads, _) in LOADERS.items() if loads == form]
        return {name: self._try(name, path, shapes, values) for name in names}

    def _try(self, name: str, path: Path, shapes: Shapes, values: str) -> str:
        process = self._process or self._start()
        assert process.stdin is not None
        request = {"loader": name, "path": str(path), "shapes": shapes, "values": values}
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        answer = self._answer(process, _LIMIT_S + sum(shapes) * 4 * _PER_BYTE_S)
        if answer is None:
            self._end()
            return "hung"
        if not answer:
            code = process.wait()
            self._end()
            return f"crashed {code}"
        return str(json.loads(answer))

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ckptfs.tools.corrupt.worker"]
        self._process = process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        if not self._answer(process, _START_S):
            self._end()
            raise RuntimeError("the process that loads damaged files does not start")
        return process

    def _answer(self, process: subprocess.Popen[bytes], limit_s: float) -> bytes | None:
        """A line; empty if the process ended, None if it took too long."""
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], limit_s)
        return process.stdout.readline() if ready else None

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _load(request: dict[str, Any]) -> str:
    _, load = LOADERS[request["loader"]]
    try:
        value = load(Path(request["path"]), request["shapes"])
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        return f"raised {type(error).__name__}"
    right = False
    with contextlib.suppress(Exception):  # values of other types than any that were saved
        right = fingerprint(value) == request["values"]
    return "loaded right" if right else "loaded wrong"


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print is no answer
    answers.write(b"ready\n")
    for line in sys.stdin.buffer:
        answers.write(json.dumps(_load(json.loads(line))).encode() + b"\n")


if __name__ == "__main__":
    main()
