"""What the bytes of a file say about how it is written. Pure.

A checkpoint is written at once and is good when it is whole. A log is good line by line, and a
database keeps its own transactions: held back until a close they would be lost with their writer,
so they are written in place (docs/design.md, "Logs and databases").
"""

from __future__ import annotations

import codecs
import enum
from collections.abc import Callable

_LOOKED_AT_BYTES = 64 << 10  # at either end
_DATABASE = b"SQLite format 3\0"
_LONGEST_CHARACTER = 4
_CONTINUING = bytes(range(0x80, 0xC0))
_TEXTUAL = b"\a\b\t\n\f\r\x1b" + bytes(range(0x20, 0x100))
# Names that say what is in the file, whatever its first bytes look like: never a log.
_FORMATS = (
    *(".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".distcp", ".metadata", ".gguf", ".onnx"),
    *(".npy", ".npz", ".h5", ".hdf5", ".pkl", ".pickle", ".msgpack", ".parquet", ".arrow"),
    *(".tar", ".zip", ".gz", ".bz2", ".xz", ".zst", ".model", ".params", ".weights", ".tflite"),
)
# Text that is of use only when it is whole, unless somebody adds to it with O_APPEND.
_STRUCTURED = (
    *(".json", ".yaml", ".yml", ".toml", ".xml", ".ini", ".cfg", ".conf"),
    *(".ipynb", ".html", ".svg", ".py"),
)

Read = Callable[[int, int], bytes]  # size, offset


class Content(enum.Enum):
    EMPTY = "empty"
    TEXT = "text"
    DATABASE = "database"
    OTHER = "other"


def judge(size: int, read: Read) -> Content:
    """Of a file of ``size`` bytes, by its two ends."""
    if size == 0:
        return Content.EMPTY
    head = read(min(size, _LOOKED_AT_BYTES), 0)
    if head.startswith(_DATABASE):
        return Content.DATABASE
    start = max(len(head), size - _LOOKED_AT_BYTES)
    tail = read(size - start, start) if start < size else b""
    is_text = _is_text(head, cut=False) and _is_text(tail, cut=True)
    return Content.TEXT if is_text else Content.OTHER


def _is_text(data: bytes, *, cut: bool) -> bool:
    """UTF-8 of the characters that file(1) calls text; ``cut``: it may begin amid one. The last
    one may be unfinished."""
    if cut:
        data = data[:_LONGEST_CHARACTER].lstrip(_CONTINUING) + data[_LONGEST_CHARACTER:]
    if data.translate(None, _TEXTUAL):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return True


def may_be_log(name: str, *, appends: bool) -> bool:
    """Whether text under this name can be a log; ``appends``: it is opened with O_APPEND."""
    excluded = _FORMATS if appends else _FORMATS + _STRUCTURED
    return not name.lower().endswith(excluded)
