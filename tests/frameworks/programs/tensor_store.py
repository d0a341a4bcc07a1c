"""tensorstore's file kvstore: three processes write chunks of one array, some of them together.

It writes a chunk to KEY.__lock, which it has locked (OFD) or which was not there (O_EXCL), renames
it, and closes it then. A chunk that two change is written where nobody else did meanwhile.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from typing import Any

import numpy
import tensorstore
from zygote import tell

WRITERS, ROWS, COLUMNS, CHUNK = 3, 12, 60, 10
LIMIT_S = 15.0
_METADATA = {
    "zarr": {"dtype": "<i4", "shape": [ROWS, COLUMNS], "chunks": [ROWS // 2, CHUNK]},
    "n5": {
        "dataType": "int32",
        "dimensions": [ROWS, COLUMNS],
        "blockSize": [ROWS // 2, CHUNK],
        "compression": {"type": "raw"},
    },
    "zarr3": {
        "data_type": "int32",
        "shape": [ROWS, COLUMNS],
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [ROWS // 2, CHUNK]},
        },
    },
}


def _open(directory: str, driver: str, store: str, locking: str, **how: Any) -> Any:
    kvstore: Any = {"driver": "file", "path": os.path.join(directory, "array") + "/"}
    if store == "ocdbt":
        kvstore = {"driver": "ocdbt", "base": kvstore, "config": {"max_inline_value_bytes": 16}}
    spec: dict[str, Any] = {"driver": driver, "kvstore": kvstore}
    if how:
        spec["metadata"] = _METADATA[driver]
    context = tensorstore.Context({"file_io_locking": {"mode": locking}})
    return tensorstore.open(spec, open=True, context=context, **how).result()


def written(directory: str, driver: str, store: str = "file", locking: str = "os") -> None:
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(WRITERS, timeout=LIMIT_S)
    arguments = (directory, driver, store, locking, start)
    writers = [fork.Process(target=_write, args=(n, *arguments)) for n in range(WRITERS)]
    for writer in writers:
        writer.start()
    deadline = time.monotonic() + LIMIT_S
    for writer in writers:
        writer.join(max(0.0, deadline - time.monotonic()))
        stuck = writer.is_alive()
        writer.kill()
        writer.join()
        tell("ended", status="stuck" if stuck else writer.exitcode)
    array = _open(directory, driver, store, locking)
    tell("found", state=array.read().result(), zeros=int((array.read().result() == 0).sum()))
    left = [name for _, _, names in os.walk(directory) for name in names if "__lock" in name]
    tell("left", locks=len(left))


def _write(writer: int, directory: str, driver: str, store: str, locking: str, start: Any) -> None:
    start.wait()
    array = _open(directory, driver, store, locking, create=True)  # all three at once
    for first in range(writer * CHUNK, COLUMNS, WRITERS * CHUNK):  # chunks of its own
        array[:, first : first + CHUNK] = writer + 1
    start.wait()
    for row in range(writer, ROWS, WRITERS):  # rows of its own, in the chunks of all
        array[row, :] = numpy.arange(COLUMNS, dtype=numpy.int32) + 100 * row + 1
