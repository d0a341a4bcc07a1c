"""joblib: results cached in the directory, arrays that workers share through files there."""

from __future__ import annotations

import os
from typing import Any

import joblib
import numpy
from zygote import tell

ROWS, COLUMNS, WORKERS = 8, 50_000, 2


def _work(n: int) -> Any:
    return numpy.full(COLUMNS, n, dtype=numpy.float32)


def _fill(out: Any, row: int) -> float:
    out[row] = row + 1
    return float(out[row].sum())


def _fill_by_name(path: str, row: int) -> None:
    """As the documentation says where the array itself is not passed."""
    out = numpy.load(path, mmap_mode="r+")
    out[row] = row + 1
    out.flush()


def _call(memory: Any, n: int) -> float:
    return float(memory.cache(_work)(n % 4).sum())


def _parallel(**how: Any) -> Any:
    return joblib.Parallel(n_jobs=WORKERS, **how)


def memory(directory: str, mmap_mode: str | None) -> None:
    """Parallel callers of a cached function, twice; the second time all is there."""
    memory = joblib.Memory(directory, mmap_mode=mmap_mode, verbose=0)
    cached = memory.cache(_work)
    for what in ("first", "second"):
        sums = _parallel()(joblib.delayed(_call)(memory, n) for n in range(8))
        tell(what, sums=sums, kept=[cached.check_call_in_cache(n) for n in range(5)])
    result = cached(1)
    tell("result", kind=type(result).__name__, state=result)
    if mmap_mode == "r+":
        other = cached(1)
        result[:10], other[10:20] = 70, 80
        result.flush()
        tell("stored", state=cached(1), firsts=[float(cached(1)[n]) for n in (0, 10, 20)])
        sums = _parallel()(joblib.delayed(_call)(memory, n) for n in range(4))
        tell("stored, workers", sums=sums)
    cached.clear(warn=False)
    tell("cleared", kept=cached.check_call_in_cache(1))


def filled(directory: str, backend: str, by_name: bool) -> None:
    """An output that the parent makes and holds, and workers fill, each a row at a time."""
    path = os.path.join(directory, "out.npy")
    out = numpy.lib.format.open_memmap(path, "w+", numpy.float32, (ROWS, COLUMNS))
    parallel = _parallel(backend=backend, temp_folder=directory, max_nbytes=1000)
    task = joblib.delayed(_fill_by_name if by_name else _fill)
    results = parallel(task(path if by_name else out, row) for row in range(ROWS))
    tell("workers", results=results)
    tell("parent", firsts=[float(value) for value in out[:, 0]], state=out)
    out[0] = 42
    out.flush()
    del out
    tell("file", firsts=[float(value) for value in numpy.load(path)[:, 0]])


def dumped(directory: str) -> None:
    """An array is dumped, then mapped by the workers, as Parallel does with large inputs."""
    path = os.path.join(directory, "input.joblib")
    joblib.dump(numpy.arange(ROWS * COLUMNS, dtype=numpy.float64).reshape(ROWS, COLUMNS), path)
    array = joblib.load(path, mmap_mode="r")
    sums = _parallel(temp_folder=directory)(joblib.delayed(numpy.sum)(row) for row in array)
    tell("mapped", sums=[float(value) for value in sums])
    held = numpy.arange(ROWS * COLUMNS, dtype=numpy.float64)
    parallel = _parallel(temp_folder=directory, max_nbytes=1000)
    sums = parallel(joblib.delayed(numpy.sum)(held) for _ in range(4))
    tell("held", sums=[float(value) for value in sums])
