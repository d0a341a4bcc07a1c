"""Verified opens, and the walk of ``ckptfs verify``.

Damaged or modified (DESIGN §3): bytes that differ from the record while size and mtime are as
recorded have rotted, and are rolled back; where size or mtime moved, somebody edited the file
behind ckptfs, and it is served as it is. A mismatch is confirmed once by a read that bypasses the
page cache before anything acts on it. Thread-safe.
"""

from __future__ import annotations

import contextlib
import enum
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ckptfs import format as fmt
from ckptfs import history, osfs
from ckptfs.commit import Committer
from ckptfs.digest import same_digest
from ckptfs.errors import RecordDamaged, Rotten
from ckptfs.format import Record
from ckptfs.layout import Layout
from ckptfs.osfs import FileSystem
from ckptfs.structure import Verdict

_Stamp = tuple[tuple[int, int], tuple[int, int, int]]
_REMEMBERED = 100_000  # verified versions kept in mind; about 200 bytes each


class Condition(enum.Enum):
    OK = "ok"
    DAMAGED = "damaged"  # the bytes rotted under an intact record
    RECORD_DAMAGED = "record-damaged"  # the record fails its own checksum: the bytes are unproven
    BROKEN = "broken"  # as committed, but not a whole file of its format
    MODIFIED = "modified"  # edited behind ckptfs: served as it is
    UNRECORDED = "unrecorded"  # was there before ckptfs, or written in place
    UNREADABLE = "unreadable"
    MISSING = "missing"  # asked for by name, or gone while the walk was under way


BAD = frozenset(
    {Condition.DAMAGED, Condition.RECORD_DAMAGED, Condition.BROKEN, Condition.UNREADABLE}
)


@dataclass(frozen=True)
class Finding:
    path: str
    condition: Condition
    size_bytes: int = 0
    record: Record | None = None
    detail: str = ""


def examine(layout: Layout, at: int, name: str, *, digest_modified: bool = False) -> Finding:
    """Compare ``at/name`` with its record. ``digest_modified`` also reads files whose mtime
    moved while the size did not: the same bytes under a new time are still what was committed.

    Raises OSError where the file cannot be opened or read.
    """
    fs = layout.fs
    with osfs.opened(fs, at, name, osfs.O_RDONLY) as fd:
        status = fs.stat(fd)
        size = status.st_size
        try:
            record = layout.read_record(fd)
            if record is None:
                return Finding(name, Condition.UNRECORDED, size)
            same_size = size == record.size_bytes
            touched = status.st_mtime_ns != record.mtime_ns
            if not same_size or (touched and not digest_modified):
                return Finding(name, Condition.MODIFIED, size, record, "edited outside ckptfs")
            if same_digest(fs, fd, size, record.digest) or _confirmed_good(fs, at, name, record):
                broken = record.structure == Verdict.BROKEN.value
                condition = Condition.BROKEN if broken else Condition.OK
                return Finding(name, condition, size, record)
        except RecordDamaged as error:
            return Finding(name, Condition.RECORD_DAMAGED, size, None, str(error))
        if touched or fs.stat(fd).st_mtime_ns != status.st_mtime_ns:
            return Finding(name, Condition.MODIFIED, size, record, "edited outside ckptfs")
        return Finding(name, Condition.DAMAGED, size, record, "digest does not match the record")


def _confirmed_good(fs: FileSystem, at: int, name: str, record: Record) -> bool:
    """Read again past the page cache: bad memory exists, and must not cost a good file."""
    try:
        fd = fs.open_direct(at, name)
    except OSError:
        return False
    try:
        return same_digest(fs, fd, record.size_bytes, record.digest)
    except OSError:
        return False
    finally:
        fs.close(fd)


class Guard:
    """Verified opens over one store (DESIGN C5)."""

    def __init__(self, committer: Committer) -> None:
        self.committer, self.layout, self.fs = committer, committer.layout, committer.fs
        self._known: OrderedDict[tuple[int, int], tuple[int, int, int]] = OrderedDict()
        self._guard = threading.Lock()

    def remember(self, fd: int) -> None:
        """The version of ``fd`` is as its record says; asked again only once it changes."""
        self._remember(_stamp(self.fs.stat(fd)))

    def _remember(self, stamp: _Stamp) -> None:
        key, seen = stamp
        with self._guard:
            self._known[key] = seen
            self._known.move_to_end(key)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)

    def known_good(self, at: int, name: str) -> bool:
        key, seen = _stamp(self.fs.lstat(at, name))
        with self._guard:
            return self._known.get(key) == seen

    def ensure(self, at: int, name: str, path: str) -> Finding | None:
        """Make sure that opening ``at/name`` gives good bytes.

        Returns None when it did already, or the finding after a rollback: the name then stands
        for another inode. The rollback is durable on return. Raises Rotten where no good
        generation is left.
        """
        if self.known_good(at, name):
            return None
        stamp = _stamp(self.fs.lstat(at, name))
        if stamp[0] in self.committer.growth.torn:
            raise Rotten(f"{path}: half extended, and could not be cut back; remount to repair it")
        finding = examine(self.layout, at, name)
        if finding.condition not in (Condition.DAMAGED, Condition.RECORD_DAMAGED):
            self._remember(stamp)
            return None
        with self.committer.path_lock(at, name):
            if _stamp(self.fs.lstat(at, name)) == stamp:
                self._roll_back(at, name, path, finding)
                return finding
        # Replaced or rolled back by somebody else meanwhile, or merely linked: look again.
        return self.ensure(at, name, path) or finding

    def require_good(self, at: int, name: str, path: str) -> None:
        """Make sure that a kept generation gives good bytes. Raises Rotten."""
        if self.known_good(at, name):
            return
        stamp = _stamp(self.fs.lstat(at, name))
        finding = examine(self.layout, at, name, digest_modified=True)
        if finding.condition in (Condition.DAMAGED, Condition.RECORD_DAMAGED):
            raise Rotten(f"{path}: {finding.detail}")
        self._remember(stamp)

    def _roll_back(self, at: int, name: str, path: str, finding: Finding) -> None:
        lineage = finding.record.lineage if finding.record else None
        source = self._newest_good(finding.record) if finding.record else None
        if source is None or lineage is None:
            raise Rotten(
                f"{path}: {finding.detail}, and no good generation is left; the file is where it "
                "was, restore it from a copy"
            )
        self.committer.require_writable()
        quarantined: dict[str, object] = {"path": path, "reason": finding.detail}
        with osfs.opened(self.fs, self.layout.history, lineage, osfs.DIRECTORY) as folder:
            draft = fmt.new_txid()
            self.fs.link(at, name, self.layout.stage, draft)
            self.layout.put_aside(self.layout.stage, draft, self.layout.quarantine, quarantined)
            self.committer.sync_dir(self.layout.quarantine)
            # By way of stage: history lets go of the good version only once it is settled.
            draft = fmt.new_txid()
            self.fs.link(folder, str(source.generation), self.layout.stage, draft)
            self._inherit(at, name, draft)
            self.fs.rename(self.layout.stage, draft, at, name)
            self.committer.sync_dir(at)
            with contextlib.suppress(OSError):
                self.fs.unlink(folder, str(source.generation))

    def _inherit(self, at: int, name: str, draft: str) -> None:
        """Who may read a file may have changed since that generation: owner, mode and ACL are
        those of the version that it replaces."""
        with (
            osfs.opened(self.fs, at, name, osfs.O_RDONLY) as rotten,
            osfs.opened(self.fs, self.layout.stage, draft, osfs.O_RDONLY) as good,
        ):
            self.fs.copy_metadata(rotten, good, skip=fmt.XATTR)
            self.fs.fsync(good)

    def _newest_good(self, rotten: Record) -> Record | None:
        """The newest good generation before the rotten one. Later ones can be there where two
        hard links of one version went separate ways; they belong to the other name."""
        lineage = rotten.lineage
        for generation in history.generations(self.layout, lineage):
            if generation >= rotten.generation:
                continue
            with (
                contextlib.suppress(OSError),
                osfs.opened(self.fs, self.layout.history, lineage, osfs.DIRECTORY) as folder,
            ):
                finding = examine(self.layout, folder, str(generation), digest_modified=True)
                if finding.condition is Condition.OK:
                    return finding.record
        return None


def _stamp(status: osfs.Status) -> _Stamp:
    """Identity and state of a version: ctime moves with every change that anybody can make."""
    return (status.st_dev, status.st_ino), (
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


# --- the walk ------------------------------------------------------------------------------------


def walk(fs: FileSystem, root: int, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Every regular file below ``root``: relative path and size. The control directory is not."""
    with osfs.opened(fs, root, ".", osfs.DIRECTORY) as here:
        for name in sorted(fs.listdir(here)):
            if not prefix and name == fmt.CONTROL:
                continue
            with contextlib.suppress(FileNotFoundError):
                status = fs.lstat(here, name)
                if osfs.is_directory(status):
                    with osfs.opened(fs, here, name, osfs.DIRECTORY) as below:
                        yield from walk(fs, below, f"{prefix}{name}/")
                elif osfs.is_regular(status):
                    yield prefix + name, status.st_size


def examine_path(layout: Layout, path: str) -> Finding:
    """Examine a path relative to the root; errors become findings."""
    folder, _, name = path.rpartition("/")
    try:
        at = osfs.open_below(layout.fs, layout.root, folder)
        try:
            finding = examine(layout, at, name, digest_modified=True)
        finally:
            layout.fs.close(at)
    except FileNotFoundError:
        return Finding(path, Condition.MISSING, detail="no such file")
    except OSError as error:
        return Finding(path, Condition.UNREADABLE, detail=error.strerror or str(error))
    return Finding(path, finding.condition, finding.size_bytes, finding.record, finding.detail)


def examine_all(layout: Layout, paths: list[str], jobs: int) -> Iterator[Finding]:
    """Examine in parallel, in the order given. Memory: 8 MiB a job at most."""
    with ThreadPoolExecutor(jobs, thread_name_prefix="ckptfs-verify") as pool:
        yield from pool.map(lambda path: examine_path(layout, path), paths)
