"""Who is writing, and did it die? Answers from ``/proc``, for the process ids of FUSE headers.

The header carries a *thread* id. While a dying process's descriptors are flushed, its thread is
still in ``/proc`` and field 52 of its ``stat`` holds the exit code: killed means PF_EXITING and
``exit_code & 0x7f`` (9, 15, 11, 139 with a core). ``PF_SIGNALED`` proves nothing: a threaded
process that calls ``_exit(3)`` shows it too. A process id of 0, or a ``/proc`` of another pid
namespace, makes the writer unknown.

``stat`` is read of exiting processes only. A process in execve(2) flushes its close-on-exec
descriptors while it holds ``exec_update_lock``, and ``/proc/<pid>/stat`` waits for that lock: the
server would wait for the process that waits for the server, and only an abort of the connection
frees them (seen on Linux 6.18). ``status`` takes no such lock, and tells an exiting process by its
missing memory lines. Stateless but for one check of ``/proc``; any thread.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import os
import signal
from collections.abc import Collection, Iterator, Set

from . import proc
from .mappings import Snapshot, Unseen

_PF_EXITING = 0x4
_SIGNAL_MASK = 0x7F
_CRASHES = frozenset(
    {
        signal.SIGKILL,  # by the kernel, if memory is short
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGABRT,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGSYS,
    }
)
_MOST_RANKS = 1 << 20
_DEPTH = 64  # generations of ancestors that are looked at


class Fate(enum.Enum):
    ALIVE = "alive"
    EXITING = "exiting"  # by exit or _exit: its descriptors close as they would by close()
    KILLED = "killed"
    UNKNOWN = "unknown"


def own_pid() -> int:
    """The number under which ``/proc`` shows this process: in a pid namespace of its own that is
    not the one it knows itself by, but the one by which others find it."""
    try:
        return int(os.readlink("/proc/self"))
    except OSError:
        return os.getpid()


@functools.cache
def proc_is_ours() -> bool:
    """Whether ``/proc`` shows the pid namespace that this process lives in."""
    return os.path.exists("/proc/self") and own_pid() == os.getpid()


def _status(pid: int) -> bytes | None:
    return proc.read(f"/proc/{pid}/status") if pid > 0 and proc_is_ours() else None


def _number(status: bytes, key: bytes) -> int | None:
    at = status.find(b"\n" + key)
    return int(status[at + len(key) + 1 :].split(None, 1)[0]) if at >= 0 else None


def thread_group(pid: int) -> int | None:
    """The process that thread ``pid`` belongs to; None if unknown."""
    status = _status(pid)
    return None if status is None else _number(status, b"Tgid:")


def fate(pid: int) -> tuple[int | None, Fate]:
    """The process of the thread that sent a FLUSH, and what is happening to it, while that
    FLUSH is unanswered."""
    status = _status(pid)
    if status is None:
        return None, Fate.UNKNOWN
    process = _number(status, b"Tgid:")
    if b"\nVmSize:" in status:
        return process, Fate.ALIVE
    fields = _stat_fields(pid)
    if fields is None or not int(fields[6]) & _PF_EXITING:
        return process, Fate.ALIVE
    if int(fields[49]) & _SIGNAL_MASK:
        return process, Fate.KILLED
    return (process, Fate.EXITING) if _shows_exit_code(pid) else (None, Fate.UNKNOWN)


def exit_status(pid: int) -> int | None:
    """That of a process which nobody has waited for yet, as wait(2) will tell it."""
    fields = _stat_fields(pid)
    if fields is None or fields[0] != b"Z" or not _shows_exit_code(pid):
        return None
    return int(fields[49])


def world_size(pid: int) -> int | None:
    """How many ranks the job of this process has, as torchrun and its kin tell each."""
    environment = b"\0" + (proc.read(f"/proc/{pid}/environ") or b"")
    told = environment.partition(b"\0WORLD_SIZE=")[2].partition(b"\0")[0]
    return int(told) if told.isdigit() and 0 < int(told) < _MOST_RANKS else None


def crashed(pid: int) -> bool:
    """Whether the dying process ends by a crash. Not one that its parent ends (SIGTERM): so a pool
    lets its workers go when they are done."""
    fields = _stat_fields(pid)
    return fields is not None and int(fields[49]) & _SIGNAL_MASK in _CRASHES


def has_written(pid: int) -> bool:
    """Whether the process has itself written to files since it was forked; pipes do not count."""
    counts = proc.read(f"/proc/{pid}/io")
    return counts is not None and bool(_number(b"\n" + counts, b"write_bytes:"))


def _shows_exit_code(pid: int) -> bool:
    """The kernel writes 0 for it to those who may not trace the process: a daemon without rights
    sees its own user's processes only. This link asks for the same right."""
    try:
        os.readlink(f"/proc/{pid}/ns/user")
    except PermissionError:
        return False
    except OSError:
        pass
    return True


def _stat_fields(pid: int) -> list[bytes] | None:
    """Fields 3 and on of ``/proc/<pid>/stat``; the name before them may hold anything."""
    stat = proc.read(f"/proc/{pid}/stat")
    return None if stat is None else stat[stat.rindex(b")") + 2 :].split()


def descends_from(process: int | None, ancestors: Set[int]) -> bool:
    """Whether ``process`` is one of ``ancestors`` or descends from one."""
    for _ in range(_DEPTH):
        if process is None or process in ancestors or process <= 1:
            return process in ancestors
        status = _status(process)
        process = _number(status, b"PPid:") if status else None
    return False


def are_related(one: int | None, other: int | None) -> bool:
    """Whether both are one process, or one descends from the other."""
    if one is None or other is None:
        return False
    return descends_from(one, {other}) or descends_from(other, {one})


def map_for_writing(
    openers: Collection[int], inodes: Set[int], seen: Snapshot | None = None
) -> bool:
    """Whether one of the processes, or what descends from one, has a file of these inode numbers
    mapped, shared and writable; where one has ended, any process. Who cannot be looked at for now
    counts as if it had, and so does an opener that we may not look at."""
    seen = seen or Snapshot()
    with contextlib.suppress(CannotSee):
        if all(map(is_running, openers)):
            for process in descendants(openers):
                found = seen.of(process)
                if found is Unseen.DENIED:
                    if process in openers:
                        return True
                elif found is Unseen.BLOCKED or found & inodes:
                    return True
            if all(map(is_running, openers)):  # else a child may have got another parent meanwhile
                return False
    every = seen.everywhere()
    return every.blocked or bool(every.numbers & inodes or every.denied & set(openers))


class CannotSee(Exception):
    """The kernel does not tell of children (CONFIG_PROC_CHILDREN), or no descriptor is left."""


def descendants(openers: Collection[int]) -> Iterator[int]:
    """The processes, and what descends from them. Raises CannotSee where that is not known."""
    waiting = list(openers)
    while waiting:
        process = waiting.pop()
        yield process
        threads = f"/proc/{process}/task"
        for thread in listed(threads):
            children = proc.read(f"{threads}/{thread}/children")
            if children is None and is_running(process) and thread in listed(threads):
                raise CannotSee
            waiting += map(int, (children or b"").split())


def listed(folder: str) -> list[str]:
    """The entries of a directory of ``/proc``; none of what has ended. Raises CannotSee."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, ProcessLookupError):
        return []
    except OSError:
        raise CannotSee from None


def is_running(pid: int) -> bool:
    status = _status(pid)
    return status is not None and b"\nState:\tZ" not in status and b"\nState:\tX" not in status


def is_stopped(pid: int) -> bool:
    """By a signal or a debugger, until somebody lets it go on."""
    status = _status(pid) or b""
    return b"\nState:\tT" in status or b"\nState:\tt" in status


def is_zombie(pid: object) -> bool:
    """Whether the process has ended, but for what is left of its threads."""
    status = _status(pid) if isinstance(pid, int) else None
    return status is not None and b"\nState:\tZ" in status


def is_gone(pid: int) -> bool:
    """Whether thread ``pid`` is known to have ended; one that cannot be seen is not."""
    return pid > 0 and proc_is_ours() and not is_running(pid)
