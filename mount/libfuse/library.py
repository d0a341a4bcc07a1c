"""What FUSE of libfuse 2 is called with by either binding, and the values it takes and gives."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from typing import Any

from ckptfs.disk import osfs

from ..view.listing import parts

_MAX_WRITE = 128 << 10  # the buffer of libfuse 2
# Every byte of a name survives: the bindings decode strictly, and names need not be UTF-8.
ENCODING = "latin-1"
_STAT = ("st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_size")


def options(*, allow_other: bool) -> dict[str, object]:
    options: dict[str, object] = {
        "fsname": "ckptfs",
        "subtype": "ckptfs",
        "default_permissions": True,
        "allow_other": allow_other or os.geteuid() == 0,
        "hard_remove": True,
        "use_ino": True,
        "attr_timeout": 0,
        "entry_timeout": 0,
        "negative_timeout": 0,
    }
    if sys.platform == "linux":
        options |= {
            "nonempty": True,
            "nosuid": True,
            "nodev": True,
            "atomic_o_trunc": True,
            "big_writes": True,
            "max_write": _MAX_WRITE,
        }
    return options


def with_handles(module: Any) -> Any:
    """The class FUSE of a binding, with an ``ioctl`` that hands over the handle, where the
    binding's own fails without a path, and a ``readdir`` that hands over the position."""

    def ioctl(
        self: Any, _path: object, _command: int, _argument: object, info: Any, *_: object
    ) -> Any:
        return self.operations("ioctl", info.contents.fh)

    def readdir(self: Any, _path: object, buffer: Any, fill: Any, position: int, info: Any) -> int:
        status = module.c_stat()
        for entry in self.operations("readdir", info.contents.fh, position):
            name, status.st_ino, status.st_mode, after = parts(entry)
            if fill(buffer, os.fsencode(name), status, after):
                break
        return 0

    return type("FUSE", (module.FUSE,), {"ioctl": ioctl, "readdir": readdir})


class Said:
    """What libfuse says on the standard error output, where it explains why it cannot mount."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed by stop()
        self._saved = os.dup(2)
        self._lock, self._text = threading.Lock(), ""
        os.dup2(self._file.fileno(), 2)

    def stop(self) -> str:
        with self._lock:
            if self._saved >= 0:
                os.dup2(self._saved, 2)
                os.close(self._saved)
                self._saved = -1
                self._file.seek(0)
                self._text = "; ".join(self._file.read().decode(errors="replace").split("\n"))
                self._file.close()
            return self._text.strip("; ")


def from_bytes(name: bytes) -> str:
    return name.decode(ENCODING)


def to_bytes(text: str) -> bytes:
    return text.encode(ENCODING)


def from_name(name: str) -> str:
    return from_bytes(os.fsencode(name))


def to_name(text: str) -> str:
    return os.fsdecode(to_bytes(text))


def to_time(ns: int) -> int | None:
    """utimensat(2)'s words for the present and for "keep" come as numbers of nanoseconds."""
    return {osfs.UTIME_NOW: osfs.NOW, osfs.UTIME_OMIT: None}.get(ns, ns)


def attributes(status: os.stat_result) -> dict[str, int]:
    found = {key: int(getattr(status, key)) for key in _STAT}
    found["st_rdev"] = int(getattr(status, "st_rdev", None) or 0)
    found["st_blocks"] = int(getattr(status, "st_blocks", None) or 0)
    found["st_blksize"] = int(getattr(status, "st_blksize", None) or 4096)
    for kind in ("atime", "mtime", "ctime"):
        found[f"st_{kind}"] = getattr(status, f"st_{kind}_ns")
    return found
