"""What a command asks of the daemon: extended attributes that it sets through the mount.

On a file, by whoever may write it: ``user.ckptfs.verify`` (check it now), ``user.ckptfs.adopt``
(record it as it is); by its owner ``user.ckptfs.rollback`` (a generation, or nothing for the newest
good one), and ``user.ckptfs.adopt`` with ``quarantined`` (what lies there of it).
On ``.ckptfs``, by the mount's and the directory's owner: ``user.ckptfs.verify`` with the path of a
generation, ``user.ckptfs.restart`` (go on as another program: ``restart.py``; by the daemon's user
and root only, from its own namespaces), ``user.ckptfs.tidy`` (let go of what is unreachable in
history), ``user.ckptfs.ack`` (somebody has looked at the alarms up to that number),
``user.ckptfs.clean`` (let go of what its lines name: see ``expendable.parse``),
``user.ckptfs.rollback`` and ``user.ckptfs.adopt`` with what to do, ``-`` for nothing, and the path
of a file that is not there.
None can be read. What was asked for is done, and durable, on return; else an errno.
"""

from __future__ import annotations

import errno
import os
import stat

from ckptfs.records import format as fmt

PREFIX = f"{fmt.XATTR}."
VERIFY, ADOPT, ROLLBACK = f"{PREFIX}verify", f"{PREFIX}adopt", f"{PREFIX}rollback"
QUARANTINED = b"quarantined"  # value of an adoption
TIDY, ACK, CLEAN = f"{PREFIX}tidy", f"{PREFIX}ack", f"{PREFIX}clean"
RESTART = f"{PREFIX}restart"
_CLEANED_AT_ONCE = 500  # an xattr has 64 KiB


def check(mountpoint: str, path: str) -> None:
    """Raises OSError: EIO where it has rotted and no good version is left."""
    os.setxattr(f"{mountpoint}/{path}", VERIFY, b"")


def set_aside(mountpoint: str, path: str) -> None:
    """Put a generation that has rotted into quarantine."""
    os.setxattr(f"{mountpoint}/{fmt.CONTROL}", VERIFY, os.fsencode(path))


def tidy(mountpoint: str) -> None:
    """Let history go that no path leads to."""
    os.setxattr(f"{mountpoint}/{fmt.CONTROL}", TIDY, b"")


def ack(mountpoint: str, up_to: int) -> None:
    """Say that somebody has looked at the alarms up to that number."""
    os.setxattr(f"{mountpoint}/{fmt.CONTROL}", ACK, str(up_to).encode())


def clean(mountpoint: str, names: list[str]) -> None:
    """Let go of these items of salvage, quarantine and history. What is in use stays, and so does
    the last good version of a file."""
    for start in range(0, len(names), _CLEANED_AT_ONCE):
        asked = "\n".join(names[start : start + _CLEANED_AT_ONCE])
        os.setxattr(f"{mountpoint}/{fmt.CONTROL}", CLEAN, os.fsencode(asked))


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


def take_back(mountpoint: str, path: str) -> None:
    """Make what was last put into quarantine of the file its version again."""
    _on_file_or_control(mountpoint, path, ADOPT, QUARANTINED)


def rollback(mountpoint: str, path: str, to: int | None) -> None:
    _on_file_or_control(mountpoint, path, ROLLBACK, b"" if to is None else str(to).encode())


def restore(mountpoint: str, path: str) -> None:
    rollback(mountpoint, path, None)


def _on_file_or_control(mountpoint: str, path: str, key: str, value: bytes) -> None:
    try:
        if not stat.S_ISREG(os.lstat(f"{mountpoint}/{path}").st_mode):
            raise FileNotFoundError  # the command is for what it replaced
        os.setxattr(f"{mountpoint}/{path}", key, value)
    except FileNotFoundError:
        asked = b" ".join([value or b"-", os.fsencode(path)])
        os.setxattr(f"{mountpoint}/{fmt.CONTROL}", key, asked)
