"""Threads for what may block, shared out fairly between users.

Work waits in *flows*: one user's, and of that what takes long (a digest of a long file) in a flow
of its own. Flows are served in turn. One of which n works run starts another only while more than n
threads are free: alone it gets half of the threads, two get a third each, and one of which nothing
runs finds a thread at once, however much the others have. Long work keeps a core busy, so of that
one user has only a few at a time.

It cannot lock up: what waits here holds no lock, and what runs is never set aside. So whoever waits
for a lock waits for work that runs. Thread-safe.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from ckptfs.disk.osfs import cpu_count

log = logging.getLogger("ckptfs.session")

THREADS = 64
LONG_AT_ONCE = min(16, max(4, cpu_count()))  # of one user

Work = Callable[[], object]


class Flow(NamedTuple):
    user: int
    long: bool


class Underway(NamedTuple):
    """Work that runs or waits for its turn."""

    flow: Flow
    about: int  # whatever the one who submitted it means by that
    since_s: float  # monotonic


class Pool:
    """Where no further thread is to be had (RLIMIT_NPROC, pids.max) it goes on with those that it
    has, so it starts one at once: RuntimeError without."""

    def __init__(self, threads: int = THREADS, long_at_once: int = LONG_AT_ONCE) -> None:
        self._limit, self._long_at_once = threads, long_at_once
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        self._eased = threading.Condition(lock)  # some work is done
        self._waiting: dict[Flow, deque[tuple[Work, Underway]]] = {}  # in the order of their turns
        self._underway: dict[int, Underway] = {}  # by the thread that does it
        self._running: Counter[Flow] = Counter()
        self._busy = 0
        self._threads: list[threading.Thread] = []
        self._ending = self._is_short = False
        self._start()

    def submit(self, flow: Flow, work: Work, about: int = 0) -> None:
        """Run ``work`` when its turn comes. It may not raise."""
        underway = Underway(flow, about, time.monotonic())
        with self._changed:
            self._waiting.setdefault(flow, deque()).append((work, underway))
            self._wake()

    def underway(self) -> list[Underway]:
        """What runs or waits, the oldest first."""
        with self._changed:
            return self._all()

    def long_work(self, from_s: float, wait_s: float) -> list[Underway]:
        """What takes long, as its flow says or because it was asked for ``from_s`` ago; the oldest
        first. Waits a while for it to be nothing."""
        with self._changed:
            self._eased.wait_for(lambda: not self._long(from_s), wait_s)
            return self._long(from_s)

    def _all(self) -> list[Underway]:
        waiting = [each for queue in self._waiting.values() for _, each in queue]
        return sorted([*self._underway.values(), *waiting], key=lambda each: each.since_s)

    def _long(self, from_s: float) -> list[Underway]:
        old = time.monotonic() - from_s
        return [each for each in self._all() if each.flow.long or each.since_s < old]

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        with self._changed:
            return bool(self._busy or self._waiting)

    def shutdown(self) -> None:
        """What was submitted is done on return, and no thread is left."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _wake(self) -> None:
        """Somebody looks for the next work: a thread that is idle, or a new one."""
        if self._busy < len(self._threads):
            self._changed.notify()
        elif len(self._threads) < self._limit:
            try:
                self._start()
            except RuntimeError as error:
                if not self._is_short:
                    log.warning("%s: %d threads do all work", error, len(self._threads))
                self._is_short = True

    def _start(self) -> None:
        name = f"ckptfs-slow-{len(self._threads)}"
        thread = threading.Thread(target=self._serve, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _serve(self) -> None:
        while (taken := self._take()) is not None:
            flow, work = taken
            try:
                work()
            except Exception:
                log.exception("work of the pool failed by a defect")
            del work, taken  # what it holds must not live until the next one comes
            self._done(flow)

    def _take(self) -> tuple[Flow, Work] | None:
        """The next work, once there is one; None at the end."""
        with self._changed:
            while True:
                flow = next(filter(self._may_start, self._waiting), None)
                if flow is not None:
                    break
                if self._ending and not self._waiting:
                    return None
                self._changed.wait()
            queue = self._waiting.pop(flow)
            work, underway = queue.popleft()
            self._underway[threading.get_ident()] = underway
            if queue:
                self._waiting[flow] = queue  # behind all others
            self._running[flow] += 1
            self._busy += 1
            if self._waiting:
                self._wake()
            return flow, work

    def _may_start(self, flow: Flow) -> bool:
        running = self._running[flow]
        if flow.long and running >= self._long_at_once:
            return False
        return running < self._limit - self._busy

    def _done(self, flow: Flow) -> None:
        with self._changed:
            self._busy -= 1
            del self._underway[threading.get_ident()]
            self._eased.notify_all()
            self._running[flow] -= 1
            if not self._running[flow]:
                del self._running[flow]
            if self._ending:
                self._changed.notify_all()
