"""A writer: a forked child that saves, tells how far it is, and dies where it is told to.

What it tells lies in memory that outlives it (:class:`Account`); each word of it is set at once,
and a phase is told before what begins it and after what ends it. So a file told as closed was
closed with 0, and one not told as closing was not closed at all.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .draw import Phase
from .saves import Act, Op, weights

_WHERE, _WRITTEN, _ERRNO, _BEGAN, _ENDED, _CLOSE_BEGAN, _CLOSE_ENDED, _UNHEARD = range(8)
_PR_SET_PDEATHSIG = 1
_CHUNK_BYTES = 24 << 10
_POLL_S = 0.0001
WAIT_S = 20.0
SAVED, FAILED, BROKEN = 0, 1, 99

Death = tuple[int, Phase, int]  # by its own hand: in which op and phase, after how many bytes


class Account:
    """What a writer has told. Read by its parent, also after its death."""

    def __init__(self) -> None:
        self._words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")

    def tell(self, op: int, phase: Phase) -> None:
        self._words[_WHERE] = op << 8 | phase

    @property
    def where(self) -> tuple[int, Phase]:
        word = self._words[_WHERE]
        return int(word >> 8), Phase(word & 0xFF)

    @property
    def written(self) -> int:
        """Bytes of the file it is at; at least these."""
        return int(self._words[_WRITTEN])

    @property
    def errno(self) -> int:
        """What it was told of a failure; 0 if nothing failed."""
        return int(self._words[_ERRNO])

    @property
    def began(self) -> bool:
        return bool(self._words[_BEGAN])

    @property
    def save_s(self) -> float:
        """How long the save took; 0 if it did not end."""
        return max(0, self._words[_ENDED] - self._words[_BEGAN]) / 1e9

    @property
    def close_s(self) -> float:
        """How long the last close took."""
        return max(0, self._words[_CLOSE_ENDED] - self._words[_CLOSE_BEGAN]) / 1e9

    @property
    def unheard(self) -> bool:
        """A library returned as if all were well from a save whose server was gone."""
        return bool(self._words[_UNHEARD])

    def set(self, word: int, value: int) -> None:
        self._words[word] = value


class Writer:
    """The process, from its fork on."""

    def __init__(
        self,
        folder: Path,
        ops: list[Op],
        *,
        death: Death | None = None,
        number: int = signal.SIGKILL,
        threads: bool = False,
        stays: bool = False,
    ) -> None:
        """``number``: the signal it dies by. ``stays``: it lives on after its save."""
        self.told = Account()
        self.pid = os.fork()
        if self.pid == 0:
            _live(_Saving(folder, self.told, death, number), ops, threads=threads, stays=stays)

    def wait_for(self, reached: Callable[[Account], bool]) -> bool:
        """False where it does not get there."""
        deadline = time.monotonic() + WAIT_S
        while not reached(self.told):
            if self.told.errno or time.monotonic() > deadline:
                return False
            time.sleep(0)
        return True

    def runs(self) -> bool:
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, flags) is None

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self, limit_s: float = WAIT_S) -> int | None:
        """Its exit code, negative for a signal; None where it hangs: it is killed then."""
        deadline = time.monotonic() + limit_s
        while self.runs():
            if time.monotonic() > deadline:
                self.kill()
                return None
            time.sleep(_POLL_S)
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


def _live(saving: _Saving, ops: list[Op], *, threads: bool, stays: bool) -> None:
    """Never returns."""
    code = BROKEN
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if threads:
            for _ in range(3):
                threading.Thread(target=time.sleep, args=(WAIT_S,), daemon=True).start()
        code = saving.all(ops)
        if stays:
            time.sleep(WAIT_S)
    finally:
        os._exit(code)


class _Saving:
    def __init__(self, folder: Path, told: Account, death: Death | None, number: int) -> None:
        self.folder, self.told, self.death, self.signal = folder, told, death, number
        self.op = 0

    def all(self, ops: list[Op]) -> int:
        ready = [weights(*op.weights) if op.weights != (0, 0) else None for op in ops]
        self.told.set(_BEGAN, time.monotonic_ns())
        for self.op, (op, values) in enumerate(zip(ops, ready, strict=True)):
            self.told.set(_WRITTEN, 0)
            try:
                self._one(op, values)
            except Exception as error:
                number = error.errno if isinstance(error, OSError) else None
                self.told.set(_ERRNO, number or BROKEN)
                return FAILED
        self.told.set(_ENDED, time.monotonic_ns())
        return SAVED

    def reach(self, phase: Phase) -> None:
        self.told.tell(self.op, phase)
        if self.death is not None and self.death[:2] == (self.op, phase):
            if phase in (Phase.IN_WRITE, Phase.BETWEEN_WRITES):
                return  # the file knows when
            self.die()

    def die(self) -> None:
        os.kill(os.getpid(), self.signal)
        while True:
            time.sleep(1)

    def dies_at(self, phase: Phase) -> int | None:
        """After how many bytes of this file, if there."""
        if self.death is not None and self.death[:2] == (self.op, phase):
            return self.death[2]
        return None

    def _one(self, op: Op, values: Any) -> None:
        self.reach(Phase.BEFORE_OPEN)
        path = self.folder / op.name
        if op.act.told:
            self._told(op, path, values)
            return
        server = os.open(self.folder, os.O_DIRECTORY | os.O_CLOEXEC)
        self.told.tell(self.op, Phase.IN_CALL)
        if op.act is Act.REMOVE:
            os.unlink(path)
        elif op.act is Act.FOLDER:
            os.mkdir(path)
        else:
            _by_library(op, path, values)
            self._ask(server)
        self.reach(Phase.CLOSED)
        os.close(server)

    def _ask(self, server: int) -> None:
        """Libraries keep the error of close() to themselves (Rust's File drops it), so what they
        return is no word of the filesystem. A live server is: it would have failed the close."""
        self.told.set(_UNHEARD, 1)
        os.fstatvfs(server)  # always asks, which stat does not
        self.told.set(_UNHEARD, 0)

    def _told(self, op: Op, path: Path, values: Any) -> None:
        file: Any = _Telling(self, path, "ab" if op.act is Act.APPEND else "wb")
        if op.act is Act.TORCH:
            import torch

            torch.save(values, file)
        else:
            assert op.content is not None
            for start in range(op.start, len(op.content), _CHUNK_BYTES):
                file.write(op.content[start : start + _CHUNK_BYTES])
        file.close()


def _by_library(op: Op, path: Path, values: Any) -> None:
    if op.act is Act.TORCH_PATH:
        import torch

        torch.save(values, path)
        return
    import safetensors.torch

    safetensors.torch.save_file(values, path)


class _Telling:
    """An unbuffered file that tells each phase, and is deadly in or after a write."""

    def __init__(self, saving: _Saving, path: Path, mode: str) -> None:
        self._saving, self._told = saving, saving.told
        self._file = open(path, mode, buffering=0)  # noqa: SIM115 - outlives this call
        self._written = 0
        saving.reach(Phase.OPENED)

    def write(self, data: bytes) -> int:
        view = memoryview(data).cast("B")
        saving, end = self._saving, self._written + len(view)
        saving.reach(Phase.IN_WRITE)
        deadly = saving.dies_at(Phase.IN_WRITE)
        if deadly is not None and deadly < end:
            self._put(view[: deadly - self._written])
            saving.die()
        self._put(view)
        saving.reach(Phase.BETWEEN_WRITES)
        deadly = saving.dies_at(Phase.BETWEEN_WRITES)
        if deadly is not None and deadly < end:
            saving.die()
        return len(view)

    def _put(self, view: memoryview) -> None:
        while view:
            count = self._file.write(view)
            self._written += count
            self._told.set(_WRITTEN, self._written)
            view = view[count:]

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._saving.reach(Phase.WRITTEN)
        self._told.set(_CLOSE_BEGAN, time.monotonic_ns())
        self._saving.reach(Phase.CLOSING)
        self._file.close()
        self._told.set(_CLOSE_ENDED, time.monotonic_ns())
        self._saving.reach(Phase.CLOSED)


def end(writer: Writer) -> None:
    """Whatever it does."""
    with contextlib.suppress(OSError):
        writer.kill()
        os.waitpid(writer.pid, 0)
