"""Files read side by side, their findings in the order that they were asked for in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from ckptfs.checking.examine import Finding
from ckptfs.disk import digest

_AHEAD = 4  # files a job that wait their turn: results come in order, memory is bounded
LONG_BYTES = 512 << 10
Job = tuple[int, Callable[[], Finding]]  # bytes to read, and the reading


def in_order(jobs: Iterator[Job], at_once: int) -> Iterator[Finding]:
    """Examine in parallel, in the order given. Memory: 8 MiB for each
    of those ``at_once`` at most."""
    waiting: deque[Future[Finding]] = deque()
    with ThreadPoolExecutor(at_once, thread_name_prefix="ckptfs-verify") as pool:
        try:
            for size, job in _announced(jobs):
                if size >= LONG_BYTES and at_once > 1:
                    waiting.append(pool.submit(_begin, size, job))
                else:  # handing it over would cost more than reading it
                    done = Future[Finding]()
                    done.set_result(_begin(size, job))
                    waiting.append(done)
                while len(waiting) > at_once * _AHEAD or (waiting and waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # interrupted: no need to read on
            digest.expect(-sum(future.cancel() for future in waiting))


def _announced(jobs: Iterator[Job]) -> Iterator[Job]:
    """The jobs, each once it is known whether a long one follows: the digest of a long file takes
    all cores if it is the only one."""
    held: Job | None = None
    try:
        for job in jobs:
            if job[0] >= LONG_BYTES:
                digest.expect(1)
            ready, held = held, job
            if ready is not None:
                yield ready
        ready, held = held, None
        if ready is not None:
            yield ready
    finally:
        if held is not None and held[0] >= LONG_BYTES:
            digest.expect(-1)


def _begin(size_bytes: int, job: Callable[[], Finding]) -> Finding:
    if size_bytes >= LONG_BYTES:
        digest.expect(-1)
    return job()
