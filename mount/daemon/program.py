"""What a daemon is loaded from, which must not be what it serves.

A daemon that loads a module through its own mount waits for itself. So nothing that it may load
lies there, and it leaves the directory that it was started in: Python looks for modules in the
working directory, and that may be anybody's.
"""

from __future__ import annotations

import contextlib
import os
import site
import sys
from collections.abc import Iterator

import ckptfs
from ckptfs.disk import osfs
from ckptfs.errors import CannotServe

_HERE = os.path.dirname(os.path.abspath(__file__))
_OURS = os.path.dirname(os.path.abspath(ckptfs.__file__))


def command() -> list[str]:
    """What starts this program anew, wherever it is started. Of what Python adds to the places of
    modules by itself nothing is looked at that this one does not need."""
    flags = ["-P"] if sys.version_info >= (3, 11) else []
    if site.getusersitepackages() not in sys.path:
        flags.append("-s")
    return [sys.executable, *flags, "-m", "ckptfs"]


def require_outside(mountpoint: str) -> None:
    """Raises CannotServe where this program would be loaded from the mount."""
    for path in _loaded_from(mountpoint):
        if _is_in(path, mountpoint):
            raise CannotServe(
                f"{path}: ckptfs is loaded from there, which is to lie in the mount: it would wait "
                f"for itself; install it outside of {mountpoint}"
            )


def leave_working_directory(mountpoint: str) -> None:
    """The process is in the root directory on return, and looks for no modules where it was."""
    sys.path[:] = [entry for at, entry in enumerate(sys.path) if not _goes(at, entry, mountpoint)]
    os.chdir("/")


def _loaded_from(mountpoint: str) -> Iterator[str]:
    yield from (sys.executable, sys.prefix, sys.base_prefix, _OURS, _HERE)
    for at, entry in enumerate(sys.path):
        if not _goes(at, entry, mountpoint):
            yield entry


def _goes(at: int, entry: str, mountpoint: str) -> bool:
    """Whether it is in ``sys.path`` as the working directory, which is given up."""
    here = ""
    with contextlib.suppress(FileNotFoundError):
        here = os.getcwd()
    if not entry or not here:
        return not entry
    if osfs.real_path(entry) != here or here == os.path.dirname(_OURS):
        return False
    return at == 0 or _is_in(here, mountpoint)


def _is_in(path: str, mountpoint: str) -> bool:
    below = mountpoint.rstrip("/") + "/"
    return any(f"{each}/".startswith(below) for each in (path, osfs.real_path(path)))
