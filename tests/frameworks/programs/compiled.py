"""What compilers keep in a cache that several processes share: torch's inductor, triton."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import torch
from zygote import tell

WRITERS = 2


def _at_once(work: Callable[[int], object]) -> None:
    """In processes of their own, which begin together."""
    held, go = os.pipe()
    pids = []
    for writer in range(WRITERS):
        pid = os.fork()
        if pid == 0:
            os.close(go)
            os.read(held, 1)
            work(writer)
            os._exit(0)
        pids.append(pid)
    os.close(go)
    tell("writers", status=[os.waitpid(pid, 0)[1] for pid in pids])


def written(directory: str) -> None:
    """inductor's own: a temporary file a thread, renamed; the lock of a key."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = directory
    from torch._inductor import codecache
    from torch.utils._filelock import FileLock

    def work(writer: int) -> None:
        for n in range(20):
            codecache.write(f"def kernel(): return {n}\n", "py")
            with FileLock(os.path.join(directory, f"{n % 3}.lock"), timeout=30):
                path = os.path.join(directory, f"{n % 3}.bin")
                codecache.write_atomic(path, bytes([writer]) * 5_000)
                with open(path, "rb") as file:
                    assert file.read() == bytes([writer]) * 5_000

    _at_once(work)
    found = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            if name.endswith(".py"):
                with open(os.path.join(folder, name)) as file:
                    found[name] = file.read()
    tell("found", files=found)


def compile(directory: str) -> None:
    """torch.compile for the CPU, in two processes at once; then one that finds it all there."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = directory
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    importlib.import_module("torch._inductor.compile_fx")  # once, not in each process

    def work(_: int) -> None:
        tell("computed", values=_compiled()[0])

    _at_once(work)
    values, counters = _compiled()
    tell("once more", values=values, hits=counters["fxgraph_cache_hit"])


def _compiled() -> tuple[list[float], Any]:
    from torch._dynamo.utils import counters

    @torch.compile
    def function(x: Any) -> Any:
        return torch.sin(x) * 2 + torch.cos(x).sum()

    return function(torch.arange(8.0)).tolist(), counters["inductor"]


def triton_cache(directory: str) -> None:
    """Its file cache: a folder a process, renamed into place; groups are lists of names."""
    os.environ["TRITON_CACHE_DIR"] = directory
    from triton.runtime.cache import FileCacheManager

    keys = [f"{n:064x}" for n in range(8)]

    def work(_: int) -> None:
        for key in keys:
            manager = FileCacheManager(key)
            group = {}
            for name, data in ((f"{key[-4:]}.ptx", key * 100), (f"{key[-4:]}.cubin", b"\0" * 9000)):
                group[name] = manager.put(data, name, binary=isinstance(data, bytes))
            manager.put_group(f"{key[-4:]}.json", group)
            found = manager.get_group(f"{key[-4:]}.json")
            assert found is not None and sorted(found) == sorted(group), found
            for path in found.values():
                assert os.path.getsize(path) in (6400, 9000), path

    _at_once(work)
    for key in keys:
        group = FileCacheManager(key).get_group(f"{key[-4:]}.json")
        tell("group", names=sorted(group or {}))
