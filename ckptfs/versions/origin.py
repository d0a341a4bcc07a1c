"""The bytes that a version goes on from: an open for writing that does not truncate the file.

The staged file shares the blocks of its base where the filesystem can (XFS, btrfs). Elsewhere
(ext4) it has a hole there, filled once something below the end of the base is changed; see
``extend.py`` for the commit of a file that has only grown. Who changes a version holds its
``staged.lock``.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict

from ckptfs.disk import osfs
from ckptfs.disk.digest import Before, Hasher, hash_range
from ckptfs.disk.filesystem import FileSystem
from ckptfs.disk.locks import leaf
from ckptfs.errors import RecordDamaged, Rotten
from ckptfs.records import format as fmt
from ckptfs.records.format import Record
from ckptfs.records.layout import Layout
from ckptfs.structure import Verdict
from ckptfs.versions.staged import Base, Fingerprint, Inode, Staged, fingerprint, inode_of

COPIED_AT_ONCE_BYTES = 1 << 20  # a short file is copied when it is opened, a rename commits it
_STATES_REMEMBERED = 1024  # about 4 KB each


def start(layout: Layout, staged: Staged, at: int, name: str, copied_bytes: int | None) -> None:
    """Let ``staged`` go on from the verified version at ``at/name``. One longer than
    ``copied_bytes`` may be left with a hole, for callers that know of :class:`Base`."""
    fs = layout.fs
    with contextlib.ExitStack() as on_error:
        fd = fs.open(at, name, osfs.O_RDONLY)
        on_error.callback(fs.close, fd)
        record = _record(layout, fd)
        base = _base(fs, fd, record)
        try:
            fs.clone(fd, staged.fd)
            shared = True
        except OSError:
            shared = False
        if copied_bytes is not None and base is not None and base[2].size_bytes > copied_bytes:
            on_error.pop_all()
            staged.base = Base(fs, fd, *base)
            staged.base.filled = shared
            if not shared:
                fs.truncate(staged.fd, staged.base.size)
                _note(fs, staged, staged.base.size)
        elif not shared:
            fs.copy(fd, staged.fd, 0, fs.stat(fd).st_size)
        fs.copy_times(fd, staged.fd)
        staged.continues = Verdict(record.structure) if record else None
    staged.as_opened = fingerprint(fs, staged.fd)


def _record(layout: Layout, fd: int) -> Record | None:
    with contextlib.suppress(RecordDamaged):
        return layout.read_record(fd)
    return None


def _base(
    fs: FileSystem, fd: int, record: Record | None
) -> tuple[Inode, Fingerprint, Record] | None:
    """None where the bytes are not known to be those of the record: somebody may be storing
    to them through a mapping, without a trace."""
    at = fingerprint(fs, fd)
    if record is None or record.live or at != (record.size_bytes, record.mtime_ns):
        return None
    return inode_of(fs, fd), at, record


def change(staged: Staged, offset: int) -> None:
    """Ahead of every write or cut at ``offset``."""
    base = staged.base
    if base is not None and offset < base.size:
        fill(staged)
        base.intact = False


def fill(staged: Staged) -> None:
    """Copy the bytes of the base into the hole; does nothing where there is none."""
    base = staged.base
    if base is None or base.filled:
        return
    fs = base.fs
    untouched = fingerprint(fs, staged.fd) == staged.as_opened
    fs.copy(base.fd, staged.fd, 0, base.size)
    if untouched:
        fs.copy_times(base.fd, staged.fd)
    base.intact = base.intact and fingerprint(fs, base.fd) == base.fingerprint
    base.filled = True
    _note(fs, staged, 0)


def _note(fs: FileSystem, staged: Staged, missing_bytes: int) -> None:
    """For who finds the version in salvage after a crash."""
    with contextlib.suppress(OSError):
        note = fmt.staged_note(staged.path, missing_bytes)
        fs.setxattr(staged.fd, fmt.XATTR, note)


def read(fs: FileSystem, staged: Staged, size: int, offset: int) -> bytes:
    if staged.base is None:
        return fs.read(staged.fd, size, offset)
    return staged.base.read(staged.fd, size, offset)


class Digests:
    """How far the hash of a committed file had come at its end: who goes on with the file goes on
    hashing. Thread-safe."""

    def __init__(self, fs: FileSystem) -> None:
        self._fs = fs
        self._states: OrderedDict[Inode, tuple[Fingerprint, str, Hasher]] = OrderedDict()
        self._guard = leaf()

    def hash(self, staged: Staged, size: int, algorithm: str, clean: Before | None) -> Hasher:
        """Of the whole version; of an intact base only what came after it is read."""
        base = staged.base
        if base is None or not base.intact:
            return hash_range(self._fs, staged.fd, (0, size), algorithm, before=clean, sums=True)
        state = self._state(base, algorithm)
        added = base.size, size
        return hash_range(self._fs, staged.fd, added, algorithm, after=state, before=clean)

    def _state(self, base: Base, algorithm: str) -> Hasher:
        with self._guard:
            at, of, state = self._states.get(base.inode, (None, "", None))
        if state is not None and (at, of) == (base.fingerprint, algorithm):
            return state
        state = hash_range(self._fs, base.fd, (0, base.size), algorithm, sums=True)
        # Else rot since the open would get a digest of its own.
        if base.record.algorithm == algorithm and not base.record.digest.endswith(
            f":{state.hexdigest()}"
        ):
            raise Rotten("the version that was gone on with has rotted meanwhile")
        return state

    def remember(self, staged: Staged, algorithm: str) -> None:
        """The version is committed as it was digested."""
        if staged.hasher is None or staged.sealed is None:
            return
        with contextlib.suppress(OSError), self._guard:
            inode = inode_of(self._fs, staged.fd)
            self._states[inode] = staged.sealed, algorithm, staged.hasher
            self._states.move_to_end(inode)
            if len(self._states) > _STATES_REMEMBERED:
                self._states.popitem(last=False)

    def forget(self) -> None:
        with self._guard:
            self._states.clear()
