"""The control directory of one store: its folders, lock, generation counter and records.

Invariants: a generation number is used once, also across crashes (numbers are reserved in blocks,
durable before use); a record is durable before the version it belongs to is published (xattr: by
the fsync that follows; sidecar: by its own install). Thread-safe.
"""

from __future__ import annotations

import contextlib
import errno
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ckptfs.disk import osfs
from ckptfs.disk.filesystem import FileSystem, Status
from ckptfs.errors import AlreadyServed, CannotServe, RecordDamaged
from ckptfs.records import format as fmt
from ckptfs.records import parts
from ckptfs.records.format import Record

_GENERATIONS_RESERVED = 1024
_LOOKED_AT_S = 0.2  # at least as long as a command has the lock that only sees who holds it
_GENERATIONS = 1 << 62  # no counter of ours comes that far


@dataclass(frozen=True)
class Amount:
    """Of files."""

    count: int
    size_bytes: int

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.count + other.count, self.size_bytes + other.size_bytes)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.count - other.count, self.size_bytes - other.size_bytes)

    def fits(self, other: Amount) -> bool:
        return self.count <= other.count and self.size_bytes <= other.size_bytes


class Layout:
    """``.ckptfs`` below an open root directory."""

    def __init__(self, fs: FileSystem, root: int, control: int, folders: dict[str, int]) -> None:
        self.fs, self.root, self.control = fs, root, control
        self.stage, self.history = folders[fmt.STAGE], folders[fmt.HISTORY]
        self.salvage, self.quarantine = folders[fmt.SALVAGE], folders[fmt.QUARANTINE]
        self.sidecar = folders[fmt.SIDECAR]
        self._folders = folders
        self._counter_lock = threading.Lock()
        self._next = self._reserved = 0
        self._lock_fd: int | None = None
        self.added_aside = Amount(0, 0)  # since the layout was opened
        self._counting = threading.Lock()
        self.uses_sidecars = bool(fs.listdir(self.sidecar))  # for some file

    # --- opening -------------------------------------------------------------------------------

    @classmethod
    def create(cls, fs: FileSystem, root: int, where: str) -> Layout:
        """Open the layout, making what is missing; what was made is durable on return.

        Raises UnknownLayout, WrongPart, CannotServe (no room, no permission, read-only).
        """
        try:
            _make_directory(fs, root, fmt.CONTROL)
            parts.require(fs, root, fmt.CONTROL, where)
            control = fs.open(root, fmt.CONTROL, osfs.DIRECTORY)
            with _closed_on_error(fs, control):
                cls._complete(fs, root, control, where)
                return cls._opened(fs, root, control, where)
        except OSError as error:
            raise CannotServe(
                f"{where}: cannot prepare {fmt.CONTROL}: {error.strerror}; "
                f"{_advice(fs, root, error)}"
            ) from None

    @classmethod
    def _complete(cls, fs: FileSystem, root: int, control: int, where: str) -> None:
        """Make what is missing (tools that copy trees leave out empty folders). ``format`` comes
        last: where it stands, everything above it is durable."""
        known = _read_format(fs, control, where)
        made = [_make_directory(fs, control, name) for name in fmt.SUBDIRECTORIES]
        if any(made) or not known:
            fs.fsync_dir(control)
        if not known:
            fs.fsync_dir(root)
            install(fs, control, fmt.FORMAT, fmt.format_file(), control)

    @classmethod
    def existing(cls, fs: FileSystem, root: int, where: str) -> Layout | None:
        """Open the layout without changing anything; None where there is none. Raises
        UnknownLayout, WrongPart, and OSError."""
        if not parts.require(fs, root, fmt.CONTROL, where):
            return None
        control = fs.open(root, fmt.CONTROL, osfs.DIRECTORY)
        with _closed_on_error(fs, control):
            if _read_format(fs, control, where):
                return cls._opened(fs, root, control, where)
        fs.close(control)
        return None

    @classmethod
    def _opened(cls, fs: FileSystem, root: int, control: int, where: str) -> Layout:
        for name in (fmt.LOCK, fmt.COUNTER):
            parts.require(fs, control, name, where)
        folders: dict[str, int] = {}
        with contextlib.ExitStack() as on_error:
            for name in fmt.SUBDIRECTORIES:
                folders[name] = parts.open_folder(fs, control, name, where)
                on_error.callback(fs.close, folders[name])
            layout = cls(fs, root, control, folders)
            on_error.pop_all()
        return layout

    def close(self) -> None:
        if self._lock_fd is not None:
            self.fs.close(self._lock_fd)
            self._lock_fd = None
        for fd in (*self._folders.values(), self.control):
            self.fs.close(fd)

    def take_lock(self, where: str, mountpoint: str = "") -> None:
        """Be the one daemon of this directory. Raises AlreadyServed, naming the other."""
        parts.require(self.fs, self.control, fmt.LOCK, where)
        fd = self.fs.open(self.control, fmt.LOCK, osfs.O_RDWR | osfs.O_CREAT)
        with _closed_on_error(self.fs, fd):
            if not _taken(fd):
                holder = parts.parse(self.fs.read(fd, 4096, 0))
                raise AlreadyServed(
                    f"{where}: served already, by process {holder.get('pid', '?')} on host "
                    f"{holder.get('host', '?')}; see `ckptfs status`"
                )
            owner = {
                "host": osfs.host_name(),
                "pid": osfs.process_id(),
                "mountpoint": mountpoint or where,  # where commands given the directory ask
            }
            self.fs.truncate(fd, 0)
            _write(self.fs, fd, json.dumps(owner).encode() + b"\n")
            self._lock_fd = fd

    @property
    def lock_fd(self) -> int:
        assert self._lock_fd is not None
        return self._lock_fd

    def keep_lock(self, fd: int) -> None:
        """Go on with a lock that this process has taken, as another program."""
        self._lock_fd = fd

    # --- generations ---------------------------------------------------------------------------

    def next_generation(self, last: int = 0) -> int:
        """A number larger than ``last`` and every one before it, also after a crash."""
        with self._counter_lock:
            if max(self._next, last) >= self._reserved:
                first = max(self._next, last, self.stored_counter())
                mark = str(first + _GENERATIONS_RESERVED).encode() + b"\n"
                install(self.fs, self.stage, fmt.COUNTER, mark, self.control)
                self._next, self._reserved = first, first + _GENERATIONS_RESERVED
            self._next = max(self._next, last) + 1
            return self._next

    def stored_counter(self) -> int:
        """What is on disk: above every generation there is, unless it is damaged (then 0)."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            counted = int(parts.read(self.fs, self.control, fmt.COUNTER))
            return counted if 0 <= counted < _GENERATIONS else 0
        return 0

    # --- records -------------------------------------------------------------------------------

    def read_record(self, fd: int) -> Record | None:
        """The record of the open file; None where there is none. Raises RecordDamaged."""
        value = self.raw_record(fd)
        return None if value is None else Record.from_bytes(value)

    def raw_record(self, fd: int) -> bytes | None:
        """Its bytes, intact or not."""
        value = self.fs.getxattr(fd, fmt.XATTR)
        if value is None and self.uses_sidecars:
            value = self._read_sidecar(fd)
        return value

    def write_record(self, fd: int, record: Record) -> None:
        """Attach the record. As an xattr it is durable after the next fsync of ``fd``; as a
        sidecar, where the filesystem has no room for the xattr, on return."""
        value = record.to_bytes()
        try:
            self._set_record(fd, record)
        except OSError as error:
            if error.errno not in osfs.NO_XATTR:
                raise
            self.fs.removexattr(fd, fmt.XATTR)
            install(self.fs, self.stage, _inode_name(self.fs, fd), value, self.sidecar)
            self.uses_sidecars = True

    def _set_record(self, fd: int, record: Record) -> None:
        try:
            self.fs.setxattr(fd, fmt.XATTR, record.to_bytes())
        except OSError as error:
            if not record.sums or error.errno not in osfs.NO_XATTR:
                raise
            self.fs.setxattr(fd, fmt.XATTR, replace(record, sums="").to_bytes())

    def probe_xattrs(self) -> None:
        """Find out before the first commit whether records must lie in sidecars. Holds the lock."""
        assert self._lock_fd is not None
        try:
            self.fs.setxattr(self._lock_fd, fmt.XATTR, fmt.staged_note(fmt.LOCK))
        except OSError as error:
            self.uses_sidecars = self.uses_sidecars or error.errno in osfs.NEVER_XATTR

    def has_sidecar(self, fd: int) -> bool:
        """Whether the record of this file lies in one."""
        return self.uses_sidecars and self.fs.getxattr(fd, fmt.XATTR) is None

    def remove_record(self, fd: int) -> None:
        """Durable on return."""
        if self.fs.getxattr(fd, fmt.XATTR) is not None:
            self.fs.removexattr(fd, fmt.XATTR)
            self.fs.fsync(fd)
        self.drop_sidecar(fd)

    def drop_sidecar(self, fd: int) -> None:
        if self.uses_sidecars:
            with contextlib.suppress(FileNotFoundError):
                self.fs.unlink(self.sidecar, _inode_name(self.fs, fd))
                self.fs.fsync_dir(self.sidecar)

    def _read_sidecar(self, fd: int) -> bytes | None:
        """Inode numbers are reused, so a sidecar counts only while size and mtime agree; one that
        is damaged counts."""
        try:
            value = parts.read(self.fs, self.sidecar, _inode_name(self.fs, fd))
            record = Record.from_bytes(value)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return b""  # what is no file stands for a record that was lost
        except RecordDamaged:
            return value
        status = self.fs.stat(fd)
        fits = record is not None and (record.size_bytes, record.mtime_ns) == (
            status.st_size,
            status.st_mtime_ns,
        )
        return value if fits else None

    def read_note(self, name: str) -> dict[str, object]:
        """A file of the control directory that only informs; empty if it is not there."""
        try:
            return parts.parse(parts.read(self.fs, self.control, name))
        except OSError:
            return {}

    def write_note(self, name: str, note: dict[str, object]) -> None:
        install(self.fs, self.stage, name, json.dumps(note).encode() + b"\n", self.control)

    # --- salvage and quarantine ----------------------------------------------------------------

    def put_aside(self, at: int, name: str, folder: int, story: dict[str, object]) -> str:
        """Move a file to salvage or quarantine with a note beside it, if there is room for one.
        Returns its new name."""
        aside = fmt.new_txid()
        note = json.dumps({**story, "time_ns": self.fs.now_ns()}).encode() + b"\n"
        make = osfs.O_WRONLY | osfs.O_CREAT | osfs.O_EXCL
        try:
            with osfs.opened(self.fs, folder, f"{aside}{fmt.NOTE}", make) as fd:
                _write(self.fs, fd, note)
        except OSError:  # a full disk: the file must not stay in stage for it
            with contextlib.suppress(OSError):
                self.fs.unlink(folder, f"{aside}{fmt.NOTE}")
        self.fs.rename(at, name, folder, aside)
        with contextlib.suppress(OSError), self._counting:
            self.added_aside += Amount(1, held_bytes(self.fs.lstat(folder, aside)))
        return aside

    def amount_aside(self) -> Amount:
        """What lies in salvage and quarantine. Reads no note."""
        total = Amount(0, 0)
        for folder in (self.salvage, self.quarantine):
            for name in self.fs.listdir(folder):
                if not name.endswith(fmt.NOTE):
                    with contextlib.suppress(FileNotFoundError):
                        total += Amount(1, held_bytes(self.fs.lstat(folder, name)))
        return total

    def drop_aside(self, folder: int, entry: str) -> None:
        for name in (entry, f"{entry}{fmt.NOTE}"):
            with contextlib.suppress(FileNotFoundError):
                self.fs.unlink(folder, name)

    def set_aside(self, folder: int) -> list[dict[str, object]]:
        """What lies in salvage or quarantine, oldest first: the notes, each with ``id``, ``size``,
        ``uid`` and, whatever stands in them, ``time_ns``, ``path``, ``reason`` of their types."""
        found: list[dict[str, object]] = []
        for name in self.fs.listdir(folder):
            if name.endswith(fmt.NOTE):
                continue
            with contextlib.suppress(FileNotFoundError):  # another thread may let it go
                if osfs.is_regular(self.fs.lstat(folder, name)):
                    found.append(self.story(folder, name))
        return sorted(found, key=lambda story: (int(str(story["time_ns"])), str(story["id"])))

    def story(self, folder: int, name: str) -> dict[str, object]:
        """Of one entry. Raises FileNotFoundError."""
        status = self.fs.lstat(folder, name)
        story: dict[str, object] = {}
        with contextlib.suppress(OSError):
            story = parts.parse(parts.read(self.fs, folder, f"{name}{fmt.NOTE}"))
        if not parts.is_time(story.get("time_ns")):
            story["time_ns"] = max(0, status.st_mtime_ns)
        if not isinstance(story.get("path"), str):
            story["path"] = None
        if not isinstance(story.get("reason"), str):
            story["reason"] = "no note"
        return {**story, "id": name, "size": held_bytes(status), "uid": status.st_uid}


@contextlib.contextmanager
def _closed_on_error(fs: FileSystem, fd: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        fs.close(fd)
        raise


def _taken(fd: int) -> bool:
    deadline = time.monotonic() + _LOOKED_AT_S
    while not osfs.try_lock(fd):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOKED_AT_S / 20)
    return True


def _make_directory(fs: FileSystem, at: int, name: str) -> bool:
    try:
        fs.mkdir(at, name, 0o700)
    except FileExistsError:
        return False
    return True


def _advice(fs: FileSystem, root: int, error: OSError) -> str:
    if isinstance(error, PermissionError):
        with contextlib.suppress(OSError):
            owner = fs.lstat(root, fmt.CONTROL).st_uid
            return f"it belongs to user {owner}: only that user can serve the directory, and root"
    return "ckptfs needs a writable directory"


def _read_format(fs: FileSystem, control: int, where: str) -> bool:
    if not parts.require(fs, control, fmt.FORMAT, where):
        return False
    content = parts.read(fs, control, fmt.FORMAT)
    fmt.check_format_file(content, f"{where}/{fmt.CONTROL}/{fmt.FORMAT}")
    return True


def install(fs: FileSystem, at: int, name: str, content: bytes, target: int) -> None:
    """Put a small file in ``target``, whole and durable on return, by way of ``at``."""
    draft = f"{name}.{fmt.new_txid()}"
    try:
        with osfs.opened(fs, at, draft, osfs.O_WRONLY | osfs.O_CREAT | osfs.O_EXCL) as fd:
            _write(fs, fd, content)
            fs.fsync(fd)
        fs.rename(at, draft, target, name)
    except OSError:
        with contextlib.suppress(OSError):
            fs.unlink(at, draft)
        raise
    fs.fsync_dir(target)


def _write(fs: FileSystem, fd: int, content: bytes) -> None:
    """All of a small file, or OSError."""
    if fs.write(fd, content, 0) != len(content):
        raise OSError(errno.ENOSPC, "short write")


def held_bytes(status: Status) -> int:
    """Of a file that may have a hole; of what is no file nothing."""
    return min(status.st_size, osfs.allocated_bytes(status)) if osfs.is_regular(status) else 0


def _inode_name(fs: FileSystem, fd: int) -> str:
    return str(fs.stat(fd).st_ino)
