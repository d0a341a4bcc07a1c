"""Looking at mounts from outside: what a daemon says of itself, and who holds a mount.

Nothing here can hang on a stuck server for longer than its timeout: reads of the mount are cut
off by an alarm, so these functions belong to the main thread of a command.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ckptfs import format as fmt
from ckptfs import osfs
from ckptfs.errors import NotMounted
from ckptfs.mount.kernel.mounting import FS_TYPE, mounted_type

_TIMEOUT_S = 5.0
_POLL_S = 0.02


@dataclass(frozen=True)
class Holder:
    pid: int
    name: str
    how: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}, {self.how})"


@contextlib.contextmanager
def _limited(timeout_s: float = _TIMEOUT_S) -> Iterator[None]:
    def expire(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError("the mount does not answer")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def is_mounted(path: str) -> bool:
    return mounted_type(path) == FS_TYPE


def is_dead(path: str) -> bool:
    """A ckptfs mount whose server is gone (ENOTCONN)."""
    if not is_mounted(path):
        return False
    try:
        with _limited():
            os.statvfs(path)  # always asks the server, which stat does not
    except TimeoutError:
        return False
    except OSError:
        return True
    return False


def status_of(directory: str) -> dict[str, Any] | None:
    """What the daemon that serves ``directory``, or mounted on it, says of itself.

    None if there is none. Raises TimeoutError when it does not answer.
    """
    with _limited():
        if is_mounted(directory):
            return _read_json(f"{directory}/{fmt.CONTROL}/status.json")
        owner = _read_json(f"{directory}/{fmt.CONTROL}/{fmt.LOCK}") or {}
        mountpoint = owner.get("mountpoint")
        if mountpoint and mountpoint != directory and is_mounted(mountpoint):
            return _read_json(f"{mountpoint}/{fmt.CONTROL}/status.json")
    return None


def not_mounted(path: str) -> NotMounted:
    """Why there is no mount to be seen at ``path``."""
    pid = _serving_elsewhere(path)
    if pid is None:
        return NotMounted(f"{path}: not mounted; serve it with `ckptfs mount {path}`")
    return NotMounted(
        f"{path}: served by process {pid} in a mount namespace of its own (`ckptfs run`, or a "
        "container); here it is not mounted, and shows the committed files"
    )


def _serving_elsewhere(directory: str) -> int | None:
    """The process that holds the lock of a directory, by the kernel's table: taking the lock to
    see whether it is free could turn away a daemon that starts at this moment."""
    path = f"{directory}/{fmt.CONTROL}/{fmt.LOCK}"
    owner = _read_json(path) or {}
    with contextlib.suppress(OSError, KeyError), open("/proc/locks", encoding="ascii") as table:
        wanted = [str(owner["pid"]), str(os.stat(path).st_ino)]
        for line in table:
            fields = line.split()  # 1: FLOCK ADVISORY WRITE pid major:minor:inode start end
            if fields[1] == "FLOCK" and [fields[4], fields[5].split(":")[-1]] == wanted:
                return int(wanted[0])
    return None


def below(status: dict[str, Any]) -> str:
    """The served directory itself, below its mount, by the daemon's own descriptor."""
    return f"/proc/{status['pid']}/fd/{status['root_fd']}"


def is_here(status: dict[str, Any]) -> bool:
    """Whether the daemon's process id and descriptor mean here what they mean to it: in another
    pid namespace they are somebody else's."""
    try:
        root = os.stat(below(status))
    except PermissionError:  # another user's: then what everybody may know of it
        return b"ckptfs" in _read(f"/proc/{status['pid']}/cmdline")
    except OSError:
        return False
    return bool([root.st_dev, root.st_ino] == status["root_id"])


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def wait_released(directory: str) -> None:
    """Return once no daemon holds the lock of a directory; for one that cannot be watched."""
    try:
        fd = os.open(f"{directory}/{fmt.CONTROL}/{fmt.LOCK}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        while not osfs.try_lock(fd):
            time.sleep(_POLL_S)
    finally:
        os.close(fd)


def _read_json(path: str) -> dict[str, Any] | None:
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except TimeoutError:
        raise
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def holders(path: str) -> list[Holder]:
    """Processes that work in what ``path`` stands for now: the mount, or what lies below it."""
    with _limited():
        device = os.stat(path).st_dev
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            how = _how_held(entry, path, device)
            if how is not None:
                found.append(Holder(int(entry), _name(entry), how))
    return found


def _how_held(pid: str, path: str, device: int) -> str | None:
    for link, how in (("cwd", "working directory"), ("root", "root"), ("exe", "program")):
        if _points_into(f"/proc/{pid}/{link}", path, device):
            return how
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            if _points_into(f"/proc/{pid}/fd/{fd}", path, device):
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
                return f"open file {target[len(path) :].lstrip('/') or '.'}"
    return None


def _points_into(link: str, path: str, device: int) -> bool:
    """By path first: stat of somebody else's mount could hang."""
    try:
        target = os.readlink(link)
        inside = target == path or target.startswith(path.rstrip("/") + "/")
        return inside and os.stat(link).st_dev == device
    except OSError:
        return False


def _name(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "?"
