"""``ckptfs umount``: the end of a mount, and of its daemon.

Without force nothing is taken from anybody: while the mount is used, or kept by a mount elsewhere,
or its daemon does not answer, it stays as it is. With force that is tried first; then the
connection is ended, which every program that waits for the daemon gets an error from, and the
daemon saves what was being written and ends. One that does not is killed.

The mount itself is asked by children only (see ``inspect.py``): no signal, an alarm either, ends
the wait for a FUSE server.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ckptfs.errors import CannotServe, MountBusy
from ckptfs.records import format as fmt
from ckptfs.records import parts

from ..kernel import mounting
from ..processes import mounts, writers
from ..processes.mounts import MountEntry
from . import holding, inspect

IN_USE_S = 5.0  # that a mount which is used is waited for, if nobody says how long
_POLL_S, _ENDING_POLL_S = 0.1, 0.02
_SAID_AFTER_S = 1.0
_ASKED_S = 1.0  # at least
_ENDS_S = 5.0  # at least: it has to save what was being written
_FORCE = "`ckptfs umount --force` ends it all the same"
_IN_USE = f"end it and try again; `--release` serves what is open to its end, {_FORCE}"
Say = Callable[[str], object]


def umount(path: str, timeout_s: float | None = None, *, force: bool, say: Say) -> None:
    """End the mount of ``path`` (the directory or the mountpoint). Every commit in flight is
    finished on return, unless by ``force`` it was ended before.

    ``timeout_s``: how long to wait until nobody uses it (None: 5 s), and then for the daemon to end
    (None: until what is in flight is committed). Raises NotMounted; MountBusy, which names who
    holds it: unless it says otherwise the mount is as it was.
    """
    in_use_s = IN_USE_S if timeout_s is None else timeout_s
    mountpoint = inspect.mountpoint_of(path, max(_ASKED_S, in_use_s))
    here = mounts.topmost(mountpoint) if mountpoint else None
    if mountpoint is None or here is None or here.type != mounts.FS_TYPE:
        raise inspect.not_mounted(path)
    _require_nothing_in(here)
    end = _End(here, path, timeout_s, in_use_s, say)
    try:
        end.gently()
    except MountBusy as error:
        if not force:
            raise
        say(f"{error}: ended by force")
        end.by_force()


def release(path: str) -> None:
    """Detach the mount of ``path`` though somebody uses it. What is open is served until it is
    closed; what is saved later goes to the plain directory. Raises NotMounted; MountBusy where
    something is mounted in it, which would go along."""
    mountpoint = inspect.mountpoint_of(path, _ASKED_S)
    here = mounts.topmost(mountpoint) if mountpoint else None
    if here is None or here.type != mounts.FS_TYPE:
        raise inspect.not_mounted(path)
    _require_nothing_in(here)
    mounting.unmount(here, lazy=True)


def _require_nothing_in(mount: MountEntry) -> None:
    """Raises MountBusy: what is mounted in it would go along."""
    for each in mounts.mounts():
        if each.parent == mount.id:
            raise MountBusy(f"{mount.point}: {each.point} is mounted in it; end that first")


@dataclass
class _End:
    mount: MountEntry
    path: str  # by which it was asked for: the mountpoint, or the directory that is served
    timeout_s: float | None
    in_use_s: float
    say: Say
    began_s: float = field(default_factory=time.monotonic)
    said: bool = False

    @property
    def mountpoint(self) -> str:
        return self.mount.point

    def gently(self) -> None:
        server = _Server.of(self.mountpoint)  # by what can be seen without asking it
        if server is not None:
            os.close(server.pidfd)
        try:
            if not inspect.responds(self.mountpoint, max(_ASKED_S, self.in_use_s)):
                with contextlib.suppress(mounting.NotOnTop):
                    mounting.unmount(self.mount, lazy=True)  # its daemon is gone, or about to be
                status = {}
            else:
                status = inspect.status_of(self.mountpoint) or {}
        except TimeoutError:
            raise MountBusy(f"{self.mountpoint}: {_silence(self.mountpoint)}; {_FORCE}") from None
        while not self._unmounted():
            self._wait_while(self._users, self.in_use_s, _IN_USE)
        if status and inspect.is_here(status):
            self._wait_for_end(int(status["pid"]))
        elif server is not None:
            self._wait_for_end(server.pid)
        else:
            self._wait_released(str(status.get("directory", self.path)))

    def _unmounted(self) -> bool:
        """Also by somebody else meanwhile."""
        try:
            if not mounts.is_there(self.mount):
                return True
            if holding.elsewhere(self.mount):
                return False
            mounting.unmount(self.mount)
        except mounting.NotOnTop:
            if mounts.is_there(self.mount):
                raise MountBusy(f"{self.mountpoint}: another mount covers it; end that") from None
        except TimeoutError:
            raise MountBusy(
                f"{self.mountpoint}: a process does not let itself be looked at; {_FORCE}"
            ) from None
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True

    def _users(self) -> str:
        users: list[str] = []
        with contextlib.suppress(TimeoutError):
            users = holding.elsewhere(self.mount)
            users += map(str, holding.holders(self.mountpoint))
        return f"in use by {', '.join(users) or 'a process'}"

    def _wait_while(self, told: Callable[[], str], limit_s: float | None, advice: str) -> None:
        """For a moment. After some the user is told what for; MountBusy after ``limit_s``."""
        waited_s = time.monotonic() - self.began_s
        if limit_s is not None and waited_s >= limit_s:
            raise MountBusy(f"{self.mountpoint}: {told()}; {advice}")
        if waited_s >= _SAID_AFTER_S and not self.said:
            self.said = True
            self.say(f"waiting: {self.mountpoint}: {told()}")
        time.sleep(_POLL_S if limit_s else _ENDING_POLL_S)

    def _wait_for_end(self, pid: int) -> None:
        self.began_s, self.said = time.monotonic(), False
        while writers.is_running(pid):
            limit_s, doing = self.timeout_s, "finishes what is being committed"
            if writers.is_stopped(pid):
                limit_s, doing = self.in_use_s, f"is stopped by a signal (kill -CONT {pid})"
            told = f"unmounted; its daemon, process {pid}, {doing}"
            self._wait_while(lambda told=told: told, limit_s, _FORCE)  # type: ignore[misc]

    def _wait_released(self, directory: str) -> None:
        if not inspect.wait_released(directory, self.timeout_s):
            raise MountBusy(
                f"{self.mountpoint}: unmounted; its daemon, in another pid namespace, finishes "
                "what is being committed"
            )

    # --- by force --------------------------------------------------------------------------------

    def by_force(self) -> None:
        """Take the mount away and end its daemon, whatever state they are in."""
        server = _Server.of(self.mountpoint)
        self._take_away()
        if server is None:
            self.say(
                f"{self.mountpoint}: mount taken away; its daemon is not seen from here (another "
                "user's, or in another pid namespace) and ends by itself unless it is stopped"
            )
            return
        try:
            self.say(f"{self.mountpoint}: mount taken away; {self._ended(server)}")
        finally:
            os.close(server.pidfd)

    def _take_away(self) -> None:
        try:
            mounting.abort_connection(self.mount.device)
        except CannotServe:
            with contextlib.suppress(OSError):
                mounting.unmount(self.mount, lazy=True, force=True)
        with contextlib.suppress(mounting.NotOnTop):
            mounting.unmount(self.mount, lazy=True)

    def _ended(self, server: _Server) -> str:
        """What became of it."""
        server.tell(signal.SIGCONT)
        if server.is_gone(max(_ENDS_S, self.in_use_s)):
            return f"process {server.pid} ended; `ckptfs log` lists what it put into salvage"
        if server.still_serves():
            server.tell(signal.SIGKILL)
        if not server.is_gone(_ENDS_S):
            raise MountBusy(
                f"{self.mountpoint}: mount taken away, but its daemon, process {server.pid}, does "
                "not end: it waits for the disk"
            )
        return (
            f"process {server.pid} did not end and was killed, what was being written goes to "
            "salvage with the next mount"
        )


def _silence(mountpoint: str) -> str:
    server = _Server.of(mountpoint)
    if server is None:
        return "its daemon does not answer"
    os.close(server.pidfd)
    why = f", stopped by a signal (kill -CONT {server.pid})"
    stopped = writers.is_stopped(server.pid)
    return f"its daemon, process {server.pid}, does not answer{why if stopped else ''}"


@dataclass(frozen=True)
class _Server:
    """The daemon of a mount, known by what it has open: the device, and the lock of a directory,
    which is its own by the kernel's table, and which names the mountpoint."""

    pid: int
    pidfd: int
    mountpoint: str

    @classmethod
    def of(cls, mountpoint: str) -> _Server | None:
        """The one there is; None where there are several, too."""
        locks, found = inspect.locks(), []
        for pid in sorted({pid for pid, _ in locks if pid > 0}):
            if _serves(pid, mountpoint, locks):
                found.append(pid)
        if len(found) != 1:
            return None
        try:
            server = cls(found[0], os.pidfd_open(found[0]), mountpoint)
        except OSError:
            return None
        if server.still_serves():  # and not a later process of that number
            return server
        os.close(server.pidfd)
        return None

    def still_serves(self) -> bool:
        return _serves(self.pid, self.mountpoint, inspect.locks())

    def tell(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def is_gone(self, within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        while writers.is_running(self.pid):
            if time.monotonic() > deadline:
                return False
            time.sleep(_ENDING_POLL_S)
        return True


def _serves(pid: int, mountpoint: str, locks: set[tuple[int, int]]) -> bool:
    has_device = has_lock = False
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            link = f"/proc/{pid}/fd/{fd}"
            with contextlib.suppress(OSError):
                target = os.readlink(link)
                has_device |= target == "/dev/fuse"
                if target.endswith(f"/{fmt.CONTROL}/{fmt.LOCK}"):
                    has_lock |= _names(link, pid, mountpoint, locks)
    return has_device and has_lock


def _names(link: str, pid: int, mountpoint: str, locks: set[tuple[int, int]]) -> bool:
    """Whether this is a lock that the process holds for that mountpoint."""
    fd = os.open(link, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if (pid, os.fstat(fd).st_ino) not in locks:
            return False
        return parts.parse(os.pread(fd, parts.SMALL_BYTES, 0)).get("mountpoint") == mountpoint
    finally:
        os.close(fd)
