"""A process that does what it is told in one directory, as its twin does in another.

Reads pickled ``(what, arguments, watched)`` from stdin, writes pickled answers. Run as a script;
imports nothing of ckptfs.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import pickle
import stat
import struct
import sys
from collections.abc import Callable
from typing import IO, Any

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_F_OFD_SETLK = 37
_SET_BY_HAND_NS = (1_500_000_000 * 10**9, 2_400_000_000 * 10**9)  # no clock shows these

_MAPPED_BYTES = 16384

_fds: dict[int, int] = {}
_maps: dict[int, int] = {}  # slot -> address
_libc.mmap.restype = ctypes.c_void_p


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


# --- what can be asked ---------------------------------------------------------------------------


def enter(directory: str, uid: int) -> None:
    """Work in another directory, as another user; every descriptor is closed first."""
    for slot in list(_maps):
        unmap(slot)
    for slot in list(_fds):
        close(slot)
    os.umask(0o022)
    os.seteuid(0)
    os.setegid(0)
    os.chdir(directory)
    os.setegid(uid)
    os.seteuid(uid)


def populate() -> None:
    """One of each, under the names that the operations are given."""
    for name in ("d", "e", "d/s"):
        os.mkdir(name)
    for name in ("f", "k.log", "d/f", "d/s/f", "m.txt"):
        with open(name, "w") as file:
            file.write(name)
    for name in ("g", "w.pt"):
        with open(name, "wb") as binary:
            binary.write(b"\0" + name.encode())
        os.setxattr(name, "user.a", b"first")
    os.setxattr("d", "user.a", b"first")
    os.symlink("d", "l")
    os.link("f", "d/g")
    os.mkfifo("h")


def fork(orders: str, answers: str) -> int:
    """A child that is told what to do through two FIFOs, and has nothing open."""
    pid = os.fork()
    if pid == 0:
        for slot in list(_maps):
            unmap(slot)
        for fd in _fds.values():
            os.close(fd)
        _fds.clear()
        os.close(0)
        os.closerange(3, 1000)
        with open(orders, "rb") as orders_in, open(answers, "wb") as answers_out:
            serve(orders_in, answers_out)
        os._exit(0)
    return pid


def make_equal(paths: list[str]) -> None:
    """One new file under all these names."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    with open(paths[0], "xb") as file:
        file.write(b"\0equal")
        os.fchmod(file.fileno(), 0o666)
    for path in paths[1:]:
        os.link(paths[0], path)


def umask(mask: int) -> int:
    return os.umask(mask)


def open_(slot: int, path: str, flags: int, mode: int) -> tuple[Any, ...]:
    fd = os.open(path, flags, mode)
    _fds[slot] = fd
    status = os.fstat(fd)
    kept = os.O_ACCMODE | os.O_APPEND | os.O_PATH | os.O_DIRECTORY
    return stat.S_IFMT(status.st_mode), fcntl.fcntl(fd, fcntl.F_GETFL) & kept


def close(slot: int) -> None:
    os.close(_fds.pop(slot))


def dup(slot: int, new: int) -> None:
    _fds[new] = os.dup(_fds[slot])


def reopen(slot: int, new: int, flags: int) -> None:
    """By its link below /proc."""
    _fds[new] = os.open(f"/proc/self/fd/{_fds[slot]}", flags)


def read(slot: int, size: int) -> bytes:
    return os.read(_fds[slot], size)


def pread(slot: int, size: int, offset: int) -> bytes:
    return os.pread(_fds[slot], size, offset)


def readv(slot: int, sizes: list[int]) -> tuple[int, bytes]:
    buffers = [bytearray(size) for size in sizes]
    return os.readv(_fds[slot], buffers), b"".join(buffers)


def write(slot: int, data: bytes) -> int:
    return os.write(_fds[slot], data)


def pwrite(slot: int, data: bytes, offset: int) -> int:
    return os.pwrite(_fds[slot], data, offset)


def writev(slot: int, parts: list[bytes]) -> int:
    return os.writev(_fds[slot], parts)


def direct(slot: int, block: int, data: bytes | None) -> bytes | int:
    """One aligned block, written or read."""
    with mmap.mmap(-1, 4096) as buffer:
        if data is None:
            count = os.preadv(_fds[slot], [buffer], block * 4096)
            return buffer[:count]
        buffer[:] = data * 4096
        return os.pwritev(_fds[slot], [buffer], block * 4096)


def lseek(slot: int, offset: int, whence: int) -> int:
    return os.lseek(_fds[slot], offset, whence)


def ftruncate(slot: int, size: int) -> None:
    os.ftruncate(_fds[slot], size)


def fallocate(slot: int, mode: int, offset: int, length: int) -> None:
    call = _libc.fallocate
    _check(call(_fds[slot], mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def copy_range(source: int, target: int, size: int, at: int, to: int) -> int:
    return os.copy_file_range(_fds[source], _fds[target], size, at, to)


def sync(slot: int, only_data: bool) -> None:
    (os.fdatasync if only_data else os.fsync)(_fds[slot])


def map_(slot: int, offset: int, data: bytes | None) -> bytes | None:
    """Store into, or read through, a mapping of the whole file."""
    access = mmap.PROT_READ | (mmap.PROT_WRITE if data else 0)
    with mmap.mmap(_fds[slot], 0, prot=access) as mapped:
        if data is None:
            return mapped[:]
        end = min(len(mapped), offset + len(data))
        mapped[min(offset, end) : end] = data[: end - min(offset, end)]
        mapped.flush()
    return None


def keep_map(slot: int, new: int, writable: bool) -> None:
    """A shared mapping that outlives its descriptor: Python's own would keep a duplicate."""
    access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    address = _libc.mmap(
        None, ctypes.c_size_t(_MAPPED_BYTES), access, mmap.MAP_SHARED, _fds[slot], ctypes.c_long(0)
    )
    if address == ctypes.c_void_p(-1).value:
        _check(-1)
    _maps[new] = address


def unmap(slot: int) -> None:
    _check(_libc.munmap(ctypes.c_void_p(_maps.pop(slot)), ctypes.c_size_t(_MAPPED_BYTES)))


def load(slot: int, offset: int, size: int) -> bytes:
    """By our own memory as a file: behind the end of the mapped one is EIO, not SIGBUS."""
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        return os.pread(memory.fileno(), size, _maps[slot] + offset)


def store(slot: int, offset: int, data: bytes) -> int:
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        return os.pwrite(memory.fileno(), data, _maps[slot] + offset)


def msync(slot: int) -> None:
    length = ctypes.c_size_t(_MAPPED_BYTES)
    _check(_libc.msync(ctypes.c_void_p(_maps[slot]), length, 4))


def fstat(slot: int) -> tuple[Any, ...]:
    return _seen(os.fstat(_fds[slot]))


def fchmod(slot: int, mode: int) -> None:
    os.fchmod(_fds[slot], mode)


def fchown(slot: int, uid: int, gid: int) -> None:
    os.fchown(_fds[slot], uid, gid)


def flock(slot: int, how: int) -> None:
    fcntl.flock(_fds[slot], how | fcntl.LOCK_NB)


def lockf(slot: int, how: int, start: int, length: int) -> None:
    fcntl.lockf(_fds[slot], how | fcntl.LOCK_NB, length, start)


def ofd(slot: int, how: int, start: int, length: int) -> None:
    """A lock of the open file description."""
    kind = {fcntl.LOCK_SH: fcntl.F_RDLCK, fcntl.LOCK_EX: fcntl.F_WRLCK}.get(how, fcntl.F_UNLCK)
    lock = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
    fcntl.fcntl(_fds[slot], _F_OFD_SETLK, lock)


def stat_(path: str, follow: bool) -> tuple[Any, ...]:
    return _seen(os.stat(path, follow_symlinks=follow))


def read_path(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(fd, 1 << 20)
    finally:
        os.close(fd)


def statfs(path: str) -> tuple[int, ...]:
    s = os.statvfs(path)
    return s.f_bsize, s.f_frsize, s.f_blocks, s.f_files, s.f_namemax


def listdir(path: str) -> list[tuple[str, bool, bool, bool]]:
    with os.scandir(path) as entries:
        return sorted(
            (
                e.name,
                e.is_dir(follow_symlinks=False),
                e.is_file(follow_symlinks=False),
                e.is_symlink(),
            )
            for e in entries
        )


def rename(old: str, new: str, flags: int) -> None:
    paths = os.fsencode(old), os.fsencode(new)
    _check(_libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], flags))


def link(old: str, new: str, follow: bool) -> None:
    os.link(old, new, follow_symlinks=follow)


def utimens(path: str, atime: int, mtime: int, follow: bool) -> None:
    """Seconds or, below 0, tv_nsec: -1 NOW, -2 OMIT."""
    special = {-1: (1 << 30) - 1, -2: (1 << 30) - 2}
    pairs = [(0, special[t]) if t < 0 else (t, 7) for t in (atime, mtime)]
    spec = (ctypes.c_long * 4)(*(word for pair in pairs for word in pair))
    flags = 0 if follow else 0x100
    _check(_libc.utimensat(_AT_FDCWD, os.fsencode(path), spec, flags))


def access(path: str, mode: int, effective: bool) -> bool:
    return os.access(path, mode, effective_ids=effective)


def setxattr(path: str, key: str, value: bytes, flags: int, follow: bool) -> None:
    os.setxattr(path, key, value, flags, follow_symlinks=follow)


def listxattr(path: str, follow: bool) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=follow))


def fsetxattr(slot: int, key: str, value: bytes) -> None:
    os.setxattr(_fds[slot], key, value)


def snapshot() -> dict[str, tuple[Any, ...]]:
    """Everything about every path; contents as a digest."""
    found: dict[str, tuple[Any, ...]] = {}
    for folder, folders, files in os.walk("."):
        folders.sort()  # what is read first moves the access time of the other links
        for name in sorted([*folders, *files]):
            path = f"{folder}/{name}"
            status = os.lstat(path)
            found[path] = (*_seen(status), _content(path, status), _xattrs(path))
    return found


def settle(wait: bool) -> None:
    """What a close left to its RELEASE is done on return."""
    for folder, _, _ in os.walk("."):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        if wait:
            os.fsync(fd)
        os.close(fd)


def _content(path: str, status: os.stat_result) -> str:
    try:
        if stat.S_ISLNK(status.st_mode):
            return os.readlink(path)
        if stat.S_ISREG(status.st_mode):
            with open(path, "rb") as file:
                return hashlib.md5(file.read()).hexdigest()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def _xattrs(path: str) -> list[tuple[str, bytes]]:
    try:
        keys = sorted(os.listxattr(path, follow_symlinks=False))
        return [(key, os.getxattr(path, key, follow_symlinks=False)) for key in keys]
    except OSError as error:
        return [(errno.errorcode[error.errno or 0], b"")]


def expanded(argument: Any) -> Any:
    """``*N`` stands for N characters, a path of short names if that is too long for one."""
    if not isinstance(argument, str) or "*" not in argument:
        return argument
    head, _, count = argument.partition("*")
    length = int(count)
    return head + ("d/" * (length // 2) if length > 1000 else "n" * length)


# --- answers -------------------------------------------------------------------------------------


def _by_hand(ns: int) -> int:
    return ns if any(abs(ns - t) < 10**9 for t in _SET_BY_HAND_NS) else 0


def _seen(status: os.stat_result) -> tuple[Any, ...]:
    """Identity first, which is not compared; then what is the same on both sides at all times."""
    is_directory = stat.S_ISDIR(status.st_mode)
    timeless = is_directory or stat.S_ISFIFO(status.st_mode)  # see docs/design.md
    return (
        status.st_ino,
        status.st_mode,
        status.st_uid,
        status.st_gid,
        status.st_nlink,
        status.st_rdev,
        0 if is_directory else status.st_size,
        0 if timeless else _by_hand(status.st_mtime_ns),  # a commit moves its directory's
        0 if timeless else _by_hand(status.st_atime_ns),
    )


def _watch(what: str | int) -> tuple[Any, ...] | None:
    """Inode, mtime and ctime of a path (str) or a descriptor (slot)."""
    try:
        status = os.lstat(what) if isinstance(what, str) else os.fstat(_fds[what])
    except (OSError, KeyError):
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_nlink, status.st_mode


_CALLS: dict[str, Callable[..., Any]] = {
    **{
        call.__name__.rstrip("_"): call
        for call in (
            enter,
            populate,
            fork,
            make_equal,
            umask,
            open_,
            close,
            dup,
            reopen,
            read,
            pread,
            readv,
            write,
            pwrite,
            writev,
            direct,
            lseek,
            ftruncate,
            fallocate,
            copy_range,
            sync,
            map_,
            keep_map,
            unmap,
            load,
            store,
            msync,
            fstat,
            fchmod,
            fchown,
            flock,
            lockf,
            ofd,
            stat_,
            read_path,
            statfs,
            listdir,
            rename,
            link,
            utimens,
            access,
            setxattr,
            listxattr,
            fsetxattr,
            snapshot,
            settle,
        )
    },
    "truncate": os.truncate,
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "mkdir": os.mkdir,
    "symlink": os.symlink,
    "readlink": os.readlink,
    "mknod": os.mknod,
    "chmod": os.chmod,
    "chown": lambda path, uid, gid, follow: os.chown(path, uid, gid, follow_symlinks=follow),
    "getxattr": os.getxattr,
    "removexattr": os.removexattr,
}


def serve(orders: IO[bytes], answers: IO[bytes]) -> None:
    while True:
        try:
            what, arguments, watched = pickle.load(orders)
        except EOFError:
            return
        before = [_watch(path) for path in watched]
        try:
            result: tuple[str, Any] = "ok", _CALLS[what](*map(expanded, arguments))
        except OSError as error:
            result = "error", errno.errorcode.get(error.errno or 0, str(error))
        except (ValueError, OverflowError) as error:  # mmap of an empty file, a NUL in a name
            result = "error", str(error)
        after = [_watch(path) for path in watched]
        pickle.dump((result, before, after), answers)
        answers.flush()


def main() -> None:
    orders, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(orders, answers)


if __name__ == "__main__":
    sys.exit(main())
