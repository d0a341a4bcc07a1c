"""A filesystem in memory that can lose power.

Every change is *pending* until something makes it durable: fsync of a file its bytes, size, times
and xattrs; fsync of a directory its xattrs, and the names made in it and removed from it. The two
names of a directory that is renamed persist together, for it cannot have both. ``clean`` and
``start_writeback`` make nothing durable. A crash keeps what is durable and any subset of what is
pending, because filesystems promise no order between

- the bytes of each write: lost bytes below a size that was kept read as zeros (XFS, ext4),
- size, mtime, mode and owner of a file, together, as they were after one of its changes,
- each xattr, with any of the values it was given,
- each name, bound to any of the files it stood for. So the name that a rename makes and the one it
  takes away persist independently; ``keeps_renamed`` leaves out the states where only the removal
  did, which ext4, XFS and btrfs rule out, for steps that no order of calls can protect.

``crash_states`` lists every such state, each a filesystem again, on which recovery runs for real.
The clock counts calls, so mtime moves with each write. Not thread-safe.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import stat
from collections.abc import Hashable, Iterator
from dataclasses import replace

from ckptfs.disk.filesystem import Extent, Status
from ckptfs.disk.space import Space

from .crashstates import (
    BytesChange,
    Change,
    CrashStates,
    CutChange,
    Inode,
    InodeChange,
    NameChange,
    Node,
    Pending,
    XattrChange,
)

_FIRST_FD = 1 << 20  # no descriptor of the process: one that strays is refused
_TICK_NS = 1000
_DEVICE = 77


class CrashFs:
    """A :class:`ckptfs.disk.filesystem.FileSystem`. ``root`` is a descriptor of its root."""

    def __init__(self, *, shares_blocks: bool = False) -> None:
        self.shares_blocks = shares_blocks  # XFS and btrfs; ext4 does not
        self.live: dict[int, Node] = {1: Node(Inode(stat.S_IFDIR | 0o755))}
        self.durable: dict[int, Node] = {1: self.live[1].copy()}
        self.pending: list[Pending] = []
        self.clock_ns = 0
        self._fds: dict[int, int] = {}
        self._next_node, self._sequence = 2, 0
        self.root = self._new_fd(1)

    # --- crashing ------------------------------------------------------------------------------

    def snapshot(self) -> CrashFs:
        """A copy with nothing open, for ``crash_states`` later."""
        copy = CrashFs(shares_blocks=self.shares_blocks)
        copy.live = {number: node.copy() for number, node in self.live.items()}
        copy.durable = {number: node.copy() for number, node in self.durable.items()}
        copy.pending = list(self.pending)
        copy.clock_ns, copy._next_node = self.clock_ns, self._next_node
        copy._sequence = self._sequence
        return copy

    def crash_states(self, keeps_renamed: bool = False) -> CrashStates[CrashFs]:
        return CrashStates(self.pending, self.after_crash, keeps_renamed)

    def after_crash(self, survived: list[Pending]) -> CrashFs:
        """The filesystem with what is durable and ``survived``; nothing is pending in it."""
        state = CrashFs(shares_blocks=self.shares_blocks)
        nodes = {number: node.copy() for number, node in self.durable.items()}
        for each in survived:
            each.change.apply(nodes[each.change.node])
        reachable = _reachable(nodes)
        for number in reachable:
            nodes[number].fit()
        state.durable = {number: nodes[number] for number in reachable}
        state.live = {number: nodes[number].copy() for number in reachable}
        state.clock_ns, state._next_node = self.clock_ns, self._next_node
        return state

    def identity(self) -> Hashable:
        """Equal for states that no program could tell apart."""
        return tuple(
            (
                number,
                node.inode,
                bytes(node.data),
                tuple(sorted(node.xattrs.items())),
                tuple(sorted(node.entries.items())),
            )
            for number, node in sorted(self.live.items())
        )

    def rot(self, path: str, offset: int = 0) -> None:
        """Flip a bit of the file, on the disk and in the cache, behind everybody's back."""
        number = 1
        for name in path.split("/"):
            number = self.live[number].entries[name]
        self.live[number].data[offset] ^= 1
        self.durable[number].data[offset] ^= 1

    def _change(self, change: Change, only_after: int | None = None, together: bool = False) -> int:
        self._sequence += 1
        self.pending.append(Pending(change, only_after, self._sequence, together))
        change.apply(self.live[change.node])
        self.live[change.node].ctime_ns = self.now_ns()
        return self._sequence

    def _settle(self, number: int | None, names: bool) -> None:
        """Make the names in a directory, or all else of a file, durable; all for None."""
        left = []
        settled: set[int] = set()
        chosen = self._chosen(number, names)
        for each in self.pending:
            change = each.change
            if each.sequence in chosen:
                change.apply(self.durable[change.node])
                settled.add(change.node)
            else:
                left.append(each)
        self.pending = left
        for settled_number in settled:
            self.durable[settled_number].fit()

    def _chosen(self, number: int | None, names: bool) -> set[int]:
        """With the other half of what persists together."""
        of = [p for p in self.pending if number in (None, p.change.node)]
        chosen = {
            p.sequence for p in of if number is None or isinstance(p.change, NameChange) == names
        }
        pairs = [{p.sequence, p.only_after or 0} for p in self.pending if p.together]
        return chosen.union(*(pair for pair in pairs if pair & chosen))

    # --- descriptors -----------------------------------------------------------------------------

    def _new_fd(self, number: int) -> int:
        fd = next(fd for fd in itertools.count(_FIRST_FD) if fd not in self._fds)
        self._fds[fd] = number
        return fd

    def open_fds(self) -> int:
        return len(self._fds)

    def _number(self, fd: int) -> int:
        if fd not in self._fds:
            raise _error(errno.EBADF, str(fd))
        return self._fds[fd]

    def _node(self, fd: int) -> Node:
        return self.live[self._number(fd)]

    def _entry(self, at: int, name: str) -> int:
        entries = self._directory(at).entries
        if name not in entries:
            raise _error(errno.ENOENT, name)
        return entries[name]

    def _directory(self, at: int) -> Node:
        node = self._node(at)
        if not stat.S_ISDIR(node.inode.mode):
            raise _error(errno.ENOTDIR, str(at))
        return node

    def _absent(self, at: int, name: str) -> None:
        if name in self._directory(at).entries:
            raise _error(errno.EEXIST, name)

    def _make(self, at: int, name: str, mode: int) -> int:
        self._absent(at, name)
        number, self._next_node = self._next_node, self._next_node + 1
        new = Node(Inode(mode, mtime_ns=self.now_ns()))
        self.live[number], self.durable[number] = new, new.copy()
        self._change(NameChange(self._number(at), name, number))
        return number

    def open(self, at: int, name: str, flags: int, mode: int = 0o600) -> int:
        if name == ".":
            return self._new_fd(self._number(at))
        if flags & os.O_CREAT and (flags & os.O_EXCL or name not in self._directory(at).entries):
            return self._new_fd(self._make(at, name, stat.S_IFREG | mode))
        number = self._entry(at, name)
        is_directory = stat.S_ISDIR(self.live[number].inode.mode)
        if flags & os.O_DIRECTORY and not is_directory:
            raise _error(errno.ENOTDIR, name)
        if flags & (os.O_WRONLY | os.O_RDWR) and is_directory:
            raise _error(errno.EISDIR, name)
        fd = self._new_fd(number)
        if flags & os.O_TRUNC:
            self.truncate(fd, 0)
        return fd

    def open_direct(self, at: int, name: str) -> int:
        return self.open(at, name, os.O_RDONLY)

    def close(self, fd: int) -> None:
        self._number(fd)
        del self._fds[fd]

    def stat(self, fd: int) -> Status:
        return self._status(self._number(fd))

    def lstat(self, at: int, name: str) -> Status:
        return self._status(self._entry(at, name))

    def _status(self, number: int) -> Status:
        node = self.live[number]
        inode = node.inode
        links = sum(list(each.entries.values()).count(number) for each in self.live.values())
        fields = (inode.mode, number, _DEVICE, links, inode.uid, inode.gid, inode.size, 0, 0, 0)
        more = {"st_mtime_ns": inode.mtime_ns, "st_ctime_ns": node.ctime_ns}
        return os.stat_result(fields, {**more, "st_blocks": -(-inode.size // 512)})

    def listdir(self, fd: int) -> list[str]:
        return list(self._directory(fd).entries)

    # --- bytes -----------------------------------------------------------------------------------

    def read(self, fd: int, size: int, offset: int) -> bytes:
        return bytes(self._node(fd).data[offset : offset + size])

    def readinto(self, fd: int, buffer: bytearray | memoryview | mmap.mmap, offset: int) -> int:
        data = self.read(fd, len(buffer), offset)
        buffer[: len(data)] = data
        return len(data)

    def next_data(self, fd: int, offset: int) -> int:
        return offset

    def next_hole(self, fd: int, offset: int) -> int:
        return self.stat(fd).st_size

    def write(self, fd: int, data: bytes, offset: int) -> int:
        number, data = self._number(fd), bytes(data)
        inode = self.live[number].inode
        self._change(BytesChange(number, offset, data))
        self._set(number, size=max(inode.size, offset + len(data)), mtime_ns=self.now_ns())
        return len(data)

    def truncate(self, fd: int, size: int) -> None:
        number = self._number(fd)
        self._change(CutChange(number, size))
        self._set(number, size=size, mtime_ns=self.now_ns())

    def clone(self, source: int, target: int) -> None:
        if not self.shares_blocks:
            raise _error(errno.EOPNOTSUPP, "no clones")
        self.write(target, self.read(source, self.stat(source).st_size, 0), 0)

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        self.write(target, self.read(source, end - start, start), start)

    def dedupe(self, source: int, target: int, start: int, end: int) -> int:
        raise _error(errno.EOPNOTSUPP, "no deduplication")

    def extents(self, fd: int) -> Iterator[Extent]:
        raise _error(errno.EOPNOTSUPP, "no extents")

    def exclusive_bytes(self, fd: int) -> int:
        return len(self._node(fd).data)

    def space(self, fd: int) -> Space:
        return Space(0, 0)  # it has room

    def pins_extents(self, fd: int) -> bool:
        return False

    def drop_cache(self, fd: int, start: int, end: int) -> None:
        pass

    def copy_times(self, source: int, target: int) -> None:
        self._set(self._number(target), mtime_ns=self._node(source).inode.mtime_ns)

    def redirect(self, fd: int, to: int) -> None:
        self._fds[fd] = self._number(to)

    def _set(self, number: int, **fields: int) -> None:
        self._change(InodeChange(number, replace(self.live[number].inode, **fields)))
        self.live[number].fit()

    def start_writeback(self, fd: int, offset: int, size: int) -> None:
        self._number(fd)

    def clean(self, fd: int, offset: int, size: int) -> None:
        self._number(fd)

    def fsync(self, fd: int) -> None:
        self._settle(self._number(fd), names=False)

    def fsync_dir(self, fd: int) -> None:
        self._directory(fd)
        self._settle(self._number(fd), names=True)
        self._settle(self._number(fd), names=False)

    def sync_all(self, fd: int) -> None:
        self._settle(None, names=True)

    # --- names -----------------------------------------------------------------------------------

    def rename(self, at: int, name: str, to: int, target: str) -> None:
        number = self._entry(at, name)
        there = self._directory(to).entries.get(target)
        if there == number:
            return
        moves = stat.S_ISDIR(self.live[number].inode.mode)
        if there is not None:
            self._require_replaceable(self.live[there], moves, target)
        added = self._change(NameChange(self._number(to), target, number))
        self._change(NameChange(self._number(at), name, None), added, together=moves)
        self.live[number].ctime_ns = self.now_ns()

    def _require_replaceable(self, there: Node, by_directory: bool, target: str) -> None:
        is_directory = stat.S_ISDIR(there.inode.mode)
        if is_directory and not by_directory:
            raise _error(errno.EISDIR, target)
        if by_directory and not is_directory:
            raise _error(errno.ENOTDIR, target)
        if is_directory and there.entries:
            raise _error(errno.ENOTEMPTY, target)

    def exchange(self, at: int, name: str, to: int, target: str) -> None:
        numbers = self._entry(at, name), self._entry(to, target)
        self._change(NameChange(self._number(to), target, numbers[0]))
        self._change(NameChange(self._number(at), name, numbers[1]))
        for number in numbers:
            self.live[number].ctime_ns = self.now_ns()

    def link(self, at: int, name: str, to: int, target: str) -> None:
        number = self._entry(at, name)
        self._absent(to, target)
        self._change(NameChange(self._number(to), target, number))
        self.live[number].ctime_ns = self.now_ns()

    def unlink(self, at: int, name: str) -> None:
        number = self._entry(at, name)
        if stat.S_ISDIR(self.live[number].inode.mode):
            raise _error(errno.EISDIR, name)
        self._change(NameChange(self._number(at), name, None))
        self.live[number].ctime_ns = self.now_ns()

    def mkdir(self, at: int, name: str, mode: int) -> None:
        self._make(at, name, stat.S_IFDIR | mode)

    def rmdir(self, at: int, name: str) -> None:
        if self.live[self._entry(at, name)].entries:
            raise _error(errno.ENOTEMPTY, name)
        self._change(NameChange(self._number(at), name, None))

    # --- metadata --------------------------------------------------------------------------------

    def getxattr(self, fd: int, key: str) -> bytes | None:
        return self._node(fd).xattrs.get(key)

    def setxattr(self, fd: int, key: str, value: bytes) -> None:
        self._change(XattrChange(self._number(fd), key, bytes(value)))

    def removexattr(self, fd: int, key: str) -> None:
        if key in self._node(fd).xattrs:
            self._change(XattrChange(self._number(fd), key, None))

    def copy_metadata(self, source: int, target: int, skip: str) -> None:
        old, number = self._node(source), self._number(target)
        new = self.live[number].inode
        if (old.inode.mode, old.inode.uid, old.inode.gid) != (new.mode, new.uid, new.gid):
            self._set(number, mode=old.inode.mode, uid=old.inode.uid, gid=old.inode.gid)
        for key, value in old.xattrs.items():
            if key != skip:
                self.setxattr(target, key, value)

    def step(self, name: str) -> None:
        pass

    def now_ns(self) -> int:
        self.clock_ns += _TICK_NS
        return self.clock_ns


def _error(code: int, what: str) -> OSError:
    return OSError(code, os.strerror(code), what)


def _reachable(nodes: dict[int, Node]) -> list[int]:
    found, ahead = [], [1]
    while ahead:
        number = ahead.pop()
        if number not in found:
            found.append(number)
            ahead.extend(nodes[number].entries.values())
    return found
