"""What every session is: the kernel's own protocol, or libfuse by way of fusepy or refuse.

A session mounts, turns requests into operations and their results into answers, and ends with the
mount. The daemon knows no more of it than this.
"""

from __future__ import annotations

import errno
import importlib
import logging
import sys
from collections import Counter
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Protocol

from ckptfs.errors import CannotServe, CkptfsError
from ckptfs.listeners import Listeners

from ..processes import writers

log = logging.getLogger("ckptfs.session")

KERNEL = "kernel"
_MODULES = {"fusepy": ("fuse", "ckptfs[fusepy]"), "refuse": ("refuse.high", "ckptfs[macos]")}
BINDINGS = (KERNEL, *_MODULES)
_REMEMBERED = 10_000


class Session(Protocol):
    ready: Listeners[[]]  # called once requests are answered
    requests: Counter[str]
    openers: Openers

    def run(self) -> None:
        """Serve until the mount is gone. What was begun is finished on return. Raises CannotServe
        if it never served."""

    def quiet(self, mountpoint: str, limit_s: float) -> AbstractContextManager[bool]:
        """No request is under way inside; gives False where that took too long, or cannot be."""

    def passthrough_state(self) -> tuple[bool, str]:
        """Whether the kernel carries the data itself, and why not."""


class Openers:
    """Which threads opened or made something."""

    _most = _REMEMBERED  # until they are looked through again

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self.strangers = False  # some were from outside our pid namespace

    def note(self, pid: int) -> None:
        if pid not in self._seen:
            if pid == 0 and not self.strangers:
                self.strangers = True
                if writers.proc_is_ours():  # else the mount began with that
                    log.warning("used from another pid namespace: see `degraded` in the status")
            if len(self._seen) > self._most:
                self._seen.intersection_update(self.running())
                self._most = max(_REMEMBERED, 2 * len(self._seen))
            self._seen.add(pid)

    def running(self) -> list[int]:
        """Those that have not ended: a trainer that may be about to write its last checkpoint,
        whatever it holds open at this moment."""
        return [pid for pid in list(self._seen) if pid > 0 and writers.is_running(pid)]


def errno_of(error: BaseException) -> int:
    """What a request that failed is answered with. A defect is logged, and is EIO."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    if isinstance(error, CkptfsError):
        if not error.logged:
            log.warning("%s", error)
        return error.errno
    log.error("a request failed by a defect", exc_info=error)
    return errno.EIO


def choose(binding: str) -> str:
    """The binding to use where none is asked for: the kernel's protocol on Linux, else the first
    library that is installed. Raises CannotServe."""
    if binding:
        if binding != KERNEL:
            load(binding)
        return binding
    if sys.platform == "linux":
        return KERNEL
    for name in ("refuse", "fusepy"):
        try:
            load(name)
        except CannotServe:
            continue
        return name
    raise CannotServe("needs macFUSE and refuse: pip install 'ckptfs[macos]'")


def load(binding: str) -> ModuleType:
    """The module of a libfuse binding. Raises CannotServe, saying what to install."""
    name, extra = _MODULES[binding]
    try:
        module = importlib.import_module(name)
    except ImportError:
        raise CannotServe(f"{binding} is not installed: pip install '{extra}'") from None
    except OSError:  # both look for the library when they are imported
        raise CannotServe(
            f"{binding} finds no libfuse 2: install the package libfuse2, or macFUSE"
        ) from None
    if not hasattr(module, "FUSE"):  # fuse-python has the same module name
        raise CannotServe(f"{module.__file__} is not {binding}: pip install '{extra}'")
    return module
