"""``ckptfs mount``: what is to be served is looked at, then a process serves it.

:func:`mount` returns when the mount serves. The daemon is a child that has left the caller's
terminal and session; it tells through a pipe that it serves, or why it does not.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from ckptfs.disk.filesystem import FileSystem
from ckptfs.disk.real import OsFs
from ckptfs.errors import AlreadyServed, CannotServe, CkptfsError
from ckptfs.store import Store

from ..kernel import mounting
from ..kernel.beneath import covered
from ..kernel.session import Session as KernelSession
from ..operations import sessions
from ..operations.context import Mount
from ..processes import mounts
from . import apart, holding, inspect, logfile, program
from .options import MountOptions
from .serve import Way, serve

log = logging.getLogger("ckptfs.daemon")

_STAYS_BELOW = "keeps working below the mount, unprotected; restart it"


def mount(options: MountOptions, filesystem: Callable[[], FileSystem] = OsFs) -> None:
    """Serve ``options.directory``, over a ``filesystem`` that the daemon makes. Returns once it is
    served, or in the foreground once it is no longer. Raises CannotServe, AlreadyServed and kin,
    with nothing mounted."""
    program.require_outside(options.mountpoint)
    replaces = check(options)
    found = [] if replaces else _found_below(options)
    if options.foreground:
        logfile.log_to(None)
        _serve(_Place(options, replaces, filesystem), found, lambda warnings: None)
        return
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _detached(_Place(options, replaces, filesystem), found, write_end)
    os.close(write_end)
    try:
        with os.fdopen(read_end, "rb") as pipe:
            answer = os.fsdecode(pipe.read())
    except KeyboardInterrupt:  # it has a session of its own, so only we can tell it
        os.kill(child, signal.SIGTERM)
        raise
    verdict, _, warnings = answer.partition("\n")
    if verdict != "serving":
        code, _, message = answer.partition(" ")
        error = CannotServe(message or "the daemon ended before it served; see its log")
        error.exit_code = int(code) if code.isdigit() else CannotServe.exit_code
        raise error
    for warning in warnings.splitlines():
        print(f"warning: {warning}", file=sys.stderr)


def _found_below(options: MountOptions) -> list[str]:
    """Warnings of what the mount is about to cover. Raises CannotServe where it may not."""
    below = apart.Below.of(options.directory)
    nested = apart.require_alone(options.directory, options.mountpoint, below)
    return [*nested, *below.unrecorded(options.directory), *_users_below(options)]


def _users_below(options: MountOptions) -> list[str]:
    """Warnings of who works in the directory that the mount is about to cover."""
    if options.directory != options.mountpoint:
        return []
    try:
        return [f"{holder} {_STAYS_BELOW}" for holder in holding.holders(options.directory)]
    except OSError as error:
        why = error.strerror or error
        return [f"who works in the directory already is not known ({why}): it {_STAYS_BELOW}"]


def check(options: MountOptions) -> bool:
    """Whether there is what to serve, and nobody serves it. True if a dead mount of our own is to
    be replaced; where it cannot be, it is cleared."""
    replaces = False
    for path, what in ((options.directory, "directory"), (options.mountpoint, "mountpoint")):
        if inspect.is_dead(path):
            replaces = path == options.mountpoint and _replaces_dead(options)
            if replaces:
                continue
            _clear_dead(path)
        elif inspect.is_mounted(path):
            raise _served_already(path)
        if not os.path.isdir(path):
            raise CannotServe(f"{path}: no such directory; make the {what} first")
    apart.require_apart(options.directory, options.mountpoint, options.log_file)
    return replaces


def _clear_dead(mountpoint: str) -> None:
    dead = mounts.served(mountpoint, None)
    if dead is not None:
        mounting.unmount(dead, lazy=True)


def _served_already(path: str) -> CkptfsError:
    try:
        status = inspect.status_of(path) or {}
    except TimeoutError as error:
        return inspect.silent(path, error)
    return AlreadyServed(
        f"{path}: served already, by process {status.get('pid', '?')}; see `ckptfs status`"
    )


def _replaces_dead(options: MountOptions) -> bool:
    return os.geteuid() == 0 and options.binding == sessions.KERNEL


def _serve(place: _Place, found_below: list[str], ready: Callable[[list[str]], None]) -> None:
    serve(place.options, Way(place.opened, place.attach, place.clear), found_below, ready)


class _Place:
    """Where a mount comes to be: a bare mountpoint, or one whose dead mount it ``replaces``."""

    def __init__(
        self, options: MountOptions, replaces: bool, filesystem: Callable[[], FileSystem]
    ) -> None:
        self.options, self._replaces, self._filesystem = options, replaces, filesystem
        self._dead: mounts.MountEntry | None = None

    def opened(self) -> Store:
        options = self.options
        hidden = self._replaces and options.directory == options.mountpoint
        root = covered(options.directory) if hidden else None
        fs = self._filesystem()
        return Store.open(options.directory, options.store, options.mountpoint, root, fs)

    def attach(self, mount: Mount) -> KernelSession:
        """Mount, and serve that."""
        options, device = self.options, None
        if self._replaces:
            self._dead = mounts.served(options.mountpoint, None)
            device = mounting.mount_in_place_of(options.mountpoint)
            if device is None:
                self.clear()
        if device is None:
            device = mounting.mount(options.mountpoint, allow_other=options.allow_other)
        return KernelSession(device, mount, passthrough=options.passthrough)

    def clear(self) -> None:
        """Take the dead mount away, if it is still to be; the new one hides it."""
        if self._replaces and self._dead is not None:
            with contextlib.suppress(mounting.NotOnTop):
                mounting.unmount(self._dead, lazy=True)
        self._replaces = False


def _detached(place: _Place, found: list[str], pipe: int) -> NoReturn:
    """The child: leave the terminal and the caller's session, then serve."""

    def answer(text: str) -> None:
        nonlocal pipe
        if pipe >= 0:
            with contextlib.suppress(BrokenPipeError):  # the command was killed meanwhile
                os.write(pipe, os.fsencode(text))
            os.close(pipe)
            pipe = -1

    def served(warnings: list[str]) -> None:
        answer("\n".join(["serving", *warnings]))

    code = 0
    try:
        os.setsid()
        logfile.log_to(place.options.log_file or logfile.default(place.options.mountpoint))
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        _serve(place, found, served)
    except CkptfsError as error:
        code = error.exit_code
        answer(f"{code} {error}")
    except BaseException as error:
        code = 1
        log.exception("the daemon failed")
        answer(f"8 the daemon failed: {error}")
    os._exit(code)
