"""By what a file is known: numbers that the mount gives, and those of the filesystem below."""

from __future__ import annotations

import os
import stat

ROOT_ID = 1
CONTROL_ID = 2  # .ckptfs as the mount shows it
STATUS_ID = 3  # .ckptfs/status.json
HISTORY_ID = 4  # .ckptfs/history
FIRST_ID = 16

# st_dev, st_ino and the file type, since a freed inode number may come back as something else
Identity = tuple[int, int, int]
Listed = tuple[str, int, int]  # name, inode number, type


def identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, stat.S_IFMT(status.st_mode)


def lstat(at: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return None


def exists(at: int, name: str) -> bool:
    return lstat(at, name) is not None
