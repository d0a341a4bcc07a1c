"""The processes that run trials, watched from one that never touches a mount.

One that says nothing for too long hangs: its mount is aborted, which frees whoever waits for it,
the process is ended, and the rest of its batch goes to a new one. However a study ends, each mount
is taken away and each directory removed.
"""

from __future__ import annotations

import contextlib
import json
import queue
import select
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ckptfs.errors import CannotServe

from ...harness.study import Row
from .draw import BATCH, Trial
from .place import end_all

_START_LIMIT_S = 120.0
_ROW_LIMIT_S = 90.0
_END_S = 0.5
_WORKER = "ckptfs.tools.crash.kills.worker"
_END = None

Batch = list[Trial]


class Jobs:
    """``count`` workers, each in a directory of its own below ``on``."""

    def __init__(self, on: Path, count: int, seed: int, control: str) -> None:
        self._on, self._count = on, count
        self.seed, self.control = seed, control
        self._workers: list[_Worker] = []
        self._folder = Path()

    def __enter__(self) -> Jobs:
        self._folder = Path(tempfile.mkdtemp(prefix="ckptfs-kills-", dir=self._on)).resolve()
        self._workers = [_Worker(self._folder / str(n), self) for n in range(self._count)]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, batches: Iterable[Batch]) -> Iterator[Row]:
        """Rows as they come, of all workers at once. Raises CannotServe where none starts."""
        todo: queue.Queue[Batch] = queue.Queue()
        for batch in batches:
            todo.put(batch)
        found: queue.Queue[Row | Exception | None] = queue.Queue()
        threads = [
            threading.Thread(target=_work, args=(worker, todo, found), daemon=True)
            for worker in self._workers
        ]
        for thread in threads:
            thread.start()
        running = len(threads)
        while running:
            row = found.get()
            if isinstance(row, Exception):
                raise row
            if row is _END:
                running -= 1
            else:
                yield row


def _work(worker: _Worker, todo: queue.Queue[Batch], found: queue.Queue[Any]) -> None:
    try:
        while True:
            for row in worker.run(todo.get_nowait()):
                found.put(row)
    except queue.Empty:
        found.put(_END)
    except Exception as error:
        found.put(error)


class _Worker:
    def __init__(self, folder: Path, jobs: Jobs) -> None:
        self._folder, self._jobs = folder, jobs
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False

    def run(self, batch: Batch) -> Iterator[Row]:
        left = batch
        while left and not self._ended:
            done = 0
            for row in self._ordered(left):
                done += row["what"] == left[0].what
                yield row
            left = left[done:]

    def _ordered(self, batch: Batch) -> Iterator[Row]:
        """Ends early after a row that says how the worker failed."""
        process = self._process or self._start()
        assert process.stdin is not None
        order = {
            "what": batch[0].what,
            "numbers": [one.number for one in batch],
            "seed": self._jobs.seed,
            "control": self._jobs.control,
            "folder": str(self._folder),
        }
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
        done = 0
        while True:
            row = self._answer(_ROW_LIMIT_S)
            if row is None:
                if self._ended:
                    return
                self._stop()
                yield _failed(batch, done)
                return
            if row["what"] == "done":
                return
            done += row["what"] == batch[0].what
            yield row

    def _start(self) -> subprocess.Popen[bytes]:
        self._folder.mkdir(exist_ok=True)
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", _WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        if self._answer(_START_LIMIT_S) is None:
            self._stop()
            raise CannotServe("the process that runs trials does not start; is torch installed?")
        return process

    def _answer(self, limit_s: float) -> Row | None:
        """None where the process ended or hangs."""
        assert self._process is not None and self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], limit_s)
        line = self._process.stdout.readline() if ready else b""
        return dict(json.loads(line)) if line else None

    def _stop(self) -> None:
        """Its daemons end with it, and its mounts: a process that waits for a mount whose server
        does not answer cannot even be killed."""
        process, self._process = self._process, None
        ended = process is None
        if process is not None:
            process.kill()
        while True:
            end_all(self._folder)
            if ended:
                break
            assert process is not None
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=_END_S)
                ended = True
        shutil.rmtree(self._folder, ignore_errors=True)

    def end(self) -> None:
        self._ended = True
        self._stop()


def _failed(batch: Batch, done: int) -> Row:
    """In the trial after those that are done, or in what follows the last."""
    found = [{"promise": "harness", "found": "the worker hung or ended"}]
    if done == len(batch):
        numbers = [one.number for one in batch]
        return {"what": BATCH, "of": batch[0].what, "numbers": numbers, "violations": found}
    one = batch[done]
    return {"what": one.what, "number": one.number, "subject": one.subject, "violations": found}
