"""The directory that a command is about, reached below its mount where there is one."""

from __future__ import annotations

import errno
import posixpath
from typing import Any

from ckptfs.disk import osfs
from ckptfs.disk.real import OsFs
from ckptfs.errors import CannotServe, UsageError
from ckptfs.history import earlier
from ckptfs.records.format import CONTROL, FORMAT
from ckptfs.records.layout import Layout


def absolute(path: str) -> str:
    """The real directory: mountinfo and /proc know no symlinks."""
    return osfs.real_path(path)


def top_of(typed: str) -> tuple[str, str]:
    """The served or known directory that a path lies in, and the path itself, empty for that
    directory: people type one path where two are asked for. What is no path in such a directory is
    given back as it is. Raises CannotServe for a file that is in none."""
    from ckptfs.mount.daemon.apart import above, is_known
    from ckptfs.mount.daemon.inspect import is_mounted

    path = posixpath.abspath(typed)
    # By the table of mounts first: a mount may hang, and this asks it nothing.
    for top in (path, *above(path)):
        if is_mounted(top):
            return (top, path) if top != path else (typed, "")
    path = osfs.real_path(path)
    for top in (path, *above(path)):
        if is_mounted(top) or is_known(top):
            return (top, path) if top != path else (typed, "")
    if posixpath.isfile(path):
        raise CannotServe(f"{typed}: lies in no ckptfs directory (none above it has a .ckptfs)")
    return typed, ""


def status_of(directory: str) -> dict[str, Any] | None:
    from ckptfs.mount.daemon import inspect

    try:
        return inspect.status_of(directory)
    except TimeoutError as error:
        raise inspect.silent(directory, error) from None


class Below:
    """The served directory, reached below its mount where there is one. Nothing is changed."""

    def __init__(self, directory: str) -> None:
        from ckptfs.mount.daemon import inspect

        self.fs = OsFs()
        self.where = absolute(directory)
        found = status_of(self.where)
        if found and not inspect.is_here(found):
            raise CannotServe(
                f"{directory}: served from another pid namespace (a container): run this there"
            )
        if not found and (told := inspect.covered(self.where)):
            raise CannotServe(told)
        path = inspect.below(found) if found else self.where
        try:
            self.root = osfs.open_directory(path)
        except OSError as error:
            dead = "; its daemon is gone, `ckptfs mount` or `ckptfs umount` clears it"
            inside = "; run it outside of `ckptfs run`, which hides what is below the mount"
            hints = {errno.ENOTCONN: dead, errno.EACCES: inside if found else ""}
            hint = hints.get(error.errno or 0, "")
            raise CannotServe(f"{directory}: {error.strerror}{hint}") from None
        self.served = found
        self.served_at = str(found["mountpoint"]) if found else ""
        self.directory = str(found["directory"]) if found else self.where
        self.layout = Layout.existing(self.fs, self.root, self.where)

    def needed_layout(self) -> Layout:
        if self.layout is None:
            raise CannotServe(
                f"{self.where}: no ckptfs directory ({CONTROL}/{FORMAT} is missing); serve it once "
                f"with `ckptfs mount {self.where}`, or record what is there with `ckptfs adopt`"
            )
        return self.layout

    def reopen(self) -> None:
        """The layout may have been made meanwhile."""
        self.layout = Layout.existing(self.fs, self.root, self.where)

    def relative(self, path: str) -> str:
        """A path as typed, seen from the working directory if that lies in the directory, else
        from the directory itself, or absolute; as one relative to it. Symlinks that stay in it are
        followed, but for one that replaced a file: the history there is that of its path."""
        found = self.inside(path)
        if not found:
            raise UsageError(f"{path or '(empty)'}: not a file below {self.where}")
        return found

    def inside(self, path: str) -> str:
        """:meth:`relative`, also of the directory itself, which is empty."""
        for typed in (path, posixpath.join(self.where, path)) if path else ():
            if posixpath.islink(typed):
                folder, name = posixpath.split(typed)
                itself = self._below_top(posixpath.join(osfs.real_path(folder), name))
                if self.layout and itself in earlier.lineages_by_path(self.layout):
                    return itself
            found = self._below_top(osfs.real_path(typed))
            if found is not None:
                return found
        normal = posixpath.normpath(path)
        if not path or normal.startswith(("/", "../")) or normal in ("..", "."):
            raise UsageError(f"{path or '(empty)'}: not a file below {self.where}")
        return normal

    def _below_top(self, real: str) -> str | None:
        for top in (self.where, self.served_at, self.directory):
            if top and (real == top or real.startswith(f"{top}/")):
                return real[len(top) + 1 :]
        return None
