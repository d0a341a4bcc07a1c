"""What a command asks of the daemon: extended attributes that it sets through the mount.

On a file, by whoever may write it: ``user.ckptfs.verify`` (check it now), ``user.ckptfs.adopt``
(record it as it is), ``user.ckptfs.rollback`` (a generation, or nothing for the newest good one).
On ``.ckptfs``, by the mount's and the directory's owner: ``user.ckptfs.verify`` with the path of a
generation, ``user.ckptfs.rollback`` and ``user.ckptfs.adopt`` with what to do, ``-`` for nothing,
and the path of a file that is not there.
None can be read. What was asked for is done, and durable, on return; else an errno.
"""

from __future__ import annotations

import errno
import os

from ckptfs import format as fmt

PREFIX = f"{fmt.XATTR}."
VERIFY, ADOPT, ROLLBACK = f"{PREFIX}verify", f"{PREFIX}adopt", f"{PREFIX}rollback"


def check(mountpoint: str, path: str) -> None:
    """Raises OSError: EIO where it has rotted and no good version is left."""
    os.setxattr(f"{mountpoint}/{path}", VERIFY, b"")


def set_aside(mountpoint: str, path: str) -> None:
    """Put a generation that has rotted into quarantine."""
    os.setxattr(f"{mountpoint}/{fmt.CONTROL}", VERIFY, os.fsencode(path))


def adopt(mountpoint: str, path: str) -> bool:
    """Record the file as it is, or accept that it is not there any more. False for one that is
    written in place."""
    try:
        _on_file_or_control(mountpoint, path, ADOPT, b"")
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return False
        raise
    return True


def rollback(mountpoint: str, path: str, to: int | None) -> None:
    _on_file_or_control(mountpoint, path, ROLLBACK, b"" if to is None else str(to).encode())


def restore(mountpoint: str, path: str) -> None:
    rollback(mountpoint, path, None)


def _on_file_or_control(mountpoint: str, path: str, key: str, value: bytes) -> None:
    try:
        os.setxattr(f"{mountpoint}/{path}", key, value)
    except FileNotFoundError:
        asked = b" ".join([value or b"-", os.fsencode(path)])
        os.setxattr(f"{mountpoint}/{fmt.CONTROL}", key, asked)
