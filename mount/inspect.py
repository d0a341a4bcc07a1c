"""Looking at mounts from outside: what a daemon says of itself, and who holds a mount.

Nothing here can hang on a stuck server for longer than its timeout: a child asks the mount. No
signal but SIGKILL ends such a wait, and that not where the server has taken the request.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ckptfs import format as fmt
from ckptfs import osfs
from ckptfs.errors import CannotServe, NotMounted
from ckptfs.mount import writers
from ckptfs.mount.kernel import beneath, mounting
from ckptfs.mount.kernel.mounting import FS_TYPE, mounted_type

_TIMEOUT_S = 5.0
_POLL_S = 0.02
_NAMED = 5  # in one message


@dataclass(frozen=True)
class Holder:
    pid: int
    name: str
    how: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}, {self.how})"


def _asked(question: Callable[[], Any]) -> Any:
    """What ``question`` gives, which JSON can carry; asked by a child that is left behind if it
    gets no answer. Raises what it raises of OSError, and TimeoutError."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException), os.fdopen(writer, "w") as pipe:
            try:
                json.dump([question(), 0, ""], pipe)
            except OSError as error:
                json.dump([None, error.errno, error.strerror], pipe)
        os._exit(0)
    os.close(writer)
    answer, deadline = b"", time.monotonic() + _TIMEOUT_S
    try:
        while select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
            more = os.read(reader, 1 << 16)
            if not more:
                break
            answer += more
        else:
            raise TimeoutError("the mount does not answer")
        value, code, told = json.loads(answer or b'[null, 5, "no answer"]')
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0 if answer else os.WNOHANG)
    if code:
        raise OSError(code, told)
    return value


def is_mounted(path: str) -> bool:
    return mounted_type(path) == FS_TYPE


def is_dead(path: str) -> bool:
    """A ckptfs mount whose server is gone (ENOTCONN). One that is left of a killed server, and
    would keep its programs waiting, is brought to that."""
    if not is_mounted(path):
        return False
    try:
        _asked(lambda: os.statvfs(path)[0])  # always asks the server, which stat does not
    except TimeoutError:
        return _aborted(path)
    except OSError:
        return True
    return False


def _aborted(mountpoint: str) -> bool:
    """Whether its daemon was killed, but its connection lives on: then that is ended. The kernel
    keeps a thread that was notifying it until a program lets go of a directory, and the program
    waits for the daemon. Needs root."""
    if os.geteuid() != 0:
        return False
    with contextlib.suppress(CannotServe):
        root = beneath.covered(mountpoint)
        try:
            lock = f"/proc/self/fd/{root}/{fmt.CONTROL}/{fmt.LOCK}"
            if _is_held(lock) and not writers.is_zombie((_read_json(lock) or {}).get("pid")):
                return False  # it is slow or stopped, or lives in another pid namespace
            mounting.abort(mountpoint)
            deadline = time.monotonic() + _TIMEOUT_S
            while _is_held(lock) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
            return True
        finally:
            os.close(root)
    return False


def _is_held(lock: str) -> bool:
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True  # nothing is known
    try:
        return not osfs.try_lock(fd)
    finally:
        os.close(fd)


def status_of(directory: str) -> dict[str, Any] | None:
    """What the daemon that serves ``directory``, or mounted on it, says of itself.

    None if there is none. Raises TimeoutError when it does not answer.
    """
    if is_mounted(directory):
        return _status_at(directory)
    owner = _read_json(f"{directory}/{fmt.CONTROL}/{fmt.LOCK}") or {}
    mountpoint = owner.get("mountpoint")
    if mountpoint and mountpoint != directory and is_mounted(mountpoint):
        return _status_at(mountpoint)
    return None


def _status_at(mountpoint: str) -> dict[str, Any] | None:
    found = _asked(lambda: _read_json(f"{mountpoint}/{fmt.CONTROL}/status.json"))
    return found if isinstance(found, dict) else None


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
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def holders(path: str) -> list[Holder]:
    """Processes that work in what ``path`` stands for now: the mount, or what lies below it."""
    device = _asked(lambda: os.stat(path).st_dev)
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


def named(threads: list[int]) -> list[str]:
    """The first of these processes, as messages name them."""
    pids = sorted({pid for pid in map(writers.thread_group, threads) if pid})
    more = [f"{len(pids) - _NAMED} more"] if len(pids) > _NAMED else []
    return [f"{_name(str(pid))} (pid {pid})" for pid in pids[:_NAMED]] + more


def _name(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "?"
