"""The control directory of one store: its folders, lock, generation counter and records.

Invariants: a generation number is used once, also across crashes (numbers are reserved in blocks,
durable before use); a record is durable before the version it belongs to is published (xattr: by
the fsync that follows; sidecar: by its own install). Thread-safe.
"""

from __future__ import annotations

import contextlib
import errno
import json
from dataclasses import replace

from ckptfs.disk import osfs
from ckptfs.disk.filesystem import FileSystem
from ckptfs.disk.locks import Rank, ranked
from ckptfs.errors import CannotServe, RecordDamaged
from ckptfs.records import format as fmt
from ckptfs.records import parts
from ckptfs.records.aside import Aside
from ckptfs.records.format import Record
from ckptfs.records.parts import closed_on_error, write_whole
from ckptfs.records.serving import ServingLock

_GENERATIONS_RESERVED = 1024
_GENERATIONS = 1 << 62  # no counter of ours comes that far


class Layout:
    """``.ckptfs`` below an open root directory."""

    def __init__(self, fs: FileSystem, root: int, control: int, folders: dict[str, int]) -> None:
        self.fs, self.root, self.control = fs, root, control
        self.stage, self.history = folders[fmt.STAGE], folders[fmt.HISTORY]
        self.salvage, self.quarantine = folders[fmt.SALVAGE], folders[fmt.QUARANTINE]
        self.sidecar, self.sets = folders[fmt.SIDECAR], folders[fmt.SETS]
        self._folders = folders
        self._counter_lock = ranked(Rank.COUNTER, reentrant=False)
        self._next = self._reserved = 0
        self.lock = ServingLock(fs, control)
        self.aside = Aside(fs, self.salvage, self.quarantine)
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
            with closed_on_error(fs, control):
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
        with closed_on_error(fs, control):
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
        self.lock.close()
        for fd in (*self._folders.values(), self.control):
            self.fs.close(fd)

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
        try:
            self.fs.setxattr(self.lock.fd, fmt.XATTR, fmt.staged_note(fmt.LOCK))
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
    put_whole(fs, at, name, content, target)
    fs.fsync_dir(target)


def put_whole(fs: FileSystem, at: int, name: str, content: bytes, target: int) -> None:
    """The same, durable once ``target`` is."""
    draft = f"{name}.{fmt.new_txid()}"
    try:
        with osfs.opened(fs, at, draft, osfs.O_WRONLY | osfs.O_CREAT | osfs.O_EXCL) as fd:
            write_whole(fs, fd, content)
            fs.fsync(fd)
        fs.rename(at, draft, target, name)
    except OSError:
        with contextlib.suppress(OSError):
            fs.unlink(at, draft)
        raise


def _inode_name(fs: FileSystem, fd: int) -> str:
    return str(fs.stat(fd).st_ino)
