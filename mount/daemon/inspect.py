"""Looking at mounts from outside: what a daemon says of itself, and who holds a mount.

Nothing here can hang on a stuck server for longer than its timeout: a child asks the mount. No
signal but SIGKILL ends such a wait, and that not where the server has taken the request.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from ckptfs.disk import osfs
from ckptfs.disk.real import OsFs
from ckptfs.errors import CannotServe, NotMounted
from ckptfs.records import format as fmt
from ckptfs.records import parts

from ..kernel import beneath, mounting
from ..processes import mounts, proc, writers
from ..processes.mounts import FS_TYPE, mounted_type

_TIMEOUT_S = 5.0
# The last is said of a daemon that ended before it had begun. Other errors are answers.
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNREFUSED)
_POLL_S = 0.02
_LOOK_S, _LOOKS = 0.002, 50


def asked(question: Callable[[], Any], timeout_s: float = _TIMEOUT_S) -> Any:
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
    answer, deadline = b"", time.monotonic() + timeout_s
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
        _leave_behind(child)
    if code:
        raise OSError(code, told)
    return value


def _leave_behind(child: int) -> None:
    """End it and, if that is done at once, reap it. What waits for a stuck server outlives its
    SIGKILL, and nobody may wait for that."""
    os.kill(child, signal.SIGKILL)
    for _ in range(_LOOKS):
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(_LOOK_S)


def mountpoints() -> list[str]:
    """Of all mounts of ckptfs in this mount namespace."""
    return sorted({each.point for each in mounts.mounts() if each.type == FS_TYPE})


def is_mounted(path: str) -> bool:
    return mounted_type(path) == FS_TYPE


def is_dead(path: str) -> bool:
    """A ckptfs mount whose server is gone (ENOTCONN). One that is left of a killed server, and
    would keep its programs waiting, is brought to that."""
    try:
        return is_mounted(path) and not responds(path)
    except TimeoutError:
        return False


def responds(mountpoint: str, timeout_s: float = _TIMEOUT_S) -> bool:
    """Whether a mount's server answers; False as in :func:`is_dead`. Raises TimeoutError for one
    that is slow or stopped."""
    try:
        asked(lambda: os.statvfs(mountpoint)[0], timeout_s)  # asks the server, which stat need not
    except TimeoutError:
        if _aborted(mountpoint):
            return False
        raise
    except OSError as error:
        return error.errno not in _DEAD
    return True


def _aborted(mountpoint: str) -> bool:
    """Whether its daemon was killed, but its connection lives on: then that is ended. The kernel
    keeps a thread that was notifying it until a program lets go of a directory, and the program
    waits for the daemon. Needs root."""
    if os.geteuid() != 0:
        return False
    with contextlib.suppress(CannotServe):
        root = beneath.covered(mountpoint)
        try:
            served = f"/proc/self/fd/{root}"
            if _is_held(served) and not writers.is_zombie(_owner(served).get("pid")):
                return False  # it is slow or stopped, or lives in another pid namespace
            mounting.abort(mountpoint)
            deadline = time.monotonic() + _TIMEOUT_S
            while _is_held(served) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
            return True
        finally:
            os.close(root)
    return False


@contextlib.contextmanager
def _lock_of(directory: str) -> Iterator[int]:
    """The lock file of a directory, to read. Raises OSError, also for what is none: nobody waits
    for a FIFO that has taken its place, and no link is followed out of the directory."""
    fs, root = OsFs(), osfs.open_directory(directory)
    try:
        with osfs.opened(fs, root, fmt.CONTROL, osfs.DIRECTORY) as control:
            if not osfs.is_regular(fs.lstat(control, fmt.LOCK)):
                raise OSError(errno.EINVAL, "not a regular file")
            with osfs.opened(fs, control, fmt.LOCK, osfs.O_RDONLY) as lock:
                yield lock
    finally:
        os.close(root)


def _owner(directory: str) -> dict[str, Any]:
    """What the daemon that has, or had, the lock of a directory wrote there: ``pid`` and
    ``mountpoint``, each only if it is of its type."""
    try:
        with _lock_of(directory) as lock:
            told = parts.parse(os.pread(lock, parts.SMALL_BYTES, 0))
    except OSError:
        return {}
    kinds = {"pid": int, "mountpoint": str}
    return {key: told[key] for key, kind in kinds.items() if type(told.get(key)) is kind}


def _is_held(directory: str) -> bool:
    try:
        with _lock_of(directory) as lock:
            return not osfs.try_lock(lock)
    except OSError:
        return True  # nothing is known


def status_of(directory: str, timeout_s: float = _TIMEOUT_S) -> dict[str, Any] | None:
    """What the daemon that serves ``directory``, or mounted on it, says of itself.

    None if there is none. Raises TimeoutError when it does not answer.
    """
    if is_mounted(directory):
        return _status_at(directory, timeout_s)
    mountpoint = _owner(directory).get("mountpoint")
    if mountpoint and mountpoint != directory and is_mounted(mountpoint):
        found = _status_at(mountpoint, timeout_s)
        if found is not None and _is_root(found, directory):  # the lock may be of another time
            return found
    return None


def _is_root(status: dict[str, Any], directory: str) -> bool:
    """Whether this is the directory that the daemon serves, not a copy with its lock file."""
    here = os.stat(directory)
    return bool([here.st_dev, here.st_ino] == status["root_id"])


def _status_at(mountpoint: str, timeout_s: float) -> dict[str, Any] | None:
    found = asked(lambda: status_unguarded(mountpoint), timeout_s)
    return found if isinstance(found, dict) else None


def status_unguarded(mountpoint: str) -> dict[str, Any] | None:
    """As the daemon of that mount shows it; waits for it however long that takes."""
    return _read_json(f"{mountpoint}/{fmt.CONTROL}/status.json")


def mountpoint_of(directory: str, timeout_s: float = _TIMEOUT_S) -> str | None:
    """Where ``directory`` is served, or it itself if it is a mount of ours. None where neither."""
    if is_mounted(directory):
        return directory
    with contextlib.suppress(TimeoutError):
        found = status_of(directory, timeout_s)
        return str(found["mountpoint"]) if found else None
    told = _owner(directory).get("mountpoint")
    return told if _serving_elsewhere(directory) is not None else None


def silent(path: str, error: TimeoutError) -> CannotServe:
    """The mount at ``path`` does not answer, and what to do."""
    return CannotServe(f"{path}: {error}; {how_to_end(path)}")


def how_to_end(path: str) -> str:
    return f"see its log, or `ckptfs umount --force {path}`"


def covered(path: str) -> str:
    """What to tell of a mount at ``path`` that another is mounted over; empty where none is."""
    top = mounted_type(path)
    if top in (None, FS_TYPE):
        return ""
    if not any(each.type == FS_TYPE and each.point == path for each in mounts.mounts()):
        return ""
    return f"{path}: another mount ({top}) covers it; end that first"


def not_mounted(path: str) -> NotMounted:
    """Why there is no mount to be seen at ``path``."""
    if mounted_type(path) == FS_TYPE:
        return NotMounted(
            f"{path}: its daemon is gone, and the mount is left dead; `ckptfs mount {path}` serves "
            f"it again, `ckptfs umount {path}` takes it away"
        )
    if told := covered(path):
        return NotMounted(told)
    pid = _serving_elsewhere(path)
    if pid is None:
        return NotMounted(f"{path}: not mounted; serve it with `ckptfs mount {path}`")
    others = _others_in_its_namespace(pid)
    ends = f"`kill {pid}` ends it" + (", and the command of a `ckptfs run`" if others else "")
    return NotMounted(
        f"{path}: served by process {pid} in a mount namespace of its own (`ckptfs run`, or a "
        "container); here it is not mounted, and shows the committed files; "
        + (ends if others else f"no other process is left in that namespace, {ends}")
    )


def _others_in_its_namespace(pid: int) -> bool:
    """Whether a process that can be seen is in the mount namespace of a daemon. In ours there is
    the caller: the mount is then in that of the daemon's command (``run.py``)."""
    with contextlib.suppress(OSError):
        namespace = os.readlink(f"/proc/{pid}/ns/mnt")
        for other in os.listdir("/proc"):
            if other.isdigit() and int(other) != pid:
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{other}/ns/mnt") == namespace:
                        return True
        return False
    return True  # nothing is known


def _serving_elsewhere(directory: str) -> int | None:
    """The process that holds the lock of a directory, by the kernel's table: taking the lock to
    see whether it is free could turn away a daemon that starts at this moment."""
    owner = _owner(directory).get("pid")
    with contextlib.suppress(OSError), _lock_of(directory) as lock:
        if owner is not None and (owner, os.fstat(lock).st_ino) in locks():
            return int(owner)
    return None


def locks() -> set[tuple[int, int]]:
    """Who holds a flock(2): processes, and the inode numbers of what they have locked."""
    found = set()
    with contextlib.suppress(OSError), open("/proc/locks", encoding="ascii") as table:
        for line in table:
            fields = line.split()  # 1: FLOCK ADVISORY WRITE pid major:minor:inode start end
            if fields[1] == "FLOCK":
                found.add((int(fields[4]), int(fields[5].split(":")[-1])))
    return found


def below(status: dict[str, Any]) -> str:
    """The served directory itself, below its mount, by the daemon's own descriptor."""
    return f"/proc/{status['pid']}/fd/{status['root_fd']}"


def is_here(status: dict[str, Any]) -> bool:
    """Whether the daemon's process id and descriptor mean here what they mean to it: in another
    pid namespace they are somebody else's."""
    try:
        root = os.stat(below(status))
    except PermissionError:  # another user's: then what everybody may know of it
        return b"ckptfs" in (proc.read(f"/proc/{status['pid']}/cmdline") or b"")
    except OSError:
        return False
    return bool([root.st_dev, root.st_ino] == status["root_id"])


def wait_released(directory: str, timeout_s: float | None) -> bool:
    """Whether no daemon holds the lock of a directory any more, within that time (None: whatever
    it takes); for one that cannot be watched."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with contextlib.suppress(OSError), _lock_of(directory) as lock:
        while not osfs.try_lock(lock):
            if deadline is not None and time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
    return True


def _read_json(path: str) -> dict[str, Any] | None:
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
