"""Who keeps a mount: processes that work in it, and other places that it is mounted at.

No process that is asked about is waited for, nor is the mount's server: all is read from ``/proc``,
by a child where that could take long.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from ..processes import mounts, proc, writers
from ..processes.mounts import MountEntry
from . import inspect

_NAMED = 5  # in one message


@dataclass(frozen=True)
class Holder:
    pid: int
    name: str
    how: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}, {self.how})"


def holders(path: str) -> list[Holder]:
    """Processes that work in what ``path`` stands for now: the mount, or what lies below it.
    Raises TimeoutError."""
    ours = os.getpid()
    found = inspect.asked(lambda: list(_holders(path)))
    return [Holder(*fields) for fields in found if fields[0] != ours]


def _holders(path: str) -> Iterator[tuple[int, str, str]]:
    device = _device_of(path, "self")
    for pid in _processes():
        how = _how_held(pid, path, device)
        if how is not None:
            yield int(pid), _name(pid), how


def _processes(*ours: int) -> list[str]:
    """The others, oldest number first."""
    ours = *ours, os.getpid()
    return sorted((p for p in os.listdir("/proc") if p.isdigit() and int(p) not in ours), key=int)


def _how_held(pid: str, path: str, device: str) -> str | None:
    for link, how in (("cwd", "working directory"), ("root", "root"), ("exe", "program")):
        if _points_into(pid, link, path, device):
            return how
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            if _points_into(pid, f"fd/{fd}", path, device):
                return f"open file {_inside(os.readlink(f'/proc/{pid}/fd/{fd}'), path)}"
    with contextlib.suppress(OSError):
        for file in _mapped(pid, path, device):
            return f"mapping of {_inside(file, path)}"
    return None


def _is_inside(target: str, path: str) -> bool:
    return target == path or target.startswith(path.rstrip("/") + "/")


def _inside(target: str, path: str) -> str:
    return target[len(path) :].lstrip("/") or "."


def _points_into(pid: str, link: str, path: str, device: str) -> bool:
    """By path first, then by the mount that it lies in: a stat would ask the server."""
    link = f"/proc/{pid}/{link}"
    try:
        return _is_inside(os.readlink(link), path) and device == _device_of(link, pid) != ""
    except OSError:
        return False


def _device_of(path: str, pid: str) -> str:
    """Of the filesystem that ``path`` leads into, which the process has in its mount table; empty
    where it has not. Raises OSError."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        number = mounts.id_of(fd)
    finally:
        os.close(fd)
    return next((mount.device for mount in mounts.mounts(pid) if mount.id == number), "")


def _mapped(pid: str, path: str, device: str) -> Iterator[str]:
    for line in proc.lines(f"/proc/{pid}/maps"):
        fields = line.split(None, 5)  # range mode offset device inode path
        if len(fields) == 6:
            file = os.fsdecode(fields[5].replace(b"\\012", b"\n"))  # nothing else is escaped
            major, minor = (int(number, 16) for number in fields[3].split(b":"))
            if _is_inside(file, path) and f"{major}:{minor}" == device:
                yield file


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


# --- other mounts of it --------------------------------------------------------------------------


def elsewhere(here: MountEntry) -> list[str]:
    """What keeps the filesystem alive when this mount is taken away: the other places it is mounted
    at, in this mount namespace and in those of other processes, but for the
    copies that go with it because the kernel passes the change on. Raises TimeoutError."""
    ours = os.getpid()  # not the child's that asks
    return list(map(str, inspect.asked(lambda: _elsewhere(here, ours))))


def _elsewhere(here: MountEntry, ours: int) -> list[str]:
    table = mounts.mounts()
    passed_on = next((each.peers for each in table if each.id == here.parent), "")
    found = [f"a mount at {each.point}" for each in _kept(table, here, passed_on)]
    seen = {_namespace("self")}
    for pid in _processes(ours):
        with contextlib.suppress(OSError):
            namespace = _namespace(pid)
            if namespace not in seen:
                seen.add(namespace)
                if _kept(mounts.mounts(pid), here, passed_on):
                    found.append(str(Holder(int(pid), _name(pid), "mount namespace")))
    return found


def _namespace(pid: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/mnt")


def _kept(table: list[MountEntry], here: MountEntry, passed_on: str) -> list[MountEntry]:
    groups = {each.id: each.groups for each in table}
    return [
        each
        for each in table
        if each.device == here.device
        and each.id != here.id
        and not (passed_on and passed_on in groups.get(each.parent, ()))
    ]
