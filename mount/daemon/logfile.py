"""Where a daemon logs.

A log is a regular file, and is seen to be one before anything waits for it: an open of a FIFO waits
for its reader, a device may do anything. No link is followed but those in the user's own words,
which are resolved by then.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import logging.handlers
import os
import stat
import sys
from io import TextIOWrapper
from pathlib import Path

from ckptfs.disk import osfs
from ckptfs.errors import CannotServe
from ckptfs.records import parts
from ckptfs.shown import OneLine

log = logging.getLogger("ckptfs.daemon")

BYTES, FILES = 5 << 20, 3


def default(mountpoint: str) -> str:
    """Outside the tree: a log inside the mount would keep it busy."""
    if os.geteuid() == 0:
        folder = Path("/var/log/ckptfs")
    else:
        home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        folder = Path(home) / "ckptfs"
    name = mountpoint.strip("/").replace("/", "-") or "root"
    return osfs.real_path(str(folder / f"{name}.log"))


def log_to(path: str | None) -> None:
    """A file, None for the terminal. Raises CannotServe."""
    handler: logging.Handler
    if path is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            handler = _Handler(
                path,
                maxBytes=BYTES,
                backupCount=FILES,
                encoding="utf-8",
                errors="backslashreplace",  # file names need not be UTF-8
            )
        except OSError as error:
            raise CannotServe(f"{path}: cannot log there: {error.strerror}; use --log") from None
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("ckptfs").addHandler(handler)
    logging.getLogger("ckptfs").setLevel(logging.INFO)


def reopen() -> None:
    """By its name, which another program may have moved to another file."""
    for handler in logging.getLogger("ckptfs").handlers:
        if isinstance(handler, _Handler):
            handler.reopen()
    log.info("the log is opened anew")


class _Handler(logging.handlers.RotatingFileHandler):
    def reopen(self) -> None:
        try:
            opened = self._open()
        except OSError as error:
            log.error("%s cannot be opened anew: %s", self.baseFilename, error.strerror)
            return
        self.acquire()
        try:
            left, self.stream = self.stream, opened
        finally:
            self.release()
        if left is not None:
            with contextlib.suppress(OSError):  # what the full disk had no room for
                left.close()

    def _open(self) -> TextIOWrapper:
        return open(  # type: ignore[return-value]
            self.baseFilename,
            self.mode,
            encoding=self.encoding,
            errors=self.errors,
            opener=_open_regular,
        )


def _open_regular(path: str, flags: int) -> int:
    with contextlib.suppress(FileNotFoundError):
        _require_regular(os.lstat(path))  # to open a device can be a deed of its own
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        _require_regular(os.fstat(fd))  # it may have changed since
    except OSError:
        os.close(fd)
        raise
    return fd


def _require_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, f"there is {parts.kind(status)}")
