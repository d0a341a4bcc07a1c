"""A process that saves with torch and dies where it is told to. Run as a program by tests.

Torch is imported once; every order on stdin (one JSON object a line) forks a writer, and one JSON
object on stdout says how it ended. The writer tells where it is through shared memory, so that its
last phase and what it wrote are known after its death. The parent never holds a file of the mount.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import random
import resource
import struct
import sys
import threading
import time
import zlib
from typing import Any

PHASES = ["before open", "opened", "between writes", "written", "in close", "closed"]
BEFORE_OPEN, OPENED, WRITING, WRITTEN, CLOSING, CLOSED = range(len(PHASES))
_STATE = struct.Struct("<IIQ")  # phase, crc32 of what was written, its length
_TENSORS, _NUMBERS = 4, 16_384


class Dying:
    """The file that torch writes to: unbuffered, and deadly at the write it is told."""

    def __init__(self, order: dict[str, Any], shared: mmap.mmap) -> None:
        self.order, self.shared = order, shared
        self.writes = self.crc = self.length = 0
        self.tell_phase(BEFORE_OPEN)
        self.file = open(order["path"], "wb", buffering=0)  # noqa: SIM115 - outlives this call
        self.tell_phase(OPENED)

    def tell_phase(self, phase: int) -> None:
        self.shared[: _STATE.size] = _STATE.pack(phase, self.crc, self.length)
        if self.order.get("at") == phase:
            die(self.order["signal"])

    def write(self, data: bytes) -> int:
        if self.writes == self.order.get("write", -1):
            self._put(memoryview(data).cast("B")[: len(data) // 2])
            die(self.order["signal"])
        self._put(memoryview(data).cast("B"))
        self.writes += 1
        if self.order.get("slow"):
            time.sleep(0.0005)
        return len(data)

    def _put(self, data: memoryview) -> None:
        if data:
            assert self.file.write(data) == len(data)
            self.crc, self.length = zlib.crc32(data, self.crc), self.length + len(data)
            self.tell_phase(WRITING)

    def flush(self) -> None:
        pass


def die(number: int) -> None:
    """By a signal to the whole process, in whatever thread this is."""
    os.kill(os.getpid(), number)
    while True:
        time.sleep(1)


def weights(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {f"layer{n}": torch.rand(_NUMBERS, generator=generator) for n in range(_TENSORS)}


def save(order: dict[str, Any], shared: mmap.mmap) -> None:
    file = Dying(order, shared)
    torch.save(weights(order["seed"]), file)
    file.tell_phase(WRITTEN)
    if "exit" in order:
        os._exit(order["exit"])
    file.tell_phase(CLOSING)
    file.file.close()
    file.tell_phase(CLOSED)
    if order.get("outside"):
        time.sleep(60)


def write(order: dict[str, Any], shared: mmap.mmap) -> None:
    """The life of one writer, of the kind that was ordered."""
    core = resource.RLIM_INFINITY if order.get("core") else 0
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (core, core))
    if order["kind"] != "plain":
        for _ in range(3):
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    if order["kind"] == "in a thread":
        thread = threading.Thread(target=save, args=(order, shared))
        thread.start()
        thread.join()
    else:
        save(order, shared)


def run(order: dict[str, Any]) -> dict[str, Any]:
    shared = mmap.mmap(-1, mmap.PAGESIZE)
    before = digest(order["path"])
    pid = os.fork()
    if pid == 0:
        try:
            write(order, shared)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(99)
        os._exit(0)
    if order.get("outside"):
        kill_from_outside(pid, order, shared)
    _, status = os.waitpid(pid, 0)
    phase, crc, length = _STATE.unpack_from(shared)
    after = digest(order["path"])
    return {
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
        "exit": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "core": os.WIFSIGNALED(status) and os.WCOREDUMP(status),
        "phase": phase,
        "crc": crc,
        "length": length,
        "same": after == before,
        "loads": loads(order["path"], order.get("seed")) if order["look"] else None,
    }


def kill_from_outside(pid: int, order: dict[str, Any], shared: mmap.mmap) -> None:
    """At a random moment of the phase that the order names."""
    limit = time.monotonic() + 20
    while _STATE.unpack_from(shared)[0] < order["outside"] and time.monotonic() < limit:
        time.sleep(0)
    time.sleep(random.Random(order["seed"]).random() * order["within_s"])
    os.kill(pid, order["signal"])


def digest(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except FileNotFoundError:
        return None


def loads(path: str, seed: int | None) -> str:
    """What torch makes of the file: "new" if it holds the weights of ``seed``."""
    try:
        found = torch.load(path)
    except Exception as error:
        return f"torn: {type(error).__name__}"
    wanted = weights(seed) if seed is not None else {}
    same = all(torch.equal(found[key], value) for key, value in wanted.items())
    return "new" if same else "old"


def count_writes() -> int:
    class Counting:
        writes = 0

        def write(self, data: bytes) -> int:
            self.writes += 1
            return len(data)

        def flush(self) -> None:
            pass

    counting = Counting()
    torch.save(weights(0), counting)
    return counting.writes


if __name__ == "__main__":
    import torch

    print(json.dumps({"writes": count_writes()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
