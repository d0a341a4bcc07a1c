"""Arrays of NumPy: numpy.lib.format, versions 1.0 to 3.0."""

from __future__ import annotations

import ast
import math
import re
from typing import Any

from ckptfs.structure.base import (
    METADATA_LIMIT_BYTES,
    U16,
    U32,
    Broken,
    File,
    Unjudged,
)
from ckptfs.structure.pickles import walk_pickle

NPY_MAGIC = b"\x93NUMPY"
_NPY_HEADER_LIMIT_BYTES = 10_000  # NumPy's own, because ast.literal_eval is not meant for more
_NPY_HEADER = re.compile(  # as NumPy writes it for simple types; ast takes 20 times as long
    rb"\{'descr': '([^']*)', 'fortran_order': (?:True|False), 'shape': \(([\d, ]*)\), \}\s*"
)
_NPY_TYPE = re.compile(r"[<>|=]?([biufcmMSaUV])(\d+)(?:\[[^\]]*\])?")


def check_npy(file: File) -> None:
    """One array, or several end to end, as the documentation of numpy.save shows."""
    at, pickled_bytes = 0, 0
    while file.steps_left > 0:
        header_bytes, data_bytes = npy_sizes(file, at, file.bytes(at, min(256, file.size - at)))
        begin = at + header_bytes
        if data_bytes is None:
            pickled_bytes += file.size - begin  # where one ends, only reading it tells
            if pickled_bytes > METADATA_LIMIT_BYTES:
                raise Unjudged
            data_bytes = walk_pickle(file.bytes(begin, file.size - begin))[0]
        elif begin == file.size and at == 0 and data_bytes > 0:
            raise Unjudged  # open_memmap first closes the file with only the header in it
        at = begin + data_bytes
        if at > file.size:
            raise Broken(f"cut short: {data_bytes} bytes of data, {file.size - begin} are there")
        further = file.bytes(at, min(6, file.size - at))
        if not further:
            return
        if not NPY_MAGIC.startswith(further):
            raise Unjudged  # numpy.load passes over it


def npy_sizes(file: File | None, at: int, head: bytes) -> tuple[int, int | None]:
    """Bytes of header and of data (None: pickled objects) of the array that begins with ``head``.

    A longer header is read from ``file`` at ``at``; without a file it goes unjudged.
    """
    if len(head) < 12:
        raise Broken("cut short within the npy header")
    if not 1 <= head[6] <= 3:
        raise Unjudged
    start, field = (10, U16) if head[6] == 1 else (12, U32)
    stop = start + int(field.unpack_from(head, 8)[0])
    if stop > len(head):
        if file is None or stop > _NPY_HEADER_LIMIT_BYTES:
            raise Unjudged
        head = file.bytes(at, stop)
    header = head[start:stop]
    if simple := _NPY_HEADER.fullmatch(header):
        descr: Any = simple[1].decode("latin-1")
        shape: Any = [int(size) for size in simple[2].split(b",") if size.strip()]
    elif b"\0" in header:
        raise Broken("the npy header is damaged")
    else:
        fields = ast.literal_eval(header.decode("utf-8" if head[6] == 3 else "latin-1").strip())
        descr, shape = fields["descr"], fields["shape"]
    item_bytes = _npy_item_bytes(descr)
    return stop, None if item_bytes is None else item_bytes * math.prod(shape)


def _npy_item_bytes(descr: Any) -> int | None:
    """Size of a dtype as numpy.lib.format.descr_to_dtype reads it; None if it holds objects."""
    if isinstance(descr, str):
        if simple := _NPY_TYPE.fullmatch(descr):
            return int(simple[2]) * (4 if simple[1] == "U" else 1)
        if descr.endswith("O"):
            return None
        raise Unjudged
    total = 0
    for _, field, *shape in descr:
        item_bytes = _npy_item_bytes(field)
        if item_bytes is None:
            return None
        total += item_bytes * math.prod(shape[0] if shape else ())
    return total
